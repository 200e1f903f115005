"""A source to its rows, whatever it is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import assert_never

from gad.config.data import Columns, Source
from gad.data.arrow import read_arrow_rows, read_parquet_rows
from gad.data.folders import FORMAT_OF, FileFormat, files_of_folder
from gad.data.hub import read_hub_rows
from gad.data.rows import BadRow, RawRow, tidy
from gad.data.text import read_csv_rows, read_jsonl_rows
from gad.errors import DataError

_FILE_SUFFIXES = {*FORMAT_OF, ".json", ".txt", ".gz", ".zst", ".zip", ".yaml", ".xlsx"}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def read_rows(source: Source) -> Iterator[RawRow | BadRow]:
    """Rows of a source in their order, at most `limit`; nothing is kept in memory.

    Raises DataError for what is missing or cannot be read as a whole, MissingExtra for a hub name without `datasets`.
    """
    return islice(_all_rows(source), source.limit)


def label_of(source: Source) -> str:
    """The source in a few words, for messages and the report."""
    return source.path if source.split is None else f"{source.path} ({source.split})"


def _all_rows(source: Source) -> Iterator[RawRow | BadRow]:
    path = Path(source.path).expanduser()
    if source.format == "hub":
        return read_hub_rows(source)
    if _exists(path):
        _refuse_hub_settings(source)
        return _local_rows(path, source)
    if source.format == "auto" and _is_hub_name(source.path):
        return read_hub_rows(source)
    raise DataError(f"{tidy(source.path)}: no such file or folder{_nearest(path)}")


def is_remote(source: Source) -> bool:
    """Whether the rows would have to be fetched from the Hugging Face hub."""
    return source.format == "hub" or (
        source.format == "auto" and not _exists(Path(source.path)) and _is_hub_name(source.path)
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise DataError(f"{tidy(str(path))} cannot be read: {error.strerror or error}") from error


def _is_hub_name(name: str) -> bool:
    """`data/train` beside a folder `data` is a mistyped path, not the dataset `train` of a user `data`."""
    return (
        bool(_HUB_NAME.fullmatch(name))
        and Path(name).suffix.lower() not in _FILE_SUFFIXES
        and not Path(name).parent.is_dir()
    )


def _nearest(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return f"; the folder {tidy(str(path.parent))} is not there either: give another path in the run file"
    near = difflib.get_close_matches(path.name, names, n=1)
    if near:
        return f"; did you mean {path.parent / near[0]}?"
    return f" in {path.parent.resolve()}: put it there, or give another path in the run file"


def _refuse_hub_settings(source: Source) -> None:
    for name in ("subset", "revision"):
        if getattr(source, name) is not None:
            raise DataError(f"{source.path} is here on disk: `{name}` is for hub datasets; leave it out")


def _local_rows(path: Path, source: Source) -> Iterator[RawRow | BadRow]:
    if path.is_dir():
        return _folder_rows(path, source)
    if not path.is_file():
        raise DataError(f"{path} is neither a file nor a folder")
    if source.split is not None:
        raise DataError(f"{path} is a single file and has no splits: leave out `split: {source.split}`")
    return _file_rows(path, _format_of(path, source), source.columns)


def _folder_rows(folder: Path, source: Source) -> Iterator[RawRow | BadRow]:
    try:
        chosen = files_of_folder(folder, source.split)
    except OSError as error:
        raise DataError(f"{folder} cannot be read: {error.strerror or error}") from error
    if source.format not in ("auto", chosen.format):
        raise DataError(f"{folder} holds {chosen.format} files, not {source.format}: set `format: auto`")
    for file in chosen.files:
        yield from _file_rows(file, chosen.format, source.columns)


def _format_of(path: Path, source: Source) -> FileFormat:
    match source.format:
        case "jsonl" | "parquet" | "arrow" | "csv":
            return source.format
        case "auto":
            return FORMAT_OF.get(path.suffix.lower()) or _sniff(path)
        case "hub":
            raise AssertionError("hub sources are not local")
        case _:
            assert_never(source.format)


def _sniff(path: Path) -> FileFormat:
    try:
        with path.open("rb") as file:
            head = file.read(6)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error
    if head.startswith(b"PAR1"):
        return "parquet"
    return "arrow" if head == b"ARROW1" else "jsonl"


def _file_rows(path: Path, format: FileFormat, columns: Columns) -> Iterator[RawRow | BadRow]:
    readers: dict[FileFormat, Callable[[], Iterator[RawRow | BadRow]]] = {
        "jsonl": lambda: read_jsonl_rows(path),
        "csv": lambda: read_csv_rows(path),
        "parquet": lambda: read_parquet_rows(path, columns),
        "arrow": lambda: read_arrow_rows(path, columns),
    }
    return readers[format]()
