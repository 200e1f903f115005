"""Sections of docs/performance.md, each of one part of the bench."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from bench.pictures import AXES


def few_rows(found: dict[str, Any]) -> list[str]:
    """What weights in a library's own order save in sampling."""
    times = found["milliseconds"]
    lines = [
        "## Products of few rows",
        "Sampling multiplies a few dozen rows by each weight. A library sorts the weight into its own blocks for each "
        "product; a model that only samples keeps it sorted (`models/linear.py`), up to 4 GB, else laid out by inputs. "
        f"All linear layers of SmolLM2-135M and its head in {found['dtype']}, CPU milliseconds; in "
        "brackets, of what weights as they are take. Sorted for 64 rows, because their number falls as replies end.",
        "",
        "| rows | as they are | by inputs | sorted |",
        "|---|---|---|---|",
    ]
    for rows, plain in times["plain"].items():
        cells = [f"{times[way][rows]:.0f} ({times[way][rows] / plain:.2f})" for way in ("by_inputs", "sorted")]
        lines.append(f"| {rows} | {plain:.0f} | {' | '.join(cells)} |")
    return [*lines, ""]


def portions(found: dict[str, Any]) -> list[str]:
    """What rows that share attention's kernels save."""
    times, taken = found["milliseconds"], str(found["worth_taken"])
    values = list(next(iter(times.values())))
    lines = [
        "## Attention of short rows",
        "In the packed layout rows of like lengths share attention's kernels, padded to the longest of them, where "
        "that costs less than kernels of their own are taken to be worth (`packing.py`), in query-key pairs; at 0 only "
        "rows of one length share. Forward and backward pass of a layer's attention in SmolLM2-135M's shape, "
        "milliseconds (over those at 0).",
        "",
        f"| batch | {' | '.join(f'{int(value):,}' + ' (taken)' * (value == taken) for value in values)} |",
        f"|{'---|' * (1 + len(values))}",
    ]
    for batch, row in times.items():
        cells = [f"{row[value]:.1f} ({row[value] / row['0']:.2f})" for value in values]
        lines.append(f"| {batch} | {' | '.join(cells)} |")
    return [*lines, ""]


def common(found: dict[str, Any]) -> list[str]:
    """What `tuning.first_layer` saves."""
    rows = found["by_first_layer"]
    everywhere = rows["0"]
    lines = [
        "## Adapters from a layer on",
        "With `tuning.first_layer` nothing below that layer is trained: student and reference compute it once, no "
        "gradient goes back through it, none of its activations are kept. SmolLM2-135M (30 layers) in float32, one "
        "thread, 8 prompts x 4 replies of about 35 tokens; in brackets, of what adapters everywhere take. What it "
        "costs in quality depends on the task.",
        "",
        "| first_layer | student's update with KL, CPU s | discriminator's, CPU s | memory of the updates | trained |",
        "|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        cells = [
            f"{row[key] / scale:{form}} ({row[key] / everywhere[key]:.2f})"
            for key, scale, form in (
                ("student_seconds", 1, ".1f"),
                ("discriminator_seconds", 1, ".1f"),
                ("updates_mb", 1000, ".2f"),
            )
        ]
        cells[2] = cells[2].replace(" (", " GB (")
        lines.append(f"| {name} | {' | '.join(cells)} | {row['adapter_weights'] / 1e6:.1f} M |")
    return [*lines, ""]


def curves(found: dict[str, Any]) -> list[str]:
    """What grows with what."""
    lines = [
        "## Cost against lengths",
        "![CPU seconds of both updates against group size, prompt and reply length](images/cost.svg)",
        "",
        "Both updates of the tiny model for 2 prompts, 8 replies each, prompts and replies of 64 tokens, but for what "
        "grows. The line is what the operations that the mathematics asks for would take at the last point's rate: "
        "linear in the replies of a prompt, and in lengths but for attention.",
        "",
        "| grows | values: CPU seconds (GFLOP/s) |",
        "|---|---|",
    ]
    for axis, title in AXES.items():
        cells = [
            f"{row[axis]:,.0f}: {row['cpu_seconds']:.2f} ({row['gflop'] / row['cpu_seconds']:.0f})"
            for row in found[axis]
        ]
        lines.append(f"| {title} | {', '.join(cells)} |")
    return [*lines, ""]


SECTIONS: Mapping[str, Callable[[dict[str, Any]], list[str]]] = {
    "few_rows": few_rows,
    "portions": portions,
    "common": common,
    "curves": curves,
}
"""In the page's order; from a part's results to lines of Markdown."""
