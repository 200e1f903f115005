"""What an attempt that brought no reply means: try again, give up this request, or stop altogether."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from gad.teacher.wire import Malformed, error_text, visible


class Next(Enum):
    """What follows a failed attempt."""

    RETRY = "retry"
    SLOW_DOWN = "slow down"
    GIVE_UP = "give up"
    STOP = "stop"


@dataclass(eq=False)
class Failure(Exception):
    """An attempt without a reply.

    reason: one of few, to count by. message: the provider's words, or the connection's.
    maybe_paid: the provider may have written, and charged for, a reply that never arrived whole.
    retry_after: seconds, where the provider said so. usd: what it cost all the same, by its usage.
    """

    reason: str
    message: str
    next: Next
    maybe_paid: bool = False
    retry_after: float | None = None
    usd: float = 0.0

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}" if self.message else self.reason


class TooLarge(Exception):
    """A response has more bytes than it may have."""


CONTENT_FILTER = "content filter"
TOO_LONG = "prompt too long"
UNREACHABLE = "unreachable"
NO_API = "no API there"
NOT_FOUND = "not found"
_FILTERED = re.compile(
    r"content[_ -]?filter|content management policy|moderation|flagged|safety system|usage polic", re.I
)
_OVERLONG = re.compile(
    r"context[_ ](length|size|window)|maximum context|too many (input )?tokens|prompt is too long|"
    r"exceeds? the (available )?(context|maximum)|input (is )?too long|reduce the length",
    re.I,
)
_BAD_KEY = re.compile(
    r"(api|access)[ _-]?key[^.]{0,20}(not valid|invalid|expired|incorrect)|"
    r"(invalid|incorrect)[ _](api|access)[ _-]?key",
    re.I,
)
_NO_MODEL = re.compile(
    r"model[_ ]not[_ ]found|(unknown|invalid|no such) model|model .{0,200}(does not exist|not found|not supported)",
    re.I,
)
_NO_MONEY = re.compile(
    r"insufficient[_ ](quota|balance|credit|funds)|billing|credit balance|exceeded your current quota", re.I
)


def of_status(status: int, headers: Mapping[str, str], content: bytes, now: float) -> Failure:
    """A response that is not a success. now: seconds since 1970, for a Retry-After that is a date."""
    message, code = _message(content)
    said = f"{code} {message}"
    if status in (301, 302, 303, 307, 308):
        where = visible(headers.get("location", "nowhere"))[:300]
        following = Next.GIVE_UP if status in (301, 308) else Next.RETRY
        return Failure("redirected", f"status {status} to {where}: base_url is not where the API is", following)
    if status in (402, 429) and _NO_MONEY.search(said):
        return Failure("out of credit", f"status {status}: {message}", Next.STOP)
    if status == 429:
        return Failure("rate limited", message, Next.SLOW_DOWN, retry_after=retry_after(headers, now))
    if status >= 500 or status in (408, 409, 425):
        name = "server error" if status >= 500 else f"status {status}"
        return Failure(name, f"status {status}: {message}", Next.RETRY, retry_after=retry_after(headers, now))
    return _refused(status, message, said)


def _refused(status: int, message: str, said: str) -> Failure:
    text = f"status {status}: {message}"
    if status == 401 or (status in (400, 403) and _BAD_KEY.search(said)):
        return Failure("key refused", text, Next.STOP)
    if status in (400, 403, 422) and _FILTERED.search(said):
        return Failure(CONTENT_FILTER, text, Next.GIVE_UP)
    if status in (400, 413, 422) and _OVERLONG.search(said):
        return Failure(TOO_LONG, text, Next.GIVE_UP)
    if status == 402:
        return Failure("out of credit", text, Next.STOP)
    if status == 403:
        return Failure("not permitted", text, Next.STOP)
    if _NO_MODEL.search(said):
        return Failure(NOT_FOUND, text, Next.STOP)
    if status in (404, 405):
        return Failure(NOT_FOUND, f"{text} (is base_url right, up to /v1?)", Next.STOP)
    return Failure("bad request", text, Next.GIVE_UP)


def of_malformed(error: Malformed, headers: Mapping[str, str]) -> Failure:
    """A success that is no reply. Without a usage nobody knows whether it was charged for, but for a web page."""
    if "html" in headers.get("content-type", ""):
        return Failure(NO_API, "a web page was answered: is base_url right, up to /v1?", Next.RETRY)
    if error.reason == "error in a reply" and _FILTERED.search(str(error)):
        return Failure(CONTENT_FILTER, str(error), Next.GIVE_UP)
    return Failure(error.reason, str(error), Next.RETRY, maybe_paid=error.usage is None)


def retry_after(headers: Mapping[str, str], now: float) -> float | None:
    """Seconds to wait as the headers say; None where they say nothing, or nonsense."""
    for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        text = headers.get(name, "").strip()
        if not text:
            continue
        try:
            seconds = float(text) * scale
        except ValueError:
            seconds = _until(text, now)
        if 0.0 <= seconds < float("inf"):
            return seconds
    return None


def _until(date: str, now: float) -> float:
    try:
        return max(0.0, parsedate_to_datetime(date).timestamp() - now)
    except (ValueError, TypeError, OverflowError):
        return -1.0


def _message(content: bytes) -> tuple[str, str]:
    """The message and the code of an error's body, which may be anything."""
    text = content[:20_000].decode("utf-8", "replace")
    try:
        body: Any = json.loads(text)
    except (ValueError, RecursionError):
        return visible(re.sub(r"<[^>]*>", " ", text)[:2000])[:300], ""
    error = body.get("error", body) if isinstance(body, Mapping) else body
    code = f"{error.get('code')} {error.get('type')}" if isinstance(error, Mapping) else ""
    return error_text(body), code
