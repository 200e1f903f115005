"""Another model under the name of the one that a run was begun with."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gad.errors import Interrupted, RunFolderError
from gad.folder import CHECKPOINTS
from gad.models import identity
from support import runs, tiny


def begun(folder: Path, model: Path, *, trained: bool) -> Path:
    """A run folder that knows its model."""
    run = folder / "run"
    run.mkdir()
    identity.settled(run, [str(model)])
    if trained:
        (run / CHECKPOINTS / "warmup-1").mkdir(parents=True)
    return run


def change_one_tensor(model: Path) -> None:
    """Names and shapes stay."""
    weights = load_file(model / "model.safetensors")
    name = max(weights, key=lambda each: weights[each].numel())
    weights[name] = weights[name] + torch.ones_like(weights[name])
    save_file(weights, model / "model.safetensors", {"format": "pt"})


def test_other_weights_of_the_same_shapes_are_refused_once_something_is_trained(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    run = begun(tmp_path, model, trained=True)
    noted = (run / identity.FILE).read_bytes()
    identity.settled(run, [str(model)])
    change_one_tensor(model)
    with pytest.raises(RunFolderError, match=r"model holds another model than when .*run was begun with it.*name="):
        identity.settled(run, [str(model)])
    assert (run / identity.FILE).read_bytes() == noted


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json"])
def test_so_are_another_shape_and_another_tokenizer(file: str, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    run = begun(tmp_path, model, trained=True)
    (model / file).write_text((model / file).read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(RunFolderError, match="another model"):
        identity.settled(run, [str(model)])


def test_before_anything_is_trained_a_model_may_be_mended(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    run = begun(tmp_path, model, trained=False)
    change_one_tensor(model)
    identity.settled(run, [str(model)])
    (run / CHECKPOINTS / "warmup-1").mkdir(parents=True)
    identity.settled(run, [str(model)])
    assert "model" in (run / identity.FILE).read_text(encoding="utf-8")


def test_a_moved_copy_is_the_same_and_a_run_of_an_earlier_version_takes_what_it_finds(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    run = begun(tmp_path, model, trained=True)
    first = (run / identity.FILE).read_text(encoding="utf-8")
    (run / identity.FILE).unlink()
    model.rename(tmp_path / "elsewhere")
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    identity.settled(run, [str(model)])
    assert (run / identity.FILE).read_text(encoding="utf-8") == first


def test_a_model_that_cannot_be_found_is_left_to_who_loads_it(tmp_path: Path) -> None:
    identity.settled(tmp_path, [str(tmp_path / "absent"), "nobody/no-such-model", "package:no-such-package"])
    assert (tmp_path / identity.FILE).read_text(encoding="utf-8").split() == ["{}"]


@pytest.mark.parametrize("text", ["", "[]", "{"])
def test_a_damaged_record_is_named(text: str, tmp_path: Path) -> None:
    run = begun(tmp_path, tiny.save(tmp_path / "model"), trained=True)
    (run / identity.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match="models.json is damaged"):
        identity.settled(run, [str(tmp_path / "model")])


def test_of_a_large_file_pieces_are_read_from_its_first_to_its_last_byte(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    size = 5_000_000
    file.write_bytes(bytes(size))
    plain = identity._pieces(file)
    assert len(plain) == identity._PIECES * identity._PIECE_BYTES
    for place in (0, size - 1):
        with file.open("r+b") as stream:
            stream.seek(place)
            stream.write(b"x")
        assert identity._pieces(file) != plain
        file.write_bytes(bytes(size))


def test_a_run_whose_base_was_changed_does_not_go_on(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    config = runs.run_config(tmp_path, model, seqkd=None, adversarial=None)
    with pytest.raises(Interrupted):
        runs.run(config, runs.StopAfter(looks=2))
    assert (config.folder / "checkpoints").exists()
    change_one_tensor(model)
    with pytest.raises(RunFolderError, match="another model"):
        runs.run(config)
