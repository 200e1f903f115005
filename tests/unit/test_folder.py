"""A run folder has one owner and one config."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gad.config.run import RunConfig
from gad.errors import RunFolderError
from gad.folder import differences, opened
from support import runs


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return runs.run_config(tmp_path, "no/model")


def again(config: RunConfig, **changes: object) -> RunConfig:
    return RunConfig.model_validate({**config.model_dump(), **changes})


def test_the_resolved_config_is_written_and_read_back(config: RunConfig) -> None:
    with opened(config) as folder:
        assert folder == config.folder
        recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert recorded["adversarial"]["policy_loss"]["clip"] == 0.2
    assert RunConfig.model_validate(recorded) == config
    with opened(config):
        pass


def test_another_config_is_refused_with_the_keys_and_both_values(config: RunConfig) -> None:
    with opened(config) as folder:
        (folder / "kept.txt").write_text("x", encoding="utf-8")
    before = (folder / "config.json").read_bytes()
    assert config.adversarial is not None
    other = again(config, seed=7, adversarial={**config.adversarial.model_dump(), "batch_size": 9})
    with pytest.raises(RunFolderError) as caught, opened(other):
        pytest.fail("opened")
    said = str(caught.value)
    assert "adversarial.batch_size changed (3 there, 9 now), seed changed (0 there, 7 now): undo the change" in said
    assert "name=" in said
    assert (folder / "config.json").read_bytes() == before
    assert (folder / "kept.txt").exists()


def test_many_changes_are_counted(config: RunConfig) -> None:
    with opened(config):
        pass
    assert config.adversarial is not None
    other = again(config, prompt={}, seed=1, warmup=None, seqkd=None, student={"model": "other"})
    changed = differences(config.model_dump(mode="json"), other.model_dump(mode="json"))
    assert len(changed) > 7
    with pytest.raises(RunFolderError, match=rf"now\) and {len(changed) - 5} more: undo"), opened(other):
        pytest.fail("opened")


@pytest.mark.parametrize(
    "changes",
    [{"compute": {"device": "cpu", "tokens_per_micro_batch": 64}}, {"checkpoints": {"every_steps": 9}}],
)
def test_what_changes_no_figure_may_change(config: RunConfig, changes: dict[str, object]) -> None:
    with opened(config):
        pass
    with opened(again(config, **changes)) as folder:
        recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    name, section = next(iter(changes.items()))
    assert isinstance(section, dict)
    assert section.items() <= recorded[name].items()


@pytest.mark.parametrize(("stage", "key", "value"), [("adversarial", "steps", 9), ("seqkd", "epochs", 2.0)])
def test_how_long_a_stage_trains_may_change_until_it_has_begun(
    stage: str, key: str, value: float, config: RunConfig
) -> None:
    """A checkpoint of another stage says nothing of this one."""
    other = again(config, **{stage: {**config.model_dump()[stage], key: value}})
    with opened(config) as folder:
        (folder / "checkpoints" / "warmup-3").mkdir(parents=True)
    with opened(other):
        recorded = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert recorded[stage][key] == value
    (folder / "checkpoints" / f"{stage}-1").mkdir()
    with pytest.raises(RunFolderError, match=rf"{stage}\.{key} changed \({value} there"), opened(config):
        pytest.fail("opened")
    with opened(other):
        pass


def test_a_key_that_a_later_version_added_has_its_default(config: RunConfig) -> None:
    with opened(config) as folder:
        path = folder / "config.json"
    recorded = json.loads(path.read_text(encoding="utf-8"))
    del recorded["adversarial"]["max_bad_steps"], recorded["evaluation"]["confidence"]
    path.write_text(json.dumps(recorded), encoding="utf-8")
    with opened(config):
        pass
    recorded["key_of_another_version"] = 3
    path.write_text(json.dumps(recorded), encoding="utf-8")
    with pytest.raises(RunFolderError, match="key_of_another_version changed"), opened(config):
        pytest.fail("opened")


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_damaged_record_is_named(config: RunConfig, text: str) -> None:
    with opened(config) as folder:
        (folder / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r"config\.json is damaged .*: delete this one file"), opened(config):
        pytest.fail("opened")


HOLD = """
import sys, time
from gad.config.run import RunConfig
from gad.folder import opened
with opened(RunConfig.model_validate_json(sys.argv[1])):
    print("open", flush=True)
    time.sleep(600)
"""


def test_a_second_owner_is_refused_until_the_first_is_gone(config: RunConfig) -> None:
    words = [sys.executable, "-c", HOLD, config.model_dump_json()]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
            said = f"in use by process {process.pid}: wait for it"
            with pytest.raises(RunFolderError, match=said), opened(config):
                pytest.fail("opened")
        finally:
            process.kill()
    with opened(config):
        pass


def test_a_file_in_the_way_is_named_and_kept(config: RunConfig, tmp_path: Path) -> None:
    blocking = tmp_path / "runs"
    blocking.write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match=f"{blocking} is a file, not a folder: remove it"), opened(config):
        pytest.fail("opened")
    assert blocking.read_text(encoding="utf-8") == "mine"
    blocking.unlink()
    blocking.mkdir()
    (blocking / "tiny").write_text("mine", encoding="utf-8")
    with pytest.raises(RunFolderError, match=f"{blocking / 'tiny'} is a file"), opened(config):
        pytest.fail("opened")


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.EACCES, r"not writable \(Permission denied\); set runs_dir to a folder that is"),
        (errno.EROFS, r"not writable \(Read-only file system\)"),
        (errno.ENOSPC, "the disk is full; free some space, or set runs_dir"),
        (errno.ENOLCK, r"cannot be a run folder \(No locks available\)"),
    ],
)
def test_a_place_that_cannot_be_used(
    config: RunConfig, number: int, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(RunFolderError, match=said), opened(config):
        pytest.fail("opened")


def test_an_error_of_the_work_itself_passes_unchanged(config: RunConfig) -> None:
    with pytest.raises(PermissionError, match="elsewhere"), opened(config):
        raise PermissionError(errno.EACCES, "elsewhere")


def test_what_a_killed_process_left_is_removed_wherever_it_is(config: RunConfig) -> None:
    left = [config.folder / ".student.tmp-1", config.folder / "replies/gad/.held_out.jsonl.tmp-2"]
    for path in left:
        path.mkdir(parents=True)
    (left[0] / "model.safetensors").write_text("half", encoding="utf-8")
    kept = config.folder / "replies/gad/held_out.jsonl"
    kept.write_text("{}\n", encoding="utf-8")
    with opened(config):
        pass
    assert not any(path.exists() for path in left)
    assert kept.exists()


def test_differences_are_dotted_keys() -> None:
    before = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": {"f": 1}}
    after = {"a": 1, "b": {"c": [1, 3]}, "e": None, "g": 0}
    assert differences(before, after) == ["b.c", "e", "g"]
    assert differences(before, before) == []
