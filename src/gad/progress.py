"""What a person sees while a run goes on: bars on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

SECONDS_BETWEEN_LINES = 10.0
"""In a log; the first and the last line of a task always appear."""


class Task(Protocol):
    """Something with a known number of steps."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """So many more steps are done; `note` is shown beside the bar."""
        ...


class Progress(Protocol):
    """Where tasks are shown."""

    def task(self, title: str, total: int, done: int = 0) -> AbstractContextManager[Task]:
        """A context that shows the task while it lasts."""
        ...

    def say(self, text: str) -> None:
        """One line that stays."""
        ...


def progress() -> Progress:
    """Bars where standard error is a terminal, lines elsewhere."""
    return Bars() if sys.stderr.isatty() else Lines()


class Lines:
    """Plain lines on standard error."""

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        yield _LineTask(title, total, done)


class _LineTask:
    def __init__(self, title: str, total: int, done: int) -> None:
        self._title, self._total, self._done = title, total, done
        self._started, self._first, self._next = time.monotonic(), done, 0.0

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._done += steps
        now = time.monotonic()
        if now < self._next and self._done < self._total:
            return
        self._next = now + SECONDS_BETWEEN_LINES
        print(f"{self._title}: {self._done}/{self._total}  {note}{self._ending(now)}", file=sys.stderr, flush=True)

    def _ending(self, now: float) -> str:
        """The time it took, or the time that is left; nothing where no step says how long one takes."""
        spent = now - self._started
        if self._done >= self._total:
            return f"  (in {_clock(spent)})"
        if self._done == self._first:
            return ""
        return f"  ({_clock(spent / (self._done - self._first) * (self._total - self._done))} left)"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


class Bars:
    """rich progress bars."""

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(stderr=True)

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, emoji=False, highlight=False)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.table import Column

        # On a narrow terminal bar and note give way; a count that is cut says something else.
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=4)),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("left"),
            TextColumn("{task.fields[note]}", markup=False, table_column=Column(ratio=2, no_wrap=True)),
        )
        with RichProgress(*columns, console=self._console, expand=True) as bars:
            identity = bars.add_task(title, total=total, completed=done, note="")
            yield _BarTask(bars, identity)


class _BarTask:
    def __init__(self, bars: object, identity: object) -> None:
        self._bars, self._identity = bars, identity

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._bars.update(self._identity, advance=steps, note=note)  # type: ignore[attr-defined]
