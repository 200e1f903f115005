"""The Batch API (OpenAI's /v1/batches): upload, create, poll, download, with the same ledger as single requests.

Run again after any stop, it goes on where it was: batches at the provider are polled, none is submitted twice. What
expired, was cancelled, failed on the way or is missing from a batch's files goes into a later batch.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Any

from gad.config.teacher import AzureEndpoint, TeacherConfig
from gad.errors import GadError, TeacherError
from gad.teacher.batch_results import BatchBook
from gad.teacher.batch_state import DONE, Batch, BatchState
from gad.teacher.caller import ApiCaller
from gad.teacher.client import address, needed_key, new_client, proxy_for
from gad.teacher.entry import State
from gad.teacher.failures import NOT_FOUND, Next, of_status
from gad.teacher.money import too_expensive
from gad.teacher.reading import Work, work_of
from gad.teacher.requests import ApiRequest
from gad.teacher.watching import Snapshot
from gad.teacher.wire import PATHS, key_of

_FINAL = ("completed", "expired", "cancelled", "failed")
_ATTEMPTS = 3
"""Batches that a request may be part of before it is given up."""
_PATIENCE = 10
"""Looks at a batch that may fail one after another."""
_DOWNLOAD_BYTES = 2**31
_QUEUE_FULL = "token_limit_exceeded"
_GOES_ON = "Batches go on at the provider; run the same command again to go on"
_NO_BATCHES = (
    "Has this endpoint a Batch API (/files and /batches)? Without --batch the same requests are asked one by one"
)


class _Refused(TeacherError):
    """The provider took note of a call and said no: nothing came of it."""


def run_batches(
    config: TeacherConfig,
    caller: ApiCaller,
    requests: Iterator[ApiRequest],
    stop: Callable[[], bool],
    watch: Callable[[Snapshot], None],
) -> None:
    """Until every request is settled or a stop is asked for; batches then go on at the provider.

    Raises TeacherError for what no batch would escape, ConfigError where a key is missing.
    """
    asyncio.run(_run(config, caller, requests, stop, watch))


async def _run(
    config: TeacherConfig,
    caller: ApiCaller,
    requests: Iterator[ApiRequest],
    stop: Callable[[], bool],
    watch: Callable[[Snapshot], None],
) -> None:
    from gad.teacher.transport import pooled_client

    key = needed_key(config.endpoint.api_key_env)
    state = BatchState(caller.ledger.folder)
    client = new_client(config, key, pooled_client(8, _DOWNLOAD_BYTES, proxy_for(address(config))))
    try:
        await _Batches(config, caller, requests, client, state, stop, watch).run()
    finally:
        state.close()
        await client.close()


class _Batches:
    def __init__(
        self,
        config: TeacherConfig,
        caller: ApiCaller,
        requests: Iterator[ApiRequest],
        client: Any,
        state: BatchState,
        stop: Callable[[], bool],
        watch: Callable[[Snapshot], None],
    ) -> None:
        self._config, self._caller, self._client, self._state = config, caller, client, state
        self._requests = requests
        self._again: deque[str] = deque()
        self._left_over: Work | None = None
        self._attempts: Counter[str] = Counter()
        self._book = BatchBook(config, caller)
        self._stop, self._watch = stop, watch
        self._failed_looks = 0
        self._error: GadError | None = None

    async def run(self) -> None:
        """Until every batch is done and no request is left."""
        while not self._stop():
            for batch in self._state.open:
                if batch.step != "created":
                    await self._try_to_submit(batch)
            while len(self._state.open) < self._config.batch.batches_at_once and not self._stop():
                works = self._next_works() if self._error is None else []
                if not works:
                    break
                await self._try_to_submit(self._plan(works))
            self._show()
            if not self._state.open:
                break
            if not await self._look():
                await self._pause()
        self._show()
        if self._error is not None and not self._stop():
            raise self._error

    def _close(self, batch: Batch) -> None:
        self._state.step(batch, DONE)
        self._caller.purse.settle(batch.usd, 0.0)

    def _plan(self, works: list[Work]) -> Batch:
        url = PATHS[self._config.api]
        if not isinstance(self._config.endpoint, AzureEndpoint):
            url = f"/v1{url}"
        batch = self._state.plan(works, url, time.time())
        self._book.batched(works, batch.name)
        return batch

    def _next_works(self) -> list[Work]:
        """Requests for one batch, as many as its bounds and the cap allow."""
        works: list[Work] = []
        settings, purse = self._config.batch, self._caller.purse
        room = settings.megabytes_per_batch * 1e6
        for work in self._works():
            room -= len(work.body) + 200
            if room < 0 and works:
                self._left_over = work
                break
            if not purse.fits(work.hold):
                self._left_over = work
                if not works and not self._state.open:
                    self._error = too_expensive(purse, work.hold)
                break
            purse.hold(work.hold)
            works.append(work)
            if len(works) >= settings.requests_per_batch:
                break
        return works

    def _works(self) -> Iterator[Work]:
        """Requests that wait: the one that did not fit before, those that failed in a batch, new ones."""
        ledger, seen = self._caller.ledger, set[str]()

        def waits(key: str) -> bool:
            entry = ledger.index.get(key)
            fresh = key not in seen and (entry is None or entry.state not in (State.IN_BATCH, State.REPLY))
            seen.add(key)
            return fresh

        if self._left_over is not None:
            work, self._left_over = self._left_over, None
            seen.add(work.key)
            yield work
        while self._again:
            key = self._again.popleft()
            entry = ledger.index.get(key)
            if entry is not None and waits(key):
                yield self._work(ledger.request(entry), key)
        for request in self._requests:
            key = key_of(self._config, request)
            if waits(key):
                yield self._work(request, key)

    def _work(self, request: ApiRequest, key: str) -> Work:
        return work_of(self._config, self._caller.prices, request, key, batch=True)

    async def _try_to_submit(self, batch: Batch) -> None:
        """Submit; a batch that the provider refuses to make frees its requests."""
        try:
            await self._submit(batch)
        except _Refused as error:
            self._book.discard(self._state.keys(batch), str(error))
            self._close(batch)
            raise

    async def _submit(self, batch: Batch) -> None:
        """Upload and create, from whichever step the batch is at."""
        if batch.step == "planned":
            with self._state.path(batch).open("rb") as file:
                name = f"gad-{batch.name}.jsonl"
                uploaded = await self._call(self._client.files.create(file=(name, file), purpose="batch"))
            batch = self._state.step(batch, "uploaded", file_id=uploaded.id)
        elif batch.step == "uploaded":
            found = await self._call(self._find(batch))
            if found is not None:
                self._state.step(batch, "created", batch_id=found)
                return
        created = await self._call(
            self._client.batches.create(
                input_file_id=batch.file_id,
                endpoint=f"/v1{PATHS[self._config.api]}",
                completion_window=self._config.batch.completion_window,
                metadata={"gad": batch.name, "gad_file": str(batch.file_id)},
            )
        )
        self._state.step(batch, "created", batch_id=created.id)

    async def _find(self, batch: Batch) -> str | None:
        """The batch at the provider, where its creation's answer was lost."""
        listed = self._client.batches.list(limit=100)
        async for each in listed:
            if each.input_file_id == batch.file_id:
                return str(each.id)
            if each.created_at is not None and each.created_at < batch.planned - 86_400:
                return None
        return None

    async def _look(self) -> bool:
        """Look at every batch once; whether one was done."""
        done = False
        for batch in self._state.open:
            if self._stop():
                break
            try:
                seen = await self._call(self._client.batches.retrieve(batch.batch_id))
            except TeacherError:
                self._failed_looks += 1
                if self._failed_looks >= _PATIENCE:
                    raise
                continue
            self._failed_looks = 0
            if seen.status in _FINAL:
                await self._take(batch, seen)
                done = True
        return done

    async def _take(self, batch: Batch, seen: Any) -> None:
        """Write a finished batch's outcomes into the ledger."""
        folder = self._caller.ledger.folder
        files = [name for name in (seen.output_file_id, seen.error_file_id) if name]
        paths = []
        for number, name in enumerate(files):
            content = await self._call(self._client.files.content(name))
            paths.append(folder / f".batch-{batch.name}-{number}.tmp-results")
            paths[-1].write_bytes(content.content)
        errors = list(getattr(seen.errors, "data", None) or ()) if seen.status == "failed" else []
        again = self._book.take(self._state.keys(batch), paths, seen.status)
        for path in paths:
            path.unlink()
        self._close(batch)
        for key in again:
            self._attempts[key] += seen.status != "failed"
            if self._attempts[key] < _ATTEMPTS:
                self._again.append(key)
            else:
                self._book.give_up(key)
        if seen.status == "failed":
            self._rejected(errors)

    def _rejected(self, errors: list[Any]) -> None:
        """A batch that the provider refused as a whole."""
        text = "; ".join(f"{error.code}: {error.message}" for error in errors[:3]) or "no reason given"
        if any(error.code == _QUEUE_FULL for error in errors) and self._state.open:
            return
        hint = " Lower batch.requests_per_batch or batch.batches_at_once." if _QUEUE_FULL in text else ""
        self._error = TeacherError(f"the provider refused a batch: {self._caller.scrub.text(text)}.{hint}")
        self._again.clear()

    async def _call(self, request: Any) -> Any:
        """Await a call of the client; its failures become TeacherError."""
        import openai

        try:
            return await request
        except openai.APIStatusError as error:
            response = error.response
            failure = of_status(response.status_code, response.headers, response.content, time.time())
            text = f"{address(self._config)}: {failure}"
            if failure.next in (Next.STOP, Next.GIVE_UP):
                hint = _NO_BATCHES if failure.reason == NOT_FOUND else _GOES_ON
                raise _Refused(f"{self._caller.scrub.text(text)}. {hint}") from None
        except openai.APIConnectionError as error:
            text = f"{address(self._config)} cannot be reached ({error.__cause__ or error})"
        raise TeacherError(f"{self._caller.scrub.text(text)}. {_GOES_ON}")

    async def _pause(self) -> None:
        until = time.monotonic() + self._config.batch.poll_seconds
        while time.monotonic() < until and not self._stop():
            await asyncio.sleep(min(0.2, self._config.batch.poll_seconds))

    def _show(self) -> None:
        replies, given_up = self._book.replies, self._book.given_up
        waiting = sum(batch.requests for batch in self._state.open)
        self._watch(Snapshot(replies, given_up, waiting, len(self._again), 0, 0, 0.0, self._caller.bill))
