"""Every kind of fault at 200 requests: nothing lost, nothing bought twice, the key nowhere."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from faults.teacher.collecting import (
    KEY_VARIABLE,
    check_no_key,
    check_nothing_lost,
    config_for,
    prompts,
    rows,
    run,
)
from faults.teacher.provider import GIVEN_UP, IS_A_REPLY, KEY, MENDS_ITSELF, STOPS, TIMED_OUT, Provider
from gad.errors import TeacherError

pytestmark = pytest.mark.faults

COUNT = 200
BOUNDED: dict[str, Any] = {"max_reply_bytes": 300_000, "concurrency": 32}
SHORT: dict[str, Any] = {**BOUNDED, "timeout_seconds": 3.0, "concurrency": 40, "max_attempts": 50}
"""For faults that must meet the limit; all of a test's wait for it side by side. A reply that a busy machine delays
beyond it is one more attempt, which the ledger owns up to."""
OTHERS = ("429 with seconds", "500", "closed in the body", "invalid JSON", "missing usage", "400 on this prompt")


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def mix(kind: str, seed: int) -> dict[str, str]:
    """About a fifth of the prompts meet `kind`, a tenth another fault, on the first attempt."""
    draw = random.Random(f"{kind}-{seed}")
    fates: dict[str, str] = {}
    for number in range(COUNT):
        chance = draw.random()
        if chance < 0.2:
            fates[f"Question number {number}"] = kind
        elif chance < 0.3:
            fates[f"Question number {number}"] = draw.choice(OTHERS)
    return fates


@pytest.mark.parametrize("kind", [*MENDS_ITSELF, *IS_A_REPLY, *GIVEN_UP])
def test_each_kind_in_a_mix(kind: str, tmp_path: Path) -> None:
    fates = mix(kind, seed=1)
    with Provider(lambda text, before: fates.get(text) if before == 0 else None) as provider:
        config = config_for(provider.url, limits=SHORT if kind in TIMED_OUT else BOUNDED)
        summary, _ = run(config, prompts(COUNT), tmp_path)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
        assert summary.missing == 0
        assert provider.books.faults[kind] == sum(fate == kind for fate in fates.values()) > 20
        given_up = {row["id"] for row in rows(tmp_path / "teacher" / "given_up.jsonl")}
        assert given_up == {f"p{n}" for n in range(COUNT) if fates.get(f"Question number {n}") in GIVEN_UP}
        before = sum(provider.books.asked.values())

        again, _ = run(config, prompts(COUNT), tmp_path)
        assert sum(provider.books.asked.values()) == before
        assert again.kept == summary.kept

        patient = config_for(provider.url, limits=BOUNDED)
        mended, _ = run(patient, prompts(COUNT), tmp_path, retry_failed=True)
        assert sum(provider.books.asked.values()) == before + len(given_up)
        assert not mended.given_up
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
        assert set(provider.books.bought) == {f"Question number {n}" for n in range(COUNT)}


@pytest.mark.parametrize("seed", range(2))
def test_all_kinds_at_once_and_again_and_again(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    kinds = (*MENDS_ITSELF, *IS_A_REPLY, *GIVEN_UP)
    fates = {
        (f"Question number {n}", k): draw.choice(kinds) for n in range(COUNT) for k in range(3) if draw.random() < 0.5
    }
    with Provider(lambda text, before: fates.get((text, before))) as provider:
        config = config_for(provider.url, limits=SHORT)
        summary, _ = run(config, prompts(COUNT), tmp_path)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
        assert summary.missing == 0
        assert sum(provider.books.faults.values()) > COUNT / 2


@pytest.mark.parametrize("kind", STOPS)
def test_what_no_request_would_escape_stops_the_run_with_the_providers_words(kind: str, tmp_path: Path) -> None:
    broken = True
    asked = 0

    def plan(*_: object) -> str | None:
        nonlocal asked
        asked += 1
        return kind if broken and asked > 100 else None

    with Provider(plan) as provider:
        config = config_for(provider.url)
        with pytest.raises(TeacherError) as caught:
            run(config, prompts(COUNT), tmp_path)
        words = {"401": "Incorrect API key", "403": "may not use", "404": "does not exist", "out of credit": "quota"}
        assert words[kind] in str(caught.value)
        assert KEY not in str(caught.value)
        check_no_key(tmp_path)
        assert len(rows(tmp_path / "teacher.jsonl")) == 100
        assert sum(provider.books.asked.values()) <= 100 + config.limits.concurrency

        broken = False
        summary, _ = run(config, prompts(COUNT), tmp_path)
        assert summary.kept == COUNT
        assert not summary.given_up
        assert max(provider.books.bought.values()) == 1


def test_a_server_that_is_not_there_yet(tmp_path: Path) -> None:
    with Provider() as provider:
        url = provider.url
    config = config_for(url)
    with pytest.raises(TeacherError, match="cannot be reached"):
        run(config, prompts(COUNT), tmp_path)
    with Provider(port=int(url.rsplit(":", 1)[1].split("/")[0])) as provider:
        summary, _ = run(config, prompts(COUNT), tmp_path)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
    assert summary.kept == COUNT
    assert summary.maybe_usd == 0.0


def test_a_server_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    down = False
    asked = 0

    def plan(*_: object) -> str | None:
        nonlocal asked, down
        asked += 1
        down = asked > 60
        return "connection reset" if down and asked < 1000 else None

    with Provider(plan) as provider:
        config = config_for(provider.url, limits={"max_attempts": 3})
        with pytest.raises(TeacherError, match="connection lost"):
            run(config, prompts(COUNT), tmp_path)
        asked = 1000
        summary, _ = run(config, prompts(COUNT), tmp_path)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
    assert summary.kept == COUNT
    assert not summary.given_up


def test_a_name_that_no_server_has(tmp_path: Path) -> None:
    config = config_for("http://teacher.invalid/v1", limits={"max_attempts": 2})
    with pytest.raises(TeacherError, match="cannot be reached"):
        run(config, prompts(COUNT), tmp_path)
    assert rows(tmp_path / "teacher.jsonl") == []


def test_one_prompt_that_always_fails_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    with Provider(lambda text, _: "500" if text == "Question number 7" else None) as provider:
        config = config_for(provider.url)
        summary, _ = run(config, prompts(COUNT), tmp_path)
        assert (summary.kept, summary.given_up) == (COUNT - 1, {"server error": 1})
        assert provider.books.asked["Question number 7"] == config.limits.max_attempts
        again, _ = run(config, prompts(COUNT), tmp_path, retry_failed=True)
        assert again.given_up == {"server error": 1}


def test_a_429_that_never_ends_is_bounded(tmp_path: Path) -> None:
    with Provider(lambda text, _: "429 without" if text == "Question number 7" else None) as provider:
        summary, _ = run(config_for(provider.url, limits={"max_rate_limited": 5}), prompts(20), tmp_path)
        assert summary.given_up == {"rate limited": 1}
        assert provider.books.asked["Question number 7"] == 5


def test_a_wrong_address_stops_before_every_prompt_is_tried(tmp_path: Path) -> None:
    with Provider(lambda *_: "permanent redirect") as provider:
        with pytest.raises(TeacherError, match="base_url is not where the API is"):
            run(config_for(provider.url), prompts(COUNT), tmp_path)
        assert sum(provider.books.asked.values()) < 40


def test_a_web_page_where_the_api_should_be(tmp_path: Path) -> None:
    with Provider(lambda *_: "a web page") as provider:
        with pytest.raises(TeacherError, match="a web page was answered: is base_url right"):
            run(config_for(provider.url), prompts(COUNT), tmp_path)
        assert max(provider.books.asked.values()) == 4
        summary, _ = run(config_for(provider.url), [], tmp_path)
        assert summary.maybe_usd == 0.0


def test_the_bill_is_the_servers_to_the_cent(tmp_path: Path) -> None:
    kinds = [kind for kind in MENDS_ITSELF if kind not in TIMED_OUT]
    draw = random.Random(4)
    fates = {f"Question number {n}": draw.choice(kinds) for n in range(0, COUNT, 4)}
    with Provider(lambda text, before: fates.get(text) if before == 0 else None) as provider:
        summary, _ = run(config_for(provider.url, limits=BOUNDED), prompts(COUNT), tmp_path)
        assert summary.spent_usd == pytest.approx(provider.books.usd, abs=1e-9)
        assert sum(row["cost_usd"] for row in rows(tmp_path / "teacher.jsonl")) == pytest.approx(provider.books.usd)


@pytest.mark.parametrize("cap", [0.002, 0.0051, 0.01])
def test_the_cap_is_never_passed_and_nearly_reached(cap: float, tmp_path: Path) -> None:
    with Provider(delay=0.01) as provider:
        config = config_for(provider.url, max_cost_usd=cap, sampling={"max_tokens": 16})
        with pytest.raises(TeacherError, match=r"max_cost_usd.*raise max_cost_usd"):
            run(config, prompts(COUNT), tmp_path)
        dearest = (272 + 16 + 24) * 2.5e-6 + 16 * 10e-6
        assert cap - dearest < provider.books.usd <= cap
        whole = config_for(provider.url, max_cost_usd=1.0, sampling={"max_tokens": 16})
        assert run(whole, prompts(COUNT), tmp_path)[0].kept == COUNT
        assert max(provider.books.bought.values()) == 1
