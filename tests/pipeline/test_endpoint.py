"""Distil from any endpoint: the recipe and commands of docs/tutorial.md against a real server, with a tiny student."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from gad.report.gather import gather
from support import tiny, warm
from support.llama_server import MODEL, serving

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.real, pytest.mark.slow]


def gad(*words: str) -> subprocess.CompletedProcess[str]:
    return warm.run(["-m", "gad", *words], cwd=ROOT, timeout=1200)


def test_collect_and_run_against_a_real_server(tmp_path: Path) -> None:
    student = tiny.save(tmp_path / "student")
    small = [
        "data.train={path: recipes/quickstart/train.jsonl, limit: 20}",
        "data.held_out={count: 4}",
        "data.filters={drop_truncated: false}",
        "teacher.sampling={max_tokens: 16, temperature: 0.7}",
        f"student={{model: {student}, dtype: float32, tuning: {{kind: lora, rank: 4}}}}",
        "discriminator.layer=2",
        "prompt={max_prompt_tokens: 256, max_reply_tokens: 24}",
        "warmup.batch_size=8",
        "adversarial.steps=2",
        "adversarial.batch_size=2",
        "adversarial.replies_per_prompt=2",
        "evaluation.independent={epochs: 1, layer: 2}",
        "compute.threads=1",
    ]
    with serving() as url:
        words = ["recipes/endpoint.yaml", f"runs_dir={tmp_path}", f"teacher.endpoint.base_url={url}", *small]
        planned = gad("plan", *words)
        assert planned.returncode == 0, planned.stderr
        assert "replies 20;" in " ".join(planned.stdout.split())
        collected = gad("collect", *words)
        assert collected.returncode == 0, collected.stderr
        assert "teacher: 20 of 20 replies to buy from SmolLM2-135M-Instruct" in collected.stderr
    done = gad("run", *words)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "endpoint"
    rows = [json.loads(line) for line in (folder / "teacher.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 0 < len(rows) <= 16
    assert {row["model"] for row in rows} == {MODEL}
    assert all(row["usage"]["completion_tokens"] <= 16 and row["cost_usd"] == 0.0 for row in rows)
    summary = gather(folder).summary
    assert summary is not None
    assert summary.teacher["models"] == {MODEL: 20}
    assert summary.figure("gad", "held_out", "t1", "preference") is not None
    assert f"written by `{MODEL}` (20)" in (folder / "student" / "README.md").read_text(encoding="utf-8")
