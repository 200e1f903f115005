"""What two real processes were counted to send in `bench/results/distributed.json` is what the arithmetic says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gad.traffic import Shape, Sharing, Split
from support import tiny

RESULTS = Path(__file__).parents[2] / "bench/results/distributed.json"
STEPS = 5


@pytest.mark.parametrize("layout", ["padded", "tree", "cache"])
@pytest.mark.parametrize(("tuning", "rank", "layers"), [("lora", 4, 2), ("full", None, 4)])
def test_bytes_of_two_real_processes(tuning: str, rank: int | None, layers: int, layout: str) -> None:
    """Five steps and what comes beside them: gathering all once when the reference is made, and with full tuning a
    checkpoint after each step, of weights and moments; the discriminator's unused head has none."""
    rows = json.loads(RESULTS.read_text(encoding="utf-8"))["rows"]["equality"]
    row = next(row for row in rows if (row["tuning"], row["layout"], row["shard"]) == (tuning, layout, "all"))
    sharing = Sharing(Shape.of(tiny.config("qwen2").to_dict()), Split(2), 4, rank)
    passes = 2 if layout == "cache" else 1
    step = sharing.to_sample() + sharing.trained(layers=layers, passes=passes, heads=0)
    step += sharing.forward(passes=passes) + sharing.trained(passes=passes)
    whole = sharing.forward().gathered
    head = sharing.split.whole(sharing.shape.embedding) * 4
    saved = 0 if rank is not None else 6 * whole - 2 * head
    assert row["bytes"]["all_gather"] == STEPS * (step.gathered + saved) + whole
    assert row["bytes"].get("reduce_scatter", 0) == STEPS * step.scattered
