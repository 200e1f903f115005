"""Where a key of a ledger stands, and the sums over all keys."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import IntEnum

FILE = 2**44
"""Places of one file: 16 TiB."""


class State(IntEnum):
    """What became of a key, as far as the ledger goes."""

    OPEN = 0
    """Asked, without a lasting outcome: to be asked again."""
    UNDER_WAY = 1
    IN_BATCH = 2
    GIVEN_UP = 3
    REPLY = 4


ASKED = (State.UNDER_WAY, State.IN_BATCH)
"""What a line with a request leads to; other lines have an outcome."""


@dataclass(frozen=True, slots=True)
class Entry:
    """State of a key, and the places of its request and of its last outcome (-1: nowhere).

    A place is `file * FILE + offset`.
    """

    state: State
    asked: int
    outcome: int


Row = tuple[bytes, int, int, int]
"""A key with the three of its entry, as they are on disk."""


@dataclass
class Totals:
    """Sums over all files. spent, maybe, lost: as found when the ledger was opened; lost: found under way then.

    replies, models (replies by the name that the provider gave): kept up to date.
    """

    spent: float = 0.0
    maybe: float = 0.0
    replies: int = 0
    models: Counter[str] = field(default_factory=Counter)
    lost: int = 0
    lost_usd: float = 0.0
