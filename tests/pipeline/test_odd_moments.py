"""A clock that goes backwards, checkpoints that are damaged between stages, kills at moments that nobody plans for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from gad.config.run import RunConfig
from gad.errors import CheckpointError
from gad.folder import opened
from gad.pipeline import Pipeline
from gad.signals import StopRequest
from support import runs, tiny, warm
from unit.training.test_run import Heard

pytestmark = [pytest.mark.faults, pytest.mark.slow]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("whole")
    evaluation = {"max_prompts": 2, "decodings": runs.ONE, "independent": {"epochs": 0.2, "batch_size": 4}}
    checkpoints = {"every_steps": 1, "keep_last": 3}
    return runs.run_config(folder, tiny.save(folder / "model"), evaluation=evaluation, checkpoints=checkpoints)


@pytest.fixture(scope="module")
def whole(config: RunConfig) -> Path:
    return runs.run(config)


def written(config: RunConfig, name: str) -> tuple[Path, Path]:
    """A run file under another name, and its folder."""
    changed = config.model_copy(update={"name": name})
    file = changed.folder.parent.parent / f"{name}.yaml"
    file.write_text(json.dumps(changed.model_dump(mode="json")), encoding="utf-8")
    return file, changed.folder


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return warm.run(["-c", code, *arguments], env=environment)


READ_ONLY = """
import subprocess, sys
from pathlib import Path
place = Path(sys.argv.pop(1))
place.mkdir()
mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "none", str(place)], capture_output=True, text=True)
if mounted.returncode:
    print(mounted.stderr)
    sys.exit(77)
from gad import cli
try:
    cli.main()
finally:
    subprocess.run(["umount", str(place)], check=True)
"""


def test_a_folder_that_is_really_read_only(config: RunConfig, tmp_path: Path) -> None:
    file, _ = written(config, "read-only")
    done = python(READ_ONLY, str(tmp_path / "disk"), "collect", str(file), f"runs_dir={tmp_path / 'disk'}")
    if done.returncode == 77:
        pytest.skip(f"no disk can be mounted here: {done.stdout}")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path / 'disk'}/read-only: not writable (Read-only file system)")
    assert done.stderr.strip().endswith("set runs_dir to a folder that is")
    assert len(done.stderr.splitlines()) == 1


BACKWARDS = """
import itertools, sys, time
clock = itertools.count(float(sys.argv.pop(1)), -3600.0)
time.time = lambda: next(clock)
from gad import cli
cli.main()
"""


def test_a_clock_that_goes_backwards(config: RunConfig, whole: Path) -> None:
    """An hour at every look, and after a stop it begins a year earlier: nothing but the times in the log is other."""
    file, folder = written(config, "backwards")
    first = python(BACKWARDS, "1.8e9", "warmup", str(file))
    assert first.returncode == 1, first.stderr  # nothing was collected yet
    for start, verb in (("1.8e9", "collect"), ("1.7e9", "seqkd"), ("1.6e9", "warmup"), ("1.5e9", "run")):
        done = python(BACKWARDS, start, verb, str(file))
        assert done.returncode == 0, done.stderr
    times = [json.loads(line)["time"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert times == sorted(times, reverse=True)
    assert runs.metrics(folder) == runs.metrics(whole)
    assert runs.figures(folder) == runs.figures(whole)


def copied(config: RunConfig, whole: Path, name: str, *without: str) -> tuple[RunConfig, Path]:
    """The whole run under another name, without some of its files."""
    made = config.model_copy(update={"name": name})
    shutil.copytree(whole, made.folder)
    (made.folder / "config.json").write_text(json.dumps(made.model_dump(mode="json")), encoding="utf-8")
    for each in without:
        path = made.folder / each
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return made, made.folder


def flip(folder: Path, checkpoint: str) -> None:
    """One bit of the student's weights."""
    file = folder / "checkpoints" / checkpoint / "student.safetensors"
    content = bytearray(file.read_bytes())
    content[-9] ^= 16
    file.write_bytes(bytes(content))


def test_a_damaged_checkpoint_is_not_chosen(config: RunConfig, whole: Path) -> None:
    made, folder = copied(config, whole, "not-chosen", "choice.json", "replies/gad", "likelihoods/gad", "scores/gad")
    flip(folder, "adversarial-3")
    heard = Heard()
    with opened(made):
        Pipeline(made, heard, StopRequest()).generate()
    assert json.loads((folder / "choice.json").read_text())["chosen"] == "adversarial-2"
    said = [line for line in heard.lines if "adversarial-3 is damaged" in line]
    assert said == [
        "checkpoint adversarial-3 is damaged (student.safetensors: its checksum differs): it is not chosen from"
    ]


def test_the_student_is_not_read_from_a_damaged_checkpoint_and_is_made_again(config: RunConfig, whole: Path) -> None:
    made, folder = copied(config, whole, "damaged", "replies/gad", "likelihoods/gad", "scores/gad", "student")
    flip(folder, "adversarial-3")
    with opened(made), pytest.raises(CheckpointError, match="adversarial-3 is damaged .* its checksum differs"):
        Pipeline(made, Heard(), StopRequest()).generate()
    runs.run(made)  # the whole command makes the last step again, from the one before it
    assert runs.metrics(folder) == runs.metrics(whole)
    assert runs.figures(folder) == runs.figures(whole)
    student = Path("student/model.safetensors")
    assert (folder / student).read_bytes() == (whole / student).read_bytes()


KILLED_IN_RENAME = """
import os, signal, sys
wanted, name, count = int(sys.argv.pop(1)), sys.argv.pop(1), 0
def die(event, arguments):
    global count
    if event == "os.rename" and name in str(arguments[1]):
        count += 1
        if count == wanted:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(die)
from gad import cli
cli.main()
"""
GAD = "from gad import cli; cli.main()"


@pytest.mark.parametrize("moment", [1, 2, 3])
def test_killed_inside_a_fork(moment: int, config: RunConfig, whole: Path) -> None:
    """At each rename of `gad fork`, the last of which puts the new folder where it belongs: it is not there, and the
    same command makes it; what the killed one left is gone."""
    name = f"forked-{moment}"
    file, folder = written(config, name)
    killed = python(KILLED_IN_RENAME, str(moment), name, "fork", str(whole), str(file))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not folder.exists()
    assert list(folder.parent.glob(f".{name}.*"))
    again = python(GAD, "fork", str(whole), str(file))
    assert again.returncode == 0, again.stderr
    assert not list(folder.parent.glob(f".{name}.*"))
    assert runs.metrics(folder) == runs.metrics(whole)
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == sorted(
        path.name for path in (whole / "checkpoints").iterdir()
    )
