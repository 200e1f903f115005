"""Paces against simulated providers, in simulated time."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from gad.config.teacher import ApiLimits
from gad.teacher.headers import Allowance, allowance
from gad.teacher.limits import Pace, Ticket


@dataclass
class Simulation:
    """A provider with a token bucket, replies of random length and latency, and a client that follows a Pace.

    charge: what a request takes of the bucket when it comes in, from its real tokens.
    """

    per_minute: float
    limits: ApiLimits
    headers: bool
    burst: float = 2.0
    charge: Callable[[int], float] = float
    now: float = 0.0
    granted: float = 0.0
    sent: int = 0
    refused: int = 0
    first: float | None = None
    last: float = 0.0
    events: list[tuple[float, int, Ticket, int | None, dict[str, str]]] = field(default_factory=list)

    def run(self, seconds: float) -> None:
        draw = random.Random(0)
        self.pace = Pace(self.limits, clock=lambda: self.now)
        rate = self.per_minute / 60
        level, filled = rate * self.burst, 0.0
        guess = 300.0
        while self.now < seconds:
            delay = self.pace.delay(guess)
            if delay > 0:
                arrival = self.events[0][0] if self.events else float("inf")
                self.now = max(self.now + 1e-9, min(self.now + delay, arrival))
                if self.events and self.events[0][0] <= self.now:
                    _, _, ticket, used, headers = heapq.heappop(self.events)
                    if used is None:
                        self.pace.refused(ticket, 1.0, 0.1)
                    else:
                        self.pace.came_back(ticket, float(used), headers, 0.0)
                        guess += 0.02 * (used - guess)
                continue
            tokens = 75 + min(1500, round(draw.lognormvariate(5.5, 0.65)))
            level, filled = min(rate * self.burst, level + rate * (self.now - filled)), self.now
            cost = self.charge(tokens)
            ticket = self.pace.sent(guess)
            self.sent += 1
            if level < cost:
                self.refused += 1
                heapq.heappush(self.events, (self.now + 0.1, self.sent, ticket, None, {}))
                continue
            level -= cost
            self.granted += cost
            self.first, self.last = self.now if self.first is None else self.first, self.now
            told = {
                "x-ratelimit-limit-tokens": str(round(self.per_minute)),
                "x-ratelimit-remaining-tokens": str(int(level)),
            }
            latency = draw.lognormvariate(0.0, 0.67)
            heapq.heappush(self.events, (self.now + latency, self.sent, ticket, tokens, told if self.headers else {}))

    @property
    def share(self) -> float:
        return self.granted / (self.per_minute / 60 * (self.now + self.burst))


def test_headers_alone_lead_to_the_limit_without_refusals() -> None:
    simulation = Simulation(2_700_000, ApiLimits(concurrency=256), headers=True)
    simulation.run(120)
    assert simulation.share > 0.97
    assert simulation.refused <= 0.002 * simulation.sent


def test_a_limit_in_the_run_file_is_kept_to_without_a_refusal() -> None:
    simulation = Simulation(600_000, ApiLimits(concurrency=256, tokens_per_minute=600_000), headers=False)
    simulation.run(300)
    assert simulation.share > 0.96
    assert simulation.refused <= 0.01 * simulation.sent


def test_a_lower_limit_in_the_run_file_wins_over_the_headers() -> None:
    simulation = Simulation(600_000, ApiLimits(concurrency=256, tokens_per_minute=300_000), headers=True)
    simulation.run(120)
    assert 0.45 < simulation.share < 0.52
    assert simulation.refused == 0


def test_nothing_known_feels_its_way() -> None:
    simulation = Simulation(1_200_000, ApiLimits(concurrency=256), headers=False)
    simulation.run(240)
    assert simulation.share > 0.7
    assert simulation.refused < 0.05 * simulation.sent


def test_a_provider_that_charges_the_most_a_reply_may_have() -> None:
    simulation = Simulation(2_700_000, ApiLimits(concurrency=256), headers=True, charge=lambda _: 1611.0)
    simulation.run(240)
    assert simulation.share > 0.85
    assert simulation.refused < 0.15 * simulation.sent


def test_requests_per_minute() -> None:
    now = 0.0
    pace = Pace(ApiLimits(requests_per_minute=60), clock=lambda: now)
    tickets = []
    for step in range(1000):
        now = step * 0.1
        if pace.delay(10) <= 0:
            tickets.append(pace.sent(10))
            pace.came_back(tickets[-1], 10, {}, 0.0)
    assert len(tickets) == pytest.approx(100, abs=2)


def test_concurrency_is_never_passed() -> None:
    pace = Pace(ApiLimits(concurrency=3, tokens_per_minute=10**9), clock=lambda: 0.0)
    for _ in range(3):
        assert pace.delay(1) == 0
        pace.sent(1)
    assert pace.delay(1) == float("inf")


def test_without_a_known_limit_it_begins_small_and_grows() -> None:
    now = 0.0
    pace = Pace(ApiLimits(concurrency=256), clock=lambda: now)
    assert pace.window == 16
    for _ in range(300):
        pace.came_back(pace.sent(1), 1, {}, 0.0)
    assert pace.window == 256


def test_one_429_silences_all_for_as_long_as_it_says_and_slows_down_once() -> None:
    now = 10.0
    pace = Pace(ApiLimits(concurrency=64), clock=lambda: now)
    tickets = [pace.sent(1) for _ in range(16)]
    now = 11.0
    for ticket in tickets:
        pace.refused(ticket, 5.0, 0.1)
    assert pace.delay(1) == pytest.approx(5.0)
    assert pace.window == int(16 * 0.7)
    assert pace.refusals == 16


def test_a_request_above_the_burst_is_not_stuck() -> None:
    now = 0.0
    pace = Pace(ApiLimits(tokens_per_minute=600), clock=lambda: now)
    assert pace.delay(5000) == 0
    ticket = pace.sent(5000)
    pace.came_back(ticket, 5000, {}, 0.0)
    assert pace.delay(10) == pytest.approx(5000 / (600 / 60 * 0.995), rel=0.02)


@pytest.mark.parametrize(
    ("headers", "what", "expected"),
    [
        (
            {
                "x-ratelimit-limit-tokens": "1000",
                "x-ratelimit-remaining-tokens": "400",
                "x-ratelimit-reset-tokens": "1m2.5s",
            },
            "tokens",
            Allowance(1000, 400, 62.5),
        ),
        (
            {"x-ratelimit-remaining-tokens": "7", "x-ratelimit-reset-tokens": "250ms"},
            "tokens",
            Allowance(None, 7, 0.25),
        ),
        (
            {
                "anthropic-ratelimit-requests-limit": "50",
                "anthropic-ratelimit-requests-remaining": "49",
                "anthropic-ratelimit-requests-reset": "2023-11-14T22:13:50Z",
            },
            "requests",
            Allowance(50, 49, 30.0),
        ),
        (
            {"ratelimit-limit": "10, 10;w=60", "ratelimit-remaining": "3", "ratelimit-reset": "9"},
            "requests",
            Allowance(10, 3, 9),
        ),
        ({"x-ratelimit-remaining": "3", "x-ratelimit-reset": "1700000010000"}, "requests", Allowance(None, 3, 10.0)),
        ({"x-ratelimit-remaining-tokens": "lots"}, "tokens", None),
        ({"x-ratelimit-remaining-tokens": "-1"}, "tokens", None),
        ({"x-ratelimit-remaining-tokens": "nan"}, "tokens", None),
        ({}, "tokens", None),
    ],
)
def test_headers(headers: dict[str, str], what: str, expected: Allowance | None) -> None:
    assert allowance(headers, what, 1_700_000_000.0) == expected
