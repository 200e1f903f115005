"""Python processes that need not import torch first: forked from one that has, as `subprocess.Popen` would start them.

They are processes of their own, with pids, signals and exit codes; only the seconds that each would spend on imports
are saved, which is most of what a short run on a tiny model takes. What happens while imports go on is not tested with
these.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import runpy
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

TESTS = Path(__file__).resolve().parents[1]
PRELOADED = (
    "gad.cli",
    "gad.pipeline",
    "gad.report",
    "gad.training.parallel",
    "gad.teacher.client",
    "transformers.models.qwen2.modeling_qwen2",
    "transformers.models.llama.modeling_llama",
    "sklearn.linear_model",
)


class Popen:
    """A process that runs `python` with these words: a script's path, `-m module` or `-c code`, and arguments.

    stdout and stderr: text, or nothing where `quiet`.
    """

    def __init__(
        self,
        words: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        quiet: bool = False,
    ) -> None:
        self.args = list(words)
        self.returncode: int | None = None
        request = {"words": list(words), "env": dict(env or os.environ), "cwd": str(cwd or Path.cwd())}
        ends = [os.pipe(), os.pipe()]
        self._line = socket.socket(socket.AF_UNIX)
        self._line.connect(server())
        with open(os.devnull, "rb") as nothing:  # noqa: PTH123
            socket.send_fds(self._line, [b"."], [nothing.fileno(), ends[0][1], ends[1][1]])
        for _, write in ends:
            os.close(write)
        self._line.sendall(json.dumps(request).encode() + b"\n")
        self._answers = self._line.makefile("r")
        self.pid = int(self._answers.readline())
        self.stdout: IO[str] = os.fdopen(ends[0][0], "r")
        self.stderr: IO[str] = os.fdopen(ends[1][0], "r")
        self._drain = threading.Thread(target=self.stdout.read, daemon=True) if quiet else None
        if self._drain is not None:
            self._drain.start()

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._ended(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        code = self._ended(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return code

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """All that it writes, once it has ended."""
        found: dict[str, str] = {}
        readers = [
            threading.Thread(target=lambda name=name, file=file: found.update({name: file.read()}), daemon=True)
            for name, file in (("out", self.stdout), ("err", self.stderr))
        ]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.close()
            raise
        for reader in readers:
            reader.join(10)
        self.close()
        return found["out"], found["err"]

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(9)

    def close(self) -> None:
        """Kill what still runs, and let go of the pipes."""
        if self.returncode is None:
            self.kill()
            self.wait(10)
        if self._drain is not None:
            self._drain.join(10)
        self.stdout.close()
        self.stderr.close()
        self._answers.close()
        self._line.close()

    def __enter__(self) -> Popen:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and select.select([self._line], [], [], timeout)[0]:
            self.returncode = int(self._answers.readline())
        return self.returncode


def run(
    words: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None, timeout: float = 600.0
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run` with captured text."""
    with Popen(words, env=env, cwd=cwd) as process:
        out, err = process.communicate(timeout)
        return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def interpreter(path: Path) -> Path:
    """Write a program that a launcher can start in the place of `python`."""
    client = Path(__file__).with_name("warm_python.py")
    path.write_text(f'#!/bin/sh\nexec {sys.executable} -S {client} {server()} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


@cache
def server() -> str:
    """The address of the server of this test run, which lives as long as it. The first that asks starts it."""
    session = os.environ.get("PYTEST_XDIST_TESTRUNUID")
    owner = os.getppid() if session else os.getpid()
    # A folder that a killed run left behind must never be taken for ours: a run's id is used once, a pid is not.
    folder = Path(tempfile.gettempdir()) / f"warm-{session}" if session else Path(tempfile.mkdtemp(prefix="warm-"))
    folder.mkdir(exist_ok=True)
    address = folder / "socket"
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not address.exists():
            _start(address, owner)
    return str(address)


def _start(address: Path, owner: int) -> None:
    path = os.pathsep.join([str(TESTS), *(part for part in sys.path if part)])
    process = subprocess.Popen(
        [sys.executable, "-m", "support.warm", str(address), str(owner)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        start_new_session=True,  # no signal that a test sends to its own group
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    process.stdout.close()
    process.returncode = 0  # it outlives us where others use it: no warning that it still runs


def _serve(address: Path, owner: int) -> None:
    """Fork for each request; tell each child's pid, and its exit code when it ends. Ends with the process `owner`."""
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(str(address))
        door.listen()
        print("ready", flush=True)
        life = os.pidfd_open(owner)
        running: dict[int, tuple[int, socket.socket]] = {}
        while True:
            ready = select.select([life, door, *running], [], [])[0]
            for found in ready:
                if found is door:
                    line, _ = door.accept()
                    pid, handle = _forked(line, door, running)
                    running[handle] = (pid, line)
                elif found in running:
                    pid, line = running.pop(found)
                    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                    os.close(found)
                    with line, suppress(OSError):  # nobody waits any more
                        line.sendall(f"{code}\n".encode())
                else:
                    for pid, _ in running.values():
                        os.kill(pid, 9)
                    shutil.rmtree(address.parent)
                    return


def _forked(
    line: socket.socket, door: socket.socket, running: Mapping[int, tuple[int, socket.socket]]
) -> tuple[int, int]:
    _, files, _, _ = socket.recv_fds(line, 1, 3)
    with line.makefile("r") as lines:
        request = json.loads(lines.readline())
    pid = os.fork()
    if pid == 0:
        for number, file in enumerate(files):
            os.dup2(file, number)
        for handle in [*files, door.detach(), line.detach(), *running]:
            os.close(handle)
        for _, other in running.values():
            other.close()
        raise _Child(request)
    for file in files:
        os.close(file)
    line.sendall(f"{pid}\n".encode())
    return pid, os.pidfd_open(pid)


class _Child(BaseException):
    """Unwinds the server from a process that was forked off."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request


def _be(request: dict[str, Any]) -> None:
    """Be the process that was asked for."""
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    words = request["words"]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    elif words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        sys.path.insert(0, str(Path(words[0]).resolve().parent))
        runpy.run_path(words[0], run_name="__main__")


def main() -> None:
    gc.disable()
    for module in PRELOADED:
        __import__(module)
    gc.enable()
    gc.collect()
    gc.freeze()  # else each child that collects or ends goes through, and so copies, all that was imported
    try:
        _serve(Path(sys.argv[1]), int(sys.argv[2]))
    except _Child as child:
        request = child.request
    else:
        return
    _be(request)


if __name__ == "__main__":
    main()
