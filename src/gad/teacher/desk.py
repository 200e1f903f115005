"""What the dispatcher works with."""

from __future__ import annotations

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
    """emit takes outcomes, backlog says how many wait; stop: send nothing more; watch is shown how things stand."""

    config: ApiConfig
    ledger: Ledger
    purse: Purse
    prices: PriceList
    exchange: Exchange
    scrub: Scrubber
    emit: Callable[[Outcome], None]
    backlog: Callable[[], int]
    stop: Callable[[], bool]
    watch: Callable[[Snapshot], None]
