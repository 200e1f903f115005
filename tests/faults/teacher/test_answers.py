"""Answers of providers that no documentation foresees: each is a reply, a retry or a listed failure, never a crash."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from faults.teacher.collecting import (
    KEY_VARIABLE,
    check_nothing_lost,
    config_for,
    events,
    prompts,
    rows,
    run,
)
from faults.teacher.provider import FAULTS, KEY, Asked, Provider, completion, send

pytestmark = pytest.mark.faults
COUNT = 50
REPLY = "Here is a reply to: "


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def of(at: Asked, **changes: Any) -> dict[str, Any]:
    return {**completion(at.text, at.body), **changes}


def with_choice(at: Asked, **changes: Any) -> dict[str, Any]:
    whole = completion(at.text, at.body)
    return {**whole, "choices": [{**whole["choices"][0], **changes}]}


def usage(**counts: Any) -> Any:
    return lambda at: of(at, usage={"prompt_tokens": 9, "completion_tokens": 3, **counts})


KEPT: dict[str, Any] = {
    "usage of nulls": usage(prompt_tokens=None, completion_tokens=None),
    "usage in words": usage(prompt_tokens="9", completion_tokens="three"),
    "usage below nought": usage(prompt_tokens=-9),
    "usage beyond all measure": usage(completion_tokens=10**400),
    "details that are none": usage(prompt_tokens_details=None, completion_tokens_details=[1]),
    "half a character as a model": lambda at: of(at, model="m\ud800"),
    "a model that a terminal would obey": lambda at: of(at, model="m\x1b[31m\n\u202e"),
    "half a character as a reason": lambda at: with_choice(at, finish_reason="st\udc00op"),
    "a number as a reason": lambda at: with_choice(at, finish_reason=3),
    "log-probabilities of another form": lambda at: with_choice(at, logprobs=[1, {"content": None}]),
    "log-probabilities of null": lambda at: with_choice(at, logprobs={"content": [{"top_logprobs": [{"token": "A"}]}]}),
}
"""A reply all the same: paid for once, kept or left out, never asked again."""
RAW: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "a stream of events": (200, b'data: {"choices":[]}\n\ndata: [DONE]\n\n', {"content-type": "text/event-stream"}),
    "gzip that is none": (200, b"not gzip at all", {"content-encoding": "gzip"}),
    "no content": (204, b"", {}),
    "a status of no meaning": (999, b"x", {}),
    "nested beyond measure": (200, b"[" * 100_000, {}),
    "bytes that are no text": (200, b'{"x":"\xe9"}', {}),
    "choices as an object": (200, b'{"choices":{"0":1}}', {}),
    "a choice of null": (200, b'{"choices":[null]}', {}),
    "content as an object": (200, b'{"choices":[{"message":{"content":{"a":1}}}]}', {}),
    "an error inside a choice": (200, b'{"choices":[{"error":{"message":"upstream"},"message":{"content":""}}]}', {}),
    "Retry-After beyond all time": (429, b"{}", {"retry-after": "9" * 500}),
    "Retry-After in the year 99999": (429, b"{}", {"retry-after": "Fri, 31 Dec 99999 23:59:59 GMT"}),
}
"""Tried again."""


def _send_raw(name: str) -> None:
    async def answer(at: Asked) -> bool:
        await send(at.writer, *RAW[name])
        return True

    FAULTS[name] = answer


def _send_kept(name: str) -> None:
    async def answer(at: Asked) -> bool:
        whole = KEPT[name](at)
        at.provider.books.bought[at.text] += 1
        await send(at.writer, 200, json.dumps(whole).encode())
        return True

    FAULTS[name] = answer


for each in RAW:
    _send_raw(each)
for each in KEPT:
    _send_kept(each)


@pytest.mark.parametrize("kind", [*KEPT, *RAW])
def test_a_strange_answer(kind: str, tmp_path: Path) -> None:
    strange = {f"Question number {n}" for n in range(0, COUNT, 5)}
    with Provider(lambda text, before: kind if text in strange and before == 0 else None) as provider:
        summary, progress = run(config_for(provider.url), prompts(COUNT), tmp_path)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
        assert (summary.missing, summary.given_up) == (0, {})
        assert summary.spent_usd < 1.0
        expected = COUNT if kind in KEPT else COUNT + len(strange)
        assert sum(provider.books.asked.values()) == expected
        assert all(line.isprintable() and len(line) < 1000 for line in progress.lines)
        again, _ = run(config_for(provider.url), prompts(COUNT), tmp_path)
        assert (again.kept, again.spent_usd) == (summary.kept, pytest.approx(summary.spent_usd))
        assert sum(provider.books.asked.values()) == expected


def test_a_price_of_a_gateway_that_is_none_does_not_harm_the_ledger(tmp_path: Path) -> None:
    async def answer(at: Asked) -> bool:
        data = json.dumps(of(at, usage={"cost": 1})).replace('"cost": 1', '"cost": Infinity')
        await send(at.writer, 200, data.encode())
        return True

    FAULTS["a price without end"] = answer
    with Provider(lambda *_: "a price without end") as provider:
        summary, _ = run(config_for(provider.url, prices=None), prompts(20), tmp_path)
        assert (summary.kept, summary.spent_usd) == (20, 0.0)
        assert run(config_for(provider.url, prices=None), prompts(20), tmp_path)[0].kept == 20


def test_what_a_provider_says_cannot_move_the_cursor(tmp_path: Path) -> None:
    async def answer(at: Asked) -> bool:
        await send(at.writer, 400, json.dumps({"error": {"message": "\x1b]0;mine\x07 bad \ud83d\u202e"}}).encode())
        return True

    FAULTS["an error that a terminal would obey"] = answer
    plan = lambda text, _: "an error that a terminal would obey" if text.endswith("7") else None  # noqa: E731
    with Provider(plan) as provider:
        run(config_for(provider.url), prompts(20), tmp_path)
    said = {row["text"] for row in rows(tmp_path / "teacher" / "given_up.jsonl")}
    assert said == {r"status 400: \x1b]0;mine\x07 bad \ud83d\u202e"}


def test_compressed_answers_are_read(tmp_path: Path) -> None:
    """They were asked for plain, but some gateways do as they like."""

    async def answer(at: Asked) -> bool:
        at.provider.books.bought[at.text] += 1
        data = gzip.compress(json.dumps(of(at)).encode())
        await send(at.writer, 200, data, {"content-encoding": "gzip"})
        return True

    FAULTS["gzip"] = answer
    with Provider(lambda *_: "gzip") as provider:
        summary, _ = run(config_for(provider.url), prompts(20), tmp_path)
        check_nothing_lost(provider, tmp_path, prompts(20))
    assert summary.kept == 20
    assert {row["text"][: len(REPLY)] for row in events(tmp_path) if row["event"] == "reply"} == {REPLY}
