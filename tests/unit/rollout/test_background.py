"""Work beside the main thread, and those who stop waiting for it."""

import asyncio
import threading

import pytest

from gad.rollout.background import in_background, started


def test_a_result_and_an_error_reach_the_one_who_asks() -> None:
    def failing() -> None:
        raise ValueError("no weights")

    assert in_background(lambda: 7)() == 7
    with pytest.raises(ValueError, match="no weights"):
        in_background(failing)()


@pytest.mark.parametrize("fails", [False, True])
def test_who_stops_waiting_leaves_the_work_its_end(fails: bool) -> None:
    end = threading.Event()

    def work() -> str:
        end.wait()
        if fails:
            raise RuntimeError("the link broke")
        return "done"

    future = started(work, "weights")

    async def impatient() -> None:
        waiting = asyncio.ensure_future(asyncio.wrap_future(future))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        assert waiting.cancelled()

    asyncio.run(impatient())
    end.set()
    if fails:
        with pytest.raises(RuntimeError, match="the link broke"):
            future.result(timeout=10)
    else:
        assert future.result(timeout=10) == "done"
