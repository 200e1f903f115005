"""The ledger: an append-only file of every request sent and of all that came of it, owned by one process at a time.

A reply counts as had once its line is on disk. What a killed process had under way is found when the ledger is opened
again, written down as possibly paid, and asked again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gad.errors import RunFolderError
from gad.storage import lock
from gad.teacher.entry import FILE, Entry, State, Totals
from gad.teacher.index import Index
from gad.teacher.ledger_file import INDEX, LedgerFile
from gad.teacher.lines import failed_line, read_given_up, read_reply, read_request
from gad.teacher.requests import ApiRequest, GivenUp, Outcome, Reply

if TYPE_CHECKING:
    from gad.teacher.loaded import Loaded

LEDGER = "ledger.jsonl"


class Ledger:
    """A folder's ledger, open for appending; further ledgers (of other shards) are read with it.

    lock_also: folders of further ledgers that nobody else may be collecting into meanwhile.
    Raises RunFolderError where the ledger is in use, damaged or of another version.
    """

    def __init__(
        self, folder: Path, *, reserve: int = 0, read_also: Sequence[Path] = (), lock_also: Sequence[Path] = ()
    ) -> None:
        self.folder = folder
        self.totals = Totals()
        self._open = ExitStack()
        try:
            for each in (folder, *lock_also):
                self._open.enter_context(lock(each))
            for leftover in folder.glob(f"{INDEX}*"):
                leftover.unlink()
            self.file = LedgerFile(folder / LEDGER, reserve)
            self._open.callback(self.file.close)
            self._files = (*read_also, folder / LEDGER)
            self._own = len(read_also) * FILE
            self.index = Index(folder, self._load())
            self._open.callback(self.index.close)
            self._reading = [self._open.enter_context(path.open("rb")) for path in self._files]
            self._write_off(self._own if read_also and not lock_also else 0)
        except BaseException:
            self._open.close()
            raise

    def close(self) -> None:
        self._open.close()

    def _load(self) -> Loaded:
        """What the files hold."""
        # They import numpy, which takes a while, and `gad plan` opens no ledger.
        from gad.teacher.loaded import Events
        from gad.teacher.scan import Scan

        with closing(Events(self.folder)) as events:
            scan = Scan(events, self.totals)
            for number, path in enumerate(self._files):
                scan.read(number, path)
            return events.fold()

    def _write_off(self, first_place: int) -> None:
        """Note the requests that a process before this one had under way as possibly paid.

        first_place: requests before it are in ledgers that another process may be writing.
        """
        lost = [(k, entry) for k, entry in self.index.in_state(State.UNDER_WAY) if entry.asked >= first_place]
        rows = [(key, self._at(entry.asked)) for key, entry in lost]
        now, lines = time.time(), []
        for key, row in rows:
            held = float(row["maybe_usd"])
            self.totals.lost += 1
            self.totals.lost_usd += held
            self.totals.maybe += held
            message = "the collector ended while the request was under way"
            attempt = int(row["attempt"])
            lines.append(failed_line("lost", key, read_request(row), attempt, 0.0, held, "interrupted", message, now))
        offset = self.file.write(b"".join(lines))
        self.file.sync()
        for (key, _), line in zip(rows, lines, strict=True):
            self.note(key, State.OPEN, outcome=offset)
            offset += len(line)

    def note(self, key: str, state: State, *, asked: int = -1, outcome: int = -1) -> None:
        """A line about the key is on disk, at this offset of the own file."""
        here, there = (place + self._own if place >= 0 else -1 for place in (asked, outcome))
        self.index.put(key, state, here, there)

    def has_request(self, entry: Entry | None) -> bool:
        """Whether the own file holds the key's request, so that further lines need not."""
        return entry is not None and entry.asked >= self._own

    def outcome(self, entry: Entry) -> Outcome | None:
        """The lasting outcome of a key, from disk."""
        if entry.state is State.REPLY:
            return read_reply(self._at(entry.outcome))
        if entry.state is State.GIVEN_UP:
            return read_given_up(self._at(entry.outcome))
        return None

    def request(self, entry: Entry) -> ApiRequest:
        """The request of a key, from disk."""
        return read_request(self._at(entry.asked))

    def _at(self, place: int) -> dict[str, Any]:
        number, offset = divmod(place, FILE)
        return _row(self._reading[number], self._files[number], offset)

    def given_up_of(self, entry: Entry) -> GivenUp:
        """Why a key that was given up was, from disk."""
        return read_given_up(self._at(entry.outcome))

    def reply(self, entry: Entry) -> Reply:
        """The reply of a key that has one, from disk."""
        return self.reply_at(entry.outcome)

    def reply_at(self, place: int) -> Reply:
        """The reply at a place."""
        return read_reply(self._at(place))


def _row(file: Any, path: Path, offset: int) -> dict[str, Any]:
    file.seek(offset)
    try:
        row: dict[str, Any] = json.loads(file.readline())
    except ValueError as error:
        raise RunFolderError(f"{path}, byte {offset}: not JSON ({error}); remove the line to go on") from error
    return row
