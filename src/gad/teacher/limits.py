"""How fast requests may go: buckets that follow the provider's own, and a window that feels its way where it has none.

A bucket fills by limit / 60 each second. What a request will take is guessed when it is sent, and put right when its
usage is known. A header that says how much remains bounds the bucket from both sides: not more than that, and not less
than that minus all that is under way or came back since the request was sent (the provider may or may not have counted
it when it wrote the header).

A 429 slows down once for all requests that were sent before it. Where there is a bucket, requests weigh more from then
on: some providers count `max_tokens` instead of what is written, or share the limit with other programs. Where there is
none, fewer go at once. Both recover slowly.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from gad.config.teacher import ApiLimits
from gad.teacher.headers import Allowance, allowance

_BURST_SECONDS, _LEAST_BURST = 1.0, 2.0
_FIRST_WINDOW = 16.0
_CUT_WINDOW = 0.7
_HEAVIER, _LIGHTER_PER_SECOND, _HEAVIEST = 1.08, 0.002, 50.0
_SHARE = 0.995
"""Of a limit that only the run file states: the provider's clock is not ours."""


class Bucket:
    """A number of things a minute. A level below zero is a debt: more was used than was guessed."""

    def __init__(self, per_minute: float | None, now: float) -> None:
        self.per_minute = per_minute
        self._stated = per_minute is not None
        self._weight = 1.0
        self._time = now
        self.level = self._burst
        self.under_way = 0.0
        self.came_back = 0.0

    @property
    def _rate(self) -> float:
        return (self.per_minute or 0.0) / 60.0 * (_SHARE if self._stated else 1.0)

    @property
    def _burst(self) -> float:
        return max(_LEAST_BURST, self._rate * _BURST_SECONDS)

    def delay(self, amount: float, now: float) -> float:
        """Seconds until so much may be taken. An amount above the burst waits for a full bucket and leaves a debt."""
        if self.per_minute is None:
            return 0.0
        self._fill(now)
        return max(0.0, (min(self._weight * amount, self._burst) - self.level) / self._rate)

    def take(self, amount: float, now: float) -> float:
        """Take so much; returns what is to be given to `settle`."""
        self._fill(now)
        taken = self._weight * amount
        self.level -= taken
        self.under_way += taken
        return taken

    def settle(self, taken: float, used: float) -> None:
        """A request for which `taken` was taken used `used`."""
        self.level += taken - self._weight * used
        self.under_way -= taken
        self.came_back += taken

    def learn(self, said: Allowance, came_back_at_sending: float, now: float) -> None:
        """Follow the provider's headers; a limit in the run file stays a limit."""
        if said.limit is not None and said.limit > 0 and not self._stated:
            if self.per_minute is None:
                self._time = now
            self.per_minute = said.limit
        if self.per_minute is None:
            return
        self._fill(now)
        if not self._stated:
            uncounted = self.under_way + self.came_back - came_back_at_sending
            self.level = max(self.level, said.remaining - uncounted)
        self.level = min(self.level, said.remaining)

    def slow_down(self) -> None:
        """Too much was taken."""
        self._weight = min(_HEAVIEST, self._weight * _HEAVIER)
        self.level = min(self.level, 0.0)

    def _fill(self, now: float) -> None:
        seconds, self._time = now - self._time, now
        self._weight = max(1.0, self._weight * (1.0 - _LIGHTER_PER_SECOND * min(seconds, 10.0)))
        if self.level < self._burst:
            self.level = min(self._burst, self.level + self._rate * seconds)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A request under way. tokens: guessed. sent: when. *_taken: of the buckets; *_back: what had come back by then."""

    tokens: float
    sent: float
    requests_taken: float
    tokens_taken: float
    requests_back: float
    tokens_back: float


class Pace:
    """When the next request may go. Not for several threads."""

    def __init__(self, limits: ApiLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        now = clock()
        self.requests = Bucket(limits.requests_per_minute, now)
        self.tokens = Bucket(limits.tokens_per_minute, now)
        self._most = float(limits.concurrency)
        self._window = self._most if self._limited else min(_FIRST_WINDOW, self._most)
        self._growing = True
        self._paused_until = self._slowed = now
        self.under_way = 0
        self.refusals = 0

    @property
    def _limited(self) -> bool:
        return self.requests.per_minute is not None or self.tokens.per_minute is not None

    @property
    def window(self) -> int:
        """Requests that may be under way at once."""
        return max(1, int(self._window))

    def delay(self, tokens: float) -> float:
        """Seconds until a request of about so many tokens may be sent; infinite while too many are under way."""
        if self.under_way >= self.window:
            return float("inf")
        now = self._clock()
        paused = max(0.0, self._paused_until - now)
        return max(paused, self.requests.delay(1.0, now), self.tokens.delay(tokens, now))

    def sent(self, tokens: float) -> Ticket:
        """A request goes out; its ticket is given back when it comes back, whatever came of it."""
        now = self._clock()
        self.under_way += 1
        taken = self.requests.take(1.0, now), self.tokens.take(tokens, now)
        return Ticket(tokens, now, *taken, self.requests.came_back, self.tokens.came_back)

    def came_back(self, ticket: Ticket, used: float | None, headers: Mapping[str, str], wall: float) -> None:
        """A reply came. used: tokens by its usage. wall: seconds since 1970, for headers with dates."""
        self._settle(ticket, ticket.tokens if used is None else used)
        now = self._clock()
        for bucket, what, back in (
            (self.requests, "requests", ticket.requests_back),
            (self.tokens, "tokens", ticket.tokens_back),
        ):
            said = allowance(headers, what, wall)
            if said is not None:
                bucket.learn(said, back, now)
        if self._limited:
            self._window = self._most
        else:
            self._window = min(self._most, self._window + (1.0 if self._growing else 1.0 / self._window))

    def failed(self, ticket: Ticket) -> None:
        """An attempt ended without a reply. What the provider counted is unknown: as if it had counted it."""
        self._settle(ticket, ticket.tokens)

    def refused(self, ticket: Ticket, retry_after: float | None, pause: float) -> None:
        """A 429. It asks for `retry_after` seconds of silence, or, saying nothing, gets `pause`."""
        self._settle(ticket, 0.0)
        self.refusals += 1
        now = self._clock()
        self._paused_until = max(self._paused_until, now + (pause if retry_after is None else retry_after))
        if ticket.sent < self._slowed:
            return
        self._slowed = now
        if self._limited:
            self.requests.slow_down()
            self.tokens.slow_down()
        else:
            self._growing = False
            self._window = max(1.0, self._window * _CUT_WINDOW)

    def _settle(self, ticket: Ticket, used: float) -> None:
        self.under_way -= 1
        self.requests.settle(ticket.requests_taken, 1.0)
        self.tokens.settle(ticket.tokens_taken, used)
