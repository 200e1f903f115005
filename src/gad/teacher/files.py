"""`teacher.jsonl` and the lists beside it, made from a ledger: in the order of the prompt set, whatever came when."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gad.config.teacher import TeacherConfig
from gad.storage import JsonlWriter, Row, write_jsonl
from gad.teacher.choosing import Chooser, usage_totals
from gad.teacher.index import Entry, State, Wanted
from gad.teacher.ledger import Ledger
from gad.teacher.requests import ApiRequest, Reply

TEACHER = "teacher.jsonl"
GIVEN_UP = "given_up.jsonl"
LEFT_OUT = "left_out.jsonl"
REMOVED = "removed.jsonl"
_SHOWN = 20


@dataclass
class Contents:
    """What was written. left_out, given_up: counts by reason; the files list them. removed: ids, the first 20."""

    kept: int = 0
    missing: int = 0
    in_batches: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    given_up: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    tokens: dict[str, int] = field(default_factory=dict)
    cost_usd: float = 0.0
    estimated: int = 0
    removed: int = 0
    removed_ids: list[str] = field(default_factory=list)


def write_files(
    config: TeacherConfig, ledger: Ledger, folder: Path, lists: Path, *, all_parts: bool = True
) -> Contents:
    """Write `teacher.jsonl` into `folder` and the lists into `lists`, each at once whole.

    A row of `teacher.jsonl`: id, prompt (without the config's system prompt), completion, model, finish_reason, usage,
    cost_usd, created, request_hash, sample, request_id. all_parts: false where the prompt set is one part of a split;
    replies that it does not ask for are then another part's.
    """
    contents = Contents()

    def text_of(place: int) -> str:
        return _row_text(ledger.request(Entry(State.REPLY, asked_of[place], place)), ledger.reply_at(place))

    asked_of: dict[int, int] = {}
    chooser = Chooser(config, ledger.totals.models, text_of)
    with ExitStack() as stack:
        left_out = stack.enter_context(_Whole(lists / LEFT_OUT))
        given_up = stack.enter_context(_Whole(lists / GIVEN_UP))

        def rows() -> Iterator[Row]:
            for wanted, entry in ledger.index.wanted():
                if entry is None or entry.state in (State.OPEN, State.UNDER_WAY):
                    contents.missing += 1
                elif entry.state is State.IN_BATCH:
                    contents.in_batches += 1
                elif entry.state is State.GIVEN_UP:
                    outcome = ledger.given_up_of(entry)
                    contents.given_up[outcome.reason] += 1
                    given_up.append(_listed(wanted, outcome.reason, outcome.message))
                else:
                    request, reply = ledger.request(entry), ledger.reply(entry)
                    _count(contents, reply)
                    if config.near_duplicates is not None:
                        asked_of[entry.outcome] = entry.asked
                    reason = chooser.why_not(reply, _row_text(request, reply), entry.outcome)
                    if reason is None:
                        contents.kept += 1
                        yield _teacher_row(wanted, request, reply)
                    else:
                        contents.left_out[reason] += 1
                        left_out.append(_listed(wanted, reason, reply.text[:200]))

        write_jsonl(folder / TEACHER, rows())
    if all_parts:
        _list_removed(contents, ledger, lists / REMOVED)
    return contents


def _list_removed(contents: Contents, ledger: Ledger, path: Path) -> None:
    with _Whole(path) as removed:
        for _, entry in ledger.index.unwanted():
            reply = ledger.reply(entry)
            contents.removed += 1
            if len(contents.removed_ids) < _SHOWN:
                contents.removed_ids.append(reply.id)
            removed.append({"id": reply.id, "sample": reply.sample, "request_hash": reply.key})


def _count(contents: Contents, reply: Reply) -> None:
    contents.models[reply.model or "unknown"] += 1
    contents.tokens = usage_totals(contents.tokens, reply)
    contents.cost_usd += reply.cost_usd
    contents.estimated += reply.cost_estimated


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
    return {"id": wanted.id, "sample": wanted.sample, "reason": reason, "text": text, "request_hash": wanted.key}


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
