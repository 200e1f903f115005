"""JSONL and CSV, line by line: a file of any size takes the memory of its longest line."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from gad.data.rows import BadRow, Place, RawRow, RowError
from gad.errors import DataError

LONGEST_LINE = 64 * 2**20
"""Bytes. A longer line is no row of text but a file without line ends."""
_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_MAGIC = {
    b"PAR1": "a Parquet file: name it .parquet, or set `format: parquet`",
    b"ARROW1": "an Arrow file: set `format: arrow`",
    b"\x1f\x8b": "gzip-compressed: unpack it first",
    b"\x28\xb5\x2f\xfd": "zstd-compressed: unpack it first",
    b"PK\x03\x04": "a zip archive: unpack it first",
}


@dataclass(frozen=True, slots=True)
class _Line:
    number: int
    offset: int
    data: bytes
    """Without byte order mark, line end included where there is one."""


def read_jsonl_rows(path: Path) -> Iterator[RawRow | BadRow]:
    """Rows of a JSONL file. Blank lines are no rows; byte order mark, CRLF and a missing last line end are fine.

    Raises DataError where the file is binary, UTF-16 or cannot be read.
    """
    for line in _lines(path):
        place = Place(str(path), line.number)
        try:
            text = _decode(line)
            if text.strip():
                yield RawRow(place, _parse_object(text))
        except RowError as error:
            yield BadRow(place, error.reason, error.detail)


def read_csv_rows(path: Path) -> Iterator[RawRow | BadRow]:
    """Rows of a CSV (or .tsv) file with a header line. A row's place is its last line.

    Raises DataError also for bytes that are not UTF-8: a line may be the middle of a row, and cannot be left out.
    """

    def text_lines() -> Iterator[str]:
        for line in _lines(path):
            try:
                yield _decode(line)
            except RowError as error:
                raise DataError(f"{path}:{line.number}: {error}") from error

    previous_limit = csv.field_size_limit(LONGEST_LINE)
    try:
        reader = csv.DictReader(text_lines(), delimiter="\t" if path.suffix == ".tsv" else ",", strict=True)
        header = reader.fieldnames or []
        if len(set(header)) < len(header):
            raise DataError(f"{path}:1: two columns of one name in {', '.join(header)}")
        for row in reader:
            place = Place(str(path), reader.line_num)
            if None in row or None in row.values():
                cells = sum(value is not None for key, value in row.items() if key is not None)
                cells += len(row.get(None) or ())
                yield BadRow(place, "wrong number of cells", f"{cells}, the header has {len(header)}")
            else:
                yield RawRow(place, dict(row))
    except csv.Error as error:
        raise DataError(f"{path}: not CSV: {error} (near line {reader.line_num})") from error
    finally:
        csv.field_size_limit(previous_limit)


def _lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open("rb") as file:
            _refuse_binary(path, file)
            number = offset = 0
            while data := file.readline(LONGEST_LINE + 1):
                number += 1
                start = offset
                offset += len(data)
                if len(data) > LONGEST_LINE:
                    offset += _skip_line(file, data)
                elif number == 1 and data.startswith(_BOM):
                    data, start = data[len(_BOM) :], len(_BOM)
                yield _Line(number, start, data)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _skip_line(file: BinaryIO, data: bytes) -> int:
    skipped = 0
    while data and not data.endswith(b"\n"):
        data = file.readline(LONGEST_LINE)
        skipped += len(data)
    return skipped


def _refuse_binary(path: Path, file: BinaryIO) -> None:
    head = file.read(8192)
    file.seek(0)
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            raise DataError(f"{path} is {what}")
    if head.startswith(_UTF16_BOMS):
        raise DataError(f"{path} is UTF-16 (byte order mark at byte 0): save it as UTF-8")
    if (nul := head.find(b"\0")) >= 0:
        raise DataError(
            f"{path} is no text file: a NUL byte at byte {nul}; data are read as UTF-8 JSONL, CSV or Parquet"
        )


def _decode(line: _Line) -> str:
    if len(line.data) > LONGEST_LINE:
        raise RowError("line too long", f"more than {LONGEST_LINE // 2**20} MiB without a line end")
    try:
        return line.data.decode()
    except UnicodeDecodeError as error:
        where = f"byte 0x{line.data[error.start]:02x} at byte {line.offset + error.start} of the file"
        raise RowError("not UTF-8", f"{where}; save the file as UTF-8") from error


def _parse_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicate_keys)
    except RowError:
        raise
    except RecursionError as error:
        raise RowError("not JSON", "nested too deeply") from error
    except ValueError as error:
        what = "a number of too many digits"
        if isinstance(error, json.JSONDecodeError):
            what = f"{error.msg} (column {error.colno})"
        if text.strip() == "[":
            what = "the file is one JSON array; write one object a line (jq -c '.[]')"
        elif not text.endswith("\n"):
            what += "; the line has no line end, so the file may have been cut off here"
        raise RowError("not JSON", what) from error
    if not isinstance(value, dict):
        hint = (
            "; if the file is one JSON array, write one object a line (jq -c '.[]')" if isinstance(value, list) else ""
        )
        raise RowError("not a JSON object", f"a {_JSON_NAMES[type(value)]}{hint}")
    return value


_JSON_NAMES = {list: "list", str: "text", int: "number", float: "number", bool: "truth value", type(None): "null"}


def _refuse_constant(name: str) -> NoReturn:
    raise RowError("not JSON", f"{name} is no JSON value; write null")


def _refuse_duplicate_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError("key given twice", repr(twice))
    return found
