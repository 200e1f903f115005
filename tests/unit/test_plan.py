"""Every number that follows from a run file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from gad.config.run import RunConfig
from gad.errors import ConfigError, DataError, ModelError
from gad.plan import derive, show
from support import runs


def lines(config: RunConfig) -> dict[str, dict[str, str]]:
    return {section: dict(found) for section, found in derive(config)}


def model_folder(folder: Path, **shape: Any) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(shape), encoding="utf-8")
    (folder / "model.safetensors").write_bytes(bytes(2_500_000))
    return folder


def test_steps_batches_and_replies_by_hand(tmp_path: Path) -> None:
    plan = lines(runs.run_config(tmp_path, "no/model"))
    assert plan["data"] == {
        "train": "12 prompts",
        "held_out": "5 prompts",
        "out_of_distribution": "4 prompts",
        "near-duplicates across sets": "0",
    }
    assert plan["seqkd"] == {"prompts a step": "4", "steps": "3", "epochs": "1"}
    assert plan["warmup"]["phases"] == "discriminator 1 steps, both 2 steps"
    assert plan["warmup"]["replies sampled"] == f"{3 * 4 * 2}, at most {3 * 4 * 2 * 24:,} tokens"
    assert plan["adversarial"]["replies a step"] == "3 x 3 = 9"
    assert "the student learns from" not in plan["adversarial"]
    assert plan["adversarial"]["steps"] == "3 (0.75 epochs)"
    assert plan["adversarial"]["replies sampled"] == f"27, at most {27 * 24:,} tokens"
    assert plan["adversarial"]["longest row"] == "152 tokens; budget of a micro-batch 4,096"
    assert plan["evaluation"]["students"] == "base, seqkd, gad"
    assert plan["evaluation"]["replies"] == str(3 * (5 + 4))
    assert plan["evaluation"]["independent discriminator"] == "2 steps of 4 prompts, each with 2 samples"


def test_the_replies_that_the_student_learns_from_are_said(tmp_path: Path) -> None:
    settings = {**runs.run_config(tmp_path, "no/model").model_dump()["adversarial"], "trained_replies": 2}
    plan = lines(runs.run_config(tmp_path, "no/model", adversarial=settings))
    assert plan["adversarial"]["the student learns from"] == "3 x 2 = 6 of them"


def test_a_quantized_base_is_said(tmp_path: Path) -> None:
    compute = {"merge_adapters": False}
    assert "frozen base" not in lines(runs.run_config(tmp_path, "no/model"))["student"]
    for kind, bits in (("int8", "8 bits"), ("nf4", "4 bits")):
        student = {"model": "no/model", "quantization": {"kind": kind}}
        plan = lines(runs.run_config(tmp_path, "no/model", student=student, compute=compute))
        assert bits in plan["student"]["frozen base"]


def test_epochs_become_steps_and_a_batch_larger_than_the_data_is_said(tmp_path: Path) -> None:
    base = runs.run_config(tmp_path, "no/model").model_dump()
    settings = {**base["adversarial"], "steps": None, "epochs": 2.5, "batch_size": 5}
    plan = lines(runs.run_config(tmp_path, "no/model", adversarial=settings))
    assert plan["adversarial"]["steps"] == "6 (2.50 epochs)"
    plan = lines(runs.run_config(tmp_path, "no/model", adversarial={**settings, "batch_size": 500}))
    assert plan["adversarial"]["prompts a step"] == "12 (the run file's 500 is more than there are)"
    assert plan["adversarial"]["steps"] == "3 (3.00 epochs)"


def test_a_control_that_goes_on_from_the_warmup_comes_after_it(tmp_path: Path) -> None:
    base = runs.run_config(tmp_path, "no/model")
    assert base.seqkd is not None
    assert list(lines(base))[2:4] == ["seqkd", "warmup"]
    plan = lines(runs.run_config(tmp_path, "no/model", seqkd={**base.seqkd.model_dump(), "start_from": "warmup"}))
    assert list(plan)[2:4] == ["warmup", "seqkd"]
    assert plan["seqkd"]["starts from"] == "the warm-up's student"


def test_stages_that_are_left_out_are_not_planned(tmp_path: Path) -> None:
    plan = lines(runs.run_config(tmp_path, "no/model", seqkd=None, warmup=None, adversarial=None))
    assert set(plan) == {"student", "data", "evaluation"}
    assert plan["evaluation"]["students"] == "base"


def test_data_that_are_elsewhere_are_named_and_not_fetched(tmp_path: Path) -> None:
    config = runs.run_config(tmp_path, "no/model", data={"train": "owner/texts", "held_out": str(tmp_path / "gone")})
    plan = lines(config)
    assert plan["data"]["not on this machine"] == "owner/texts"
    assert set(plan) == {"student", "data"}


def test_data_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    config = runs.run_config(tmp_path, "no/model", data={"train": str(tmp_path / "gone.jsonl")})
    with pytest.raises(DataError, match="no such file or folder"):
        derive(config)


def test_a_local_model_is_read_as_far_as_its_config(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "m", num_hidden_layers=4, max_position_embeddings=512)
    plan = lines(runs.run_config(tmp_path, model))
    assert plan["student"]["layers"] == "4"
    assert plan["student"]["context"] == "512 tokens"
    assert plan["student"]["weights"] == "0.0025 GB"
    assert plan["student"]["trained"] == "lora, rank 4"
    inner = model_folder(tmp_path / "n", text_config={"num_hidden_layers": 7, "max_position_embeddings": 99})
    assert lines(runs.run_config(tmp_path, inner))["student"]["layers"] == "7"


def test_what_a_local_model_cannot_meet_is_refused(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "m", num_hidden_layers=4, max_position_embeddings=64)
    full = runs.run_config(tmp_path, model, prompt={"max_reply_tokens": 64})
    with pytest.raises(ConfigError, match=r"max_reply_tokens=64 fills the context of 64 tokens .* leave room"):
        derive(full)
    deep = runs.run_config(tmp_path, model, discriminator={"kind": "shared", "layer": 5})
    with pytest.raises(ConfigError, match=r"discriminator\.layer=5: .* has 4 layers; leave it out"):
        derive(deep)
    derive(runs.run_config(tmp_path, model, discriminator={"kind": "shared", "layer": 4}))
    derive(runs.run_config(tmp_path, model, discriminator={"kind": "own", "model": "other/model", "layer": 5}))


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_a_model_folder_whose_config_cannot_be_read(tmp_path: Path, text: str) -> None:
    model = model_folder(tmp_path / "m")
    (model / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ModelError, match=r"config"):
        derive(runs.run_config(tmp_path, model))
    (model / "config.json").unlink()
    with pytest.raises(ModelError, match=r"is not a model folder: its config\.json cannot be read"):
        derive(runs.run_config(tmp_path, model))


def test_shown_names_are_text_and_never_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = runs.run_config(tmp_path, "no/[red]model[/red]")
    show(config, [("[bold]data", [("a [link]", "[/nothing]")])])
    shown = capsys.readouterr().out
    assert "tiny" in shown
    assert "(not begun)" in " ".join(shown.split())
    assert "[bold]data" in shown
    assert "a [link]" in shown
    assert "[/nothing]" in shown
    assert not config.folder.exists()
