"""Runs with layers that nothing trains: their states are computed once, and that changes nothing but the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gad.config.run import RunConfig
from gad.folder import opened
from gad.pipeline import Pipeline
from gad.progress import Lines
from gad.signals import StopRequest
from support import runs, tiny


def config(folder: Path, name: str, *, kept: int = 64, **changes: Any) -> RunConfig:
    tiny.save(folder / "model", "smollm")
    plain = runs.run_config(folder, folder / "model", name=name, **changes).model_dump()
    plain["student"]["tuning"] = {"kind": "lora", "rank": 4, "first_layer": 1}
    plain["seqkd"]["epochs"] = 2
    plain["warmup"]["phases"][1]["steps"] = 6
    if plain["adversarial"]:
        plain["adversarial"]["steps"] = 5
    plain["compute"]["kept_states_mib"] = kept
    return RunConfig.model_validate(plain)


def trained(config: RunConfig, stop: StopRequest | None = None) -> Path:
    with opened(config) as folder:
        pipeline = Pipeline(config, Lines(), stop or StopRequest())
        pipeline.collect()
        for stage in pipeline.training:
            stage()
    return folder


def test_what_is_kept_changes_the_work_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = runs.metrics(trained(config(tmp_path, "kept")))
    told = capsys.readouterr().err
    assert "seqkd, lower layers: 12/12" in told
    assert "warmup, lower layers" not in told  # the same rows
    none = runs.metrics(trained(config(tmp_path, "none", kept=0)))
    assert "lower layers" not in capsys.readouterr().err
    fewer: dict[str, set[str]] = {}
    for with_kept, without in zip(kept, none, strict=True):
        assert with_kept.keys() == without.keys()
        for name, value in without.items():
            if name.startswith("flops/"):
                if with_kept[name] < value:
                    fewer.setdefault(with_kept["stage"], set()).add(name)
                else:
                    assert with_kept[name] == value
            elif isinstance(value, float):
                assert with_kept[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
            else:
                assert with_kept[name] == value
    student = {"flops/student", "flops/step"}
    assert fewer == {"seqkd": student, "warmup": student, "adversarial": {*student, "flops/discriminator"}}


def test_of_a_stage_that_meets_nothing_twice_nothing_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = config(tmp_path, "once", adversarial=None).model_dump()
    plain["seqkd"] |= {"epochs": 1, "start_from": "warmup"}
    trained(RunConfig.model_validate(plain))
    told = capsys.readouterr().err
    assert "warmup, lower layers: 12/12" in told
    assert "seqkd, lower layers" not in told
    rows = runs.metrics(tmp_path / "runs" / "once")
    seqkd, warmup = (
        [row["flops/student"] / row["tokens/imitated"] for row in rows if row["stage"] == stage and row["step"] > 1]
        for stage in ("seqkd", "warmup")
    )
    assert min(seqkd) > 1.1 * max(warmup)


def test_a_stop_at_every_step_changes_nothing(tmp_path: Path) -> None:
    """What is kept is made anew, of the same bits."""
    whole = trained(config(tmp_path, "whole"))
    stopped = config(tmp_path, "stopped")
    assert runs.stopped_all_along(lambda stop: trained(stopped, stop)) >= 6
    assert runs.metrics(stopped.folder) == runs.metrics(whole)
    files = sorted(path.relative_to(whole) for path in (whole / "checkpoints").rglob("*.safetensors"))
    assert len(files) >= 4
    for file in files:
        assert (stopped.folder / file).read_bytes() == (whole / file).read_bytes(), file
