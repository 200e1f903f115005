"""Where each key of a ledger stands, on disk, so that memory does not grow with the number of prompts.

What the ledger held when it was opened is a sorted file that is made anew each time (`loaded.py`; `make bench-collect`
times a million lines); what changes afterwards, and what the prompt sets ask for, are tables of SQLite over it. None
has a name on disk: the index cannot disagree with the ledger, and is gone when the process is.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from pathlib import Path
from typing import TYPE_CHECKING

from gad.teacher.entry import Entry, Row, State
from gad.teacher.ledger_file import INDEX

if TYPE_CHECKING:
    from gad.teacher.loaded import Loaded

_CACHE_KIB = 32768


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key that is asked for: by which set and prompt, and whether the config's system prompt was put before it."""

    key: str
    set: str
    id: str
    sample: int
    system_added: bool


class Index:
    """Keys and their states, and the keys that the prompt sets ask for, in their order.

    loaded: what the ledger held when it was opened; closed with the index. The table `keys` has the records of those
    keys alone that have changed since.
    """

    def __init__(self, folder: Path, loaded: Loaded) -> None:
        self._loaded = loaded
        try:
            self._db = _tables(folder)
        except BaseException:
            loaded.close()
            raise

    def put(self, key: str, state: State, asked: int, outcome: int) -> None:
        """Add or change a key.

        The first place of a request stays, and a key with a reply stays as it is.
        """
        raw = bytes.fromhex(key)
        known = self._row(raw)
        if known is not None:
            _, before, first_asked, last_outcome = known
            if before == State.REPLY:
                return
            asked = asked if first_asked < 0 else first_asked
            outcome = last_outcome if outcome < 0 else outcome
        self._db.execute("insert or replace into keys values (?, ?, ?, ?)", (raw, int(state), asked, outcome))

    def _row(self, key: bytes) -> Row | None:
        loaded = self._loaded.get(key)
        if loaded is not None and loaded[1] == State.REPLY:
            return loaded
        changed: Row | None = self._db.execute("select * from keys where key = ?", (key,)).fetchone()
        return changed or loaded

    def get(self, key: str) -> Entry | None:
        """Where a key stands; None where it was never asked."""
        return _entry(self._row(bytes.fromhex(key)))

    def in_state(self, state: State) -> Iterator[tuple[str, Entry]]:
        """Keys in a state, in the order of the keys. Do not change the index meanwhile."""
        changed = self._db.execute("select * from keys where state = ? order by key", (int(state),))
        for row in merge(changed, self._loaded_rows(state, "keys")):
            yield row[0].hex(), Entry(state, *row[2:])

    def _loaded_rows(self, state: State, but_not_in: str) -> Iterator[Row]:
        """Loaded records in a state whose keys a table does not have."""
        for rows in self._loaded.in_state(state):
            between = rows[0][0], rows[-1][0]
            known = self._db.execute(f"select key from {but_not_in} where key between ? and ?", between)
            found = {key for (key,) in known}
            yield from (row for row in rows if row[0] not in found)

    def want(self, wanted: Iterable[Wanted]) -> None:
        """Add to the prompt sets; a key that is in a set already keeps its first place there."""
        self._db.executemany(
            "insert or ignore into wanted (key, name, id, sample, added) values (?, ?, ?, ?, ?)",
            ((bytes.fromhex(each.key), each.set, each.id, each.sample, each.system_added) for each in wanted),
        )

    def wanted(self, name: str) -> Iterator[tuple[Wanted, Entry | None]]:
        """A prompt set in its order, each key with where it stands."""
        rows = self._db.execute(
            """
            select w.key, w.id, w.sample, w.added, k.state, k.asked, k.outcome
            from wanted w left join keys k using (key) where w.name = ? order by w.place
            """,
            (name,),
        )
        for key, identity, sample, added, *changed in rows:
            row = self._loaded.get(key) if changed[0] is None else (key, *changed)
            yield Wanted(key.hex(), name, identity, sample, bool(added)), _entry(row)

    def wanted_counts(self) -> dict[State | None, int]:
        """How many keys of all prompt sets together stand where; None: never asked."""
        (total,) = self._db.execute("select count(*) from (select distinct key from wanted)").fetchone()
        changed = self._db.execute(
            """
            select state, count(*) from keys k
            where exists (select 1 from wanted w where w.key = k.key) group by state
            """
        )
        counts: Counter[int] = Counter(dict(changed))
        for rows in self._loaded.pages():
            unchanged = self._db.execute(
                """
                select distinct key from wanted w
                where key between ? and ? and not exists (select 1 from keys k where k.key = w.key)
                """,
                (rows[0][0], rows[-1][0]),
            )
            wanted = {key for (key,) in unchanged}
            counts.update(state for key, state, _, _ in rows if key in wanted)
        found: dict[State | None, int] = {State(state): count for state, count in counts.items()}
        if never := total - counts.total():
            found[None] = never
        return found

    def unwanted(self) -> Iterator[tuple[str, Entry]]:
        """Keys with a reply that no prompt set asks for, in the order of the keys."""
        changed = self._db.execute(
            """
            select k.* from keys k left join wanted w using (key)
            where w.key is null and k.state = 4 order by k.key
            """
        )
        for row in merge(changed, self._loaded_rows(State.REPLY, "wanted")):
            yield row[0].hex(), Entry(State.REPLY, *row[2:])

    def close(self) -> None:
        self._db.close()
        self._loaded.close()


def _tables(folder: Path) -> sqlite3.Connection:
    """The tables, empty, in a file that is gone when the process is."""
    descriptor, name = tempfile.mkstemp(prefix=INDEX, dir=folder)
    os.close(descriptor)
    try:
        db = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
        try:
            db.executescript(
                f"""
                pragma journal_mode = off; pragma synchronous = off; pragma locking_mode = exclusive;
                pragma cache_size = -{_CACHE_KIB}; pragma temp_store = file;
                create table keys (key blob primary key, state int, asked int, outcome int) without rowid;
                create table wanted (
                  place integer primary key, key blob, name text, id text, sample int, added int, unique (key, name));
                begin;
                """
            )
        except BaseException:
            db.close()
            raise
    finally:
        Path(name).unlink()
    return db


def _entry(row: Row | None) -> Entry | None:
    return None if row is None else Entry(State(row[1]), *row[2:])
