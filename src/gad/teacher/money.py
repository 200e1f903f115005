"""What replies cost: prices with their source, a bill, and a cap that counts all that may have been paid."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from gad.config.teacher import ApiConfig, Prices, TeacherConfig
from gad.errors import ConfigError, GadError, TeacherError
from gad.records import Message, Prompt
from gad.teacher.requests import Usage

_SNAPSHOT = re.compile(r"-(\d{4}-\d{2}-\d{2}|\d{8}|\d{4}|latest)$")
_MESSAGE_OVERHEAD = 16
_REQUEST_OVERHEAD = 256
"""Tokens of templates and of system prompts that a server puts in by itself, at most."""
_BYTES_PER_TOKEN = 4.2
"""UTF-8 bytes of English text to a token of today's tokenizers; code and other scripts have fewer."""
_FEWEST_BYTES, _MOST_BYTES = 2.0, 6.0
_SHORT_REPLY, USUAL_REPLY = 20, 329
"""Tokens. 329 is the mean of GPT-5-Chat's replies to LMSYS prompts (arXiv 2511.10643, Table 2)."""


@dataclass(frozen=True, slots=True)
class PriceList:
    """Prices and where they are from, in words; None where there are none."""

    prices: Prices | None
    source: str


@dataclass(frozen=True, slots=True)
class CostEstimate:
    """USD for replies that are not bought yet.

    low, high: the bill lies between, unless replies are shorter than 20 tokens; at high, each is as long as max_tokens.
    at_most: every byte of a prompt a token: what a cap reckons with. prompt_tokens: expected, of all requests.
    reply_tokens: expected, of one reply.
    """

    requests: int
    prompt_tokens: int
    reply_tokens: int
    low: float
    expected: float
    high: float
    at_most: float
    source: str


@dataclass(frozen=True, slots=True)
class Bill:
    """USD. spent: replies that arrived. maybe: what may have been paid for replies that never did (timeouts, kills).
    held: the most that requests under way may cost."""

    spent: float = 0.0
    maybe: float = 0.0
    held: float = 0.0

    @property
    def at_most(self) -> float:
        return self.spent + self.maybe + self.held


class Purse:
    """Keeps the bill and holds money for requests under way, so that the cap is never passed."""

    def __init__(self, cap: float | None, spent: float, maybe: float) -> None:
        self.cap = cap
        self._spent, self._maybe, self._held = spent, maybe, 0.0

    @property
    def bill(self) -> Bill:
        return Bill(self._spent, self._maybe, max(0.0, self._held))

    def fits(self, usd: float) -> bool:
        """Whether a request that may cost so much can be sent now."""
        return self.cap is None or self.bill.at_most + usd <= self.cap

    def hold(self, usd: float) -> None:
        self._held += usd

    def settle(self, held: float, spent: float, maybe: float = 0.0) -> None:
        """A request came back: free what was held for it, and count what it cost."""
        self._held -= held
        self._spent += spent
        self._maybe += maybe


def too_expensive(purse: Purse, usd: float) -> GadError:
    """The error where the cap leaves no room for a request that may cost so much: the input's where nothing is left."""
    bill = purse.bill
    had = f"{bill.spent:.4f} USD are spent" + (f" and up to {bill.maybe:.4f} more may be" if bill.maybe else "")
    text = f"max_cost_usd={purse.cap:g}: {had}, and the next reply may cost {usd:.4f}. Replies so far are kept; "
    if bill.at_most >= (purse.cap or 0.0):
        return ConfigError(f"{text}raise max_cost_usd to go on")
    return TeacherError(f"{text}raise max_cost_usd, or lower sampling.max_tokens, to go on")


def prices_of(config: ApiConfig) -> PriceList:
    """The run file's prices, or the table's.

    Raises ConfigError where there are none while a cap is set: it would cap nothing.
    """
    if config.prices is not None:
        return PriceList(config.prices, "the run file")
    found = _from_table(config.model)
    if found is not None:
        return PriceList(found, f"the package's table of {table_date()}")
    if config.max_cost_usd is not None:
        raise ConfigError(
            f"max_cost_usd={config.max_cost_usd:g}, but the price of {config.model!r} is not known: set "
            "prices.usd_per_million_input and prices.usd_per_million_output (0 for a server of your own)"
        )
    return PriceList(None, "not known: costs are counted as 0")


@cache
def _table() -> dict[str, object]:
    table: dict[str, object] = json.loads(files("gad.teacher").joinpath("prices.json").read_text(encoding="utf-8"))
    return table


def table_date() -> str:
    """The day of the price table, YYYY-MM-DD."""
    return str(_table()["date"])


def _from_table(model: str) -> Prices | None:
    models = _table()["models"]
    assert isinstance(models, dict)
    name = model.rsplit("/", 1)[-1].lower()
    row = models.get(name) or models.get(_SNAPSHOT.sub("", name))
    if row is None:
        return None
    return Prices(
        usd_per_million_input=row[0],
        usd_per_million_output=row[1],
        usd_per_million_cached_input=row[2] if len(row) > 2 else None,
    )


def cost(prices: Prices | None, usage: Usage, *, batch: bool = False) -> float:
    """USD of a reply."""
    if prices is None:
        return 0.0
    per_cached = prices.usd_per_million_cached_input
    cached = min(usage.cached, usage.prompt) if per_cached is not None else 0
    usd = (usage.prompt - cached) * prices.usd_per_million_input + usage.completion * prices.usd_per_million_output
    usd = (usd + cached * (per_cached or 0.0)) / 1e6
    return usd * prices.batch_factor if batch else usd


def most_prompt_tokens(messages: Iterable[Message]) -> int:
    """More tokens than the messages can have: a tokenizer of bytes makes at most one token of each."""
    return _REQUEST_OVERHEAD + sum(len(m.content.encode("utf-8", "replace")) + _MESSAGE_OVERHEAD for m in messages)


def most_cost(prices: Prices | None, messages: Iterable[Message], max_tokens: int, *, batch: bool = False) -> float:
    """USD that a request costs at most."""
    return cost(prices, Usage(most_prompt_tokens(messages), max_tokens), batch=batch)


def usual_tokens(messages: Iterable[Message], bytes_per_token: float = _BYTES_PER_TOKEN) -> int:
    """About how many tokens the messages have."""
    return 3 + sum(4 + round(len(m.content.encode("utf-8", "replace")) / bytes_per_token) for m in messages)


def estimate_cost(
    config: TeacherConfig, prompts: Iterable[Prompt], *, reply_tokens: float | None = None, batch: bool = False
) -> CostEstimate:
    """The expected bill for `replies_per_prompt` replies to each prompt, with an interval. Touches no network.

    reply_tokens: mean length of replies, where some were bought already; otherwise the paper's. Prompts are read once.
    Raises ConfigError where max_cost_usd is set and the price is not known.
    """
    listed = prices_of(config)
    longest = config.sampling.max_tokens
    usual = round(min(reply_tokens or USUAL_REPLY, longest))
    requests = tokens = 0
    low = expected = high = at_most = 0.0
    for prompt in prompts:
        messages = asked_messages(config, prompt)
        number = usual_tokens(messages)
        requests, tokens = requests + 1, tokens + number
        fewest, most = usual_tokens(messages, _MOST_BYTES), usual_tokens(messages, _FEWEST_BYTES) + _REQUEST_OVERHEAD
        low += cost(listed.prices, Usage(fewest, min(_SHORT_REPLY, longest)), batch=batch)
        expected += cost(listed.prices, Usage(number, usual), batch=batch)
        high += cost(listed.prices, Usage(most, longest), batch=batch)
        at_most += most_cost(listed.prices, messages, longest, batch=batch)
    n = config.replies_per_prompt
    return CostEstimate(requests * n, tokens * n, usual, low * n, expected * n, high * n, at_most * n, listed.source)


def asked_messages(config: TeacherConfig, prompt: Prompt) -> tuple[Message, ...]:
    """The prompt as the teacher gets it: with the config's system prompt, where it has none of its own."""
    if config.system_prompt is None or prompt.messages[0].role == "system":
        return prompt.messages
    return (Message("system", config.system_prompt), *prompt.messages)
