"""`teacher.jsonl` and the lists beside it, made from a ledger: in the order of the prompt sets, whatever came when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gad.config.data import Filters
from gad.config.teacher import TeacherConfig
from gad.storage import JsonlWriter, Row, write_jsonl
from gad.teacher.choosing import Chooser, usage_totals
from gad.teacher.entry import Entry, State
from gad.teacher.index import Wanted
from gad.teacher.ledger import Ledger
from gad.teacher.requests import ApiRequest, Reply

TEACHER = "teacher.jsonl"
GIVEN_UP = "given_up.jsonl"
LEFT_OUT = "left_out.jsonl"
REMOVED = "removed.jsonl"
TRAIN = "train"
_SHOWN = 20
_FIRST = 5


@dataclass
class LeftOut:
    """Prompts without a row for one reason; first: ids of a few."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, identity: str) -> None:
        """One more."""
        self.count += 1
        if len(self.first) < _FIRST:
            self.first.append(identity)


@dataclass
class SetContents:
    """What was written of a prompt set. left_out, given_up: by reason; the files list them."""

    kept: int = 0
    missing: int = 0
    in_batches: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    given_up: dict[str, LeftOut] = field(default_factory=dict)


@dataclass
class Contents:
    """What was written of all sets. bought: replies that the sets ask for. removed: ids, the first 20.
    first, last: when the earliest and the latest of the replies came, seconds since 1970."""

    sets: dict[str, SetContents] = field(default_factory=dict)
    bought: int = 0
    models: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, int] = field(default_factory=dict)
    estimated: int = 0
    first: float | None = None
    last: float | None = None
    removed: int = 0
    removed_ids: list[str] = field(default_factory=list)


def path_of(name: str, folder: Path) -> Path:
    """Where the rows of a set are: `teacher.jsonl` for the training set, `sets/<name>.jsonl` for the others."""
    return folder / TEACHER if name == TRAIN else folder / "sets" / f"{name}.jsonl"


@dataclass
class Files:
    """Writes a ledger's replies. config, filters: which are left out. target: where rows go. lists: where lists go."""

    config: TeacherConfig
    filters: Filters
    ledger: Ledger
    target: Path
    lists: Path

    def write(self, names: Sequence[str], *, all_parts: bool = True) -> Contents:
        """Write the rows of the sets `names` and the lists, each file at once whole.

        A row: id, prompt (without the config's system prompt), completion, model, finish_reason, usage, cost_usd,
        created, request_hash, sample, request_id. all_parts: false where the sets are one part of a split; replies
        that they do not ask for are then another part's.
        """
        self._contents = Contents()
        with _Whole(self.lists / LEFT_OUT) as self._left_out, _Whole(self.lists / GIVEN_UP) as self._given_up:
            for name in names:
                write_jsonl(path_of(name, self.target), self._rows(name))
        if all_parts:
            self._list_removed()
        return self._contents

    def _rows(self, name: str) -> Iterator[Row]:
        asked_of: dict[int, int] = {}

        def text_of(place: int) -> str:
            return _row_text(ledger.request(Entry(State.REPLY, asked_of[place], place)), ledger.reply_at(place))

        ledger, found = self.ledger, SetContents()
        self._contents.sets[name] = found
        chooser = Chooser(self.config, self.filters, ledger.totals.models, text_of)
        for wanted, entry in ledger.index.wanted(name):
            if entry is None or entry.state in (State.OPEN, State.UNDER_WAY):
                found.missing += 1
            elif entry.state is State.IN_BATCH:
                found.in_batches += 1
            elif entry.state is State.GIVEN_UP:
                outcome = ledger.given_up_of(entry)
                found.given_up.setdefault(outcome.reason, LeftOut()).add(wanted.id)
                self._given_up.append(_listed(wanted, outcome.reason, outcome.message))
            else:
                request, reply = ledger.request(entry), ledger.reply(entry)
                _count(self._contents, reply)
                if self.config.near_duplicates is not None:
                    asked_of[entry.outcome] = entry.asked
                reason = chooser.why_not(reply, _row_text(request, reply), entry.outcome)
                if reason is None:
                    found.kept += 1
                    yield _teacher_row(wanted, request, reply)
                else:
                    found.left_out.setdefault(reason, LeftOut()).add(wanted.id)
                    self._left_out.append(_listed(wanted, reason, reply.text[:200]))

    def _list_removed(self) -> None:
        contents = self._contents
        with _Whole(self.lists / REMOVED) as removed:
            for _, entry in self.ledger.index.unwanted():
                reply = self.ledger.reply(entry)
                contents.removed += 1
                if len(contents.removed_ids) < _SHOWN:
                    contents.removed_ids.append(reply.id)
                removed.append({"id": reply.id, "sample": reply.sample, "request_hash": reply.key})


def _count(contents: Contents, reply: Reply) -> None:
    contents.bought += 1
    contents.models[reply.model or "unknown"] += 1
    contents.tokens = usage_totals(contents.tokens, reply)
    contents.estimated += reply.cost_estimated
    contents.first = min(reply.created, contents.first or reply.created)
    contents.last = max(reply.created, contents.last or reply.created)


def _teacher_row(wanted: Wanted, request: ApiRequest, reply: Reply) -> Row:
    messages = request.messages[1:] if wanted.system_added else request.messages
    return {
        "id": wanted.id,
        "prompt": [message.as_dict() for message in messages],
        "completion": reply.text,
        "model": reply.model,
        "finish_reason": reply.finish_reason,
        "usage": None if reply.usage is None else reply.usage.as_dict(),
        "cost_usd": reply.cost_usd,
        "created": reply.created,
        "request_hash": reply.key,
        "sample": wanted.sample,
        "request_id": reply.request_id,
    }


def _row_text(request: ApiRequest, reply: Reply) -> str:
    said = [message.content for message in request.messages if message.role != "system"]
    return "\n".join((*said, reply.text))


def _listed(wanted: Wanted, reason: str, text: str) -> dict[str, Any]:
    return {
        "id": wanted.id,
        "set": wanted.set,
        "sample": wanted.sample,
        "reason": reason,
        "text": text.encode("utf-8", "replace").decode(),
        "request_hash": wanted.key,
    }


class _Whole:
    """A JSONL file that is there when the block ends, whole; when it raises, the old one stays."""

    def __init__(self, path: Path) -> None:
        self._path, self._temporary = path, path.with_name(f".{path.name}.tmp-new")

    def __enter__(self) -> _Whole:
        self._temporary.unlink(missing_ok=True)
        self._writer = JsonlWriter(self._temporary)
        return self

    def append(self, row: Row) -> None:
        self._writer.append(row)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._writer.close()
        if kind is None:
            self._temporary.replace(self._path)
        else:
            self._temporary.unlink(missing_ok=True)
