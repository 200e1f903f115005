"""Lines of many requests onto the disk, one fsync for all that are ready."""

from __future__ import annotations

import asyncio
import errno
from dataclasses import dataclass

from gad.teacher.ledger_file import LedgerFile
from gad.teacher.secrets import Scrubber

_GATHER_SECONDS = 0.05
"""An fsync costs 0.2 ms of CPU; 20 of them a second are nothing, and a reply takes seconds anyway."""
_FULL = (errno.ENOSPC, errno.EDQUOT)
_RETRIES, _RETRY_SECONDS = 30, 1.0


@dataclass(slots=True)
class _Line:
    data: bytes
    paid: bool
    done: asyncio.Future[int]


class Journal:
    """Writes lines to a ledger's file. Not for several threads or event loops."""

    def __init__(self, file: LedgerFile, scrub: Scrubber) -> None:
        self._file = file
        self._scrub = scrub
        self._lines: list[_Line] = []
        self._writing: asyncio.Task[None] | None = None

    async def record(self, line: bytes, *, paid: bool = False) -> int:
        """Write a line; returns its offset when it is on disk.

        paid: it holds a reply. When the disk is full, the reserve is given free for such lines, and they are tried
        again for half a minute; others fail at once. Raises OSError.
        """
        waiting = _Line(self._scrub.bytes(line), paid, asyncio.get_running_loop().create_future())
        self._lines.append(waiting)
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())
        return await waiting.done

    async def _write_all(self) -> None:
        try:
            while self._lines:
                await asyncio.sleep(_GATHER_SECONDS)
                lines, self._lines = self._lines, []
                try:
                    await self._write(lines)
                except OSError as error:
                    await self._rescue(lines, error)
        finally:
            self._writing = None

    async def _write(self, lines: list[_Line]) -> None:
        offset = self._file.write(b"".join(line.data for line in lines))
        await asyncio.to_thread(self._file.sync)
        for line in lines:
            if not line.done.done():
                line.done.set_result(offset)
            offset += len(line.data)

    async def _rescue(self, lines: list[_Line], error: OSError) -> None:
        for line in lines:
            if not line.paid and not line.done.done():
                line.done.set_exception(error)
        paid = [line for line in lines if line.paid]
        for _ in range(_RETRIES if paid and error.errno in _FULL else 0):
            freed = self._file.free_reserve()
            try:
                await self._write(paid)
            except OSError as again:
                error = again
            else:
                return
            if not freed:
                await asyncio.sleep(_RETRY_SECONDS)
        for line in paid:
            if not line.done.done():
                line.done.set_exception(error)
