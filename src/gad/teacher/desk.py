"""What the dispatcher works with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from gad.config.teacher import ApiConfig
from gad.teacher.client import Exchange
from gad.teacher.ledger import Ledger
from gad.teacher.money import PriceList, Purse
from gad.teacher.requests import Outcome
from gad.teacher.secrets import Scrubber
from gad.teacher.watching import Snapshot


@dataclass
class Desk:
    """emit takes outcomes, backlog says about how many wait; stop: send nothing more; watch sees how things stand."""

    config: ApiConfig
    ledger: Ledger
    purse: Purse
    prices: PriceList
    exchange: Exchange
    scrub: Scrubber
    emit: Callable[[list[Outcome]], None]
    backlog: Callable[[], int]
    stop: Callable[[], bool]
    watch: Callable[[Snapshot], None]


_PARCEL_SECONDS = 0.05


class Parcel:
    """Hands outcomes over a few at a time: each handing over wakes another thread."""

    def __init__(self, emit: Callable[[list[Outcome]], None]) -> None:
        self._emit = emit
        self._waiting: list[Outcome] = []

    def add(self, outcome: Outcome) -> None:
        """To be handed over soon."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(_PARCEL_SECONDS, self.hand_over)
        self._waiting.append(outcome)

    def hand_over(self) -> None:
        """Now."""
        if self._waiting:
            self._emit(self._waiting)
            self._waiting = []
