"""What flows from stage to stage: frozen, and validated at birth with the value in the message.

Prompt -> TeacherReply -> Example (a prompt with its teacher replies)
Prompt -> Rollout (one sampled reply: ids as sampled) -> RolloutGroup (a prompt's replies with one teacher reply)
two replies -> Verdict (which one a judge prefers)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
Order = Literal["first", "second", "both"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ValueError(f"message role {self.role!r}: use one of {', '.join(get_args(Role))}")
        if not isinstance(self.content, str):
            raise ValueError(f"message content must be text, got {type(self.content).__name__}")

    def as_dict(self) -> dict[str, str]:
        """The form that chat templates and APIs take."""
        return {"role": self.role, "content": self.content}


@dataclass(frozen=True, slots=True)
class Prompt:
    """A conversation that ends with the user's turn; `id` is unique within a set."""

    id: str
    messages: tuple[Message, ...]

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("prompt id is empty")
        if not self.messages:
            raise ValueError(f"prompt {self.id}: no messages")
        if self.messages[-1].role != "user":
            raise ValueError(f"prompt {self.id}: the last message is the {self.messages[-1].role}'s, not the user's")
        if any(message.role == "system" for message in self.messages[1:]):
            raise ValueError(f"prompt {self.id}: a system message may only come first")
        if not self.messages[-1].content.strip():
            raise ValueError(f"prompt {self.id}: the user's last message is empty")

    @classmethod
    def from_text(cls, id: str, text: str, system: str | None = None) -> Prompt:
        """One user turn, with or without a system prompt."""
        head = () if system is None else (Message("system", system),)
        return cls(id, (*head, Message("user", text)))

    @property
    def text(self) -> str:
        """The user's last turn, for people and for near-duplicate search."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class TeacherReply:
    """What the teacher wrote. `finished` is false where a length limit cut the reply."""

    text: str
    model: str = "unknown"
    finished: bool = True

    def __post_init__(self) -> None:
        if not self.text.strip():
            raise ValueError("teacher reply is empty")


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with one or more teacher replies."""

    prompt: Prompt
    replies: tuple[TeacherReply, ...]

    def __post_init__(self) -> None:
        if not self.replies:
            raise ValueError(f"example {self.prompt.id}: no teacher reply")


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled reply.

    token_ids: as sampled, end-of-text included when the reply finished.
    logps: log-probability of every token under the policy that sampled it (nats, at the sampling temperature,
        before top-p and top-k), or empty where the engine does not give them.
    policy_version: the training step whose weights sampled it.
    """

    prompt_id: str
    token_ids: tuple[int, ...]
    text: str
    finished: bool
    logps: tuple[float, ...] = ()
    policy_version: int = 0

    def __post_init__(self) -> None:
        if not self.token_ids:
            raise ValueError(f"rollout of prompt {self.prompt_id}: no tokens; even an empty reply has end-of-text")
        if self.logps and len(self.logps) != len(self.token_ids):
            counts = f"{len(self.logps)} logps, {len(self.token_ids)} tokens"
            raise ValueError(f"rollout of prompt {self.prompt_id}: {counts}")


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The replies to one prompt that are compared with each other and with one teacher reply."""

    example: Example
    teacher: TeacherReply
    rollouts: tuple[Rollout, ...]

    def __post_init__(self) -> None:
        if not self.rollouts:
            raise ValueError(f"group of prompt {self.example.prompt.id}: no rollouts")
        strangers = {rollout.prompt_id for rollout in self.rollouts} - {self.example.prompt.id}
        if strangers:
            raise ValueError(f"group of prompt {self.example.prompt.id} holds rollouts of {sorted(strangers)}")


@dataclass(frozen=True, slots=True)
class GeneratedReply:
    """A reply written to disk for evaluation; `tokens` counts end-of-text where `finished`."""

    id: str
    prompt: tuple[Message, ...]
    completion: str
    tokens: int
    finished: bool

    def __post_init__(self) -> None:
        if self.tokens < 0:
            raise ValueError(f"reply {self.id}: {self.tokens} tokens")

    def as_dict(self) -> dict[str, Any]:
        """One line of `replies/<model>/<set>.jsonl`."""
        return {
            "id": self.id,
            "prompt": [message.as_dict() for message in self.prompt],
            "completion": self.completion,
            "tokens": self.tokens,
            "finished": self.finished,
        }

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> GeneratedReply:
        """Back from `as_dict`."""
        messages = tuple(Message(m["role"], m["content"]) for m in row["prompt"])
        return cls(row["id"], messages, row["completion"], row["tokens"], row["finished"])


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says of two replies to one prompt.

    preference: 1 the first reply is better, 0 the second, 0.5 a tie; in between, the judge's probability.
    order: in which order the judge saw them; "both" where two orders were averaged.
    """

    prompt_id: str
    preference: float
    order: Order = "both"
    raw: str = ""
    cost_usd: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.preference <= 1.0:
            raise ValueError(f"verdict on prompt {self.prompt_id}: preference {self.preference} is not in [0, 1]")
        if self.order not in get_args(Order):
            raise ValueError(f"verdict on prompt {self.prompt_id}: order {self.order!r}")
