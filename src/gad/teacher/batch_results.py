"""Batches in the ledger: what went into them, and what came of each request."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from gad.config.teacher import TeacherConfig
from gad.errors import TeacherError
from gad.teacher.batch_state import DONE, BatchState
from gad.teacher.caller import ApiCaller
from gad.teacher.entry import Entry, State
from gad.teacher.failures import Failure, Next, of_malformed, of_status
from gad.teacher.lines import failed_line, reply_line, sent_line
from gad.teacher.reading import Guess, Work, reply_of, work_of
from gad.teacher.wire import Malformed, read_body, sampling_of

_CHUNK = 500
_Line = tuple[str, State, bytes]


class BatchBook:
    """Writes the lines of batches."""

    def __init__(self, config: TeacherConfig, caller: ApiCaller) -> None:
        self._config, self._caller = config, caller
        self._guess = Guess(config.sampling.max_tokens)
        self.replies = self.given_up = 0

    def batched(self, works: Sequence[Work], name: str) -> None:
        """The requests are part of a batch."""
        self._write((work.key, State.IN_BATCH, self._batched_line(work, name)) for work in works)

    def discard(self, keys: Iterable[str], why: str) -> None:
        """Free the requests of a batch of which nothing was sent."""
        failure = Failure("interrupted", why, Next.RETRY)

        def lines() -> Iterator[_Line]:
            for key in keys:
                entry = self._caller.ledger.index.get(key)
                if entry is not None and entry.state is State.IN_BATCH:
                    work = self._work(key, entry)
                    yield key, State.OPEN, self._failed_line(work, failure, 0.0, False)

        self._write(lines())

    def _work(self, key: str, entry: Entry) -> Work:
        request = self._caller.ledger.request(entry)
        return work_of(self._config, self._caller.prices, request, key, batch=True)

    def _batched_line(self, work: Work, name: str) -> bytes:
        asked = None
        if not self._caller.ledger.has_request(self._caller.ledger.index.get(work.key)):
            asked = {"model": self._config.model, "sampling": sampling_of(self._config, work.request)}
        return sent_line(work.key, work.request, 1, work.hold, time.time(), asked, batch=name)

    def take(self, keys: Iterable[str], paths: Sequence[Path], status: str) -> list[str]:
        """Take in a finished batch's files, but for what is in already; keys that are to be asked again."""
        open_keys = dict.fromkeys(keys)
        again: list[str] = []

        def lines() -> Iterator[_Line]:
            for row in _rows(paths):
                key = str(row.get("custom_id"))
                if key in open_keys:
                    del open_keys[key]
                    yield from self._taken(key, row, again)
            for key in open_keys:
                text = f"the batch ended as {status}"
                lost = Failure("missing from the batch", text, Next.RETRY, maybe_paid=status == "completed")
                yield from self._taken(key, {"failure": lost}, again)

        self._write(lines())
        return again

    def _taken(self, key: str, row: dict[str, Any], again: list[str]) -> Iterator[_Line]:
        ledger, purse = self._caller.ledger, self._caller.purse
        entry = ledger.index.get(key)
        if entry is None or entry.state is not State.IN_BATCH:
            return
        work = self._work(key, entry)
        try:
            reply, maybe = self._reply(work, row)
        except Failure as failure:
            failure.message = self._caller.scrub.text(failure.message)
            lasting = failure.next is Next.GIVE_UP
            maybe = work.hold if failure.maybe_paid else 0.0
            purse.settle(0.0, failure.usd, maybe)
            if lasting:
                self.given_up += 1
            else:
                again.append(key)
            yield key, State.GIVEN_UP if lasting else State.OPEN, self._failed_line(work, failure, maybe, lasting)
        else:
            purse.settle(0.0, reply.cost_usd, maybe)
            self.replies += 1
            ledger.totals.replies += 1
            ledger.totals.models[reply.model or "unknown"] += 1
            yield key, State.REPLY, reply_line(reply, 1, maybe)

    def _reply(self, work: Work, row: dict[str, Any]) -> Any:
        if "failure" in row:
            raise row["failure"]
        response, error = row.get("response"), row.get("error")
        if not isinstance(response, dict) or response.get("body") is None:
            error = error if isinstance(error, dict) else {}
            text = f"{error.get('code')}: {error.get('message')}"
            raise Failure("failed in a batch", text, Next.RETRY)
        content = json.dumps(response["body"]).encode()
        status = response.get("status_code")
        if status != 200:
            raise of_status(status if isinstance(status, int) else 500, {}, content, time.time())
        try:
            answer = read_body(self._config.api, self._caller.scrub.bytes(content))
        except Malformed as malformed:
            failure = of_malformed(malformed, {})
            if malformed.usage is not None:
                failure.usd = work.cost(self._caller.prices, malformed.usage)
            raise failure from None
        headers = {"x-request-id": str(response.get("request_id") or "")}
        return reply_of(work, answer, headers, self._caller.prices, self._guess, time.time())

    def _failed_line(self, work: Work, failure: Failure, maybe: float, lasting: bool) -> bytes:
        event = "givenup" if lasting else "failed"
        usd, reason, message = failure.usd, failure.reason, failure.message
        return failed_line(event, work.key, work.request, 1, usd, maybe, reason, message, time.time())

    def give_up(self, key: str) -> None:
        """A request that failed in one batch after another."""
        entry = self._caller.ledger.index.get(key)
        if entry is None:
            raise TeacherError(f"request {key} is not in the ledger")
        work = self._work(key, entry)
        failure = Failure("failed in batches", "no reply in several batches", Next.GIVE_UP)
        self._write([(key, State.GIVEN_UP, self._failed_line(work, failure, 0.0, True))])
        self.given_up += 1

    def _write(self, lines: Iterable[_Line]) -> None:
        chunk: list[_Line] = []
        for line in lines:
            chunk.append(line)
            if len(chunk) >= _CHUNK:
                self._flush(chunk)
        self._flush(chunk)

    def _flush(self, chunk: list[_Line]) -> None:
        ledger = self._caller.ledger
        scrubbed = [(key, state, self._caller.scrub.bytes(line)) for key, state, line in chunk]
        chunk.clear()
        offset = ledger.file.write(b"".join(line for _, _, line in scrubbed))
        ledger.file.sync()
        for key, state, line in scrubbed:
            if state is State.IN_BATCH:
                ledger.note(key, state, asked=offset)
            else:
                ledger.note(key, state, outcome=offset)
            offset += len(line)


def held_by_batches(folder: Path) -> float:
    """USD that batches which are not done may cost."""
    return sum(batch.usd for batch in BatchState(folder).open)


def discard_planned(config: TeacherConfig, caller: ApiCaller) -> None:
    """Free the requests of batches that were planned and of which nothing was sent."""
    state = BatchState(caller.ledger.folder)
    try:
        for batch in state.open:
            if batch.step == "planned":
                why = "the collector ended before the batch was submitted"
                BatchBook(config, caller).discard(state.keys(batch), why)
                state.step(batch, DONE)
    finally:
        state.close()


def _rows(paths: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """Lines of a batch's files; one that is not JSON counts as missing."""
    for path in paths:
        with path.open("rb") as file:
            for line in file:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict):
                    yield row
