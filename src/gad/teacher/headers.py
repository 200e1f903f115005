"""What a response's headers say of the provider's rate limits."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_UNITS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NAMES = {
    "requests": (
        ("x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"),
        (
            "anthropic-ratelimit-requests-limit",
            "anthropic-ratelimit-requests-remaining",
            "anthropic-ratelimit-requests-reset",
        ),
        ("ratelimit-limit", "ratelimit-remaining", "ratelimit-reset"),
        ("x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"),
    ),
    "tokens": (
        ("x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"),
        (
            "anthropic-ratelimit-tokens-limit",
            "anthropic-ratelimit-tokens-remaining",
            "anthropic-ratelimit-tokens-reset",
        ),
    ),
}
"""OpenAI (and Groq, Together, Fireworks, Azure, ...), Anthropic, the IETF draft, and its older form."""


@dataclass(frozen=True, slots=True)
class Allowance:
    """limit: of the provider's window. remaining: now. reset: seconds. None where the headers do not say."""

    limit: float | None
    remaining: float
    reset: float | None


def allowance(headers: Mapping[str, str], what: str, now: float) -> Allowance | None:
    """What is left of "requests" or "tokens"; None where the headers do not say, or not in numbers."""
    for limit_name, remaining_name, reset_name in _NAMES[what]:
        remaining = _number(headers.get(remaining_name))
        if remaining is not None:
            return Allowance(_number(headers.get(limit_name)), remaining, _seconds(headers.get(reset_name), now))
    return None


def _number(text: str | None) -> float | None:
    try:
        value = float(text.split(",")[0].split(";")[0]) if text else -1.0
    except ValueError:
        return None
    return value if 0.0 <= value < float("inf") else None


def _seconds(text: str | None, now: float) -> float | None:
    """A duration (1m2.5s, 250ms), a number of seconds, a time since 1970 in seconds or milliseconds, or a date."""
    if not text:
        return None
    parts = _DURATION.findall(text)
    if parts and "".join(number + unit for number, unit in parts) == text.strip():
        return sum(float(number) * _UNITS[unit] for number, unit in parts)
    value = _number(text)
    if value is not None:
        since = value / 1e3 if value > 1e11 else value
        return max(0.0, since - now) if since > 1e9 else value
    try:
        return max(0.0, datetime.fromisoformat(text.strip()).timestamp() - now)
    except ValueError:
        return None
