"""What raters said, appended to `arena/votes.jsonl` as they say it. Nothing is ever changed: an undo is a row too."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from gad.arena.comparisons import Book, Comparison
from gad.errors import RunFolderError
from gad.storage import JsonlWriter, read_jsonl

ARENA = "arena"
VOTES = "votes.jsonl"
Choice = Literal["left", "right", "tie", "both_bad", "skip"]
CHOICES: tuple[Choice, ...] = get_args(Choice)


@dataclass(frozen=True, slots=True)
class Vote:
    """One rater's word on one comparison.

    left, right: the arms that stood there. sheet: whose sides those were (a rater's name, or an exported sheet's id).
    """

    run: str
    rater: str
    sheet: str
    comparison: str
    set: str
    prompt_id: str
    left: str
    right: str
    choice: Choice
    created: float

    def __post_init__(self) -> None:
        if self.choice not in CHOICES:
            raise ValueError(f"a vote of {self.choice!r}: use one of {', '.join(CHOICES)}")

    def preference(self, first: str) -> float | None:
        """For the arm `first`: 1 won, 0 lost, .5 tie or both bad, None skipped."""
        if self.choice == "skip":
            return None
        if self.choice in ("tie", "both_bad"):
            return 0.5
        winner = self.left if self.choice == "left" else self.right
        return float(winner == first)

    def as_dict(self) -> dict[str, Any]:
        """One line of `votes.jsonl`."""
        return {name: getattr(self, name) for name in self.__slots__}


def cast(book: Book, comparison: Comparison, choice: Choice, *, rater: str, sheet: str, created: float) -> Vote:
    """A vote with the sides resolved to arms."""
    left, right = comparison.sides(sheet)
    at = (comparison.id, comparison.set, comparison.prompt_id)
    return Vote(book.run, rater, sheet, *at, left, right, choice, created)


class Ballot:
    """The votes of one arena: on disk, and as they stand.

    A vote is on disk before `vote` returns. The same vote sent twice counts once.
    """

    def __init__(self, run_folder: Path, book: Book) -> None:
        self._book = book
        self._ids = {comparison.id for comparison in book.comparisons}
        self._path = run_folder / ARENA / VOTES
        self._standing = standing(read_votes(self._path), book.run)
        self._writer = JsonlWriter(self._path, durable=True)

    def close(self) -> None:
        """Close the file."""
        self._writer.close()

    def votes(self, rater: str) -> Mapping[str, Vote]:
        """A rater's votes as they stand, by comparison, in the order in which they were cast."""
        return {id: vote for (name, id), vote in self._standing.items() if name == rater and id in self._ids}

    def open_comparison(self, rater: str) -> Comparison | None:
        """The next comparison that a rater has not voted on."""
        done = self.votes(rater)
        return next((item for item in self._book.comparisons if item.id not in done), None)

    def vote(self, rater: str, comparison: Comparison, choice: Choice) -> bool:
        """Record a vote; False where this rater has voted on it already: what stands stays."""
        if (rater, comparison.id) in self._standing:
            return False
        self.add(cast(self._book, comparison, choice, rater=rater, sheet=rater, created=time.time()))
        return True

    def add(self, vote: Vote) -> None:
        """Append a vote."""
        self._writer.append(vote.as_dict())
        self._standing[vote.rater, vote.comparison] = vote

    def undo(self, rater: str, comparison: str) -> bool:
        """Take back a rater's last vote; False where `comparison` is not that vote: it was taken back already."""
        votes = list(self.votes(rater))
        if not votes or votes[-1] != comparison:
            return False
        self._writer.append({"run": self._book.run, "rater": rater, "undo": comparison, "created": time.time()})
        del self._standing[rater, comparison]
        return True


def read_votes(path: Path) -> Iterable[Vote | tuple[str, str, str]]:
    """Votes, and undos as (run, rater, comparison). Raises RunFolderError for a damaged line."""
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            if "undo" in row:
                yield row["run"], row["rater"], row["undo"]
            else:
                yield Vote(**row)
        except (KeyError, TypeError, ValueError) as error:
            raise RunFolderError(f"{path}:{number}: not a vote ({error}); remove the line to go on") from error


def standing(rows: Iterable[Vote | tuple[str, str, str]], run: str) -> dict[tuple[str, str], Vote]:
    """The votes on this run's replies that have not been taken back, by rater and comparison."""
    found: dict[tuple[str, str], Vote] = {}
    for row in rows:
        if isinstance(row, Vote):
            if row.run == run:
                found.setdefault((row.rater, row.comparison), row)
        elif row[0] == run:
            found.pop((row[1], row[2]), None)
    return found
