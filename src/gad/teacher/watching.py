"""How a run over an API is going."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from gad.teacher.money import Bill

_SECONDS = 0.5
_RATE_SECONDS = 5.0
_OLD = 0.7


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How things stand. rate: replies a second, of late. refused: answers of status 429. waiting: for a new attempt."""

    replies: int
    given_up: int
    under_way: int
    waiting: int
    retries: int
    refused: int
    rate: float
    bill: Bill


class Watcher:
    """Shows a snapshot twice a second at most, with the rate of the last seconds."""

    def __init__(self, watch: Callable[[Snapshot], None], snapshot: Callable[[], Snapshot]) -> None:
        self._watch, self._snapshot = watch, snapshot
        self._shown = self._rated = self._started = time.monotonic()
        self._rated_replies, self._rate = 0, 0.0

    def look(self, *, now: bool = False) -> None:
        """Show how things stand, if it is time (or `now`)."""
        clock = time.monotonic()
        if clock < self._shown + _SECONDS and not now:
            return
        self._shown = clock
        snapshot = self._snapshot()
        if clock > self._rated + _RATE_SECONDS:
            fresh = (snapshot.replies - self._rated_replies) / (clock - self._rated)
            self._rate = _OLD * self._rate + (1 - _OLD) * fresh if self._rate else fresh
            self._rated, self._rated_replies = clock, snapshot.replies
        rate = self._rate or snapshot.replies / max(clock - self._started, 1e-3)
        self._watch(replace(snapshot, rate=rate))
