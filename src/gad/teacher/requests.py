"""What is asked of an API and what comes of it: frozen, and validated at birth."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gad.records import Message

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode
KEY_LENGTH = 32
"""Hexadecimal digits of a key: 128 bits, so that 10 million keys collide with probability 1.5e-25."""


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """One reply to buy.

    id: who asked, e.g. the prompt's id; not part of the key.
    sample: which of several replies to the same messages.
    max_tokens: in place of the config's. top_logprobs: ask for so many alternatives of every token.
    """

    id: str
    messages: tuple[Message, ...]
    sample: int = 0
    max_tokens: int | None = None
    top_logprobs: int | None = None

    def __post_init__(self) -> None:
        if not self.messages:
            raise ValueError(f"request {self.id}: no messages")
        if self.sample < 0:
            raise ValueError(f"request {self.id}: sample {self.sample} is negative")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ValueError(f"request {self.id}: max_tokens {self.max_tokens} leaves no room for a reply")


def request_key(model: str, messages: tuple[Message, ...], sampling: Mapping[str, Any], sample: int) -> str:
    """The identity of a purchase: 32 hexadecimal digits of a hash of all that shapes the reply."""
    asked = {
        "model": model,
        "messages": [[message.role, message.content] for message in messages],
        "sampling": dict(sampling),
        "sample": sample,
    }
    return hashlib.sha256(_canonical(asked).encode()).hexdigest()[:KEY_LENGTH]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens as the provider counted them. `cached` is the part of `prompt` that it read from its cache, `reasoning`
    the part of `completion` that the reply does not show."""

    prompt: int
    completion: int
    cached: int = 0
    reasoning: int = 0

    def __post_init__(self) -> None:
        if min(self.prompt, self.completion, self.cached, self.reasoning) < 0:
            raise ValueError(f"negative token counts: {self}")

    def as_dict(self) -> dict[str, int]:
        """As in `teacher.jsonl`."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "cached_tokens": self.cached,
            "reasoning_tokens": self.reasoning,
        }

    @classmethod
    def from_dict(cls, row: Mapping[str, int]) -> Usage:
        """Back from `as_dict`."""
        return cls(row["prompt_tokens"], row["completion_tokens"], row["cached_tokens"], row["reasoning_tokens"])


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply that was paid for.

    text: "" where the model wrote nothing. refusal: a refusal that the provider keeps apart from the text.
    model: as the provider names it; None where it does not say.
    finish_reason: stop, length, content_filter, ... as the provider gave it; None where it gave none.
    usage: None where the provider sent none; `cost_usd` is then an estimate (`cost_estimated`).
    created: seconds since 1970, when the reply arrived. request_id: the provider's.
    logprobs: the first token's likeliest alternatives and their log-probabilities, where asked for and given.
    known: taken from the ledger, not bought now.
    """

    key: str
    id: str
    sample: int
    text: str
    model: str | None
    finish_reason: str | None
    usage: Usage | None
    cost_usd: float
    created: float
    request_id: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    cost_estimated: bool = False
    logprobs: Mapping[str, float] = field(default_factory=dict)
    known: bool = False

    @property
    def finished(self) -> bool:
        """False where a length limit or a filter of the provider's cut the reply."""
        return self.finish_reason not in ("length", "content_filter")

    def of(self, request: ApiRequest) -> Reply:
        """The same reply for another request with the same key."""
        return self if request.id == self.id else replace(self, id=request.id)


@dataclass(frozen=True, slots=True)
class GivenUp:
    """A request without a reply, after all its attempts. `reason` is one of few, `message` the provider's own words."""

    key: str
    id: str
    sample: int
    reason: str
    message: str
    known: bool = False

    def of(self, request: ApiRequest) -> GivenUp:
        """The same for another request with the same key."""
        return self if request.id == self.id else replace(self, id=request.id)


Outcome = Reply | GivenUp
