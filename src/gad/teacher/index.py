"""Where each key of a ledger stands: a table on disk, so that memory does not grow with the number of prompts.

It is rebuilt from the ledger whenever that is opened (`make bench-collect` times a million lines) and has no name on
disk: it cannot disagree with the ledger, and is gone when the process is.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

_CACHE_KIB = 32768
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


@dataclass(frozen=True, slots=True)
class Entry:
    """State of a key, and the places of its request and of its last outcome (-1: nowhere).

    A place is `file * FILE + offset`.
    """

    state: State
    asked: int
    outcome: int


@dataclass(frozen=True, slots=True)
class Wanted:
    """A key that is asked for: by which set and prompt, and whether the config's system prompt was put before it."""

    key: str
    set: str
    id: str
    sample: int
    system_added: bool


class Index:
    """Keys and their states, and the keys that the prompt sets ask for, in their order."""

    def __init__(self, folder: Path) -> None:
        descriptor, name = tempfile.mkstemp(prefix=".index-", dir=folder)
        os.close(descriptor)
        self._db = sqlite3.connect(name, isolation_level=None, check_same_thread=False)
        self._db.executescript(
            f"""
            pragma journal_mode = off; pragma synchronous = off; pragma locking_mode = exclusive;
            pragma cache_size = -{_CACHE_KIB}; pragma temp_store = file;
            create table keys (key blob primary key, state int, asked int, outcome int) without rowid;
            create table wanted (
              place integer primary key, key blob, name text, id text, sample int, added int, unique (key, name));
            begin;
            """
        )
        Path(name).unlink()

    def put(self, rows: Iterable[tuple[bytes, int, int, int]]) -> None:
        """Add or change keys: (key, state, asked, outcome).

        The first place of a request stays, and so does the first reply, whatever follows.
        """
        self._db.executemany(
            """
            insert into keys values (?, ?, ?, ?) on conflict (key) do update set
              state = excluded.state,
              asked = iif(asked < 0, excluded.asked, asked),
              outcome = iif(excluded.outcome < 0, outcome, excluded.outcome)
            where keys.state != 4
            """,
            rows,
        )

    def get(self, key: str) -> Entry | None:
        """Where a key stands; None where it was never asked."""
        row = self._db.execute("select state, asked, outcome from keys where key = ?", (bytes.fromhex(key),)).fetchone()
        return None if row is None else Entry(State(row[0]), row[1], row[2])

    def in_state(self, state: State) -> Iterator[tuple[str, Entry]]:
        """Keys in a state, in the order of the keys. Do not change the index meanwhile."""
        for key, asked, outcome in self._db.execute(
            "select key, asked, outcome from keys where state = ?", (int(state),)
        ):
            yield key.hex(), Entry(state, asked, outcome)

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
        for key, identity, sample, added, state, *places in rows:
            entry = None if state is None else Entry(State(state), *places)
            yield Wanted(key.hex(), name, identity, sample, bool(added)), entry

    def wanted_counts(self) -> dict[State | None, int]:
        """How many keys of all prompt sets together stand where; None: never asked."""
        rows = self._db.execute(
            """
            select k.state, count(*) from (select distinct key from wanted) w left join keys k using (key) group by 1
            """
        )
        return {None if state is None else State(state): count for state, count in rows}

    def unwanted(self) -> Iterator[tuple[str, Entry]]:
        """Keys with a reply that no prompt set asks for."""
        rows = self._db.execute(
            """
            select k.key, k.state, k.asked, k.outcome from keys k left join wanted w using (key)
            where w.key is null and k.state = 4
            """
        )
        for key, value, *places in rows:
            yield key.hex(), Entry(State(value), *places)

    def close(self) -> None:
        self._db.close()
