"""The arena as a file: one HTML page to send to a rater, and the votes file that comes back."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gad.arena.comparisons import Book, Comparison, book, fingerprint
from gad.arena.page import arena_page
from gad.arena.votes import ARENA, Ballot, Choice, cast
from gad.config.arena import ArenaConfig, RaterName
from gad.errors import DataError, RunFolderError
from gad.report.gather import Gathered, gather
from gad.report.text import one_line
from gad.storage import JsonlWriter, lock, read_jsonl, write_text

SHEETS = "sheets.jsonl"
MOST_BYTES = 20_000_000
"""Of a votes file."""


class _SentVote(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    comparison: Annotated[str, Field(max_length=64)]
    choice: Choice
    created: float


class _VotesFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    format: Literal[1]
    kind: Literal["gad-arena-votes"]
    run: str
    sheet: str
    rater: RaterName
    votes: tuple[_SentVote, ...]


@dataclass(frozen=True, slots=True)
class Imported:
    """What came of a votes file. already: votes that were there before; they count once."""

    rater: str
    added: int
    already: int


def export(run_folder: Path, path: Path, *, config: ArenaConfig | None = None) -> Path:
    """Write one HTML file with all comparisons and nothing that tells the arms apart; returns its path.

    The sheet's id and its settings are noted in the run folder, so that the votes can be taken back.
    Raises as `serve`, and RunFolderError where the file cannot be written.
    """
    config = config or ArenaConfig()
    comparisons = book(gather(run_folder), config)
    sheet = secrets.token_urlsafe(12)
    shown = [comparison.shown(sheet) for comparison in comparisons.comparisons]
    try:
        write_text(path, arena_page({"sheet": sheet, "run": comparisons.run, "comparisons": shown}))
    except OSError as error:
        raise RunFolderError(f"{path}: {error.strerror}; give a path that can be written") from error
    with JsonlWriter(run_folder / ARENA / SHEETS, durable=True) as writer:
        writer.append({"sheet": sheet, "run": comparisons.run, "config": config.model_dump(mode="json")})
    return path


def import_votes(run_folder: Path, votes_path: Path) -> Imported:
    """Take a votes file into the run folder's votes. Taking it in twice changes nothing.

    Raises DataError for a file that is no votes file, of another run, of an unknown sheet, or with a vote on something
    that was not on the sheet: then nothing is taken in.
    """
    file = _read(votes_path)
    run = gather(run_folder)
    comparisons = _book_of(run, file, votes_path)
    by_id = {comparison.id: comparison for comparison in comparisons.comparisons}
    _check(file, by_id, votes_path)
    with lock(run_folder / ARENA):
        ballot = Ballot(run_folder, comparisons)
        try:
            known = ballot.votes(file.rater)
            fresh = [vote for vote in file.votes if vote.comparison not in known]
            for vote in fresh:
                ballot.add(
                    cast(
                        comparisons,
                        by_id[vote.comparison],
                        vote.choice,
                        rater=file.rater,
                        sheet=file.sheet,
                        created=vote.created,
                    )
                )
        finally:
            ballot.close()
    return Imported(file.rater, len(fresh), len(file.votes) - len(fresh))


def _read(path: Path) -> _VotesFile:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: {path.stat().st_size} bytes, too large for a votes file")
        return _VotesFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path}: not a votes file of the arena ({where + ': ' if where else ''}{first['msg']}); "
            "the page writes one with “Save votes”"
        ) from error


def _book_of(run: Gathered, file: _VotesFile, path: Path) -> Book:
    if file.run != fingerprint(run):
        raise DataError(
            f"{path}: these votes are on another run's replies, or on replies that {one_line(run.name)} no longer has; "
            "they cannot be taken in here"
        )
    for row in read_jsonl(run.folder / ARENA / SHEETS):
        if row["sheet"] == file.sheet:
            return book(run, ArenaConfig.model_validate(row["config"]))
    raise DataError(f"{path}: sheet {one_line(file.sheet)!r} was not exported from {run.folder}")


def _check(file: _VotesFile, by_id: dict[str, Comparison], path: Path) -> None:
    seen: set[str] = set()
    for vote in file.votes:
        if vote.comparison not in by_id:
            raise DataError(f"{path}: a vote on {one_line(vote.comparison)!r}, which is not on the sheet")
        if vote.comparison in seen:
            raise DataError(f"{path}: two votes on {vote.comparison}")
        seen.add(vote.comparison)
