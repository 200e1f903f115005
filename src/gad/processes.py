"""Which of several processes this one is, and starting several on this machine. Imports no torch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from types import FrameType

from gad.errors import ConfigError

GRACE_SECONDS = 8.0
"""Between the first process's end and the last one's; what is left then is killed."""
PARENT = "GAD_PARENT"
TELL_SECONDS = 15.0
"""Somebody who waits for processes that do not come is told after so long."""


@dataclass(frozen=True, slots=True)
class Seat:
    """A process's place among `size`: its rank, its number on its machine, how many are `here` on that machine."""

    rank: int
    size: int
    local: int
    here: int
    host: str
    port: int


def seat(environment: Mapping[str, str] = os.environ) -> Seat | None:
    """What torchrun, srun or `--nproc` told this process; None for one that is alone.

    Raises ConfigError where they told half of it.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    if "RANK" not in environment and _told(environment, "SLURM_STEP_NUM_TASKS") > 1:
        names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE")
    elif _told(environment, "WORLD_SIZE") < 2:
        return None
    missing = [name for name in (*names, "MASTER_ADDR", "MASTER_PORT") if name not in environment]
    if missing:
        raise ConfigError(
            f"one of several processes, but {', '.join(missing)} is not set: start with torchrun or srun "
            "(recipes/multi-node.sbatch sets MASTER_ADDR and MASTER_PORT), or with --nproc"
        )
    rank, size, local, here = (_number(name, environment[name]) for name in names)
    if not (0 <= rank < size and 0 <= local < here <= size):
        told = ", ".join(f"{name}={environment[name]}" for name in names)
        raise ConfigError(f"{told}: these do not fit together; leave them to torchrun, srun or --nproc")
    return Seat(rank, size, local, here, environment["MASTER_ADDR"], _port(environment["MASTER_PORT"]))


def _told(environment: Mapping[str, str], name: str) -> int:
    return _number(name, environment.get(name, "1"))


def _port(text: str) -> int:
    port = _number("MASTER_PORT", text)
    if not 0 < port < 65536:
        raise ConfigError(f"MASTER_PORT={text} is no port: use one from 1 to 65535, or leave it out with --nproc")
    return port


def _number(name: str, text: str) -> int:
    try:
        return int(text.split("(")[0].split(",")[0])  # SLURM writes 8(x2) for 8 on each of 2 machines
    except ValueError as error:
        raise ConfigError(f"{name}={text} is not a number: leave it to torchrun, srun or --nproc") from error


def reach(place: Seat, seconds: float) -> None:
    """Return once somebody listens where all meet. torch would wait there too, but hears no signal meanwhile.

    Raises ConfigError after so many seconds.
    """
    began, told = time.monotonic(), False
    while True:
        try:
            socket.create_connection((place.host, place.port), timeout=2.0).close()
            return
        except OSError as error:
            where, why = f"MASTER_ADDR={place.host} MASTER_PORT={place.port}", error.strerror or str(error)
        waited = time.monotonic() - began
        if waited > seconds:
            raise ConfigError(
                f"{where}: nobody to join there for {seconds:g} s ({why}); it is the address of the machine of rank 0, "
                "and a port that the others can reach"
            )
        if waited > TELL_SECONDS and not told:
            print(f"rank {place.rank} waits for rank 0 at {where} ({why})", file=sys.stderr, flush=True)
            told = True
        time.sleep(0.1)


def check_count(count: int, device: str) -> None:
    """Raises ConfigError where this machine has fewer cores than `count`, or where processes are running already."""
    cores = len(os.sched_getaffinity(0))
    if count < 1:
        raise ConfigError(f"--nproc {count}: use 1 or more")
    if device != "cuda" and count > cores:
        raise ConfigError(
            f"--nproc {count}: this machine lets us use {cores} core{'s' if cores > 1 else ''}, and processes that "
            f"share a core only wait for each other; use --nproc {cores} or fewer"
        )


def start(count: int, command: Sequence[str]) -> int:
    """Run `count` processes of a command to their end; the exit code of the one that ended worst.

    A signal goes to the first one, which saves and tells the others. When one has failed the others get some seconds.
    All are on this machine, whatever MASTER_ADDR says. Raises ConfigError for a MASTER_PORT that is none.
    """
    told = os.environ.get("MASTER_PORT")
    port = _port(told) if told else _free_port()
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), PARENT: str(os.getpid())}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    started: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: FrameType | None) -> None:
        if started and started[0].poll() is None:
            started[0].send_signal(number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            # Groups of their own, so that Ctrl-C reaches the first one once, through us.
            started.append(subprocess.Popen(command, env={**os.environ, **shared, **own}, process_group=0))
        return _wait(started)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> int:
    deadline: float | None = None
    ours: set[int] = set()
    while any(process.poll() is None for process in started):
        over = started[0].poll() is not None
        if deadline is None and (over or any(process.poll() for process in started)):
            # Where another one failed, the first needs some seconds to notice and to say so.
            deadline = time.monotonic() + (GRACE_SECONDS if over else 2 * GRACE_SECONDS)
        if deadline is not None and time.monotonic() > deadline:
            for rank, process in enumerate(started):
                if process.poll() is None:
                    process.kill()
                    ours.add(rank)
        time.sleep(0.05)
    return _outcome([process.returncode for process in started], ours)


def _outcome(codes: Sequence[int], ours: Set[int]) -> int:
    """Say which processes a signal ended; the exit code of all. ours: those that were waited for long enough."""
    for rank, code in enumerate(codes):
        if rank in ours:
            print(f"process {rank} was still at work, and was ended", file=sys.stderr, flush=True)
        elif code < 0:
            name = signal.Signals(-code).name
            why = "; often that is the kernel when memory runs out" if -code == signal.SIGKILL else ""
            print(f"process {rank} was ended by {name}{why}", file=sys.stderr, flush=True)
    return codes[0] if codes[0] >= 0 else 1


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
