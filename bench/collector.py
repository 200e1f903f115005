"""The client's process of `bench.collect`: prints what it measured of itself as JSON.

    python -m bench.collector JOB

A job with "bare": true is the floor: the `openai` package alone, as its users use it, asking the same server at a given
rate and keeping nothing.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gad.progress import Lines, Task

IN_FLIGHT = 256
WORDS = "some words of a question " * 11
_FROM, _TO = 0.2, 0.9
"""The steady part of a run, as shares of its replies: all connections are open, and none is idle yet."""


class Meter:
    """Progress as plain lines, and this process's CPU time at each look at it, twice a second."""

    def __init__(self) -> None:
        self._lines, self._done = Lines(), 0
        self._marks: list[tuple[int, float, float]] = []

    def say(self, text: str) -> None:
        self._lines.say(text)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        with self._lines.task(title, total, done) as self._shown:
            yield self

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._shown.advance(steps, note)
        self.mark(self._done + steps)

    def mark(self, done: int) -> None:
        """So many replies are here."""
        self._done = done
        self._marks.append((done, time.monotonic(), time.process_time()))

    def steady(self, total: int) -> dict[str, float]:
        """CPU time and rate between the first look after a fifth of the replies and the last before nine tenths."""
        marks = [mark for mark in self._marks if _FROM * total <= mark[0] <= _TO * total]
        (first, began, cpu_before), (last, ended, cpu_after) = marks[0], marks[-1]
        return {
            "steady_requests": last - first,
            "steady_rate": (last - first) / (ended - began),
            "steady_cpu_ms_per_request": 1e3 * (cpu_after - cpu_before) / (last - first),
        }


def collected(job: dict[str, Any], meter: Meter) -> dict[str, Any]:
    """gad's collector."""
    from gad.config.data import Filters
    from gad.config.teacher import TeacherConfig
    from gad.records import Prompt
    from gad.stages.collect_api import collect

    config = TeacherConfig.model_validate(
        {
            "endpoint": {"base_url": f"http://127.0.0.1:{job['port']}/v1", "api_key_env": None},
            "model": "teacher",
            "prices": {"usd_per_million_input": 2.5, "usd_per_million_output": 10.0},
            "limits": {"concurrency": IN_FLIGHT, **job["limits"]},
        }
    )
    prompts = [Prompt.from_text(f"p{n}", f"{n}: {WORDS}") for n in range(job["prompts"])]
    before_rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    wall, cpu = time.monotonic(), time.process_time()
    summary = collect(config, {"train": prompts}, Path(job["folder"]), filters=Filters(), progress=meter)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return {
        "wall_seconds": wall,
        "cpu_ms_per_request": 1e3 * cpu / job["prompts"],
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "rss_mb_before": before_rss,
        "kept": summary.kept,
        "missing": summary.missing,
        "refused_429": summary.refused_429,
        "spent_usd": summary.spent_usd,
    }


async def bare(job: dict[str, Any], meter: Meter) -> None:
    """`openai` alone, a request every 1 / rate seconds."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{job['port']}/v1", api_key="none", max_retries=0)
    done = 0

    async def ask(number: int) -> None:
        nonlocal done
        message: Any = {"role": "user", "content": f"{number}: {WORDS}"}
        reply = await client.chat.completions.create(model="teacher", messages=[message], max_tokens=1536)
        assert reply.usage is not None
        assert reply.choices[0].message.content
        done += 1
        if done % 50 == 0:
            meter.mark(done)

    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(job["prompts"]):
            await asyncio.sleep(max(0.0, began + number / job["rate"] - time.monotonic()))
            tasks.create_task(ask(number))
    await client.close()


def main() -> None:
    job = json.loads(sys.argv[1])
    if job["cpu"] is not None:
        os.sched_setaffinity(0, {job["cpu"]})
    import openai  # noqa: F401  (its import is not the collector's work)

    meter = Meter()
    measured: dict[str, Any] = {"prompts": job["prompts"]}
    if job.get("bare"):
        asyncio.run(bare(job, meter))
    else:
        measured |= collected(job, meter)
    print(json.dumps({**measured, **meter.steady(job["prompts"])}))


if __name__ == "__main__":
    main()
