"""What readers yield: rows with their place, good or bad. A reader raises only for what no row can be blamed for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gad.errors import DataError

_LONGEST_MESSAGE = 300


@dataclass(frozen=True, slots=True)
class Place:
    """Where a row is: the line of a text file, the row of anything else. Counted from 1."""

    file: str
    number: int
    unit: Literal["line", "row"] = "line"

    def __str__(self) -> str:
        return f"{self.file}:{self.number}" if self.unit == "line" else f"{self.file}: row {self.number}"


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as it was read; values are untrusted."""

    place: Place
    values: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read. `reason` is one of few (rows are counted by it); `detail` names the value."""

    place: Place
    reason: str
    detail: str


class RowError(ValueError):
    """A row that cannot be used, to be turned into a BadRow by who knows its place."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def tidy(text: str) -> str:
    """Text from a data file for a message: one line, printable, not longer than a few lines of a terminal."""
    short = text if len(text) <= _LONGEST_MESSAGE else text[: _LONGEST_MESSAGE - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in short)


def bad_row_error(row: BadRow) -> DataError:
    """What is raised at a bad row with `on_bad_rows: stop`."""
    way_out = "correct the row, or set `on_bad_rows: skip` to leave out such rows and count them"
    return DataError(f"{row.place}: {row.reason}: {tidy(row.detail)}; {way_out}")
