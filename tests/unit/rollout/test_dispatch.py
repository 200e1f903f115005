"""The end of a step: whatever comes at the same moment, it is the end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gad.config.training import Sampling
from gad.rollout import dispatch
from gad.rollout.completions import Reply, Wanted
from gad.rollout.dispatch import Dispatcher, Job
from gad.rollout.wire import Expected, Handover, Server

WANTED = Wanted(prompt_ids=(1,), seed=0, limit=1, sampling=Sampling(), vocabulary=8)
EXPECTED = Expected(None, "student", (1,), frozenset(), None, 5.0, 5.0)


class Immediate(Server):
    """A server without a wire; `answered` is called as a reply is there."""

    answered: Any = None

    def open(self, connections: int) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(base_url=self.url, trust_env=False, verify=False)

    async def alive(self) -> None:
        await asyncio.sleep(0)

    async def holds(self, handover: Handover) -> bool:
        return True

    async def complete(self, wanted: Wanted, handover: Handover) -> Reply:
        await asyncio.sleep(0.01)  # the health check waits by then
        self.answered()
        return Reply((2,), (-1.0,), True)


def dispatcher_of(server: Server, job: Job, handover: Handover, *, health_seconds: float) -> Dispatcher:
    async def ready(server: Server) -> None:
        pass

    return Dispatcher([server], [job], handover, ready, width=1, health_seconds=health_seconds, patience_seconds=5.0)


@pytest.mark.parametrize("adapter", [True, False])
@pytest.mark.parametrize("turns", range(12))
def test_a_stop_at_the_moment_of_the_last_reply_ends_the_step(turns: int, adapter: bool) -> None:
    """Whichever turn of the event loop it comes in; asyncio.wait_for loses such a stop (CPython 86296)."""

    async def scene() -> None:
        loop = asyncio.get_running_loop()
        server = Immediate("http://here", EXPECTED)
        job = Job(WANTED, "only")

        def stop_in(turns: int) -> None:
            if turns:
                loop.call_soon(stop_in, turns - 1)
            else:
                run.cancel()

        handover = Handover("label", 1, Path("weights"), adapter)
        run = asyncio.create_task(dispatcher_of(server, job, handover, health_seconds=5.0).run())
        server.answered = lambda: stop_in(turns)
        _, late = await asyncio.wait({run}, timeout=2.0)
        for each in asyncio.all_tasks() - {asyncio.current_task()}:
            each.cancel()  # of a step that did not end
        assert not late
        assert run.cancelled() or job.reply is not None

    asyncio.run(scene())


def test_a_cancel_that_was_swallowed_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By whatever lies below: a step that has all its replies must not wait for it without an end."""
    monkeypatch.setattr(dispatch, "_PAUSE_SECONDS", (0.2, 0.2))
    swallowed = []

    class Deaf(Immediate):
        async def alive(self) -> None:
            while not swallowed:
                try:
                    await asyncio.sleep(5.0)
                except asyncio.CancelledError:
                    swallowed.append(True)
            await asyncio.sleep(5.0)

    async def scene() -> None:
        server, job = Deaf("http://here", EXPECTED), Job(WANTED, "only")
        server.answered = lambda: None
        handover = Handover("label", 1, Path("weights"), True)
        await asyncio.wait_for(dispatcher_of(server, job, handover, health_seconds=0.001).run(), 4.0)
        assert job.reply is not None

    asyncio.run(scene())
    assert swallowed
