"""Prompts without their replies: whether a source has replies, and prompts one after another in constant memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from gad.config.data import Columns, Filters, OnBadRows, Source
from gad.data.columns import column_names, id_of, parse_row
from gad.data.filters import why_drop_prompt
from gad.data.rows import BadRow, RawRow, RowError, bad_row_error
from gad.data.sources import read_rows
from gad.records import Prompt


def has_replies(source: Source) -> bool:
    """Whether the first readable row of a source has a reply."""
    for row in read_rows(source):
        if isinstance(row, RawRow):
            try:
                names = column_names(source.columns, row.values)
                return bool(parse_row(row.values, names, with_reply=True).completions)
            except RowError:
                continue
    return False


def blind(source: Source) -> Source:
    """The same source without the columns that are about replies, so that they need not be there."""
    unread = {"completion": None, "finish_reason": None, "model": None}
    columns: Columns = source.columns.model_copy(update=unread)
    return source.model_copy(update={"columns": columns})


class StreamedPrompts:
    """Prompts of sources, read anew at each iteration; nothing is kept, so what is given again comes again.

    Raises, while it is read, DataError for a bad row (with `stop`; else it is passed over).
    """

    def __init__(self, sources: Sequence[Source], *, on_bad_rows: OnBadRows, filters: Filters) -> None:
        self._sources = tuple(map(blind, sources))
        self._on_bad_rows, self._filters = on_bad_rows, filters

    def __iter__(self) -> Iterator[Prompt]:
        for source in self._sources:
            for row in read_rows(source):
                found = row if isinstance(row, BadRow) else self._prompt(row, source.columns)
                if isinstance(found, Prompt):
                    yield found
                elif found is not None and self._on_bad_rows == "stop":
                    raise bad_row_error(found)

    def _prompt(self, row: RawRow, columns: Columns) -> Prompt | BadRow | None:
        """None where the filters leave the prompt out."""
        try:
            parsed = parse_row(row.values, column_names(columns, row.values), with_reply=False)
        except RowError as error:
            return BadRow(row.place, error.reason, error.detail)
        if why_drop_prompt(parsed.messages, self._filters) is not None:
            return None
        try:
            return Prompt(parsed.id or id_of(parsed.messages), parsed.messages)
        except ValueError as error:
            return BadRow(row.place, "no usable prompt", str(error))
