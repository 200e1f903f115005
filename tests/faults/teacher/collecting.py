"""A collection against a Provider, and what must hold after any of them."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from faults.teacher.provider import KEY, PRICE_IN, PRICE_OUT, Provider
from gad.config.data import Filters
from gad.config.teacher import TeacherConfig
from gad.progress import Task
from gad.records import Prompt
from gad.stages.collect_api import collect
from gad.teacher.ledger import LEDGER
from gad.teacher.summary import CollectSummary

KEY_VARIABLE = "GAD_TEST_KEY"
QUICK: dict[str, Any] = {
    "first_pause_seconds": 0.005,
    "longest_pause_seconds": 0.02,
    "timeout_seconds": 120.0,
    "concurrency": 16,
    "longest_retry_after_seconds": 0.2,
}
"""No reply of these tests takes so long; faults that are to time out set a shorter limit, see TIMED_OUT."""


class Recorder:
    """A `Progress` that remembers what it was told."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)

    @contextmanager
    def task(self, title: str, total: int, done: int = 0) -> Iterator[Task]:
        self.lines.append(f"{title} {done}/{total}")
        yield _Task(self.lines)


class _Task:
    def __init__(self, lines: list[str]) -> None:
        self._lines = lines

    def advance(self, steps: int = 1, note: str = "") -> None:
        self._lines.append(f"{steps} {note}")


def config_for(url: str, *, limits: dict[str, Any] | None = None, **more: Any) -> TeacherConfig:
    settings: dict[str, Any] = {
        "endpoint": {"base_url": url, "api_key_env": KEY_VARIABLE},
        "model": "m",
        "sampling": {"max_tokens": 64},
        "limits": {**QUICK, **(limits or {})},
        "prices": {"usd_per_million_input": PRICE_IN, "usd_per_million_output": PRICE_OUT},
    }
    return TeacherConfig.model_validate({**settings, **more})


def prompts(count: int, start: int = 0) -> list[Prompt]:
    return [Prompt.from_text(f"p{n}", f"Question number {n}") for n in range(start, start + count)]


def run(config: TeacherConfig, asked: Iterable[Prompt], folder: Path, **more: Any) -> tuple[CollectSummary, Recorder]:
    progress = Recorder()
    more = {"filters": Filters(), **more}
    summary = collect(config, {"train": asked}, folder, progress=progress, **more)
    check_no_key(folder, progress)
    return summary, progress


def check_no_key(folder: Path, progress: Recorder | None = None) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            assert KEY.encode() not in path.read_bytes(), path
    assert progress is None or not any(KEY in line for line in progress.lines)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def events(folder: Path) -> list[dict[str, Any]]:
    """The ledger's whole lines, but for the first."""
    path = folder / "teacher" / LEDGER
    lines = path.read_bytes().split(b"\n")[1:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def possibly_paid(folder: Path) -> Counter[str]:
    """How often the ledger says of a prompt, by id, that a reply may have been paid for that never came: after a kill,
    or where a machine is so busy that a reply came later than the limit."""
    return Counter(row["id"] for row in events(folder) if row["event"] != "sent" and row["maybe_usd"])


def check_nothing_lost(provider: Provider, folder: Path, asked: list[Prompt]) -> None:
    """Every prompt has a reply, or is listed with a reason; none was bought twice, but what the ledger owns up to."""
    owned_up = possibly_paid(folder)
    for text, count in provider.books.bought.items():
        assert count - 1 <= owned_up[f"p{text.split()[-1]}"], text
    taught = {row["id"] for row in rows(folder / "teacher.jsonl")}
    listed = {row["id"] for name in ("given_up", "left_out") for row in rows(folder / "teacher" / f"{name}.jsonl")}
    assert len(rows(folder / "teacher.jsonl")) == len(taught)
    assert taught | listed == {prompt.id for prompt in asked}
    for row in rows(folder / "teacher.jsonl"):
        assert (
            row["completion"] == f"Here is a reply to: {row['prompt'][-1]['content']}" or "[key]" in row["completion"]
        )


def with_tests_on_the_path() -> dict[str, str]:
    """The environment for a process that imports these helpers."""
    path = os.pathsep.join(filter(None, [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}
