"""The Batch API: stopped, expired, partly failed, lost on the way; nothing submitted or bought twice."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from faults.teacher.batch_provider import BatchProvider
from faults.teacher.collecting import (
    KEY_VARIABLE,
    check_nothing_lost,
    config_for,
    prompts,
    rows,
    run,
    with_tests_on_the_path,
)
from faults.teacher.provider import KEY, Provider
from gad.config.teacher import TeacherConfig
from gad.errors import TeacherError

pytestmark = pytest.mark.faults
COUNT = 200


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def config(provider: BatchProvider, **more: Any) -> TeacherConfig:
    batch = {"requests_per_batch": 60, "poll_seconds": 0.02, "batches_at_once": 2}
    return config_for(provider.url, batch=batch, **more)


def test_all_through_batches_at_half_the_price(tmp_path: Path) -> None:
    with BatchProvider() as provider:
        summary, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
        assert len(provider.batches) == 4
        assert summary.kept == COUNT
        assert summary.spent_usd == pytest.approx(provider.books.usd, abs=1e-9)
        assert run(config(provider), prompts(COUNT), tmp_path, batch=True)[0].kept == COUNT
        assert len(provider.batches) == 4
    assert list((tmp_path / "teacher").glob("batch-*.jsonl")) == []


def test_partial_failure_and_expiry_go_into_later_batches(tmp_path: Path) -> None:
    draw = random.Random(3)
    kinds = ("server error", "bad request", "expired", "missing")
    fates = {f"Question number {n}": draw.choice(kinds) for n in draw.sample(range(COUNT), 80)}
    with BatchProvider(("in_progress", "expired")) as provider:
        provider.fates = dict(fates)
        summary, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
        refused = sum(fate == "bad request" for fate in fates.values())
        assert summary.given_up == {"bad request": refused}
        assert summary.kept == COUNT - refused
        again, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True, retry_failed=True)
        assert again.kept == COUNT


def test_a_reply_without_choices_is_paid_for_and_asked_again(tmp_path: Path) -> None:
    fates = {f"Question number {n}": ("no choices", "nonsense")[n % 2] for n in range(0, COUNT, 3)}
    with BatchProvider() as provider:
        provider.fates = dict(fates)
        summary, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
        assert summary.kept == COUNT
        assert summary.spent_usd == pytest.approx(provider.books.usd, abs=1e-9)
        again, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True)
        assert again.spent_usd == pytest.approx(provider.books.usd, abs=1e-9)


def test_what_fails_in_every_batch_is_given_up(tmp_path: Path) -> None:
    class Stubborn(dict[str, str]):
        def pop(self, key: str, default: Any = None) -> Any:
            return "server error" if key == "Question number 3" else default

    with BatchProvider() as provider:
        provider.fates = Stubborn()
        summary, _ = run(config(provider), prompts(10), tmp_path, batch=True)
    assert summary.given_up == {"failed in batches": 1}
    assert max(provider.submitted.values()) == 3


def test_stopped_today_and_started_tomorrow(tmp_path: Path) -> None:
    with BatchProvider(("in_progress",)) as provider:
        looked = lambda: sum(provider.looks.values()) >= 4  # noqa: E731
        stopped, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True, stop=looked)
        assert (stopped.stopped, stopped.in_batches, stopped.missing) == (True, 120, 80)
        single, progress = run(config(provider), prompts(COUNT), tmp_path, stop=lambda: True)
        assert single.in_batches == 120
        assert any("--batch` fetches them" in line for line in progress.lines)
        provider.statuses = ("in_progress", "completed")
        summary, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True)
        assert summary.kept == COUNT
        assert max(provider.submitted.values()) == 1


def test_a_creation_whose_answer_was_lost_is_found_again(tmp_path: Path) -> None:
    with BatchProvider() as provider:
        provider.lose = 1
        with pytest.raises(TeacherError, match="cannot be reached"):
            run(config(provider), prompts(COUNT), tmp_path, batch=True)
        assert len(provider.batches) == 1
        summary, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True)
        assert summary.kept == COUNT
        assert max(provider.submitted.values()) == 1


def test_a_batch_that_is_refused_shows_the_providers_words(tmp_path: Path) -> None:
    with BatchProvider() as provider:
        provider.reject = "token_limit_exceeded"
        with pytest.raises(TeacherError, match=r"Enqueued token limit.*requests_per_batch"):
            run(config(provider), prompts(COUNT), tmp_path, batch=True)
        assert len(provider.batches) <= 3
        provider.reject = None
        summary, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True)
        assert (summary.kept, summary.maybe_usd) == (COUNT, 0.0)


@pytest.mark.parametrize("missing", ["files", "batches"])
def test_an_endpoint_without_batches_is_asked_one_by_one_instead(missing: str, tmp_path: Path) -> None:
    with BatchProvider() as provider:
        provider.without = missing
        for _ in range(2):
            with pytest.raises(TeacherError, match=r"status 404: no such route.*Without --batch .* one by one"):
                run(config(provider), prompts(20), tmp_path, batch=True)
    with Provider() as single:
        summary, _ = run(config_for(single.url), prompts(20), tmp_path)
        assert (summary.kept, summary.in_batches, single.books.asked.total()) == (20, 0, 20)


def test_a_plan_of_which_nothing_was_sent_holds_nothing_back(tmp_path: Path) -> None:
    with BatchProvider() as provider:
        url = provider.url
    with pytest.raises(TeacherError, match="cannot be reached"):
        run(config_for(url), prompts(20), tmp_path, batch=True)
    with Provider() as single:
        summary, _ = run(config_for(single.url), prompts(20), tmp_path)
        assert (summary.kept, summary.in_batches, summary.maybe_usd) == (20, 0, 0.0)


def test_a_listing_that_fails_is_said_in_words(tmp_path: Path) -> None:
    with BatchProvider() as provider:
        provider.lose = 1
        with pytest.raises(TeacherError, match="cannot be reached"):
            run(config(provider), prompts(20), tmp_path, batch=True)
        provider.list_status = 500
        with pytest.raises(TeacherError, match="status 500: busy"):
            run(config(provider), prompts(20), tmp_path, batch=True)
        provider.list_status = 200
        assert run(config(provider), prompts(20), tmp_path, batch=True)[0].kept == 20
        assert max(provider.submitted.values()) == 1


def test_the_cap_counts_batches_that_wait(tmp_path: Path) -> None:
    with BatchProvider() as provider:
        dear = config(provider, max_cost_usd=0.005, sampling={"max_tokens": 16})
        with pytest.raises(TeacherError, match="max_cost_usd"):
            run(dear, prompts(COUNT), tmp_path, batch=True)
        assert 0 < provider.books.usd <= 0.005
        assert rows(tmp_path / "teacher.jsonl")


COLLECT = """
import sys
from pathlib import Path
from faults.teacher.collecting import config_for, prompts, run
batch = {"requests_per_batch": 20, "poll_seconds": 0.02, "batches_at_once": 3}
run(config_for(sys.argv[1], batch=batch), prompts(200), Path(sys.argv[2]), batch=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    draw = random.Random(7)
    with BatchProvider(("in_progress",) * 4 + ("completed",)) as provider:
        for _ in range(8):
            process = subprocess.Popen(
                [sys.executable, "-c", COLLECT, provider.url, str(tmp_path)],
                env=with_tests_on_the_path(),
            )
            looks = sum(provider.looks.values()) + len(provider.files)
            while process.poll() is None and sum(provider.looks.values()) + len(provider.files) == looks:
                time.sleep(0.005)
            time.sleep(draw.uniform(0.0, 0.25))
            process.send_signal(signal.SIGKILL)
            process.wait()
        summary, _ = run(config(provider), prompts(COUNT), tmp_path, batch=True)
        check_nothing_lost(provider, tmp_path, prompts(COUNT))
        assert summary.kept == COUNT
        assert max(provider.submitted.values()) == 1
        assert summary.spent_usd == pytest.approx(provider.books.usd, abs=1e-9)
