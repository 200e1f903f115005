from __future__ import annotations

import json
import time
from email.utils import formatdate

import pytest

from gad.teacher.failures import Next, of_status, retry_after

NOW = 1_700_000_000.0


def error(message: str, code: str | None = None, kind: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "code": code, "type": kind}}).encode()


@pytest.mark.parametrize(
    ("status", "content", "reason", "following"),
    [
        (429, error("slow down"), "rate limited", Next.SLOW_DOWN),
        (429, error("You exceeded your current quota", "insufficient_quota"), "out of credit", Next.STOP),
        (402, error("Insufficient credits"), "out of credit", Next.STOP),
        (402, b"", "out of credit", Next.STOP),
        (500, b"boom", "server error", Next.RETRY),
        (502, b"<html><h1>Bad Gateway</h1></html>", "server error", Next.RETRY),
        (503, b"", "server error", Next.RETRY),
        (529, error("overloaded"), "server error", Next.RETRY),
        (408, b"", "status 408", Next.RETRY),
        (409, b"", "status 409", Next.RETRY),
        (400, error("bad parameter"), "bad request", Next.GIVE_UP),
        (422, b'{"detail": "no"}', "bad request", Next.GIVE_UP),
        (400, error("filtered", "content_filter"), "content filter", Next.GIVE_UP),
        (403, error("Your input was flagged by moderation"), "content filter", Next.GIVE_UP),
        (400, error("too long", "context_length_exceeded"), "prompt too long", Next.GIVE_UP),
        (400, error("the request exceeds the available context size"), "prompt too long", Next.GIVE_UP),
        (413, error("prompt is too long: 9 tokens"), "prompt too long", Next.GIVE_UP),
        (401, error("no"), "key refused", Next.STOP),
        (400, error("API key not valid. Please pass a valid API key."), "key refused", Next.STOP),
        (403, error("no access"), "not permitted", Next.STOP),
        (404, error("The model does not exist"), "not found", Next.STOP),
        (400, error("no such thing", "model_not_found"), "not found", Next.STOP),
        (405, b"", "not found", Next.STOP),
        (307, b"", "redirected", Next.RETRY),
        (301, b"", "redirected", Next.GIVE_UP),
        (418, b"", "bad request", Next.GIVE_UP),
    ],
)
def test_kinds(status: int, content: bytes, reason: str, following: Next) -> None:
    failure = of_status(status, {}, content, NOW)
    assert (failure.reason, failure.next, failure.maybe_paid) == (reason, following, False)


def test_the_providers_own_words_are_shown() -> None:
    failure = of_status(404, {}, error("The model `gpt-9` does not exist\nor you have no access"), NOW)
    assert str(failure) == "not found: status 404: The model `gpt-9` does not exist or you have no access"
    nowhere = of_status(404, {}, b'{"detail": "Not Found"}', NOW)
    assert str(nowhere) == "not found: status 404: Not Found (is base_url right, up to /v1?)"
    assert "Bad Gateway" in str(of_status(502, {}, b"<html><h1>Bad Gateway</h1></html>", NOW))
    assert "elsewhere" in str(of_status(301, {"location": "http://elsewhere/"}, b"", NOW))
    assert len(str(of_status(500, {}, b"x" * 10**6, NOW))) < 500
    assert "gone" in str(of_status(500, {}, b'[{"error": {"message": "gone"}}]', NOW))


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.25"}, 0.25),
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": formatdate(NOW + 30, usegmt=True)}, 30.0),
        ({"retry-after": formatdate(NOW - 30, usegmt=True)}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "Wed, 99 Foo 2023 99:99:99 GMT"}, None),
        ({"retry-after": ""}, None),
        ({}, None),
    ],
)
def test_retry_after(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers, NOW) == (None if seconds is None else pytest.approx(seconds))


def test_a_date_is_read_against_the_clock() -> None:
    assert retry_after({"retry-after": formatdate(time.time() + 60, usegmt=True)}, time.time()) == pytest.approx(
        60, abs=2
    )
