"""Every process tells the others that it lives and what it does. One that dies, hangs or fails ends the run at once.

A thread beside the main one: collectives wait in C++, where no exception and no signal handler of ours can reach.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from gad.errors import GO_ON, Followed, GadError, Interrupted, TrainingStopped, is_out_of_memory
from gad.processes import PARENT, TELL_SECONDS, Seat

BEAT_SECONDS = 0.5
SILENT_SECONDS = 10.0
"""Without a sign of life from a process it is taken for dead. Loading a module may hold Python's lock for seconds."""
SUSPECT_SECONDS = 4.0
"""As SILENT_SECONDS, once something has failed here that another process may have brought about, such as a broken
collective: silence is suspect then."""
BUSY_CPU_SECONDS = 0.1
"""Of the main thread's CPU time is progress; a thread that waits uses none."""
PARTING_SECONDS = 5.0
ABORT, STOP, END = "abort", "stop", "end"


class Store(Protocol):
    """What is used of torch's key-value store."""

    def set(self, key: str, value: str) -> None: ...

    def get(self, key: str) -> bytes: ...

    def check(self, keys: list[str]) -> bool: ...


@dataclass
class _Seen:
    """A process as another one knows it."""

    beat: dict[str, Any]
    heard: float
    moved: float


class Watch:
    """connect: makes a connection to the store for the thread. stall_seconds: without progress anywhere means hanging.

    counts_cpu: whether CPU time of the main thread is progress; one that waits for a GPU may spin.
    """

    def __init__(self, seat: Seat, store: Store, connect: Callable[[], Store], stall_seconds: float) -> None:
        self._seat, self._store, self._connect, self._stall = seat, store, connect, stall_seconds
        self.counts_cpu = True
        self._doing = ["waiting"]
        self._ticks = self._beats = 0
        self._stopped = threading.Event()
        self._asked_to_stop: int | None = None
        self._silence = SILENT_SECONDS
        self._main = threading.main_thread()
        self._clock = time.pthread_getcpuclockid(self._main.ident or 0)
        self._seen: dict[int, _Seen] = {}

    def begins(self, doing: str) -> None:
        self._doing.append(doing)
        self._ticks += 1

    def ends(self) -> None:
        self._doing.pop()
        self._ticks += 1

    def tick(self) -> None:
        self._ticks += 1

    def wait(self, store: Store, keys: Sequence[str]) -> str:
        """The first of these keys that is set. The thread ends the process where nobody is left to set one."""
        pause = 0.001
        while True:
            for key in keys:
                if store.check([key]):
                    return key
            time.sleep(pause)
            pause = min(0.05, pause * 1.2)

    def all_here(self, seconds: float) -> None:
        """In the first process, return once all have come. Raises TrainingStopped where one does not."""
        began, told = time.monotonic(), False
        while self._seat.rank == 0:
            missing = [rank for rank in range(self._seat.size) if not self._store.check([f"beat/{rank}"])]
            if not missing:
                return
            names = f"rank{'s' if len(missing) > 1 else ''} {', '.join(map(str, missing[:8]))}"
            names += f" and {len(missing) - 8} more" if len(missing) > 8 else ""
            waited = time.monotonic() - began
            if waited > seconds:
                raise TrainingStopped(
                    f"{names} of {self._seat.size} did not come within {seconds:g} s: look at what those processes "
                    "said, and whether MASTER_ADDR and MASTER_PORT are the same for all"
                )
            if waited > TELL_SECONDS and not told:
                print(f"waiting for {names} of {self._seat.size} to come", file=sys.stderr, flush=True)
                told = True
            time.sleep(0.05)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the length of the block, and end it together.

        Raises Followed in all but the first process when the block fails there or elsewhere. Signals to them are passed
        on to the first one.
        """
        thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        handled = (signal.SIGINT, signal.SIGTERM) if self._seat.rank else ()
        before = {number: signal.signal(number, self._pass_on) for number in handled}
        # One that dies at once must be known, to be missed.
        self._store.set(f"beat/{self._seat.rank}", json.dumps(self._beat()))
        thread.start()
        code = 0
        try:
            yield
        except BaseException as error:
            code = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1)
            self._fail(error)
            raise
        finally:
            self._part(code)
            self._stopped.set()
            thread.join(timeout=5.0)
            for number, handler in before.items():
                signal.signal(number, handler)

    def _fail(self, error: BaseException) -> None:
        """An error that another process may have brought about gives the thread time to find out which one that was."""
        out_of_memory = is_out_of_memory(error) and not isinstance(error, GadError)
        own = out_of_memory or isinstance(error, GadError | Interrupted | KeyboardInterrupt)
        first = self._seat.rank == 0
        if not own:
            self._silence = SUSPECT_SECONDS
        patience = (0.0 if first else 1.0) if own else SILENT_SECONDS + 4.0
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            with suppress(RuntimeError):  # the store went with the first process: the thread says so, and ends this one
                if not first and self._store.check([END]):
                    raise Followed(int(self._store.get(END))) from error
            time.sleep(0.1)
        if first:
            return
        what = "out of memory" if out_of_memory else str(error) if own else _fault(error)
        with suppress(RuntimeError):
            self._store.set(ABORT, f"{_name(self._beat())} failed while {self._doing[-1]}: {what}")
        time.sleep(3 * BEAT_SECONDS)
        raise Followed(1) from error

    def _part(self, code: int) -> None:
        """The first process says that it is over and lets the others go first: it may hold the store."""
        with suppress(Exception):
            if self._seat.rank:
                self._store.set(f"left/{self._seat.rank}", "")
                return
            self._store.set(END, str(code))
            deadline = time.monotonic() + PARTING_SECONDS
            others = [f"left/{rank}" for rank in range(1, self._seat.size)]
            while not self._store.check(others) and time.monotonic() < deadline:
                time.sleep(0.02)

    def _pass_on(self, number: int, _frame: FrameType | None) -> None:
        self._asked_to_stop = number

    def _watch(self) -> None:
        try:
            store = self._connect()
            while not self._stopped.wait(BEAT_SECONDS):
                self._look(store)
        except Exception as error:
            if not self._stopped.is_set():
                self._leave(f"rank 0 is lost while {self._doing[-1]} ({_first_line(error)})", first=1)

    def _look(self, store: Store) -> None:
        store.set(f"beat/{self._seat.rank}", json.dumps(self._beat()))
        if self._asked_to_stop is not None:
            store.set(STOP, str(self._asked_to_stop))
            self._asked_to_stop = None
        if self._seat.rank and store.check([END]):
            # The main thread may be deep in a collective that will never end.
            self._stopped.wait(PARTING_SECONDS - 2 * BEAT_SECONDS)
            self._leave("", first=-1, code=int(store.get(END)))
        if store.check([ABORT]):
            self._leave(store.get(ABORT).decode(), first=0)
        if PARENT in os.environ and os.getppid() != int(os.environ[PARENT]):
            self._leave("the command that started these processes is gone", first=0)
        if self._seat.rank == 0 and store.check([STOP]):
            number = int(store.get(STOP))
            store.set(STOP, "0")
            if number:
                os.kill(os.getpid(), number)
        others = range(self._seat.size) if self._seat.rank == 0 else (0,)
        for rank in others:
            if store.check([f"beat/{rank}"]):
                self._heard(rank, json.loads(store.get(f"beat/{rank}")))
        self._judge(store)

    def _beat(self) -> dict[str, Any]:
        self._beats += 1
        frame = sys._current_frames().get(self._main.ident or 0)
        return {
            "beat": self._beats,
            "ticks": self._ticks,
            "cpu": time.clock_gettime(self._clock) if self.counts_cpu else 0.0,
            "doing": self._doing[-1],
            "waits": frame is not None and "torch/distributed" in frame.f_code.co_filename,
            "rank": self._seat.rank,
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }

    def _heard(self, rank: int, beat: dict[str, Any]) -> None:
        now, before = time.monotonic(), self._seen.get(rank)
        if before is None:
            self._seen[rank] = _Seen(beat, now, now)
        elif beat["beat"] != before.beat["beat"]:
            moved = beat["ticks"] != before.beat["ticks"] or beat["cpu"] - before.beat["cpu"] > BUSY_CPU_SECONDS
            if not moved:
                beat = {**beat, "cpu": before.beat["cpu"]}  # slow progress adds up
            self._seen[rank] = _Seen(beat, now, now if moved else before.moved)

    def _judge(self, store: Store) -> None:
        """End the run where a process is dead, or where nobody has moved for too long within a common call."""
        now = time.monotonic()
        for seen in self._seen.values():
            if now - seen.heard > self._silence:
                gone = (
                    f"not heard of for {now - seen.heard:.0f} s: killed, stopped, out of memory, or its machine is gone"
                )
                self._abort(store, f"{_name(seen.beat)} is lost while {self._doing[-1]}: {gone}")
        within = self._seat.rank == 0 and len(self._seen) == self._seat.size and len(self._doing) > 1
        idle = now - max((seen.moved for seen in self._seen.values()), default=now)
        if within and self._doing[-1] != "loading models" and idle > self._stall:
            hung = [seen for seen in self._seen.values() if not seen.beat["waits"]] or list(self._seen.values())
            names = " and ".join(_name(seen.beat) for seen in hung)
            self._abort(store, f"{names} hung while {hung[0].beat['doing']}: nothing has moved for {idle:.0f} s")

    def _abort(self, store: Store, message: str) -> None:
        store.set(ABORT, message)
        self._leave(message, first=self._seat.rank)

    def _leave(self, message: str, *, first: int, code: int = 1) -> None:
        """End this process from the thread. `first`: the process that says why."""
        if self._stopped.is_set():
            return
        if self._seat.rank == first:
            shown = "\x1b[?25h\n" if sys.stderr.isatty() else ""  # a progress bar has hidden the cursor
            print(f"{shown}error: {message}. All processes end; {GO_ON}", file=sys.stderr, flush=True)
        if self._seat.rank == 0:
            time.sleep(2 * BEAT_SECONDS)  # so that the others read it while the store is there
        os._exit(code)


def _name(beat: dict[str, Any]) -> str:
    return f"rank {beat['rank']} (pid {beat['pid']} on {beat['host']})"


def _fault(error: BaseException) -> str:
    """A fault of ours in one line, its traceback in a file."""
    path = Path(tempfile.gettempdir()) / f"gad-{os.getpid()}-error.txt"
    with suppress(OSError):
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    return f"{type(error).__name__}: {_first_line(error)}; the traceback is in {path} there, please report it"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
