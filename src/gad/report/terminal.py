"""The headline table for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from gad.report.summary import Summary


def headline_table(summary: Mapping[str, Any] | Summary) -> Table:
    """Every student and the teacher by set, at the headline's decoding; value, interval and n in every cell. Of judges
    the win rate or score alone: the rest is in the report.

    summary: what `summary.json` holds, or the record of it. Names and notes are text, never markup or escape codes.
    Raises RunFolderError where it is not a summary.
    """
    from rich.table import Table
    from rich.text import Text

    from gad.report.figures import decoding_tables
    from gad.report.gather import Gathered
    from gad.report.summary import Summary, parse_summary
    from gad.report.text import one_line
    from gad.report.wording import AT_EQUAL_LENGTH

    record = summary if isinstance(summary, Summary) else parse_summary(dict(summary))
    run = Gathered(Path(record.name or "run"), record, None, (), {}, {})
    found = decoding_tables(run)
    tables = found[0].headline if found else ()
    title = f"{one_line(run.name)}: {found[0].title}" if found else f"{one_line(run.name)}: no figures yet"
    table = Table(title=Text(title), title_justify="left")
    titles = dict.fromkeys(how.title for each in tables for how in each.columns)
    columns = [title for title in titles if not title.endswith(AT_EQUAL_LENGTH)]
    table.add_column("Set")
    table.add_column("Student")
    for column in columns:
        table.add_column(Text(column), justify="right")
    for each in tables:
        for index, row in enumerate(each.rows):
            cells = {cell.title: cell for cell in row.cells}
            values = [_cell(cells[column]) if column in cells else Text("") for column in columns]
            heading = Text(each.title if index == 0 else "")
            table.add_row(heading, Text(row.name), *values, end_section=index == len(each.rows) - 1)
    return table


def _cell(cell: Any) -> Any:
    from rich.text import Text

    text = Text(cell.text, style="dim" if cell.faint else "bold")
    return text.append(f"\n{cell.small}" + (f"\n{cell.note}" if cell.note else ""), style="dim")
