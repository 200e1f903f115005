"""Parquet and Arrow files, batch by batch: memory is that of one batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gad.config.data import Columns
from gad.data.columns import column_names
from gad.data.rows import Place, RawRow, RowError
from gad.errors import DataError

_ROWS_AT_ONCE = 512


def read_parquet_rows(path: Path, columns: Columns) -> Iterator[RawRow]:
    """Rows of a Parquet file, the needed columns only. Raises DataError for a damaged file or a missing column."""
    import pyarrow.parquet

    with _arrow_errors(path, "Parquet"), pyarrow.parquet.ParquetFile(path) as file:
        needed = needed_columns(columns, file.schema_arrow.names, str(path))
        yield from _rows(path, file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=needed))


def read_arrow_rows(path: Path, columns: Columns) -> Iterator[RawRow]:
    """Rows of an Arrow stream or file, as `datasets.save_to_disk` writes them. Raises as read_parquet_rows."""
    import pyarrow as pa

    with _arrow_errors(path, "Arrow"), pa.memory_map(str(path)) as file:
        is_stream = file.read(6) != b"ARROW1"
        file.seek(0)
        reader = pa.ipc.open_stream(file) if is_stream else pa.ipc.open_file(file)
        needed = needed_columns(columns, reader.schema.names, str(path))
        batches = iter(reader) if is_stream else map(reader.get_batch, range(reader.num_record_batches))
        yield from _rows(path, (batch.select(needed) for batch in batches))


def needed_columns(columns: Columns, present: list[str], source: str) -> list[str]:
    """The columns to read, of those a table has. Raises DataError where one that was named is missing."""
    try:
        wanted = set(column_names(columns, present).values())
    except RowError as error:
        raise DataError(f"{source}: {error}") from error
    return [name for name in present if name in wanted]


def _rows(path: Path, batches: Iterator[Any]) -> Iterator[RawRow]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS_AT_ONCE):
            for values in batch.slice(start, _ROWS_AT_ONCE).to_pylist():
                number += 1
                yield RawRow(Place(str(path), number, "row"), values)


@contextmanager
def _arrow_errors(path: Path, kind: str) -> Iterator[None]:
    import pyarrow as pa

    try:
        yield
    except DataError:
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read as {kind}: {reason or type(error).__name__}") from error
