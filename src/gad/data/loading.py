"""Sources to examples or prompts: rows of one prompt are put together, and whatever is left out is counted."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gad.config.data import Filters, OnBadRows, Source
from gad.data.columns import ParsedRow, column_names, id_of, parse_row
from gad.data.filters import why_drop_prompt, why_drop_reply
from gad.data.prompts import blind
from gad.data.rows import BadRow, Place, RowError, bad_row_error, tidy
from gad.data.sources import label_of, read_rows
from gad.errors import DataError
from gad.records import Example, Message, Prompt, TeacherReply

_SHOWN_PLACES = 5


@dataclass(frozen=True, slots=True)
class Dropped:
    """Rows that were left out for one reason; `first` names the first few of them."""

    reason: str
    count: int
    first: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"{self.reason}: {self.count} dropped rows")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a set came from and what became of its rows.

    source: paths or names, with the split.
    rows: rows read. Each is in the set, in `dropped`, or was split off to another set (`split_off`, in prompts).
    renamed: rows whose prompt was there before under another id; their replies went to that one.
    columns: which column played which part, e.g. {"prompt": ("content",)}.
    sha256: of the set's content, ids and order included.
    """

    source: str
    rows: int
    dropped: tuple[Dropped, ...]
    renamed: int
    columns: dict[str, tuple[str, ...]]
    sha256: str
    split_off: int = 0

    def as_dict(self) -> dict[str, Any]:
        """For summary and report."""
        return {
            "source": self.source,
            "rows": self.rows,
            "dropped": [{"reason": d.reason, "count": d.count, "first": list(d.first)} for d in self.dropped],
            "renamed": self.renamed,
            "split_off": self.split_off,
            "columns": {part: list(names) for part, names in self.columns.items()},
            "sha256": self.sha256,
        }


@dataclass(frozen=True, slots=True)
class LoadedSet:
    """Examples in the order of their first rows."""

    examples: tuple[Example, ...]
    origin: Origin

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """The examples' prompts."""
        return tuple(example.prompt for example in self.examples)

    @property
    def size(self) -> int:
        """Rows in the set: its replies."""
        return sum(len(example.replies) for example in self.examples)

    def only(self, ids: Collection[str]) -> LoadedSet:
        """The examples whose prompt id is among `ids`; the origin's fingerprint follows."""
        kept = tuple(example for example in self.examples if example.prompt.id in ids)
        return LoadedSet(kept, replace(self.origin, sha256=fingerprint(kept)))

    def of(self, origin: Origin) -> LoadedSet:
        """The same examples with another account of where they came from."""
        return replace(self, origin=origin)


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts in the order of their rows; replies, where there were any, are not read."""

    prompts: tuple[Prompt, ...]
    origin: Origin

    @property
    def size(self) -> int:
        """Rows in the set: its prompts."""
        return len(self.prompts)

    def only(self, ids: Collection[str]) -> PromptSet:
        """The prompts whose id is among `ids`; the origin's fingerprint follows."""
        kept = tuple(prompt for prompt in self.prompts if prompt.id in ids)
        return PromptSet(kept, replace(self.origin, sha256=fingerprint(kept)))

    def of(self, origin: Origin) -> PromptSet:
        """The same prompts with another account of where they came from."""
        return replace(self, origin=origin)


def load_examples(
    source: Source | Sequence[Source], *, on_bad_rows: OnBadRows = "stop", filters: Filters | None = None
) -> LoadedSet:
    """Prompts with their teacher replies. Rows of the same prompt (id or messages) become replies of one example.

    Raises DataError for a bad row (with `stop`), two prompts of one id, a source that cannot be read or leaves nothing;
    MissingExtra for a hub name without `datasets`.
    """
    gathered = _Gathered(_as_sources(source), on_bad_rows, filters or Filters(), with_reply=True)
    examples = tuple(
        Example(prompt, tuple(replies.values())) for prompt, replies in gathered.prompts.values() if replies
    )
    return LoadedSet(examples, gathered.origin(examples))


def load_prompts(
    source: Source | Sequence[Source], *, on_bad_rows: OnBadRows = "stop", filters: Filters | None = None
) -> PromptSet:
    """Prompts alone, to be sent to a teacher or student. A last assistant turn is left off. Raises as load_examples."""
    gathered = _Gathered(_as_sources(source), on_bad_rows, filters or Filters(), with_reply=False)
    prompts = tuple(prompt for prompt, _ in gathered.prompts.values())
    return PromptSet(prompts, gathered.origin(prompts))


def fingerprint(items: Iterable[Example | Prompt]) -> str:
    """SHA-256 over ids, messages and replies, in order."""
    digest = hashlib.sha256()
    for item in items:
        prompt, replies = (item.prompt, item.replies) if isinstance(item, Example) else (item, ())
        turns = [[message.role, message.content] for message in prompt.messages]
        texts = [[reply.text, reply.model, reply.finished] for reply in replies]
        digest.update(json.dumps([prompt.id, turns, texts], ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()


def _as_sources(source: Source | Sequence[Source]) -> tuple[Source, ...]:
    return (source,) if isinstance(source, Source) else tuple(source)


class _Gathered:
    """Rows of the sources, gathered by prompt. Reads everything when it is made."""

    def __init__(
        self, sources: tuple[Source, ...], on_bad_rows: OnBadRows, filters: Filters, *, with_reply: bool
    ) -> None:
        self.label = ", ".join(map(label_of, sources))
        self.prompts: dict[tuple[Message, ...], tuple[Prompt, dict[str, TeacherReply]]] = {}
        self._on_bad_rows = on_bad_rows
        self._filters = filters
        self._with_reply = with_reply
        self._owners: dict[str, tuple[tuple[Message, ...], Place]] = {}
        self._columns: dict[str, dict[str, None]] = defaultdict(dict)
        self._dropped: dict[str, list[str]] = defaultdict(list)
        self._counts: dict[str, int] = defaultdict(int)
        self._rows = self._renamed = 0
        for source in sources:
            self._read(source if with_reply else blind(source))

    def _read(self, source: Source) -> None:
        for row in read_rows(source):
            self._rows += 1
            if isinstance(row, BadRow):
                self._bad(row)
                continue
            try:
                names = column_names(source.columns, row.values)
                for part, name in names.items():
                    self._columns[part][name] = None
                self._add(parse_row(row.values, names, with_reply=self._with_reply), row.place)
            except RowError as error:
                self._bad(BadRow(row.place, error.reason, error.detail))

    def _bad(self, row: BadRow) -> None:
        detail = tidy(row.detail)
        if self._on_bad_rows == "stop":
            raise bad_row_error(row)
        self._drop(f"bad row, {row.reason}", f"{row.place}: {detail}")

    def _drop(self, reason: str, what: str) -> None:
        self._counts[reason] += 1
        if len(self._dropped[reason]) < _SHOWN_PLACES:
            self._dropped[reason].append(what)

    def _add(self, row: ParsedRow, place: Place) -> None:
        reason = why_drop_prompt(row.messages, self._filters)
        if reason is not None:
            self._drop(reason, str(place))
            return
        if self._with_reply and not row.completions:
            raise RowError(
                "no reply", "no column with the teacher's reply, or it is null; `columns.completion` names it"
            )
        if any(not text.strip() for text in row.completions) and not self._filters.drop_empty:
            raise RowError("empty reply", "the teacher's reply is empty or white space")
        known = self.prompts.get(row.messages)
        prompt, replies = self._prompt_of(row, known[0] if known else None, place)
        if self._with_reply:
            self._add_replies(replies, row, place)
        elif known is not None:
            self._drop("prompt given again", f"{place}: as {tidy(prompt.id)}")

    def _prompt_of(self, row: ParsedRow, known: Prompt | None, place: Place) -> tuple[Prompt, dict[str, TeacherReply]]:
        id_ = row.id or (known.id if known else id_of(row.messages))
        owner = self._owners.get(id_)
        if owner is not None and owner[0] != row.messages:
            detail = f"{tidy(repr(id_))} is the id of another prompt at {owner[1]}; ids must tell prompts apart"
            raise RowError("duplicate id", detail)
        if known is None:
            try:
                known = Prompt(id_, row.messages)
            except ValueError as error:
                raise RowError("no usable prompt", str(error)) from error
            self.prompts[known.messages] = (known, {})
        elif known.id != id_:
            self._renamed += 1
        if owner is None:
            self._owners[id_] = (known.messages, place)
        return self.prompts[known.messages]

    def _add_replies(self, replies: dict[str, TeacherReply], row: ParsedRow, place: Place) -> None:
        for text in row.completions:
            reason = why_drop_reply(text, row.finished, self._filters)
            if reason is None and text in replies:
                reason = "same reply to the same prompt"
            if reason is not None:
                self._drop(reason, str(place))
            else:
                replies[text] = TeacherReply(text, row.model, row.finished)

    def origin(self, items: Sequence[Example | Prompt]) -> Origin:
        """Where the items came from. Raises DataError where there are none."""
        if not items:
            why = "; ".join(f"{count} {reason} ({self._dropped[reason][0]})" for reason, count in self._counts.items())
            raise DataError(f"{self.label}: " + (f"nothing is left of {self._rows} rows: {why}" if why else "no rows"))
        dropped = tuple(Dropped(reason, n, tuple(self._dropped[reason])) for reason, n in self._counts.items())
        columns = {part: tuple(names) for part, names in self._columns.items()}
        return Origin(self.label, self._rows, dropped, self._renamed, columns, fingerprint(items))
