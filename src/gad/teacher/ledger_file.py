"""The file of a ledger: whole lines or nothing, and room for the replies under way when the disk fills up."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gad.errors import RunFolderError
from gad.storage import JsonlWriter
from gad.teacher.lines import VERSION

RESERVE = ".reserve"
INDEX = ".index-"
"""How the names of files begin that have one for a moment only: a killed process may leave them behind."""


class LedgerFile:
    """Appends whole lines. A failed write leaves the file as it was.

    reserve: bytes kept in a file beside it, given free when the disk is full, so that replies which are paid for and
    under way still find room.
    """

    def __init__(self, path: Path, reserve: int) -> None:
        self.path = path
        with JsonlWriter(path, durable=True) as writer:
            if path.stat().st_size == 0:
                writer.append({"gad_ledger": VERSION, "created": round(time.time(), 3)})
        sync_folder(path.parent)
        self._reserve = path.with_name(RESERVE)
        _allocate(self._reserve, reserve)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        self.size = os.fstat(self._descriptor).st_size

    def write(self, data: bytes) -> int:
        """Append; returns the offset. Not on disk before `sync`."""
        offset, view = self.size, memoryview(data)
        try:
            while view:
                view = view[os.write(self._descriptor, view) :]
        except OSError:
            os.ftruncate(self._descriptor, offset)
            raise
        self.size += len(data)
        return offset

    def sync(self) -> None:
        os.fsync(self._descriptor)

    def free_reserve(self) -> bool:
        """Whether there was one to give free."""
        had = self._reserve.exists()
        self._reserve.unlink(missing_ok=True)
        return had

    def close(self) -> None:
        os.close(self._descriptor)
        self._reserve.unlink(missing_ok=True)


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a full or failing disk raises into RunFolderError."""
    try:
        yield
    except OSError as error:
        raise _disk_error(folder, error.strerror or str(error)) from error
    except sqlite3.Error as error:
        raise _disk_error(folder, str(error)) from error


def _disk_error(folder: Path, text: str) -> RunFolderError:
    return RunFolderError(
        f"{folder}: {text}. Replies that are in the ledger are safe; mend that and run the same command again to go on"
    )


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _allocate(path: Path, size: int) -> None:
    path.unlink(missing_ok=True)
    if size == 0:
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        os.posix_fallocate(descriptor, 0, size)
    except OSError as error:
        path.unlink()
        raise RunFolderError(
            f"{path.parent}: {error.strerror}; {size / 2**20:.0f} MiB are needed to keep replies safe that are under "
            "way when the disk fills up. Free some space, or set runs_dir to another disk"
        ) from error
    finally:
        os.close(descriptor)
