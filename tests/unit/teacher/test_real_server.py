"""A real OpenAI-compatible server: llama.cpp with SmolLM2-135M."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from faults.teacher.collecting import prompts, rows, run
from gad.config.data import Filters
from gad.config.teacher import TeacherConfig
from gad.records import Prompt
from support.llama_server import serving

pytestmark = [pytest.mark.real, pytest.mark.slow]

KEEP_CUT = Filters(drop_truncated=False)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving() as address:
        yield address


def config(url: str, **more: Any) -> TeacherConfig:
    settings: dict[str, Any] = {
        "endpoint": {"base_url": url, "api_key_env": None},
        "model": "SmolLM2-135M-Instruct",
        "sampling": {"max_tokens": 24, "temperature": 0.8, "seed": 1},
        "limits": {"concurrency": 4, "timeout_seconds": 300},
        "prices": {"usd_per_million_input": 1.0, "usd_per_million_output": 2.0},
    }
    return TeacherConfig.model_validate({**settings, **more})


def test_replies_of_a_real_model_with_their_provenance(url: str, tmp_path: Path) -> None:
    summary, _ = run(config(url, replies_per_prompt=2), prompts(4), tmp_path, filters=KEEP_CUT)
    found = rows(tmp_path / "teacher.jsonl")
    assert summary.kept == len(found) == 8
    for row in found:
        assert row["completion"].strip()
        assert row["finish_reason"] in ("stop", "length")
        assert row["usage"]["prompt_tokens"] > 5
        assert 1 <= row["usage"]["completion_tokens"] <= 24
        assert row["cost_usd"] == pytest.approx(
            (row["usage"]["prompt_tokens"] + 2 * row["usage"]["completion_tokens"]) / 1e6
        )
        assert row["model"]
    assert found[0]["completion"] != found[1]["completion"]
    again, progress = run(config(url, replies_per_prompt=2), prompts(4), tmp_path, filters=KEEP_CUT)
    assert again.kept == 8
    assert not any("to buy" in line for line in progress.lines)


def test_a_prompt_that_exceeds_the_context_is_given_up_with_the_servers_words(url: str, tmp_path: Path) -> None:
    long = Prompt.from_text("long", "many words " * 3000)
    summary, _ = run(config(url), [*prompts(2), long], tmp_path, filters=KEEP_CUT)
    assert summary.given_up == {"prompt too long": 1}
    (listed,) = rows(tmp_path / "teacher" / "given_up.jsonl")
    assert listed["id"] == "long"
    assert "context" in listed["text"]
    assert summary.kept == 2
