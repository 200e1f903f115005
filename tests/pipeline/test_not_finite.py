"""A loss or gradient that is not finite, in each stage that trains: skipped, counted, noted, and at last a stop."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gad.errors import RolloutError, TrainingStopped
from gad.folder import opened
from gad.pipeline import Pipeline
from gad.progress import Lines
from gad.signals import StopRequest
from gad.training.checkpoint import find
from support import runs, tiny

WILD = {"learning_rate": 1e38, "max_grad_norm": 1.0, "weight_decay": 0.0}
TAME = {"learning_rate": 1e-3, "max_grad_norm": 1.0}
BOTH = [{"train": "both", "steps": 6}]
OTHERS: dict[str, Any] = {"seqkd": None, "warmup": None, "adversarial": None}


def warmup(student: dict[str, float], discriminator: dict[str, float]) -> dict[str, Any]:
    sizes = {"phases": BOTH, "batch_size": 4, "replies_per_prompt": 2, "max_bad_steps": 2}
    return {"warmup": {**sizes, "student": student, "discriminator": discriminator}}


SEQKD = {"seqkd": {"epochs": 2, "batch_size": 4, "optimizer": WILD, "max_bad_steps": 2}}
ADVERSARIAL = {
    "adversarial": {
        "epochs": None,
        "steps": 6,
        "batch_size": 3,
        "replies_per_prompt": 3,
        "student": TAME,
        "discriminator": WILD,
        "max_bad_steps": 2,
    }
}
INDEPENDENT = {
    "seqkd": {"epochs": 0.4, "batch_size": 4, "optimizer": TAME},
    "evaluation": {
        "decodings": runs.ONE,
        "independent": {"epochs": 2, "batch_size": 4, "optimizer": WILD, "max_bad_steps": 2},
    },
}
STAGES: dict[str, tuple[str, dict[str, Any], str]] = {
    "seqkd": ("seqkd", SEQKD, "student"),
    "warmup, discriminator": ("warmup", warmup(TAME, WILD), "discriminator"),
    "adversarial": ("adversarial", ADVERSARIAL, "discriminator"),
    "independent": ("independent", INDEPENDENT, "discriminator"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


def train(folder: Path, model: Path, stage: str, changes: dict[str, Any]) -> Path:
    config = runs.run_config(folder, model, **{**OTHERS, **changes})
    with opened(config) as run:
        pipeline = Pipeline(config, Lines(), StopRequest())
        pipeline.collect()
        if stage == "independent":
            pipeline.seqkd()
        getattr(pipeline, "evaluate" if stage == "independent" else stage)()
    return run


@pytest.mark.faults
@pytest.mark.parametrize("name", STAGES)
def test_a_rate_that_breaks_the_weights(name: str, tmp_path: Path, model: Path) -> None:
    """The first update throws the weights to 1e38; every one after it is not finite. Two are allowed."""
    stage, changes, part = STAGES[name]
    with pytest.raises(TrainingStopped) as stopped:
        train(tmp_path, model, stage, changes)
    folder = tmp_path / "runs" / "tiny"
    said = str(stopped.value)
    assert said.startswith(f"{stage}: the ")
    assert "loss or gradient was not finite in 3 steps, the last of them step 4" in said
    assert str(folder / "skipped") in said
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["stage"] == stage]
    assert [row[f"{part}/skipped"] for row in rows] == [0.0, 1.0, 1.0, 1.0]
    assert [row[f"{part}/grad_norm"] is None for row in rows] == [False, True, True, True]
    assert find(folder / "checkpoints", stage)[0].step == 4
    noted = sorted(path.name for path in (folder / "skipped").glob(f"*-{part}.json"))
    assert noted == [f"{stage}-{step}-{part}.json" for step in (2, 3, 4)]
    note = json.loads((folder / "skipped" / noted[0]).read_text(), parse_constant=pytest.fail)
    assert (note["stage"], note["step"], note["part"]) == (stage, 2, part)
    assert note["loss"] in ("nan", "inf", "-inf") or note["tensors"]
    prompts = {row["prompt"] for row in note["batch"]}
    assert prompts
    assert prompts <= {f"train-{index}" for index in range(12)}


@pytest.mark.faults
def test_a_student_that_cannot_be_sampled_from(tmp_path: Path, model: Path) -> None:
    """Weights that are not finite give no replies, rather than replies of nonsense."""
    with pytest.raises(RolloutError, match="log-probabilities are not finite, so nothing can be sampled"):
        train(tmp_path, model, "warmup", warmup(WILD, TAME))


def test_the_allowance_may_change_within_a_run(tmp_path: Path, model: Path) -> None:
    with pytest.raises(TrainingStopped, match="in 3 steps"):
        train(tmp_path, model, "seqkd", SEQKD)
    tighter = {"seqkd": {**SEQKD["seqkd"], "max_bad_steps": 0}}
    with pytest.raises(TrainingStopped, match="in 1 steps, the last of them step 5"):
        train(tmp_path, model, "seqkd", tighter)
