"""Servers that are killed in the middle of their work and started again: real processes, SIGKILL."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from gad.config.training import Sampling
from gad.models.network import Member
from support import warm
from support.vllm_server import bound
from unit.rollout import real_server, small

FREE = Sampling(temperature=0.8)
SERVE = Path(__file__).parents[2] / "support" / "serve.py"
SYNCS = ("adapter", "weights", "nccl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.folder(tmp_path_factory.mktemp("model") / "student")


@pytest.fixture(scope="module")
def member(folder: Path) -> Member:
    return small.student(folder)


class Served:
    """A server of ours in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._kept = folder, bound(0)  # so that nobody else gets the port while no process has it
        self._port = int(self._kept.getsockname()[1])
        self.url = f"http://127.0.0.1:{self._port}"
        self.start()

    def start(self) -> None:
        self.process = warm.Popen([str(SERVE), str(self._folder), str(self._port)])
        assert self.process.stdout.readline() == "listens\n", self.process.stderr.read()

    def replies(self, count: int) -> None:
        """Return when it has given so many."""
        for _ in range(count):
            assert self.process.stdout.readline()

    def kill(self) -> None:
        self.process.close()

    def close(self) -> None:
        self.kill()
        self._kept.close()


@pytest.mark.faults
@pytest.mark.parametrize("sync", SYNCS)
def test_the_only_server_is_killed_and_started_again(sync: str, folder: Path, member: Member, tmp_path: Path) -> None:
    """It comes back with the weights that it was started with, and takes up the trained ones before it replies."""
    wanted = small.requests(3)
    expected = small.ids(small.local(member), wanted, FREE)
    server = Served(folder)
    looks = 3  # two questions about log-probabilities, one reply that is compared

    def stumble() -> None:
        server.replies(looks + 4)
        server.kill()
        time.sleep(0.5)
        server.start()

    killer = threading.Thread(target=stumble)
    killer.start()
    try:
        engine = small.server_engine(member, small.settings([server.url], tmp_path, sync=sync, requests_per_server=1))
        engine.load_weights(member, version=1)
        assert small.ids(engine, wanted, FREE) == expected
        killer.join()
        assert engine.counts()["rollout/outages"] == 1.0
    finally:
        killer.join()
        server.close()


@pytest.mark.faults
@pytest.mark.parametrize("sync", SYNCS)
def test_one_of_two_is_killed_and_the_other_does_its_work(
    sync: str, folder: Path, member: Member, tmp_path: Path
) -> None:
    """The one that is gone joins in again at the next version, and only then."""
    wanted = small.requests(3)
    servers = [Served(folder), Served(folder)]
    try:
        urls = [server.url for server in servers]
        engine = small.server_engine(member, small.settings(urls, tmp_path, sync=sync, requests_per_server=1))
        engine.load_weights(member, version=1)
        first = small.ids(engine, wanted, FREE)
        servers[0].kill()
        assert small.ids(engine, wanted, FREE) == first
        servers[0].start()
        engine.load_weights(member, version=2)
        deadline = time.monotonic() + 30
        came_back = threading.Event()
        threading.Thread(target=lambda: (servers[0].replies(1), came_back.set()), daemon=True).start()
        while not came_back.is_set() and time.monotonic() < deadline:
            assert small.ids(engine, wanted, FREE) == first
        assert came_back.is_set()
        assert engine.counts()["rollout/servers"] == 2.0
    finally:
        for server in servers:
            server.close()


@pytest.fixture(scope="module")
def real(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[real_server.RealServer]:
    with real_server.started(folder, tmp_path_factory.mktemp("log") / "log") as server:
        yield server


@pytest.mark.vllm
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM has an environment of its own: make test-vllm")
@pytest.mark.parametrize("sync", SYNCS)
def test_vllm_itself_is_killed_and_started_again(
    sync: str, real: real_server.RealServer, folder: Path, member: Member, tmp_path: Path
) -> None:
    wanted = small.requests(1)
    greedy = Sampling(temperature=0.0)
    expected = small.ids(small.local(member), wanted, greedy)
    settings = {"request_seconds": 120.0, "health_seconds": 20.0, "patience_seconds": 300.0, "requests_per_server": 1}
    engine = small.server_engine(member, small.settings([real.url], tmp_path, sync=sync, **settings))
    engine.load_weights(member, version=1)
    assert small.ids(engine, wanted, greedy) == expected
    engine.counts()

    def stumble() -> None:
        time.sleep(0.3)
        real.kill()
        real.start()

    killer = threading.Thread(target=stumble)
    killer.start()
    for _ in range(20):  # until it has met the kill
        assert small.ids(engine, small.requests(2), greedy) == [2 * ids for ids in expected]
        if not killer.is_alive():
            break
    killer.join()
    assert small.ids(engine, wanted, greedy) == expected
