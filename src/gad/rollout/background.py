"""Work that goes on beside the main thread."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def started(work: Callable[[], T], name: str) -> Future[T]:
    """Begin at once in a thread that does not outlive the process; what has begun cannot be cancelled."""
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()  # else who stops waiting cancels it, and its result has nowhere to go

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # it is raised where the result is asked for
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def in_background(work: Callable[[], T]) -> Callable[[], T]:
    """Begin at once; the result waits, and raises what was raised."""
    return started(work, "sampling").result
