"""Requests out, outcomes in: one loop that decides what is sent when, and one task for each request under way."""

from __future__ import annotations

import asyncio
import heapq
import random
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from gad.errors import GadError, TeacherError
from gad.teacher.book import Book
from gad.teacher.client import address
from gad.teacher.desk import Desk, Parcel
from gad.teacher.entry import State
from gad.teacher.failures import NO_API, UNREACHABLE, Failure, Next, of_malformed
from gad.teacher.limits import Pace, Ticket
from gad.teacher.money import too_expensive
from gad.teacher.reading import Guess, Work, reply_of, work_of
from gad.teacher.requests import ApiRequest, GivenUp, Outcome, Reply
from gad.teacher.watching import Snapshot, Watcher
from gad.teacher.wire import Malformed, key_of, read_body

_POLL_SECONDS = 0.2
_STREAK = 5
"""Requests that exhaust their attempts without any reply in between: the endpoint is down, not the request bad."""
_HOPELESS = 10
"""Requests given up before the first reply ever: no request will be answered."""
_ATTEMPTS_TO_REACH = 4
"""Of the first request of a run, where no API can be reached at all."""
_BACKLOG = 5000
"""Outcomes that wait for the caller before nothing more is sent."""


@dataclass
class _Tally:
    replies: int = 0
    given_up: int = 0
    retries: int = 0
    doubtful: list[tuple[Work, Failure]] = field(default_factory=list)


class Dispatch:
    """One run over an iterable of requests."""

    def __init__(self, desk: Desk, requests: Iterable[ApiRequest], *, retry_failed: bool) -> None:
        self._desk = desk
        self._limits = desk.config.limits
        self._requests: Iterator[ApiRequest] = iter(requests)
        self._retry_failed = retry_failed
        self._book = Book(desk.config, desk.ledger, desk.scrub)
        self._pace = Pace(desk.config.limits)
        self._guess = Guess(desk.config.sampling.max_tokens)
        self._retries: list[tuple[float, int, Work]] = []
        self._number = count()
        self._live: dict[str, Work] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._tally = _Tally()
        self._parcel = Parcel(desk.emit)
        self._error: BaseException | None = None
        self._watcher = Watcher(desk.watch, self._snapshot)
        self._random = random.Random()

    async def run(self) -> None:
        """Until every request is settled, a stop is asked for, or going on makes no sense (raises; see ApiCaller)."""
        try:
            try:
                await self._send_all()
            except Exception as error:
                self._error = self._error or error
            while self._tasks:
                await self._wait(_POLL_SECONDS)
            if not self._ending():
                await self._settle_doubtful(at_end=True)
        finally:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            self._parcel.hand_over()
            self._watcher.look(now=True)
        if self._error is not None:
            raise self._error

    def _ending(self) -> bool:
        return self._error is not None or self._desk.stop()

    async def _send_all(self) -> None:
        exhausted = False
        while not self._ending():
            work = self._due() or (None if exhausted else await self._new())
            if work is None:
                exhausted = True
                if not self._tasks and not self._retries:
                    return
                await self._wait(self._until_due())
            elif await self._admitted(work):
                self._start(work)
            else:
                self._live.pop(work.key, None)

    async def _wait(self, seconds: float) -> None:
        """Until something came back, or so many seconds have passed; at most until the next look at a stop."""
        timer = asyncio.get_running_loop().call_later(min(seconds, _POLL_SECONDS), self._changed.set)
        await self._changed.wait()
        self._changed.clear()
        timer.cancel()
        self._watcher.look()

    def _due(self) -> Work | None:
        if self._retries and self._retries[0][0] <= time.monotonic():
            return heapq.heappop(self._retries)[2]
        return None

    def _until_due(self) -> float:
        return self._retries[0][0] - time.monotonic() if self._retries else _POLL_SECONDS

    async def _new(self) -> Work | None:
        """The next request that is to be sent; outcomes that the ledger has are passed on on the way."""
        for seen, request in enumerate(self._requests, start=1):
            if seen % 100 == 0:
                await asyncio.sleep(0)
            while self._desk.backlog() > _BACKLOG and not self._desk.stop():
                await asyncio.sleep(0.02)
            key = key_of(self._desk.config, request)
            if key in self._live:
                self._live[key].others.append(request)
                continue
            entry = self._desk.ledger.index.get(key)
            known = None if entry is None else self._desk.ledger.outcome(entry)
            if entry is not None and entry.state is State.IN_BATCH:
                continue
            if known is None or (isinstance(known, GivenUp) and self._retry_failed):
                work = work_of(self._desk.config, self._desk.prices, request, key)
                work.first_time = not self._desk.ledger.has_request(entry)
                self._live[key] = work
                return work
            self._parcel.add(known.of(request))
            if self._ending():
                break
        return None

    async def _admitted(self, work: Work) -> bool:
        """Wait until the request may be sent; False where that will not be."""
        purse = self._desk.purse
        while not self._ending():
            tokens = self._guess.tokens(work)
            if not purse.fits(work.hold):
                if not self._tasks:
                    self._error = too_expensive(purse, work.hold)
                    return False
                await self._wait(_POLL_SECONDS)
                continue
            delay = self._pace.delay(tokens)
            if delay <= 0.0:
                work.tokens = tokens
                return True
            await self._wait(delay)
        return False

    def _start(self, work: Work) -> None:
        self._desk.purse.hold(work.hold)
        ticket = self._pace.sent(work.tokens)
        task = asyncio.create_task(self._attempt(work, ticket))
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._changed.set()
        if not task.cancelled() and task.exception() is not None:
            self._error = self._error or task.exception()

    async def _attempt(self, work: Work, ticket: Ticket) -> None:
        desk = self._desk
        work.sent += 1
        try:
            await self._book.sent(work)
        except OSError:
            self._pace.failed(ticket)
            desk.purse.settle(work.hold, 0.0)
            raise
        try:
            response = await desk.exchange.post(work.body)
            content = desk.scrub.bytes(response.content)
            answer = read_body(desk.config.api, content)
        except Failure as failure:
            await self._failed(work, ticket, failure, 0.0)
        except Malformed as error:
            usd = 0.0 if error.usage is None else work.cost(desk.prices, error.usage)
            await self._failed(work, ticket, of_malformed(error, response.headers), usd)
        else:
            reply, maybe = reply_of(work, answer, response.headers, desk.prices, self._guess, time.time())
            self._guess.learn(work, reply.usage)
            used = None if reply.usage is None else float(reply.usage.prompt + reply.usage.completion)
            self._pace.came_back(ticket, used, response.headers, time.time())
            desk.purse.settle(work.hold, reply.cost_usd, maybe)
            await self._replied(work, reply, maybe)

    async def _replied(self, work: Work, reply: Reply, maybe: float) -> None:
        await self._book.reply(work, reply, maybe)
        self._tally.replies += 1
        self._pass_on(work, reply)
        if self._tally.doubtful:
            await self._settle_doubtful()

    def _pass_on(self, work: Work, outcome: Outcome) -> None:
        del self._live[work.key]
        for request in (work.request, *work.others):
            self._parcel.add(outcome.of(request))

    async def _failed(self, work: Work, ticket: Ticket, failure: Failure, usd: float) -> None:
        failure.message = self._desk.scrub.text(failure.message)
        pause = self._pause(work.failures + work.refusals)
        if failure.retry_after is not None:
            failure.retry_after = min(failure.retry_after, self._limits.longest_retry_after_seconds)
        if failure.next is Next.SLOW_DOWN:
            self._pace.refused(ticket, failure.retry_after, pause)
            work.refusals += 1
        else:
            self._pace.failed(ticket)
            work.failures += 1
        maybe = work.hold if failure.maybe_paid else 0.0
        self._desk.purse.settle(work.hold, usd, maybe)
        if failure.next is Next.STOP:
            # Before the ledger is written, which takes a moment: nothing more may be sent meanwhile.
            self._error = self._error or self._stopped(failure)
        await self._book.failure(work, failure, usd, maybe, lasting=failure.next is Next.GIVE_UP)
        if failure.next is Next.STOP:
            return
        if failure.next is Next.GIVE_UP:
            self._give_up(work, failure)
            self._check_hopeless(failure)
        elif self._may_try_again(work, failure):
            self._tally.retries += 1
            due = time.monotonic() + max(pause, failure.retry_after or 0.0)
            heapq.heappush(self._retries, (due, next(self._number), work))
        else:
            self._tally.doubtful.append((work, failure))
            if len(self._tally.doubtful) >= _STREAK:
                self._error = self._error or self._stopped(failure)

    def _may_try_again(self, work: Work, failure: Failure) -> bool:
        if failure.next is Next.SLOW_DOWN:
            return work.refusals < self._limits.max_rate_limited
        most = self._limits.max_attempts
        if failure.reason in (UNREACHABLE, NO_API) and self._tally.replies == 0:
            most = min(most, _ATTEMPTS_TO_REACH)
        return work.failures < most

    def _pause(self, earlier: int) -> float:
        whole = min(self._limits.longest_pause_seconds, self._limits.first_pause_seconds * 2.0 ** min(earlier, 30))
        return whole * self._random.uniform(0.5, 1.0)

    def _give_up(self, work: Work, failure: Failure) -> None:
        self._tally.given_up += 1
        self._pass_on(work, GivenUp(work.key, work.request.id, work.request.sample, failure.reason, failure.message))

    def _check_hopeless(self, failure: Failure) -> None:
        if self._nothing_ever_came and self._tally.given_up >= _HOPELESS:
            self._error = self._error or self._stopped(failure)

    @property
    def _nothing_ever_came(self) -> bool:
        return self._tally.replies == 0 and self._desk.ledger.totals.replies == 0

    async def _settle_doubtful(self, *, at_end: bool = False) -> None:
        """Requests that exhausted their attempts: given up where others got through, else the endpoint's failure."""
        doubtful, self._tally.doubtful = self._tally.doubtful, []
        if at_end and doubtful and self._nothing_ever_came:
            self._error = self._stopped(doubtful[-1][1])
            return
        for work, failure in doubtful:
            await self._book.failure(work, failure, 0.0, 0.0, lasting=True)
            self._give_up(work, failure)

    def _stopped(self, failure: Failure) -> GadError:
        return TeacherError(
            f"{self._desk.config.model} at {address(self._desk.config)}: {failure}. Replies so far are kept; run the "
            "same command again to go on once that is mended"
        )

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            replies=self._tally.replies,
            given_up=self._tally.given_up,
            under_way=len(self._tasks),
            waiting=len(self._retries),
            retries=self._tally.retries,
            refused=self._pace.refusals,
            rate=0.0,
            bill=self._desk.purse.bill,
        )
