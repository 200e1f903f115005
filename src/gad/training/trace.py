"""A step of a stage as a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile, supported_activities

PROFILE = "profile"


@contextmanager
def traced(folder: Path, stage: str) -> Iterator[None]:
    """Record all operators of the block, with their shapes, into `profile/<stage>.json` of the run folder."""
    target = folder / PROFILE / f"{stage}.json"
    target.parent.mkdir(exist_ok=True)
    known = supported_activities()
    wanted = [activity for activity in (ProfilerActivity.CPU, ProfilerActivity.CUDA) if activity in known]
    with profile(activities=wanted, record_shapes=True) as recorded:
        yield
    recorded.export_chrome_trace(str(target))
