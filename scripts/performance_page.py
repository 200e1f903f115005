"""Writes docs/performance.md and its picture from bench/results/step.json.

python scripts/performance_page.py
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPLIES = 32
"""Of a step."""
NAMES = {
    "ours": "gad",
    "ours_grpo": "gad, frozen discriminator",
    "trl_grpo": "TRL GRPO, frozen reward model",
    "trl_fused": "GAD on TRL, fused",
    "trl_naive": "GAD on TRL, naive",
}
TARGETS = {
    "gad_on_trl_naive_over_ours": ("GAD on TRL, naive / ours", {"short": "4.0 or more", "long": "2.5 or more"}),
    "gad_on_trl_fused_over_ours": ("GAD on TRL, fused / ours", {"short": "", "long": ""}),
    "ours_over_trl_grpo_frozen": (
        "ours / TRL GRPO with a frozen reward model",
        {"short": "0.50 or less", "long": "0.75 or less"},
    ),
    "ours_over_our_grpo_frozen": (
        "ours / our own GRPO with a frozen discriminator",
        {"short": "1.25 or less", "long": "1.25 or less"},
    ),
}


def page(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# Performance",
        "",
        "Made by `scripts/performance_page.py` from `bench/results/step.json`, which `make bench` writes; not by hand.",
        "",
        f"{result['machine']}; one thread; commit {result['commit']}; {result['date']}; {versions}.",
        "",
        "## A step, side by side",
        "![CPU seconds a step](images/step.svg)",
        "",
        "A tiny Qwen2 (hidden 256, 4 layers, vocabulary 320), all weights trained in float32, no KL term, the same "
        "weights, prompts, sampling, optimizer and schedule for everyone; 4 prompts x 8 replies a step. Contestants "
        "are processes that take turns; the first step is not counted. Replies are not forced to equal lengths: "
        "everyone samples from the same model, whose replies end at the same rate. TRL has micro-batches of 8 rows, no "
        "gradient checkpointing, AdamW's fused kernel, scores without attention masks: `bench/peers.py`.",
        "",
        "| CPU seconds a step, median (lowest-highest) | short | long | peak memory, short / long |",
        "|---|---|---|---|",
    ]
    for name, title in NAMES.items():
        cells = [result[workload]["contestants"][name] for workload in ("short", "long")]
        seconds = [f"{cell['cpu_seconds']:.2f} ({cell['lowest']:.2f}-{cell['highest']:.2f})" for cell in cells]
        memory = " / ".join(f"{cell['peak_mb'] / 1024:.2f} GB" for cell in cells)
        lines.append(f"| {title} | {seconds[0]} | {seconds[1]} | {memory} |")
    lines += ["", "| ratio | short | wanted | long | wanted |", "|---|---|---|---|---|"]
    for key, (title, wanted) in TARGETS.items():
        short, long = (result[workload][key] for workload in ("short", "long"))
        lines.append(f"| {title} | {short:.2f} | {wanted['short']} | {long:.2f} | {wanted['long']} |")
    generate = result["transformers_generate_over_our_sampling"]
    lines += [
        f"| transformers' `generate` / our sampling, CPU seconds a token | | | {generate:.2f} | 2.0 or more |",
        "",
        *_reasons(result),
    ]
    return "\n".join(map(_wrapped, lines)) + "\n"


def _mean_reply(part: dict[str, Any]) -> float:
    tokens = [row["tokens"] for row in part["rows"] if row["contestant"] == "ours"]
    return sum(tokens) / len(tokens) / REPLIES


def _wrapped(line: str) -> str:
    """Prose within 120 columns; tables, pictures and headings as they are."""
    if line.startswith(("|", "#", "!")):
        return line
    return textwrap.fill(
        line,
        120,
        subsequent_indent="  " * line.startswith("- "),
        break_long_words=False,
        break_on_hyphens=False,
    )


def _reasons(result: dict[str, Any]) -> list[str]:
    rates, equality = result["products"], result["equality"]
    return [
        "Short: prompts of 24-64 tokens, replies of at most 64. Long: prompts of 16-32, replies of at most 192. A "
        f"reply of ours had {_mean_reply(result['short']):.0f} and {_mean_reply(result['long']):.0f} tokens "
        "on average: the farther replies stay below the limit, the more padding costs the peers. Peak memory is "
        "that of our default budget of 4,096 tokens a pass against the peers' 8 rows.",
        "",
        "## Where the difference comes from",
        "- **No padding.** On CPU `auto` takes the `packed` layout: each prompt once, then its replies, all groups in "
        "one row. TRL pads each row to the longest prompt and reply, and repeats the prompt for every reply.",
        "- **One pass of the discriminator**, the teacher once a prompt; its scores before the update are the rewards.",
        f"- **float32 products.** torch's own run at {rates['torch_fp32_gflops']:.0f} GFLOP/s here, ours at "
        f"{rates['ours_fp32_gflops']:.0f} (bfloat16: {rates['torch_bf16_gflops']:.0f}), because MKL has slow code "
        "paths for CPUs that are not Intel's and oneDNN has not (`models/linear.py`). On an Intel CPU this part of the "
        "difference is not there.",
        "- **Prompt computed once in sampling**, finished replies dropped.",
        "",
        "## What is compared",
        "The discriminator's loss of the same weights on the same rows, checked before the result is written: "
        + ", ".join(f"{name} {value:.7f}" for name, value in equality.items())
        + ".",
        "",
        "Not measured yet: share of the GEMM peak on SmolLM2, memory of one base against three models, cost against "
        "group size, prompt and reply length, anything on a GPU.",
    ]


def picture(result: dict[str, Any]) -> str:
    """Bars of CPU seconds."""
    width, row, left = 720, 22, 220
    height = 2 * (len(NAMES) * row + 40)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        'font-size="12" role="img" aria-label="CPU seconds a step of each contestant">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
    top = 20
    for workload in ("short", "long"):
        cells = result[workload]["contestants"]
        longest = max(cell["cpu_seconds"] for cell in cells.values())
        parts.append(f'<text x="8" y="{top}" font-weight="bold">{workload}, CPU seconds a step</text>')
        for index, (name, title) in enumerate(NAMES.items()):
            y = top + 8 + index * row
            bar = (width - left - 70) * cells[name]["cpu_seconds"] / longest
            color = "#1b6ca8" if name.startswith("ours") else "#9aa5b1"
            parts += [
                f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{title}</text>',
                f'<rect x="{left}" y="{y + 2}" width="{bar:.1f}" height="{row - 6}" fill="{color}"/>',
                f'<text x="{left + bar + 6:.1f}" y="{y + 14}">{cells[name]["cpu_seconds"]:.2f}</text>',
            ]
        top += len(NAMES) * row + 40
    return "\n".join([*parts, "</svg>"]) + "\n"


def main() -> None:
    result = json.loads((ROOT / "bench" / "results" / "step.json").read_text(encoding="utf-8"))
    (ROOT / "docs" / "performance.md").write_text(page(result), encoding="utf-8")
    (ROOT / "docs" / "images" / "step.svg").write_text(picture(result), encoding="utf-8")


if __name__ == "__main__":
    main()
