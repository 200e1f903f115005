"""A run that takes over what another one has done: the same bits, and nothing that other settings would have made."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gad.arms import Arms
from gad.build import Workshop
from gad.config.run import RunConfig
from gad.errors import RunFolderError
from gad.fork import fork
from support import runs, tiny


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A finished run."""
    folder = tmp_path_factory.mktemp("runs")
    config = runs.run_config(folder, tiny.save(folder / "model"))
    runs.run(config)
    return config


def changed(config: RunConfig, name: str, **sections: object) -> RunConfig:
    return RunConfig.model_validate({**config.model_dump(), "name": name, **sections})


def test_another_student_rate_keeps_all_but_the_adversarial_stage(config: RunConfig) -> None:
    assert config.adversarial is not None
    gentle = {**config.adversarial.model_dump(), "student": {"learning_rate": 1e-4}}
    other = changed(config, "gentle", adversarial=gentle)
    taken = fork(config.folder, other)
    assert taken.stages == ("seqkd", "warmup", "independent")
    assert all(key.startswith("adversarial.student") for key in taken.changes)
    assert not list((other.folder / "checkpoints").glob("adversarial-*"))
    assert not (other.folder / "replies" / "gad").exists()
    for noted in ("arithmetic.json", "models.json"):
        assert (other.folder / noted).read_bytes() == (config.folder / noted).read_bytes()

    forked = runs.run(other)
    anew = runs.run(changed(other, "anew"))
    assert runs.metrics(forked) == runs.metrics(anew)
    assert runs.figures(forked) == runs.figures(anew)
    assert runs.figures(forked) != runs.figures(config.folder)


def test_the_same_settings_leave_nothing_to_do(config: RunConfig) -> None:
    twin = changed(config, "twin")
    assert fork(config.folder, twin).changes == ()
    before = {path: path.read_bytes() for path in (config.folder / "replies").rglob("*.jsonl")}
    runs.run(twin)
    assert runs.figures(twin.folder) == runs.figures(config.folder)
    assert {path: path.read_bytes() for path in (config.folder / "replies").rglob("*.jsonl")} == before


@pytest.mark.parametrize(
    ("section", "stages"),
    [
        ({"prompt": {"max_prompt_tokens": 64, "max_reply_tokens": runs.REPLY_LIMIT}}, ()),
        ({"discriminator": {"kind": "shared", "layer": 1}}, ("seqkd",)),
        ({"warmup": None}, ("seqkd",)),
        ({"adversarial": None}, ("seqkd",)),
        ({"seqkd": None}, ("warmup", "adversarial", "independent")),
        ({"evaluation": {"max_prompts": 2}}, ("seqkd", "warmup", "adversarial")),
        ({"compute": {"threads": 1}}, ("seqkd", "warmup", "adversarial", "independent")),
    ],
    ids=lambda value: "-".join(value) or "none",
)
def test_a_stage_is_taken_over_only_where_its_settings_are_the_same(
    config: RunConfig, section: dict[str, object], stages: tuple[str, ...], tmp_path: Path
) -> None:
    assert fork(config.folder, changed(config, "other", runs_dir=tmp_path, **section)).stages == stages


def test_a_discriminator_that_warmed_up_by_another_loss_is_left_behind(config: RunConfig, tmp_path: Path) -> None:
    assert config.adversarial is not None
    adversarial = {**config.adversarial.model_dump(), "discriminator_loss": {"kind": "least_squares"}}
    assert fork(config.folder, changed(config, "other", runs_dir=tmp_path, adversarial=adversarial)).stages == (
        "seqkd",
    )


def test_a_control_that_goes_on_from_the_warmup_follows_from_it(config: RunConfig, tmp_path: Path) -> None:
    assert config.seqkd is not None
    still = {"epochs": 0.1, "batch_size": 4, "optimizer": {"learning_rate": 1e-12}, "start_from": "warmup"}
    source = changed(config, "goes-on", runs_dir=tmp_path, seqkd=still, evaluation={"max_prompts": 4})
    runs.run(source)
    base, warm, trained = (of_stage(source, stage) for stage in ("base", "warmup", "seqkd"))
    assert all(torch.allclose(trained[name], warm[name], rtol=0, atol=1e-9) for name in warm)
    assert not all(torch.allclose(base[name], warm[name], rtol=0, atol=1e-9) for name in warm)

    lower = changed(source, "lower", discriminator={"kind": "shared", "layer": 1})
    assert fork(source.folder, lower).stages == ()
    assert not (lower.folder / "replies" / "seqkd").exists()
    longer = changed(source, "longer", seqkd={**still, "epochs": 0.5})
    assert fork(source.folder, longer).stages == ("warmup", "adversarial", "independent")
    control = [row["step"] for row in runs.metrics(runs.run(longer)) if row["stage"] == "seqkd"]
    assert control == [1, 2]


def of_stage(config: RunConfig, stage: str) -> dict[str, torch.Tensor]:
    """The student's weights that an arm has."""
    shop = Workshop(config)
    arms = Arms(config, shop)
    shop.compute_in("float32")
    arms.take(stage)
    return {name: tensor.clone() for name, tensor in shop.student.state().items()}


def test_replies_of_the_student_are_kept_where_only_the_figures_change(config: RunConfig, tmp_path: Path) -> None:
    evaluation = {**config.evaluation.model_dump(), "style": "!"}
    other = changed(config, "other", runs_dir=tmp_path, evaluation=evaluation)
    fork(config.folder, other)
    for kept in ("choice.json", "replies/gad/held_out.jsonl", "scores/gad/held_out@t1.jsonl"):
        assert (other.folder / kept).read_bytes() == (config.folder / kept).read_bytes()
    by_metric = {**evaluation, "checkpoint": {"metric": "preference"}}
    another = changed(config, "another", runs_dir=tmp_path, evaluation=by_metric)
    fork(config.folder, another)
    assert not (another.folder / "choice.json").exists()
    assert not (another.folder / "replies" / "gad").exists()
    assert (another.folder / "replies" / "seqkd").is_dir()


def test_what_is_unfinished_is_not_taken_over(config: RunConfig, tmp_path: Path) -> None:
    state = config.folder / "checkpoints" / "adversarial-3" / "state.json"
    written = state.read_text(encoding="utf-8")
    state.write_text(json.dumps({**json.loads(written), "done": False}), encoding="utf-8")
    try:
        taken = fork(config.folder, changed(config, "other", runs_dir=tmp_path))
    finally:
        state.write_text(written, encoding="utf-8")
    assert taken.stages == ("seqkd", "warmup", "independent")


def test_bad_input(config: RunConfig, tmp_path: Path) -> None:
    def refused(source: Path, other: RunConfig) -> str:
        with pytest.raises(RunFolderError) as caught:
            fork(source, other)
        assert other.folder == config.folder or not other.folder.exists()
        return str(caught.value)

    other = changed(config, "other", runs_dir=tmp_path)
    assert f"{tmp_path / 'none'} is no run folder" in refused(tmp_path / "none", other)
    assert "give the new run another name" in refused(config.folder, config)
    assert "seed differ from" in refused(config.folder, changed(other, "other", seed=3))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_bytes((config.folder / "config.json").read_bytes())
    assert "holds no teacher's replies yet" in refused(tmp_path / "empty", other)
    (tmp_path / "empty" / "config.json").write_text("[]", encoding="utf-8")
    assert "is not a config that this version" in refused(tmp_path / "empty", other)
