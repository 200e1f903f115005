"""What is judged, and the row that comes of it."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from gad.records import Prompt, Verdict

ShownOrder = Literal["first", "second"]
Reader = Literal["probability", "parsed"]

_THINKING = re.compile(r"\A\s*<think(?:ing)?>.*?</think(?:ing)?>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Case:
    """Two replies to one prompt in one order of showing. second is None where the judge brings its own reference.

    order: which of the two the judge sees first.
    """

    prompt: Prompt
    first: str
    second: str | None
    order: ShownOrder

    @property
    def key(self) -> str:
        return f"{self.prompt.id}\x1f{self.order}"

    def sha256(self, judge: str) -> str:
        """Of all that the verdict depends on; `judge` says what the judge is (kind, model, wording)."""
        turns = [[message.role, message.content] for message in self.prompt.messages]
        whole = [judge, turns, self.first, self.second, self.order]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judgement of one case.

    preference: of the first reply, in [0, 1]; None where no verdict could be read: `problem` then says why. It is
        never filled in. scores: (first's, second's), where the judge gives scores. by: how the verdict was read.
    rejected: answers of no use before the last one, which is `raw`.
    """

    case: Case
    preference: float | None
    scores: tuple[float, float] | None
    raw: str
    problem: str | None
    rejected: tuple[str, ...]
    cost_usd: float
    by: Reader = "parsed"
    final: bool = True

    def __post_init__(self) -> None:
        if (self.preference is None) == (self.problem is None):
            raise ValueError(
                f"judgement of prompt {self.case.prompt.id}: preference {self.preference}, problem {self.problem}"
            )
        if self.preference is not None and not 0.0 <= self.preference <= 1.0:
            raise ValueError(
                f"judgement of prompt {self.case.prompt.id}: preference {self.preference} is not in [0, 1]"
            )

    def as_dict(self) -> dict[str, Any]:
        """The part of a verdict row that the judge knows."""
        return {
            "prompt_id": self.case.prompt.id,
            "order": self.case.order,
            "preference": self.preference,
            "scores": None if self.scores is None else list(self.scores),
            "by": self.by,
            "raw": self.raw,
            "problem": self.problem,
            "rejected": list(self.rejected),
            "attempts": len(self.rejected) + 1,
            "cost_usd": self.cost_usd,
            "final": self.final,
        }


class Judge(Protocol):
    """Says which of two replies is better.

    name: folder of its verdicts. identity: kind, model and wording; another identity is another judge.
    orders: the orders to ask a prompt in. writes_reference: the second reply is its own; cases come without one.
    judge: one Judgement for every case, in any order, as they come.
    """

    @property
    def name(self) -> str: ...
    @property
    def identity(self) -> str: ...
    @property
    def writes_reference(self) -> bool: ...
    def orders(self, prompt_id: str) -> tuple[ShownOrder, ...]: ...
    def judge(self, cases: Sequence[Case]) -> Iterator[Judgement]: ...


def conversation(prompt: Prompt) -> str:
    """A prompt as one text: the user's turn alone, or every turn under its role."""
    if len(prompt.messages) == 1:
        return prompt.text
    return "\n\n".join(f"[{message.role}]\n{message.content}" for message in prompt.messages)


def spoken(text: str) -> tuple[str, bool]:
    """An answer without the thinking that some models write first, and whether there was any."""
    rest = _THINKING.sub("", text, count=1)
    return rest.strip(), rest != text


def verdict_of(row: dict[str, Any]) -> Verdict | None:
    """A verdict row back as a record; None for a row without a verdict."""
    if row["preference"] is None:
        return None
    return Verdict(row["prompt_id"], row["preference"], row["order"], row["raw"], row["cost_usd"])
