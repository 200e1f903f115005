"""Every stage on tiny models: architectures, arms, repeatability, going on after a stop."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gad.config.run import RunConfig
from gad.config.training import Sampling
from gad.errors import Interrupted, RolloutError
from gad.folder import opened
from gad.fork import fork
from gad.pipeline import Pipeline
from gad.progress import Lines
from gad.records import Prompt, Rollout
from gad.rollout.engine import Request
from gad.rollout.local import LocalEngine
from gad.signals import StopRequest
from gad.storage import read_jsonl
from gad.training.checkpoint import find
from support import runs, tiny


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "model")


def full_config(folder: Path, model: Path, **changes: Any) -> RunConfig:
    """Nothing left out: every stage, and both decodings."""
    config = runs.run_config(folder, model, **changes).model_dump()
    return RunConfig.model_validate({**config, "evaluation": {**config["evaluation"], "decodings": runs.BOTH}})


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, to be read only."""
    return runs.run(full_config(tmp_path_factory.mktemp("whole"), model))


def stages(config: RunConfig, *names: str) -> Path:
    """Some stages of a run."""
    with opened(config) as folder:
        pipeline = Pipeline(config, Lines(), StopRequest())
        for name in names:
            getattr(pipeline, name)()
    return folder


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_every_architecture_goes_from_texts_to_a_report(architecture: str, whole: Path, tmp_path: Path) -> None:
    folder = whole
    if architecture != "qwen2":
        folder = runs.run(runs.run_config(tmp_path, tiny.save(tmp_path / "model", architecture)))
    rows = runs.metrics(folder)
    assert [(row["stage"], row["step"]) for row in rows] == [
        *(("adversarial", step) for step in (1, 2, 3)),
        *(("independent", step) for step in (1, 2)),
        *(("seqkd", step) for step in (1, 2, 3)),
        *(("warmup", step) for step in (1, 2, 3)),
    ]
    first = rows[0]
    assert first["student/kl_to_reference"] == pytest.approx(0.0, abs=1e-6)
    assert first["rollout/logp_gap"] < 1e-4
    assert all(math.isfinite(row["student/grad_norm"]) for row in rows if "student/grad_norm" in row)
    figures = runs.figures(folder)
    assert {row["student"] for row in figures} == {"base", "seqkd", "gad"}
    assert {row["set"] for row in figures} == {"held_out", "out_of_distribution"}
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "</html>" in report
    assert (folder / "student" / "model.safetensors").exists()


def test_the_exported_student_is_the_one_that_was_evaluated(model: Path, whole: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    student = AutoModelForCausalLM.from_pretrained(whole / "student")
    tokenizer = AutoTokenizer.from_pretrained(whole / "student")
    base = AutoModelForCausalLM.from_pretrained(model)
    codec = tiny.codec(max_reply_tokens=runs.REPLY_LIMIT)
    row = json.loads((whole / "replies/gad/held_out@greedy.jsonl").read_text(encoding="utf-8").splitlines()[0])
    prompt = Prompt.from_text(row["id"], row["prompt"][0]["content"])
    ids = tokenizer.apply_chat_template(
        [message.as_dict() for message in prompt.messages], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    assert tuple(ids[0].tolist()) == codec.prompt_ids(prompt)
    out = student.generate(ids, do_sample=False, max_new_tokens=runs.REPLY_LIMIT, eos_token_id=256, pad_token_id=256)
    assert codec.text(tuple(out[0, ids.shape[1] :].tolist())) == row["completion"]
    moved = (student.model.layers[0].mlp.up_proj.weight - base.model.layers[0].mlp.up_proj.weight).abs().max()
    assert moved > 1e-5


def test_two_runs_with_one_seed_have_the_same_log_and_figures(model: Path, whole: Path, tmp_path: Path) -> None:
    second = runs.run(full_config(tmp_path, model, name="second"))
    assert runs.metrics(second) == runs.metrics(whole)
    assert runs.figures(second) == runs.figures(whole)
    trained = [row for row in runs.metrics(whole) if row["stage"] in ("warmup", "adversarial")]
    other = stages(runs.run_config(tmp_path, model, name="other", seed=1), "collect", "warmup", "adversarial")
    assert [(row["stage"], row["step"]) for row in runs.metrics(other)] == [(r["stage"], r["step"]) for r in trained]
    assert not any(one == two for one, two in zip(runs.metrics(other), trained, strict=True))


@pytest.mark.slow
def test_a_run_stopped_at_every_turn_ends_as_one_that_never_was(model: Path, whole: Path, tmp_path: Path) -> None:
    config = full_config(tmp_path, model, name="stopped")
    stops, codes = 0, set[int]()
    while True:
        try:
            runs.run(config, runs.StopAfter(looks=5))
            break
        except Interrupted as stop:
            codes.add(stop.exit_code)
            stops += 1
    assert stops > 4
    assert codes == {143}
    folder = config.folder
    assert runs.metrics(folder) == runs.metrics(whole)
    assert runs.figures(folder) == runs.figures(whole)
    for stage in ("seqkd", "warmup", "adversarial", "independent"):
        ours, theirs = (find(run / "checkpoints", stage)[0] for run in (folder, whole))
        for file in sorted(theirs.path.glob("*.safetensors")):
            assert (ours.path / file.name).read_bytes() == file.read_bytes()
    for file in sorted((whole / "replies").rglob("*.jsonl")):
        assert (folder / file.relative_to(whole)).read_bytes() == file.read_bytes()


ARMS = {
    "frozen discriminator": {"on_policy_discriminator": False},
    "cross-entropy discriminator": {"discriminator_loss": {"kind": "cross_entropy"}},
    "least squares": {"discriminator_loss": {"kind": "least_squares"}},
    "std-scaled": {"advantages": {"kind": "std_scaled"}},
    "batch-scaled": {"advantages": {"kind": "batch_scaled"}},
    "leave one out": {"advantages": {"kind": "leave_one_out"}},
    "reinforce": {"policy_loss": {"kind": "reinforce"}},
    "constant length": {"policy_loss": {"kind": "constant_length"}},
    "sequence ratio": {"policy_loss": {"kind": "sequence_ratio"}},
    "kl in the reward": {"kl": {"weight": 0.1, "estimator": "k1", "place": "reward"}},
    "mixed cross-entropy": {"cross_entropy_weight": 0.5, "sampling": {"temperature": 0.7}},
    "a watched reference": {"kl": {"weight": 0.0}},
    "a guard on length": {"length_guard": True},
    "the most telling replies": {"replies_per_prompt": 4, "trained_replies": 2},
}


@pytest.fixture(scope="module")
def warm(model: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run that has warmed up, for the arms to begin from."""
    config = runs.run_config(tmp_path_factory.mktemp("warm"), model, seqkd=None)
    stages(config, "collect", "warmup")
    return config


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_trains(arm: str, warm: RunConfig, tmp_path: Path) -> None:
    settings = warm.model_dump()
    adversarial = {**settings["adversarial"], **ARMS[arm]}
    config = RunConfig.model_validate({**settings, "runs_dir": tmp_path, "adversarial": adversarial})
    fork(warm.folder, config)
    folder = stages(config, "collect", "warmup", "adversarial")
    rows = [row for row in runs.metrics(folder) if row["stage"] == "adversarial"]
    assert len(rows) == 3
    assert all(math.isfinite(row["student/loss"]) and row["student/grad_norm"] > 0 for row in rows)
    assert ("discriminator/grad_norm" in rows[0]) is (arm != "frozen discriminator")
    assert ("student/cross_entropy" in rows[0]) is (arm == "mixed cross-entropy")
    assert all("student/kl_to_reference" in row for row in rows)
    assert (rows[0]["tokens/trained"] < rows[0]["tokens/sampled"]) is (arm == "the most telling replies")


@pytest.mark.parametrize("who", ["student", "discriminator"])
def test_a_warm_up_of_one_alone(who: str, model: Path, tmp_path: Path) -> None:
    settings = runs.run_config(tmp_path, model, seqkd=None).model_dump()
    warmup = {**settings["warmup"], "phases": [{"train": who, "steps": 2}]}
    config = RunConfig.model_validate({**settings, "warmup": warmup})
    # What comes after training finds a warm-up student that is the base model only where the discriminator was alone.
    folder = stages(config, "collect", "warmup", "adversarial") if who == "student" else runs.run(config)
    rows = [row for row in runs.metrics(folder) if row["stage"] == "warmup"]
    assert [("student/cross_entropy" in row, "discriminator/loss" in row) for row in rows] == (
        [(who == "student", who == "discriminator")] * 2
    )


def test_replies_of_a_student_at_rest_are_sampled_for_several_steps_and_a_stop_in_between_changes_nothing(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five steps of 4 x 2 replies, 16 side by side: two steps, two, and one."""
    settings = runs.run_config(tmp_path, model, seqkd=None).model_dump()
    phases = [{"train": "student", "steps": 1}, {"train": "discriminator", "steps": 5}, {"train": "both", "steps": 1}]
    warmup = {**settings["warmup"], "phases": phases}
    asked, generate = list[int](), LocalEngine.generate

    def counted(engine: LocalEngine, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        asked.append(len(requests))
        return generate(engine, requests, sampling)

    monkeypatch.setattr(LocalEngine, "generate", counted)
    logs, clocks = [], []
    for name, rows in (("together", 16), ("alone", 1), ("stopped", 16)):
        compute = {**settings["compute"], "rows_per_sampling_batch": rows}
        config = RunConfig.model_validate({**settings, "name": name, "warmup": warmup, "compute": compute})
        if name == "stopped":
            for steps in range(1, 7):
                stopping_at(config, steps)
        folder = stages(config, "collect", "warmup")
        logs.append([row for row in runs.metrics(folder) if row["stage"] == "warmup"])
        clocks.append([row for row in read_jsonl(folder / "metrics.jsonl") if "discriminator/loss" in row])
        assert name == "stopped" or asked == {"together": [8, 8, 4, 4], "alone": [4] * 6}[name]
        asked.clear()
    together, alone, stopped = logs
    assert stopped == together
    for clock in clocks:
        assert all(row["time/step"] > row["time/sampling"] > 0 for row in clock)
    for first, second in ((0, 1), (2, 3)):
        assert clocks[0][second]["time/sampling"] > clocks[0][first]["time/sampling"] / 100  # each has its share
    assert [row["tokens/sampled"] for row in together[1:]] == [row["tokens/sampled"] for row in alone[1:]]
    for one, other in zip(together, alone, strict=True):
        assert one.get("discriminator/loss", 0.0) == pytest.approx(other.get("discriminator/loss", 0.0), rel=1e-4)


def stopping_at(config: RunConfig, steps: int) -> None:
    """The warm-up until it has made so many steps."""
    with opened(config) as folder:
        pipeline = Pipeline(config, Lines(), AtStep(folder / "metrics.jsonl", steps))
        pipeline.collect()
        with pytest.raises(Interrupted):
            pipeline.warmup()
    assert len(list(read_jsonl(folder / "metrics.jsonl"))) == steps


class AtStep(StopRequest):
    """Asks for a stop once the log has so many lines."""

    def __init__(self, log: Path, lines: int) -> None:
        self._log, self._lines = log, lines
        super().__init__()

    @property  # type: ignore[override]
    def signal_number(self) -> int | None:
        return 15 if self._log.exists() and len(list(read_jsonl(self._log))) >= self._lines else None

    @signal_number.setter
    def signal_number(self, value: int | None) -> None:
        pass


def test_full_tuning_with_a_discriminator_of_another_size_and_tokenizer(model: Path, tmp_path: Path) -> None:
    other = tiny.save(tmp_path / "other", "gemma2")
    config = runs.run_config(
        tmp_path,
        model,
        student={"model": str(model), "dtype": "bfloat16", "tuning": {"kind": "full"}},
        discriminator={"kind": "own", "model": str(other), "dtype": "float32", "tuning": {"kind": "lora", "rank": 2}},
    )
    folder = runs.run(config)
    rows = [row for row in runs.metrics(folder) if row["stage"] == "adversarial"]
    assert rows[0]["student/kl_to_reference"] == pytest.approx(0.0, abs=1e-3)
    assert rows[-1]["student/kl_to_reference"] > 0
    assert {row["student"] for row in runs.figures(folder)} == {"base", "seqkd", "gad"}


def test_the_checkpoint_is_chosen_by_a_named_figure(model: Path, tmp_path: Path) -> None:
    base = runs.run_config(tmp_path, model).model_dump()
    choice = {"metric": "preference", "min_length_ratio": 0.01, "max_length_ratio": 100.0}
    config = runs.run_config(
        tmp_path,
        model,
        seqkd=None,
        evaluation={**base["evaluation"], "checkpoint": choice},
        checkpoints={"every_steps": 1, "keep_last": 3},
    )
    folder = stages(config, "collect", "warmup", "adversarial", "generate")
    chosen = json.loads((folder / "choice.json").read_text(encoding="utf-8"))
    assert chosen["last"] == "adversarial-3"
    assert chosen["chosen"] in {"adversarial-1", "adversarial-2", "adversarial-3"}
    assert "preference" in chosen["reason"]


def test_a_student_that_diverged_is_named(model: Path, tmp_path: Path) -> None:
    wild = {"epochs": 1, "batch_size": 4, "optimizer": {"learning_rate": 1e30, "max_grad_norm": 1e30}}
    config = runs.run_config(tmp_path, model, seqkd=wild, warmup=None, adversarial=None)
    with pytest.raises(RolloutError, match=r"not finite, so nothing can be sampled.*lower learning rate"):
        runs.run(config)
    assert (config.folder / "replies/base/held_out.jsonl").exists()
