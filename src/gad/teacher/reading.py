"""A request on its way, what it may take, and the reply that an answer makes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from gad.config.teacher import ApiConfig
from gad.teacher.money import PriceList, cost, most_cost, usual_tokens
from gad.teacher.requests import ApiRequest, Reply, Usage
from gad.teacher.wire import Answer, request_body

_USUAL_BYTES_PER_TOKEN = 4.2
_USUAL_REPLY = 329.0
_encode = json.JSONEncoder(ensure_ascii=True, separators=(",", ":")).encode
_MEMORY = 0.02
"""Weight of the newest reply in the running means."""


@dataclass(slots=True)
class Work:
    """A request, from its first attempt to its outcome.

    hold: USD that an attempt costs at most. bytes: of all messages. others: later requests with the same key.
    batch: sent through the Batch API, at its price.
    """

    request: ApiRequest
    key: str
    body: bytes
    bytes: int
    max_tokens: int
    hold: float
    batch: bool = False
    first_time: bool = True
    tokens: float = 0.0
    sent: int = 0
    failures: int = 0
    refusals: int = 0
    others: list[ApiRequest] = field(default_factory=list)

    def cost(self, prices: PriceList, usage: Usage) -> float:
        """USD of a reply with this usage."""
        return cost(prices.prices, usage, batch=self.batch)


def work_of(config: ApiConfig, prices: PriceList, request: ApiRequest, key: str, *, batch: bool = False) -> Work:
    """Make a request ready to be sent."""
    body = _encode(request_body(config, request)).encode()
    most = request.max_tokens or config.sampling.max_tokens
    size = sum(len(message.content.encode("utf-8", "replace")) for message in request.messages)
    return Work(request, key, body, size, most, most_cost(prices.prices, request.messages, most, batch=batch), batch)


class Guess:
    """How many tokens a request will take, from those before it."""

    def __init__(self, max_tokens: int) -> None:
        self._bytes_per_token = _USUAL_BYTES_PER_TOKEN
        self._reply = min(_USUAL_REPLY, float(max_tokens))

    def tokens(self, work: Work) -> float:
        """Prompt and reply together."""
        return work.bytes / self._bytes_per_token + min(self._reply, work.max_tokens)

    def usage(self, work: Work, text: str) -> Usage:
        """Where a provider sends none."""
        return Usage(
            usual_tokens(work.request.messages, self._bytes_per_token),
            min(work.max_tokens, 1 + round(len(text.encode("utf-8", "replace")) / self._bytes_per_token)),
        )

    def learn(self, work: Work, usage: Usage | None) -> None:
        if usage is None or usage.prompt == 0:
            return
        seen = min(max(work.bytes / usage.prompt, 0.5), 10.0)
        self._bytes_per_token += _MEMORY * (seen - self._bytes_per_token)
        self._reply += _MEMORY * (usage.completion - self._reply)


def reply_of(
    work: Work, answer: Answer, headers: Mapping[str, str], prices: PriceList, guess: Guess, now: float
) -> tuple[Reply, float]:
    """The reply, and what it may have cost beyond its price: its price is a guess where the provider sends no usage.

    A gateway's own statement of the price counts where no prices are known.
    """
    usage = answer.usage
    usd = work.cost(prices, usage if usage is not None else guess.usage(work, answer.text))
    if prices.prices is None and answer.stated_usd is not None:
        usd = answer.stated_usd
    reply = Reply(
        key=work.key,
        id=work.request.id,
        sample=work.request.sample,
        text=answer.text,
        model=answer.model,
        finish_reason=answer.finish_reason,
        usage=usage,
        cost_usd=round(usd, 12),
        created=now,
        request_id=headers.get("x-request-id") or headers.get("request-id"),
        reasoning=answer.reasoning,
        refusal=answer.refusal,
        cost_estimated=usage is None,
        logprobs=answer.logprobs,
    )
    return reply, max(0.0, work.hold - usd) if usage is None else 0.0
