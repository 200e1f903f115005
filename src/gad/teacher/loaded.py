"""What ledgers held when they were opened: for each key its state and places, sorted by key, in a file without a name.

The lines of a ledger come in the order of time (`Events`). They are parted by the first byte of their keys, which are
hashes, so that each part fits into memory whatever the number of prompts; each part is then sorted and folded to one
record a key. Memory keeps the first key of each page of records: half a byte a key.
"""

from __future__ import annotations

import os
import struct
import tempfile
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from gad.teacher.entry import ASKED, Row, State
from gad.teacher.ledger_file import INDEX

_KEY = [("high", ">u8"), ("low", ">u8")]
_EVENT = np.dtype([*_KEY, ("place", "<i8"), ("state", "i1")])
_RECORD = np.dtype([*_KEY, ("state", "i1"), ("asked", "<i8"), ("outcome", "<i8")])
_UNPACK = struct.Struct("<16sbqq")
_PARTS = 256
_PAGE = 128
_PAGE_BYTES = _PAGE * _RECORD.itemsize
_NOWHERE = np.uint64(2**64 - 1)
"""-1 as an unsigned number: after every place."""


def nameless(folder: Path) -> IO[bytes]:
    """A file that is gone when the process is."""
    return tempfile.TemporaryFile(prefix=INDEX, dir=folder)


class Events:
    """Lines of ledgers, taken in in the order in which they were written."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = nameless(folder)
        self._written = 0
        self._runs: list[NDArray[np.int64]] = []
        """Of each chunk, where the events of each part begin in the file, and where the last part ends."""

    def add(self, keys: bytes, states: bytes, places: NDArray[np.int64]) -> None:
        """A chunk of lines: keys one behind the other, states a byte each."""
        events = np.empty(len(states), _EVENT)
        halves = np.frombuffer(keys, ">u8").reshape(-1, 2)
        events["high"], events["low"] = halves[:, 0], halves[:, 1]
        events["place"], events["state"] = places, np.frombuffer(states, "i1")
        parts = np.frombuffer(keys, np.uint8)[::16]
        self._file.write(events[np.argsort(parts, kind="stable")].tobytes())
        ends = np.cumsum(np.bincount(parts, minlength=_PARTS))
        self._runs.append(self._written + np.concatenate(([0], ends)))
        self._written += len(states)

    def fold(self) -> Loaded:
        """One record a key; the events are gone then."""
        loaded = Loaded(nameless(self._folder))
        try:
            self._file.flush()
            for part in range(_PARTS):
                data = b"".join(self._read(run[part], run[part + 1]) for run in self._runs)
                if data:
                    loaded.append(_fold(np.frombuffer(data, _EVENT)))
            loaded.complete()
        except BaseException:
            loaded.close()
            raise
        self._file.close()
        return loaded

    def _read(self, start: int, end: int) -> bytes:
        size = _EVENT.itemsize
        return os.pread(self._file.fileno(), int(end - start) * size, int(start) * size)

    def close(self) -> None:
        self._file.close()


def _fold(events: NDArray[np.void]) -> NDArray[np.void]:
    """Where each key stands after its events, by key: the first request stays, and after a reply nothing changes."""
    high, low = events["high"].astype(np.uint64), events["low"].astype(np.uint64)
    order = np.lexsort((low, high))
    high, low, state = high[order], low[order], events["state"][order]
    place = events["place"][order].astype(np.uint64)
    new = np.ones(len(order), bool)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    first = np.flatnonzero(new)
    last = np.append(first[1:], len(order)) - 1
    is_request, is_reply = np.isin(state, ASKED), state == State.REPLY
    reply = np.minimum.reduceat(np.where(is_reply, place, _NOWHERE), first)
    outcome = np.maximum.reduceat(np.where(is_request, -1, place.astype(np.int64)), first)
    asked = np.minimum.reduceat(np.where(is_request, place, _NOWHERE), first)
    asked[asked > reply] = _NOWHERE
    records = np.empty(len(first), _RECORD)
    records["high"], records["low"] = high[first], low[first]
    records["asked"] = asked.view(np.int64)
    records["outcome"] = np.where(reply == _NOWHERE, outcome, reply.view(np.int64))
    records["state"] = np.where(reply == _NOWHERE, state[last], State.REPLY)
    return records


class Loaded:
    """Records sorted by key, to be looked up."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._count = 0
        self._first: list[bytes] = []
        """The first key of each page."""
        self._last_page = -1, b""

    def append(self, records: NDArray[np.void]) -> None:
        """Records behind those that are there, in order of the keys. Not looked up before `complete`."""
        begin_pages = records[-self._count % _PAGE :: _PAGE]
        self._first += [key for key, *_ in _UNPACK.iter_unpack(begin_pages.tobytes())]
        self._file.write(records.tobytes())
        self._count += len(records)

    def complete(self) -> None:
        """Everything is appended."""
        self._file.flush()

    def get(self, key: bytes) -> Row | None:
        """The record of a key."""
        page = self._page(bisect_right(self._first, key) - 1)
        at = page.find(key)
        while at % _RECORD.itemsize:  # -1 as well: the same bytes within other records, or none
            if at < 0:
                return None
            at = page.find(key, at + 1)
        found: Row = _UNPACK.unpack_from(page, at)
        return found

    def _page(self, number: int) -> bytes:
        if number < 0:
            return b""
        known, page = self._last_page
        if known != number:
            page = os.pread(self._file.fileno(), _PAGE_BYTES, number * _PAGE_BYTES)
            self._last_page = number, page
        return page

    def pages(self) -> Iterator[list[Row]]:
        """All records in order of the keys, by the handful."""
        for page in self._pages():
            yield list(_UNPACK.iter_unpack(page))

    def in_state(self, state: State) -> Iterator[list[Row]]:
        """Records in a state, in order of the keys, by the handful."""
        for page in self._pages():
            records = np.frombuffer(page, _RECORD)
            found = records[records["state"] == state]
            if len(found):
                yield list(_UNPACK.iter_unpack(found.tobytes()))

    def _pages(self) -> Iterator[bytes]:
        for number in range(len(self._first)):
            yield os.pread(self._file.fileno(), _PAGE_BYTES, number * _PAGE_BYTES)

    def close(self) -> None:
        self._file.close()
