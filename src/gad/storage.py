"""The run folder: append-only JSONL that survives a torn last line, folders that are complete or absent, one owner."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gad.errors import RunFolderError

Row = dict[str, Any]
_encode = json.JSONEncoder(ensure_ascii=False).encode
_HALVES = "backslashreplace"
"""Half a surrogate pair has no UTF-8, and models write them: it becomes the escape that JSON has for it."""


def read_jsonl(path: Path) -> Iterator[Row]:
    """Rows of a file that `JsonlWriter` wrote. A last line without its newline is torn, and left out.

    Raises RunFolderError for a line in the middle that is not JSON: that is damage, not a torn end.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield json.loads(line)
            except ValueError as error:
                raise RunFolderError(f"{path}:{number}: not JSON ({error}); remove the line to go on") from error


class JsonlWriter:
    """Appends rows to a JSONL file; a torn last line of an earlier process is cut off first.

    durable: fsync after every row (a reply that was paid for) or leave it to the system (a metric).
    """

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._durable = durable
        self._file = path.open("ab+")
        self._cut_torn_line()

    def _cut_torn_line(self) -> None:
        position = end = self._file.seek(0, os.SEEK_END)
        while position > 0:
            start = max(0, position - 65536)
            self._file.seek(start)
            newline = self._file.read(position - start).rfind(b"\n")
            if newline >= 0:
                position = start + newline + 1
                break
            position = start
        if position < end:
            self._file.truncate(position)
        self._file.seek(0, os.SEEK_END)

    def append(self, row: Row) -> None:
        """Write one row as one line; returns when the system (or, durable, the disk) has it."""
        self._file.write(_encode(row).encode("utf-8", _HALVES) + b"\n")
        self._file.flush()
        if self._durable:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> JsonlWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def keep_rows(path: Path, keep: Callable[[Row], bool]) -> int:
    """Rewrite a JSONL file with only the rows to keep, atomically; returns how many were dropped."""
    rows = list(read_jsonl(path))
    kept = [row for row in rows if keep(row)]
    if len(kept) < len(rows):
        write_jsonl(path, kept)
    return len(rows) - len(kept)


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write a whole JSONL file atomically, row by row."""
    _replace(path, (_encode(row) + "\n" for row in rows))


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically: a reader sees the old text or the new one, never a part."""
    _replace(path, (text,))


def _replace(path: Path, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8", errors=_HALVES) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """A folder to fill; when the block ends it is at `path`, whole and on disk. When it raises, nothing of it is there.

    A folder that was at `path` before is replaced, and stays when the block raises.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in sorted(temporary.rglob("*")):
            _fsync(file)
        _fsync(temporary)
        if path.exists():
            old = path.with_name(f".{path.name}.tmp-old-{os.getpid()}")
            path.rename(old)
            try:
                temporary.rename(path)
            except BaseException:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        _fsync(path.parent)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _remove_abandoned(path: Path) -> None:
    """Delete what processes of this machine that are no more left half written of a folder."""
    for left in path.parent.glob(f".{path.name}.tmp-*"):
        process = left.name.rpartition("-")[2]
        if process.isdigit() and ".tmp-old-" not in left.name and not _lives(int(process)):
            shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def flush(path: Path) -> None:
    """Have the disk hold what was written to a file or folder, where there is one."""
    if path.exists():
        _fsync(path)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left half written in `folder`."""
    for path in folder.glob(".*.tmp-*"):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Own a folder for the length of the block. The lock dies with its process, however that ends.

    Raises RunFolderError with the owner's pid where another live process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise RunFolderError(
                f"{folder} is in use by process {owner}: wait for it, stop it, or give this run another name"
            ) from None
        file.seek(0)
        file.truncate()
        file.write(str(os.getpid()))
        file.flush()
        yield
