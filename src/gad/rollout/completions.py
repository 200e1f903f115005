"""A reply as it is asked for at vLLM's /v1/completions, and what the answer must hold. Pure; no HTTP.

Token ids go in and come out, so that what was sampled reaches the policy's loss unchanged; texts are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gad.config.training import Sampling

_ROUNDING = 1e-4
"""A log-probability of 0 may come out so much above it."""


class Away(Exception):
    """No usable answer: ask again, here or elsewhere. `gone`: no connection either, and no request is to blame."""

    def __init__(self, text: str, *, gone: bool = False) -> None:
        super().__init__(text)
        self.gone = gone


class Unfit(Exception):
    """This server will not do for this run: another model, another vocabulary, started in another way."""


class Rejected(Exception):
    """The server says that the request itself is at fault."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, slots=True)
class Wanted:
    """One reply to be sampled. `vocabulary`: ids are below this."""

    prompt_ids: tuple[int, ...]
    seed: int
    limit: int
    sampling: Sampling
    vocabulary: int


@dataclass(frozen=True, slots=True)
class Reply:
    """As sampled. `logps` is empty where top-p or top-k cut the distribution: vLLM's are then of what was left."""

    token_ids: tuple[int, ...]
    logps: tuple[float, ...]
    finished: bool


def question(model: str, wanted: Wanted, stop_ids: frozenset[int]) -> dict[str, Any]:
    """Everything that a server could fill in from the model's generation_config.json is said here."""
    return {
        "model": model,
        "prompt": list(wanted.prompt_ids),
        "max_tokens": wanted.limit,
        "n": 1,
        "seed": wanted.seed,
        "temperature": wanted.sampling.temperature,
        "top_p": wanted.sampling.top_p,
        "top_k": wanted.sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "stop_token_ids": sorted(stop_ids),
        "ignore_eos": True,
        "skip_special_tokens": False,
        "logprobs": 0,
        "return_token_ids": True,
    }


def read_reply(answer: Mapping[str, Any], name: str, wanted: Wanted, stop_ids: frozenset[int]) -> Reply:
    """Raises Away for a reply that was broken off, Unfit for one that is not what was asked for."""
    if answer.get("model") != name:
        raise Unfit(f"was asked for {name!r} and answered as {answer.get('model')!r}")
    choices = answer.get("choices")
    choice = choices[0] if isinstance(choices, list) and len(choices) == 1 else None
    if not isinstance(choice, dict):
        raise Unfit("gave no reply, or several, where one was asked for")
    reason, ids = choice.get("finish_reason"), choice.get("token_ids")
    if reason not in ("stop", "length"):
        raise Away(f"broke a reply off ({reason})")
    if not isinstance(ids, list) or not ids:
        raise Unfit("gives no token ids: return_token_ids needs a newer vLLM")
    if not all(type(token) is int and 0 <= token < wanted.vocabulary for token in ids):
        raise Unfit(f"gave token ids outside the student's {wanted.vocabulary}: it serves another vocabulary")
    if choice.get("prompt_token_ids") not in (None, list(wanted.prompt_ids)):
        raise Unfit("answered another prompt than it was asked")
    finished = reason == "stop"
    if any(token in stop_ids for token in ids[:-1]) or (ids[-1] in stop_ids) != finished:
        raise Unfit("gave token ids whose end-of-text is not where the reply ended")
    if len(ids) > wanted.limit or (not finished and len(ids) < wanted.limit):
        raise Unfit(f"cut a reply after {len(ids)} tokens where {wanted.limit} were asked for")
    return Reply(tuple(ids), _logps(choice, len(ids), wanted.sampling), finished)


def _logps(choice: Mapping[str, Any], count: int, sampling: Sampling) -> tuple[float, ...]:
    holder = choice.get("logprobs")
    logps = holder.get("token_logprobs") if isinstance(holder, dict) else None
    if not isinstance(logps, list) or len(logps) != count or not all(map(_is_logp, logps)):
        raise Unfit("gave token ids without a log-probability for each")
    if sampling.top_p < 1.0 or sampling.top_k > 0:
        return ()
    return tuple(min(0.0, float(value)) for value in logps)


def _is_logp(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and value < _ROUNDING
