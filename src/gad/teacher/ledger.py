"""The ledger: an append-only file of every request sent and of all that came of it, owned by one process at a time.

A reply counts as had once its line is on disk. What a killed process had under way is found when the ledger is opened
again, written down as possibly paid, and asked again.
"""

from __future__ import annotations

import json
import time
from binascii import unhexlify
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gad.errors import RunFolderError
from gad.storage import lock
from gad.teacher.index import FILE, Entry, Index, State
from gad.teacher.ledger_file import LedgerFile
from gad.teacher.lines import HEAD, MODEL, VERSION, failed_line, read_given_up, read_reply, read_request
from gad.teacher.requests import ApiRequest, GivenUp, Outcome, Reply

LEDGER = "ledger.jsonl"
_UNDER_WAY, _IN_BATCH, _REPLY = int(State.UNDER_WAY), int(State.IN_BATCH), int(State.REPLY)
_ASKED = (_UNDER_WAY, _IN_BATCH)
_STATES = {
    b"sent": _UNDER_WAY,
    b"batched": _IN_BATCH,
    b"reply": _REPLY,
    b"failed": int(State.OPEN),
    b"lost": int(State.OPEN),
    b"givenup": int(State.GIVEN_UP),
}
_CHUNK = 100_000
_READ = 2**20


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
            for leftover in folder.glob(".index-*"):
                leftover.unlink()
            self.file = LedgerFile(folder / LEDGER, reserve)
            self._open.callback(self.file.close)
            self.index = Index(folder)
            self._open.callback(self.index.close)
            self._files = (*read_also, folder / LEDGER)
            self._own = len(read_also) * FILE
            for number, path in enumerate(self._files):
                self._scan(number, path)
            self._reading = [self._open.enter_context(path.open("rb")) for path in self._files]
            self._write_off(self._own if read_also and not lock_also else 0)
        except BaseException:
            self._open.close()
            raise

    def close(self) -> None:
        self._open.close()

    def _scan(self, number: int, path: Path) -> None:
        """Take in a file, as far as its lines are whole: another process may be writing the last one."""
        # Tuples of numbers: the garbage collector stops looking at them, as it would not at lists.
        chunk: dict[bytes, tuple[int, int, int]] = {}
        models: Counter[bytes] = Counter()
        match, states, model_of, spent, maybe = HEAD.match, _STATES, MODEL.match, 0.0, 0.0
        with path.open("rb", buffering=_READ) as file:
            place = number * FILE + _check_header(path, file.readline())
            for count, line in enumerate(file, start=2):
                found = match(line)
                if found is None or line[-2:] != b"}\n":
                    if line[-1:] != b"\n":
                        break
                    raise RunFolderError(f"{path}:{count}: no line of a ledger; remove the line to go on")
                key, event, usd, maybe_usd = found.groups()
                state = states.get(event)
                if state is None:
                    raise RunFolderError(f"{path}:{count}: event {event.decode()!r} is not known to this version")
                known = chunk.get(key)
                if state in _ASKED:
                    if known is None:
                        chunk[key] = state, place, -1
                    elif known[0] != _REPLY:
                        chunk[key] = state, place if known[1] < 0 else known[1], known[2]
                else:
                    spent, maybe = spent + float(usd), maybe + float(maybe_usd)
                    if known is None:
                        chunk[key] = state, -1, place
                    elif known[0] != _REPLY:
                        chunk[key] = state, known[1], place
                    if state == _REPLY:
                        name = model_of(line, found.end())
                        models[name[1] if name else b"null"] += 1
                place += len(line)
                if len(chunk) >= _CHUNK:
                    self._flush(chunk)
        self._flush(chunk)
        self._add(spent, maybe, models)

    def _flush(self, chunk: dict[bytes, tuple[int, int, int]]) -> None:
        self.index.put((unhexlify(key), *chunk[key]) for key in sorted(chunk))
        chunk.clear()

    def _add(self, spent: float, maybe: float, models: Counter[bytes]) -> None:
        self.totals.spent += spent
        self.totals.maybe += maybe
        for name, replies in models.items():
            self.totals.models[str(json.loads(name) or "unknown")] += replies
            self.totals.replies += replies

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
        self.index.put([(bytes.fromhex(key), int(state), here, there)])

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


def _check_header(path: Path, line: bytes) -> int:
    """The header's length. Raises RunFolderError for another version, or no ledger at all."""
    try:
        version = json.loads(line)["gad_ledger"]
    except (ValueError, TypeError, KeyError):
        raise RunFolderError(f"{path} does not begin as a ledger does: move it away to begin a new one") from None
    if version != VERSION:
        raise RunFolderError(
            f"{path} is a ledger of format {version}, and this gad reads format {VERSION}: go on with the gad that "
            "wrote it, or move it away to begin a new one (its replies would be bought again)"
        )
    return len(line)


def _row(file: Any, path: Path, offset: int) -> dict[str, Any]:
    file.seek(offset)
    try:
        row: dict[str, Any] = json.loads(file.readline())
    except ValueError as error:
        raise RunFolderError(f"{path}, byte {offset}: not JSON ({error}); remove the line to go on") from error
    return row
