"""Whole runs whose replies come from servers that speak vLLM's API."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gad.errors import ConfigError, MissingExtra
from support import runs, tiny
from support.vllm_server import Behaviour
from unit.rollout import small

SHORT = {
    "evaluation": {
        "decodings": [{"name": "greedy", "sampling": {"temperature": 0.0}}],
        "independent": {"epochs": 0.4, "batch_size": 4},
    }
}


def config(tmp_path: Path, name: str, engine: dict[str, Any]) -> Any:
    made = runs.run_config(
        tmp_path,
        tmp_path / "model",
        name=name,
        seqkd=None,
        prompt={"max_prompt_tokens": 128, "max_reply_tokens": 16},
        **SHORT,
    )
    return type(made).model_validate(
        {**made.model_dump(), "compute": {**made.compute.model_dump(), "engine": engine, "merge_adapters": False}}
    )


def test_a_run_with_servers_is_the_run_without(tmp_path: Path) -> None:
    """The servers sample as we do, so figures are the same but for rounding, until an update has made that larger: then
    a token may be another one. A server is started again on the way. They hold what was trained, in every step."""
    model = tiny.save(tmp_path / "model", "qwen3")
    alone = runs.run(config(tmp_path, "alone", {"kind": "local"}))
    with small.serving(model, Behaviour(), Behaviour()) as servers:
        answers: list[dict[str, Any]] = []

        def stumble(answer: dict[str, Any]) -> None:
            answers.append(answer)
            if len(answers) == 25:
                servers[0].restart()

        servers[0].behaviour.mangle = stumble
        engine = {"kind": "vllm_server", "urls": [s.url for s in servers], "sync_folder": str(tmp_path)}
        served = runs.run(config(tmp_path, "served", {**engine, "health_seconds": 5.0}))
    ours, theirs = ([row for row in runs.metrics(f) if row["stage"] == "warmup"] for f in (alone, served))
    assert [row["step"] for row in ours] == [row["step"] for row in theirs]
    for name in set(ours[0]) - {"stage"}:
        assert theirs[0][name] == pytest.approx(ours[0][name], rel=2e-3, abs=2e-4), name
    stepped = [row for row in runs.metrics(served) if row["stage"] == "adversarial"]
    assert len(stepped) == 3
    assert max(row["rollout/logp_gap"] for row in stepped) < 1e-3
    assert all(row["rollout/importance_mean"] == pytest.approx(1.0, abs=1e-3) for row in stepped)
    assert all(row["rollout/importance_capped"] == 0.0 for row in stepped)
    assert len(answers) > 25
    base = list((alone / "replies" / "base").rglob("*.jsonl"))
    assert base
    for path in base:
        assert path.read_bytes() == (served / path.relative_to(alone)).read_bytes()
    assert len(list(tmp_path.glob("gad-*/*"))) <= 1  # of all versions the last is kept, until the process ends


def test_a_server_that_will_not_do_is_told_before_anything_is_computed(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", "qwen3")
    with small.serving(model, Behaviour(spelling_shift=1)) as (server,):
        engine = {"kind": "vllm_server", "urls": [server.url], "sync_folder": str(tmp_path)}
        made = config(tmp_path, "wrong", engine)
        with pytest.raises(ConfigError, match="another vocabulary than student.model"):
            runs.run(made)
    assert not (made.folder / "metrics.jsonl").exists()


def test_weights_by_nccl_without_a_gpu_are_refused_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    tiny.save(tmp_path / "model", "qwen3")
    made = config(tmp_path, "none", {"kind": "vllm_server", "urls": ["http://127.0.0.1:9"], "sync": "nccl"})
    with pytest.raises(ConfigError, match="sync=nccl needs a GPU that trains: write sync: weights, or sync: adapter"):
        runs.run(made)
    assert not (made.folder / "metrics.jsonl").exists()


def test_vllm_that_is_not_installed_is_told_before_anything_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gad.rollout.vllm.find_spec", lambda name: None)
    tiny.save(tmp_path / "model", "qwen3")
    made = config(tmp_path, "none", {"kind": "vllm"})
    with pytest.raises(MissingExtra, match=r"pip install 'gad\[vllm\]'"):
        runs.run(made)
    assert not (made.folder / "metrics.jsonl").exists()
