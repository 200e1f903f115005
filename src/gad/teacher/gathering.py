"""An event loop that takes what happened by the handful.

At 100 replies a second a process that wakes for each event sleeps and wakes 300 times a second, and finds its caches
cold each time: half of its CPU time. One that looks 20 times a second finds several things to do at each look.
"""

from __future__ import annotations

import asyncio
import selectors
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")
_SECONDS = 0.05
"""Between two looks. A reply takes seconds, and waits as long for the ledger's fsync in any case."""
_FEW = 32
"""With fewer connections than that nothing is gathered: a small server of one's own would wait for its next request."""


def run(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run` on such a loop."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(GatheringSelector())) as runner:
        return runner.run(work)


class GatheringSelector(selectors.DefaultSelector):
    """Where it may wait, it first lets the time since it last waited grow to 50 ms."""

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """As any selector's; an event or a timer comes up to 50 ms late."""
        if timeout is not None and timeout <= 0.0:
            return super().select(timeout)
        if len(self.get_map()) >= _FEW:
            pause = self._next - time.monotonic()
            if pause > 0.0:
                time.sleep(pause)
                timeout = None if timeout is None else max(0.0, timeout - pause)
        found = super().select(timeout)
        self._next = time.monotonic() + _SECONDS
        return found
