"""Replies from several servers: each is asked for until it is there once, whatever becomes of a server meanwhile.

A job is in the queue, with one server, or done. A server that fails gives its jobs back, and is taken in again when
it answers, has the right model and holds the right weights; one that is unfit is left out for good. A reply to an
adapter's name is of that adapter. Where a server's whole weights are changed a reply says nothing of them: it counts
once the server has been asked again and still holds those that it was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gad.errors import RolloutError
from gad.rollout.completions import Away, Rejected, Reply, Unfit, Wanted
from gad.rollout.wire import Handover, Server

ATTEMPTS = 5
"""Answers other than a reply that one job may meet before the run stops: it may be the job that breaks servers."""
_FAILURES = 3
"""Such answers in a row, and a server is looked at before it is asked again; and so many unanswered health checks."""
_PAUSE_SECONDS = (0.2, 5.0)
"""Between looks at a server that is away: doubling from the first to the second."""


@dataclass(slots=True)
class Job:
    """One reply. `attempts`: answers other than a reply so far."""

    wanted: Wanted
    name: str
    attempts: int = 0
    reply: Reply | None = None


@dataclass(slots=True)
class Counts:
    """What went wrong on the way."""

    retried: int = 0
    outages: int = 0
    dropped: int = 0


class Dispatcher:
    """One step's jobs. `ready`: makes a server fit to work: raises Away or Unfit."""

    def __init__(
        self,
        servers: Sequence[Server],
        jobs: Sequence[Job],
        handover: Handover,
        ready: Callable[[Server], Awaitable[None]],
        *,
        width: int,
        health_seconds: float,
        patience_seconds: float,
    ) -> None:
        self.counts = Counts()
        self._servers, self._jobs, self._handover, self._ready = servers, jobs, handover, ready
        self._width, self._health_seconds, self._patience = width, health_seconds, patience_seconds
        self._queue: asyncio.Queue[Job] = asyncio.Queue()
        self._left = len(jobs)
        self._unconfirmed: dict[str, list[Job]] = {server.url: [] for server in servers}
        self._answered, self._done = asyncio.Event(), asyncio.Event()
        self._error: RolloutError | None = None
        self._up: set[str] = set()

    async def run(self) -> None:
        """Fill in every job's reply. Raises RolloutError where no server can give them."""
        for job in self._jobs:
            self._queue.put_nowait(job)
        keepers = [asyncio.create_task(self._keep(server)) for server in self._servers if not server.dropped]
        try:
            await self._until_done(keepers)
        finally:
            await _ended(keepers)

    async def _until_done(self, keepers: Sequence[asyncio.Task[None]]) -> None:
        clock = asyncio.get_running_loop().time
        last_up = clock()
        while not self._done.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self._done.wait()
            for keeper in keepers:
                if keeper.done():
                    keeper.result()
            if self._error is not None:
                raise self._error
            if self._up:
                last_up = clock()
            if all(server.dropped for server in self._servers):
                raise RolloutError(f"no vLLM server can be used: {troubles(self._servers)}")
            if clock() - last_up > self._patience:
                raise RolloutError(
                    f"no vLLM server for {self._patience:g} s (compute.engine.patience_seconds): "
                    f"{troubles(self._servers)}; start them again, and run the same command to go on"
                )

    async def _keep(self, server: Server) -> None:
        """Have a server work whenever it can, until all is done or it is unfit."""
        pause = _PAUSE_SECONDS[0]
        async with server.open(self._width):
            while True:
                try:
                    await self._ready(server)
                    self._up.add(server.url)
                    pause = _PAUSE_SECONDS[0]
                    await self._work(server)
                except Unfit as error:
                    server.dropped, server.trouble = True, str(error)
                    self.counts.dropped += 1
                    self._take_back(server)
                    return
                except Away as error:
                    server.trouble = str(error)
                    self.counts.outages += server.url in self._up
                    self._take_back(server)
                finally:
                    self._up.discard(server.url)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_SECONDS[1])

    async def _work(self, server: Server) -> None:
        """Workers side by side, and a look at the server's health; the first that fails ends them all."""
        failures = [0]
        tasks = [asyncio.create_task(self._worker(server, failures)) for _ in range(self._width)]
        tasks.append(asyncio.create_task(self._watch(server)))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _ended(tasks)
        errors = [error for task in done if (error := task.exception()) is not None]
        raise next((error for error in errors if isinstance(error, Unfit)), errors[0])

    async def _worker(self, server: Server, failures: list[int]) -> None:
        while True:
            job = await self._queue.get()
            try:
                job.reply = await server.complete(job.wanted, self._handover)
            except Rejected as error:
                self._error = RolloutError(f"{server.url} refuses prompt {job.name} ({error.status}): {error}")
                raise Unfit(str(error)) from error
            except Away as error:
                self._give_back(job)
                if error.gone:
                    raise
                failures[0] += 1
                self._count(job, server, error)
                if failures[0] >= _FAILURES:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS[0])
                continue
            except BaseException:
                self._give_back(job)
                raise
            failures[0] = 0
            if not self._handover.adapter:
                self._unconfirmed[server.url].append(job)
            self._left -= 1
            self._look_for_the_end()

    def _look_for_the_end(self) -> None:
        if self._left == 0:
            self._answered.set()
            if not any(self._unconfirmed.values()):
                self._done.set()

    async def _confirmed(self, server: Server) -> bool:
        """Whether a server still holds the weights that its replies should be of. Raises Away."""
        jobs = self._unconfirmed[server.url]
        asked = len(jobs)
        if asked and not await server.holds(self._handover):
            return False
        del jobs[:asked]
        self._look_for_the_end()
        return True

    def _take_back(self, server: Server) -> None:
        """Have what was not confirmed sampled again."""
        jobs = self._unconfirmed[server.url]
        if not jobs:
            return
        for job in jobs:
            job.reply = None
            self._give_back(job)
        self._left += len(jobs)
        self._answered.clear()
        jobs.clear()

    def _give_back(self, job: Job) -> None:
        self.counts.retried += 1
        self._queue.put_nowait(job)

    def _count(self, job: Job, server: Server, error: Away) -> None:
        job.attempts += 1
        if job.attempts >= ATTEMPTS:
            self._error = RolloutError(
                f"prompt {job.name}: {ATTEMPTS} tries gave no reply, the last one at {server.url}: {error}"
            )

    async def _watch(self, server: Server) -> None:
        """A server that hangs says nothing: it is known by its silence. Raises Away."""
        missed = 0
        while True:
            with suppress(TimeoutError):  # asyncio.wait_for loses a cancel at the moment of the event (CPython 86296)
                async with asyncio.timeout(self._health_seconds):
                    await self._answered.wait()
            try:
                await server.alive()
                holds, missed = await self._confirmed(server), 0
            except Away:
                holds, missed = True, missed + 1
                if missed >= _FAILURES:
                    raise
            if not holds:
                raise Away("has other weights than it was given: it was started again, or another run uses it")
            if self._answered.is_set():
                await asyncio.sleep(_PAUSE_SECONDS[0])  # for the others


async def _ended(tasks: Sequence[asyncio.Task[None]]) -> None:
    """Cancel until they have ended: one that swallowed a cancel would be waited for without an end."""
    left = {task for task in tasks if not task.done()}
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_PAUSE_SECONDS[1])
    await asyncio.gather(*tasks, return_exceptions=True)


def troubles(servers: Sequence[Server]) -> str:
    """What is wrong with each server, for a message."""
    return "; ".join(f"{server.url} {server.trouble or 'has not answered yet'}" for server in servers)
