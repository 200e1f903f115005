"""An event loop that looks 20 times a second at most while many requests are under way."""

from __future__ import annotations

import random
import selectors
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from faults.teacher.collecting import KEY_VARIABLE, config_for, prompts, run
from faults.teacher.provider import KEY, Provider
from gad.teacher import gathering
from gad.teacher.gathering import GatheringSelector


class Clock:
    """Time passes where somebody sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 100.0, 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(gathering, "time", SimpleNamespace(monotonic=made.monotonic, sleep=made.sleep))
    return made


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """40, in pairs: what is sent on one comes out of the next."""
    with ExitStack() as stack:
        yield [stack.enter_context(each) for _ in range(20) for each in socket.socketpair()]


def watching(sockets: list[socket.socket]) -> GatheringSelector:
    selector = GatheringSelector()
    for each in sockets:
        selector.register(each, selectors.EVENT_READ)
    return selector


def test_two_events_within_50_ms_are_one_look(clock: Clock, sockets: list[socket.socket]) -> None:
    with watching(sockets) as selector:
        sockets[0].send(b"x")
        assert [key.fileobj for key, _ in selector.select(None)] == [sockets[1]]
        assert clock.slept == 0.0
        sockets[1].recv(1)
        clock.now += 0.01
        sockets[2].send(b"x")
        sockets[4].send(b"x")
        assert {key.fileobj for key, _ in selector.select(5.0)} == {sockets[3], sockets[5]}
        assert clock.slept == pytest.approx(0.04)
        assert len(selector.select(0.0)) == 2
        clock.now += 0.06
        assert len(selector.select(None)) == 2
        assert clock.slept == pytest.approx(0.04)


def test_a_timer_is_late_by_the_rest_of_the_50_ms_and_not_by_its_own_time_too(
    clock: Clock, sockets: list[socket.socket]
) -> None:
    with watching(sockets) as selector:
        assert selector.select(0.001) == []
        before = clock.now
        assert selector.select(0.02) == []
        assert clock.now - before == pytest.approx(0.05)


def test_with_few_connections_nothing_waits(clock: Clock, sockets: list[socket.socket]) -> None:
    with watching(sockets[:4]) as selector:
        for _ in range(3):
            sockets[0].send(b"x")
            assert len(selector.select(None)) == 1
        assert clock.slept == 0.0


def test_a_collection_with_many_under_way_looks_seldom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)
    looks = 0

    class Counting(GatheringSelector):
        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            nonlocal looks
            looks += timeout is None or timeout > 0.0
            return super().select(timeout)

    monkeypatch.setattr(gathering, "GatheringSelector", Counting)
    draw = random.Random(0)

    def spread(*_: object) -> None:
        provider.delay = draw.uniform(0.05, 0.4)

    with Provider(spread) as provider:
        limits = {"concurrency": 64, "requests_per_minute": 12_000}
        assert run(config_for(provider.url, limits=limits), prompts(600), tmp_path)[0].kept == 600
        assert provider.books.most_under_way > 40
    assert looks < 250, looks
