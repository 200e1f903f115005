"""Reading ledgers from beginning to end: sums, and the events of each key.

Python runs a handful of times for a block of lines, not once a line: what is done to each is done by `map`.
"""

from __future__ import annotations

import json
import re
from array import array
from binascii import unhexlify
from functools import lru_cache
from itertools import compress
from pathlib import Path

import numpy as np

from gad.errors import RunFolderError
from gad.teacher.entry import ASKED, FILE, State, Totals
from gad.teacher.lines import HEAD, VERSION
from gad.teacher.loaded import Events

_STATES = {
    b"sent": State.UNDER_WAY,
    b"batched": State.IN_BATCH,
    b"reply": State.REPLY,
    b"failed": State.OPEN,
    b"lost": State.OPEN,
    b"givenup": State.GIVEN_UP,
}
_HAS_OUTCOME = bytes(state not in ASKED for state in range(256))
_IS_REPLY = bytes(state == State.REPLY for state in range(256))
"""1 or 0 for each state."""
_READ = 2**20
"""Bytes asked of the disk at once."""
_BLOCK = 2**17
"""Bytes of lines taken at once: they stay in the processor's cache."""
_CHUNK = 2**18
"""Lines kept before they are handed on."""


class Scan:
    """Reads ledgers one after another. events: what their lines say of keys; totals: sums."""

    def __init__(self, events: Events, totals: Totals) -> None:
        self._events, self._totals = events, totals
        self._keys, self._states, self._lengths = bytearray(), bytearray(), array("Q")

    def read(self, number: int, path: Path) -> None:
        """Take in a file, as far as its lines are whole: another process may be writing the last one.

        number: the file's, for places. Raises RunFolderError for what is no ledger, or damaged.
        """
        count, torn = 1, False
        with path.open("rb", buffering=_READ) as file:
            self._place = number * FILE + _check_header(path, file.readline())
            while not torn and (lines := file.readlines(_BLOCK)):
                torn = not lines[-1].endswith(b"\n")
                if torn:
                    lines.pop()
                try:
                    self._take(lines)
                except (ValueError, TypeError, KeyError, IndexError):
                    raise _damage(path, count, lines) from None
                count += len(lines)
        self._hand_on()

    def _take(self, lines: list[bytes]) -> None:
        """Whole lines. One that is damaged ends in one of several exceptions."""
        if not lines:
            return
        keys, events, usd, maybe, models = zip(*map(re.Match.groups, map(HEAD.match, lines)), strict=True)  # type: ignore[arg-type]
        if bytes([line[-2] for line in lines]).strip(b"}"):
            raise ValueError
        states = bytes(map(_STATES.__getitem__, events))
        with_outcome, replies = states.translate(_HAS_OUTCOME), states.translate(_IS_REPLY)
        self._totals.spent += sum(map(float, compress(usd, with_outcome)))
        self._totals.maybe += sum(map(float, compress(maybe, with_outcome)))
        self._totals.replies += sum(replies)
        self._totals.models.update(map(_model, compress(models, replies)))
        self._keys += unhexlify(b"".join(keys))
        self._states += states
        self._lengths.extend(map(len, lines))
        if len(self._states) >= _CHUNK:
            self._hand_on()

    def _hand_on(self) -> None:
        if not self._states:
            return
        ends = self._place + np.cumsum(np.frombuffer(self._lengths, np.uint64).astype(np.int64))
        places = np.concatenate(([self._place], ends[:-1]))
        self._events.add(bytes(self._keys), bytes(self._states), places)
        self._place = int(ends[-1])
        self._keys, self._states, self._lengths = bytearray(), bytearray(), array("Q")


@lru_cache(1024)
def _model(name: bytes | None) -> str:
    """The name of a reply's model. Few have many replies."""
    return str(json.loads(name or b"null") or "unknown")


def _damage(path: Path, before: int, lines: list[bytes]) -> RunFolderError:
    """Names the first line that is none. before: lines of the file before these."""
    for count, line in enumerate(lines, start=before + 1):
        found = HEAD.match(line)
        if found is None or not line.endswith(b"}\n") or not _is_sound(found):
            return RunFolderError(f"{path}:{count}: no line of a ledger; remove the line to go on")
        if found[2] not in _STATES:
            return RunFolderError(f"{path}:{count}: event {found[2].decode()!r} is not known to this version")
    raise AssertionError("a block is damaged and none of its lines")


def _is_sound(found: re.Match[bytes]) -> bool:
    try:
        unhexlify(found[1]), float(found[3]), float(found[4]), _model(found[5])
    except ValueError:
        return False
    return True


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
