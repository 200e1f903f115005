"""Which process this one is, how many may be started, and how work is dealt."""

from __future__ import annotations

import ast
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gad
from gad import processes
from gad.crew import deal
from gad.errors import ConfigError
from gad.processes import Seat, seat

TORCHRUN = {
    "RANK": "9",
    "WORLD_SIZE": "16",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "8",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}
SLURM = {
    "SLURM_PROCID": "9",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_TASKS_PER_NODE": "8(x2)",
    "MASTER_ADDR": "node0",
    "MASTER_PORT": "29500",
}


@pytest.mark.parametrize("environment", [TORCHRUN, SLURM])
def test_torchrun_and_slurm_tell_the_same(environment: dict[str, str]) -> None:
    assert seat(environment) == Seat(rank=9, size=16, local=1, here=8, host="node0", port=29500)


@pytest.mark.parametrize(
    "environment",
    [{}, {"RANK": "0", "WORLD_SIZE": "1"}, {"SLURM_PROCID": "0", "SLURM_NTASKS": "16"}, {"MASTER_PORT": "1"}],
)
def test_alone(environment: dict[str, str]) -> None:
    """The batch script of a SLURM job is no step: only srun starts several processes."""
    assert seat(environment) is None


@pytest.mark.parametrize("missing", ["LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
def test_half_of_what_is_needed(missing: str) -> None:
    told = {name: value for name, value in TORCHRUN.items() if name != missing}
    with pytest.raises(ConfigError, match=f"one of several processes, but {missing} is not set: start with torchrun"):
        seat(told)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"RANK": "16"}, "RANK=16, WORLD_SIZE=16.*do not fit together"),
        ({"LOCAL_RANK": "8"}, "LOCAL_RANK=8.*do not fit together"),
        ({"LOCAL_WORLD_SIZE": "32"}, "LOCAL_WORLD_SIZE=32.*do not fit together"),
        ({"RANK": "one"}, "RANK=one is not a number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two is not a number"),
        ({"MASTER_PORT": "any"}, "MASTER_PORT=any is not a number"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT=70000 is no port: use one from 1 to 65535"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0 is no port"),
    ],
)
def test_what_cannot_be(changed: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        seat({**TORCHRUN, **changed})


def test_a_number_of_slurms_that_is_none() -> None:
    with pytest.raises(ConfigError, match="SLURM_STEP_NUM_TASKS=x is not a number"):
        seat({**SLURM, "SLURM_STEP_NUM_TASKS": "x"})


def test_processes_of_one_machine_meet_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a cluster's job has left in the environment; a port that is none is refused before anything starts."""
    monkeypatch.setenv("MASTER_ADDR", "node7.invalid")
    monkeypatch.setenv("MASTER_PORT", "23456")
    script = "import os, sys; sys.exit(os.environ['MASTER_ADDR'] + os.environ['MASTER_PORT'] != '127.0.0.123456')"
    assert processes.start(2, [sys.executable, "-c", script]) == 0
    for port in ("any", "65536"):
        monkeypatch.setenv("MASTER_PORT", port)
        with pytest.raises(ConfigError, match=f"MASTER_PORT={port}"):
            processes.start(2, [sys.executable, "-c", "1/0"])


def test_where_nobody_listens(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "TELL_SECONDS", 0.0)
    for host, why in (("127.0.0.1", "Connection refused"), ("nowhere.invalid", r"[A-Z].*")):
        place = Seat(3, 4, 3, 4, host, 9)
        with pytest.raises(ConfigError, match=rf"MASTER_ADDR={host} MASTER_PORT=9: nobody to join .* 0\.3 s \({why}\)"):
            processes.reach(place, 0.3)
        assert capfd.readouterr().err.startswith(f"rank 3 waits for rank 0 at MASTER_ADDR={host} MASTER_PORT=9 (")


def test_one_that_comes_late_is_joined() -> None:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        threading.Timer(0.4, place.listen).start()
        began = time.monotonic()
        processes.reach(Seat(1, 2, 1, 2, "127.0.0.1", place.getsockname()[1]), 30.0)
        assert 0.3 < time.monotonic() - began < 20


def test_a_signal_is_heard_while_waiting_to_join() -> None:
    """In C++ it would be heard only when the wait is over."""
    script = (
        "from gad.processes import Seat, reach; print('waits', flush=True); reach(Seat(1,2,1,2,'127.0.0.1',9), 600)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as waiting:
        try:
            assert waiting.stdout is not None
            waiting.stdout.readline()
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait(20) != 0
        finally:
            waiting.kill()


def test_no_more_processes_than_cores() -> None:
    cores = len(os.sched_getaffinity(0))
    processes.check_count(cores, "auto")
    with pytest.raises(
        ConfigError, match=rf"--nproc {cores + 1}: this machine lets us use {cores} core.*--nproc {cores}"
    ):
        processes.check_count(cores + 1, "cpu")
    with pytest.raises(ConfigError, match="--nproc 0: use 1 or more"):
        processes.check_count(0, "cpu")


def test_the_first_ones_exit_code_and_who_was_killed(capfd: pytest.CaptureFixture[str]) -> None:
    script = "import os, sys, time; rank = int(os.environ['RANK']); "
    assert processes.start(2, [sys.executable, "-c", script + "sys.exit(0 if rank else 2)"]) == 2
    assert processes.start(2, [sys.executable, "-c", script + "sys.exit(0)"]) == 0
    killed = script + f"os.kill(os.getpid(), {int(signal.SIGKILL)}) if rank == 0 else time.sleep(0.1)"
    assert processes.start(2, [sys.executable, "-c", killed]) == 1
    assert "process 0 was ended by SIGKILL; often that is the kernel when memory runs out" in capfd.readouterr().err


def test_what_does_not_end_is_killed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """And nobody is told that memory ran out."""
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.2)
    script = "import os, time; time.sleep(0 if os.environ['RANK'] == '0' else 60)"
    assert processes.start(2, [sys.executable, "-c", script]) == 0
    assert capfd.readouterr().err == "process 1 was still at work, and was ended\n"


@given(st.lists(st.floats(0.0, 1e3), max_size=40), st.integers(1, 9))
def test_everything_is_dealt_once_and_nobody_gets_much_more(costs: list[float], size: int) -> None:
    """Longest first: a load is at most the mean plus one item."""
    shares = deal(costs, size)
    assert sorted(index for share in shares for index in share) == list(range(len(costs)))
    assert len(shares) == size
    loads = [sum(costs[index] for index in share) for share in shares]
    assert max(loads) <= sum(costs) / size + max(costs, default=0.0) + 1e-6


def test_dealt_by_hand() -> None:
    assert deal([5.0, 3.0, 3.0, 2.0], 2) == [[0, 3], [1, 2]]


def test_one_file_knows_torch_distributed() -> None:
    root = Path(gad.__file__).parent
    knowing = {str(path.relative_to(root)) for path in root.rglob("*.py") if _knows(path)}
    assert knowing == {"training/parallel.py"}


def _knows(path: Path) -> bool:
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names.append(f"{node.value.id}.{node.attr}")
    return any(name.startswith("torch.distributed") for name in names)
