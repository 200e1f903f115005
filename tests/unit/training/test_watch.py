"""Waiting for processes that do not come."""

from __future__ import annotations

import threading
import time

import pytest

from gad.errors import TrainingStopped
from gad.processes import Seat
from gad.training import watch
from gad.training.watch import Watch


class Store:
    """Who has come, by key."""

    def __init__(self, *here: int) -> None:
        self.keys = {f"beat/{rank}" for rank in here}

    def set(self, key: str, value: str) -> None:
        self.keys.add(key)

    def get(self, key: str) -> bytes:
        raise AssertionError(key)

    def check(self, keys: list[str]) -> bool:
        return set(keys) <= self.keys


def watching(store: Store, rank: int = 0, size: int = 4) -> Watch:
    return Watch(Seat(rank, size, rank, size, "127.0.0.1", 1), store, lambda: store, 20.0)


def test_who_does_not_come_is_named() -> None:
    with pytest.raises(TrainingStopped, match=r"ranks 1, 3 of 4 did not come within 0\.2 s: .*MASTER_ADDR"):
        watching(Store(0, 2)).all_here(0.2)
    many = r"ranks 1, 2, 3, 4, 5, 6, 7, 8 and 3 more of 12 did not come"
    with pytest.raises(TrainingStopped, match=many):
        watching(Store(0), size=12).all_here(0.0)


def test_a_late_one_is_waited_for_and_whoever_waits_is_told(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watch, "TELL_SECONDS", 0.1)
    store = Store(0, 1, 2)
    threading.Timer(0.6, store.set, ("beat/3", "")).start()
    began = time.monotonic()
    watching(store).all_here(30.0)
    assert 0.4 < time.monotonic() - began < 20
    assert capfd.readouterr().err == "waiting for rank 3 of 4 to come\n"


def test_only_the_first_one_waits(capfd: pytest.CaptureFixture[str]) -> None:
    began = time.monotonic()
    watching(Store(1), rank=1).all_here(30.0)
    assert time.monotonic() - began < 20  # it waits for nobody, and the first one would for 30
    assert capfd.readouterr().err == ""
