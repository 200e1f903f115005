"""The figures on the page about collecting are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
RESULT = json.loads((ROOT / "bench" / "results" / "collect.json").read_text(encoding="utf-8"))
PAGE = " ".join((ROOT / "docs" / "collecting.md").read_text(encoding="utf-8").split())


def test_rates_and_cpu_time_are_the_results() -> None:
    headers, stated, felt = RESULT["rows"]["rate"]
    cpu, alone = RESULT["client_cpu_ms_per_request"], RESULT["bare_openai_cpu_ms_per_request"]
    for words in (
        f"reached {headers['share_of_ideal_rate']:.0%} (limit from headers) and {stated['share_of_ideal_rate']:.0%}",
        f"with {headers['refused_429']} and {stated['refused_429']} refusals",
        f"felt out, {felt['share_of_ideal_rate']:.0%} with {felt['refused_429']}.",
        f"At {headers['steady_rate']:.0f} replies a second the client takes {cpu:.2f} ms of CPU a request",
        f"({stated['steady_cpu_ms_per_request']:.2f} where replies come in chunks)",
        f"alone, keeping nothing, takes {alone:.2f} ms",
        f"{RESULT['client_cpu_ms_per_request_whole_run']:.2f} ms with start, connecting and the files of 6,000",
    ):
        assert words in PAGE


def test_what_ten_million_prompts_need_follows_from_the_results() -> None:
    fast, opened = RESULT["rows"]["memory"][-1], RESULT["ledger_open_seconds_1m_rows"]
    for words in (
        f"{fast['steady_cpu_ms_per_request']:.2f} ms a request at {fast['steady_rate']:.0f} a second",
        f"20 million lines at {opened:.1f} s a million: {20 * opened:.0f} s, {4 * opened:.0f} s a shard",
        f"({RESULT['peak_rss_mb_200k_prompts']:.0f} MB with 200,000 prompts in memory)",
    ):
        assert words in PAGE


def test_rate_cpu_time_and_memory_hold_what_was_promised() -> None:
    assert RESULT["share_of_ideal_rate"] >= 0.95
    assert RESULT["client_cpu_ms_per_request"] <= 1.0
    assert RESULT["peak_rss_mb_200k_prompts"] <= 1000.0
    assert RESULT["ledger_open_seconds_1m_rows"] <= 5.0
    assert all(row["missing"] == 0 and row["kept"] == row["prompts"] for row in RESULT["rows"]["rate"])
