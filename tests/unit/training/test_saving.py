"""Which checkpoints stay, and writing while training goes on."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from gad.config.compute import CheckpointConfig
from gad.errors import Interrupted, RunFolderError
from gad.signals import StopRequest
from gad.training import checkpoint
from gad.training.run import Place, StageRun
from gad.training.saving import Writing, kept
from unit.training.test_run import Heard, Part, checkpoints, examples

VALUES = [0.9, 0.8, 0.1, 0.2, 0.7, 0.3, 0.6, 0.55, 0.9, 1.0, 0.65, 0.8]
"""Means of two steps: 2 -> .85, 4 -> .15, 6 -> .5, 8 -> .575, 10 -> .95, 12 -> .725."""


def train(folder: Path, *, until: int | None = None, stop_at: int | None = None, **settings: Any) -> Part:
    """Twelve steps, a checkpoint at every other one; killed or stopped on the way."""
    part, stop = Part(), StopRequest()
    place = Place(folder, 0, CheckpointConfig(every_steps=2, **settings), Heard(), stop)
    made = StageRun(
        "adversarial",
        place,
        examples(7),
        batch_size=3,
        total_steps=len(VALUES),
        parts={"student": part},
        max_bad_steps=0,
    )
    for step, batch in made.batches():
        part.learn(batch)
        made.log(step, {"discriminator/accuracy_fresh": VALUES[step - 1], "student/kl": -VALUES[step - 1]})
        if step == until:
            raise RuntimeError("killed")
        made.checkpoint_if_due(step)
        if step == stop_at:
            stop.signal_number = signal.SIGTERM
    return part


def steps(folder: Path) -> list[int]:
    return sorted(int(name.removeprefix("adversarial-")) for name in checkpoints(folder))


@pytest.mark.parametrize(
    ("settings", "left"),
    [
        ({"keep_last": 1}, [12]),
        ({"keep_last": 1, "keep_best": 1}, [4, 12]),
        ({"keep_last": 1, "keep_best": 3}, [4, 6, 8, 12]),
        ({"keep_last": 2, "keep_best": 1, "best_is": "highest"}, [10, 12]),
        ({"keep_last": 1, "keep_best": 2, "best_is": "highest"}, [2, 10, 12]),
        ({"keep_last": 1, "keep_best": 1, "best_metric": "student/kl", "best_is": "highest"}, [4, 12]),
        ({"keep_last": 2, "keep_best": 4, "best_metric": "no/such"}, [10, 12]),
        ({"keep_last": 9, "keep_best": 9}, [2, 4, 6, 8, 10, 12]),
    ],
)
def test_the_last_and_the_best_stay(tmp_path: Path, settings: dict[str, Any], left: list[int]) -> None:
    train(tmp_path, **settings)
    assert steps(tmp_path) == left


def test_of_equal_ones_the_later_stays_and_a_value_that_is_null_counts_for_nothing(tmp_path: Path) -> None:
    found = []
    for step in (2, 4, 6, 8):
        checkpoint.save(tmp_path, "adversarial", step, {}, {"due": True})
    found = checkpoint.find(tmp_path, "adversarial")
    rows = [
        {"stage": "adversarial", "step": step, "discriminator/accuracy_fresh": value}
        for step, value in enumerate([0.5, 0.5, None, 0.5, None, None, 0.9, 0.9], start=1)
    ]
    rows.append({"stage": "warmup", "step": 8, "discriminator/accuracy_fresh": 0.0})
    config = CheckpointConfig(every_steps=2, keep_last=1, keep_best=1)
    assert kept(found, "adversarial", config, lambda: rows) == {8, 4}
    assert kept([], "adversarial", config, lambda: rows) == set()


@pytest.mark.parametrize(
    ("killed", "stopped", "best", "background"),
    [(1, 1, 0, False), (3, 5, 0, True), (7, 11, 2, False), (8, 11, 1, True), (2, 3, 2, True), (12, 12, 1, False)],
)
def test_stops_and_kills_leave_the_checkpoints_of_a_run_without(
    tmp_path: Path, killed: int, stopped: int, best: int, background: bool
) -> None:
    """Also those that a stop saved out of turn are gone in the end: the student is chosen among what is there."""
    settings = {"keep_last": 2, "keep_best": best, "in_background": background}
    whole, folder = tmp_path / "whole", tmp_path / "stopped"
    train(whole, **settings)
    with pytest.raises(RuntimeError, match="killed"):
        train(folder, until=killed, **settings)
    try:
        train(folder, stop_at=stopped, **settings)
    except Interrupted:
        assert stopped in steps(folder)
    train(folder, **settings)
    assert steps(folder) == steps(whole)
    for step in steps(whole):
        one, two = ((root / f"checkpoints/adversarial-{step}/student.safetensors") for root in (whole, folder))
        assert one.read_bytes() == two.read_bytes()


def test_a_damaged_one_is_no_reason_to_delete_a_good_one(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        train(tmp_path, until=7, keep_last=2)
    assert steps(tmp_path) == [4, 6]
    (tmp_path / "checkpoints/adversarial-6/state.json").write_text("{")
    train(tmp_path, keep_last=2)
    assert steps(tmp_path) == [10, 12]


def test_in_the_background_the_next_step_is_made_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer waits until a later step is made: written in the foreground, that would never end. What it writes is
    the state of its own step."""
    made, real = threading.Event(), checkpoint.save
    writers = []

    def slow(folder: Path, stage: str, step: int, *rest: Any) -> Any:
        writers.append(threading.current_thread().name)
        assert step == len(VALUES) or made.wait(60)
        return real(folder, stage, step, *rest)

    monkeypatch.setattr(checkpoint, "save", slow)
    part = Part()
    config = CheckpointConfig(every_steps=2, keep_last=9, in_background=True)
    stage = StageRun(
        "adversarial",
        Place(tmp_path, 0, config, Heard(), StopRequest()),
        examples(7),
        batch_size=3,
        total_steps=4,
        parts={"student": part},
        max_bad_steps=0,
    )
    values = {}
    for step, batch in stage.batches():
        part.learn(batch)
        values[step] = part.value
        if step == 3:
            made.set()
        stage.checkpoint_if_due(step)
    written = checkpoint.find(tmp_path / "checkpoints", "adversarial")
    found = {each.step: float(each.tensors("student")["value"]) for each in written}
    assert found == {2: values[2], 4: values[4]}
    assert all(name.startswith("checkpoint") for name in writers)


def test_a_copy_is_written_in_the_background_and_the_thing_itself_in_the_foreground() -> None:
    tensor = torch.ones(3)
    assert Writing(in_background=False).snapshot({"w": tensor})["w"] is tensor
    copied = Writing(in_background=True).snapshot({"w": tensor})["w"]
    tensor.add_(1)
    assert copied.tolist() == [1.0, 1.0, 1.0]


@pytest.mark.faults
def test_a_disk_that_fills_in_the_background_is_told_and_leaves_the_ones_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def full(descriptor: int) -> None:
        if "adversarial-4" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFolderError, match="the disk is full: .*adversarial-4 was not saved"):
        train(tmp_path, in_background=True)
    assert steps(tmp_path) == [2]


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from gad.training import checkpoint
from unit.training import test_saving

real = checkpoint.save_file
def save_file(tensors, path):
    real(tensors, path)
    if "adversarial-6" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = save_file
test_saving.train(Path(sys.argv[1]), in_background=True)
"""


@pytest.mark.faults
def test_killed_while_it_writes_in_the_background(tmp_path: Path) -> None:
    tests = str(Path(__file__).parents[2])
    killed = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), tests], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [name for name in checkpoints(tmp_path) if not name.startswith(".")] == ["adversarial-2", "adversarial-4"]
    rows = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[:6] == [1, 2, 3, 4, 5, 6]
    assert train(tmp_path, in_background=True).value == train(tmp_path / "whole").value
