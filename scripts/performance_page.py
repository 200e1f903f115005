"""Writes docs/performance.md and its pictures from bench/results/step.json.

python scripts/performance_page.py
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.pictures import NAMES, WORKLOADS, contestants, costs  # noqa: E402
from bench.sections import SECTIONS  # noqa: E402

RESULTS = ROOT / "bench" / "results" / "step.json"
REPLIES = 32
"""Of a step."""
RATIOS = {
    "gad_on_trl_naive_over_ours": ("GAD on TRL, naive / ours", "4.0 or more", "2.5 or more"),
    "gad_on_trl_fused_over_ours": ("GAD on TRL, fused / ours", "", ""),
    "ours_over_trl_grpo_frozen": ("ours / TRL GRPO with a frozen reward model", "0.50 or less", "0.75 or less"),
    "ours_over_our_grpo_frozen": ("ours / our own GRPO with a frozen discriminator", "1.25 or less", "1.25 or less"),
}
PARTS = {
    "sampling": "transformers' `generate` against our sampling",
    "few_rows": "SmolLM2-135M: products of a step of sampling",
    "portions": "SmolLM2-135M: attention by groups and by portions",
    "real": "SmolLM2-135M: share of the products' rate",
    "memory": "SmolLM2-135M: memory of one base against three models",
    "common": "SmolLM2-135M: adapters from a layer on",
    "machinery": "share of batches, records and log in a step",
    "curves": "cost against group size, prompt and reply length",
}


def page(result: dict[str, Any]) -> str:
    """The page, from the results file."""
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    lines = [
        "# Performance",
        "",
        "Made by `scripts/performance_page.py` from `bench/results/step.json`, which `make bench` writes; not by hand.",
        "",
        f"One thread; {versions}. Parts of the bench, by machine:",
        "",
        *_origins(result["parts"]),
        "",
        *_race(result),
        *(_parts(result) if {"real", "memory", "machinery"} <= set(result["parts"]) else []),
        *_reasons(result),
        *(line for part, section in SECTIONS.items() if part in result["parts"] for line in section(result[part])),
        *_equality(result),
    ]
    return "\n".join(map(_wrapped, lines)) + "\n"


def _origins(parts: dict[str, Any]) -> list[str]:
    machines = dict.fromkeys(part["machine"] for part in parts.values())
    return [
        f"- {machine}: "
        + "; ".join(
            f"{name} at commit {part['commit']}, {part['date']}"
            for name, part in parts.items()
            if part["machine"] == machine
        )
        for machine in machines
    ]


def _race(result: dict[str, Any]) -> list[str]:
    lines = [
        "## A step, side by side",
        "![CPU seconds a step](images/step.svg)",
        "",
        "A tiny Qwen2 (hidden 256, 4 layers, vocabulary 320), all weights trained in float32, no KL term, the same "
        "weights, prompts, sampling, optimizer and schedule for everyone; 4 prompts x 8 replies a step. Contestants "
        "are processes that take turns; the first step is not counted. Replies are not forced to equal lengths: "
        "everyone samples from the same model, whose replies end at the same rate. TRL has no gradient checkpointing, "
        "AdamW's fused kernel, scores without attention masks (`bench/peers.py`), and the fastest of several sizes of "
        "micro-batches, as we have.",
        "",
        f"| CPU seconds a step, median of {result['parts']['race']['rounds']} (lowest-highest) | short | long "
        "| peak memory, short / long | micro-batches, short / long |",
        "|---|---|---|---|---|",
    ]
    for name, title in NAMES.items():
        cells = [result[workload]["contestants"][name] for workload in WORKLOADS]
        seconds = [f"{cell['cpu_seconds']:.2f} ({cell['lowest']:.2f}-{cell['highest']:.2f})" for cell in cells]
        memory = " / ".join(f"{cell['peak_mb'] / 1024:.2f} GB" for cell in cells)
        sizes = " / ".join(_size(result[workload]["tuning"][name]["taken"]) for workload in WORKLOADS)
        lines.append(f"| {title} | {seconds[0]} | {seconds[1]} | {memory} | {sizes} |")
    lines += ["", "| ratio | short | wanted | long | wanted |", "|---|---|---|---|---|"]
    for key, (title, wanted_short, wanted_long) in RATIOS.items():
        short, long = (result[workload][key] for workload in WORKLOADS)
        lines.append(f"| {title} | {short:.2f} | {wanted_short} | {long:.2f} | {wanted_long} |")
    if "sampling" in result["parts"]:
        short, long = (result["sampling"][workload]["transformers_over_ours"] for workload in WORKLOADS)
        title = "transformers' `generate` / our sampling, CPU seconds a token"
        lines.append(f"| {title} | {short:.2f} | 2.0 or more | {long:.2f} | 2.0 or more |")
    lines += [
        "",
        "Short: prompts of 24-64 tokens, replies of at most 64. Long: prompts of 16-32, replies of at most 192. A "
        f"reply of ours had {_mean_reply(result['short']):.0f} and {_mean_reply(result['long']):.0f} tokens on "
        "average: the farther replies stay below the limit, the more padding costs the peers. A micro-batch holds all "
        "activations of its pass, so a larger one takes more memory; what each size costs, of one step:",
        "",
        "| micro-batches | short | long |",
        "|---|---|---|",
        *_tried(result),
        "",
    ]
    return lines


def _size(settings: dict[str, str]) -> str:
    tokens = settings.get("BENCH_TOKENS")
    return f"{int(tokens):,} tokens" if tokens else f"{settings['BENCH_POLICY_ROWS']} rows"


def _tried(result: dict[str, Any]) -> list[str]:
    lines = []
    for name in ("ours", "trl_grpo", "trl_naive"):
        tried = [result[workload]["tuning"][name]["tried"] for workload in WORKLOADS]
        for short, long in zip(*tried, strict=True):
            cells = [f"{row['cpu_seconds']:.2f} s, {row['peak_mb'] / 1024:.2f} GB" for row in (short, long)]
            lines.append(f"| {NAMES[name]}, {_size(short['settings'])} | {cells[0]} | {cells[1]} |")
    return lines


def _parts(result: dict[str, Any]) -> list[str]:
    lines = ["## What a step is made of", "| figure | found | wanted |", "|---|---|---|"]
    narrow = result["gemm_share_bf16"]
    said = f"{narrow:.0%}" if narrow is not None else f"not measured: {result['gemm_share_bf16_reason']}"
    kinds = result["memory"]["peak_mb"]
    lines += [
        "| SmolLM2-135M, update phases in float32: operations that the mathematics asks for, over the machine's own "
        f"products at these shapes | {result['gemm_share_fp32']:.0%} | 75% or more |",
        f"| the same in bfloat16 | {said} | 40% or more |",
        "| SmolLM2-135M, peak memory where activations are recomputed: adapters of one base / three models trained "
        f"whole | {result['memory_one_base_over_three_models']:.2f} | 0.45 or less |",
        f"| adapters of one base / adapters of three bases | {result['memory_one_base_over_three_bases']:.2f} | |",
        "| batches, rows of tokens, micro-batches, records, counting and log, share of a step "
        f"| {result['machinery_share']:.1%} | under 2% |",
        "",
        "| SmolLM2-135M in float32, peak GB so far | imported | loaded | sampled | discriminator | student |",
        "|---|---|---|---|---|---|",
    ]
    for kind, peaks in kinds.items():
        cells = " | ".join(f"{value / 1024:.2f}" for value in peaks.values())
        lines.append(f"| {kind.replace('_', ' ')} | {cells} |")
    full = result["real"]["fp32"]["rows"]
    peaks = kinds["one_base"]
    rate, products = (sum(row[key] for row in full) / len(full) for key in ("gflops", "products_gflops"))
    return [
        *lines,
        "",
        f"The update phases make {rate:.0f} GFLOP/s, products of their shapes alone {products:.0f}. One base has the "
        "base and the copy that adapters are merged into for sampling; three models trained whole have gradients and "
        "two moments for two of them. Activations of a micro-batch of 1,024 tokens are most of the rest: with one base "
        f"the discriminator's pass adds {(peaks['discriminator'] - peaks['sampled']) / 1024:.1f} GB.",
        "",
    ]


def _reasons(result: dict[str, Any]) -> list[str]:
    rates = result["products"]
    torchs, ours, narrow = (rates[f"{name}_gflops"] for name in ("torch_fp32", "ours_fp32", "torch_bf16"))
    lines = [
        "## Where the difference comes from",
        "- **No padding.** On CPU `auto` takes the `packed` layout: each prompt once, then its replies, all groups in "
        "one row. TRL pads each row to the longest prompt and reply, and repeats the prompt for every reply.",
        "- **One pass of the discriminator**, the teacher once a prompt; its scores before the update are the rewards.",
    ]
    found = f"torch's own run at {torchs:.0f} GFLOP/s here, ours at {ours:.0f} (bfloat16: {narrow:.0f})"
    if ours > 1.2 * torchs:
        lines.append(
            f"- **float32 products.** {found}, because MKL uses no AVX-512 on CPUs that are not Intel's and oneDNN "
            "does (`models/linear.py`). On an Intel CPU this part of the difference is not there."
        )
    else:
        lines.append(f"- Not from float32 products: {found}. On AMD's CPUs with AVX-512 ours are twice as fast.")
    lines += [
        "- **Prompt computed once in sampling**, finished replies dropped; layers put together anew for one token a",
        "  row, weights sorted for few rows (`docs/architecture.md`, 17).",
    ]
    return [*lines, ""]


def _equality(result: dict[str, Any]) -> list[str]:
    done = result["parts"]
    return [
        "## What is compared",
        "The discriminator's loss of the same weights on the same rows, checked before the result is written: "
        + ", ".join(f"{name} {value:.7f}" for name, value in result["equality"].items())
        + ".",
        "",
        "## Not measured",
        *(f"- {title}: `make bench ARGS='--parts {part}'`" for part, title in PARTS.items() if part not in done),
        "- Anything on a GPU.",
    ]


def _mean_reply(part: dict[str, Any]) -> float:
    tokens = [row["tokens"] for row in part["rows"] if row["contestant"] == "ours"]
    return sum(tokens) / len(tokens) / REPLIES


def _wrapped(line: str) -> str:
    """Prose within 120 columns; tables, pictures and headings as they are."""
    if line.startswith(("|", "#", "!")):
        return line
    indent = "  " * line.startswith("- ")
    return textwrap.fill(line, 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def written(result: dict[str, Any]) -> dict[Path, str]:
    """Every file that this script writes, with its text."""
    docs = ROOT / "docs"
    return {
        docs / "performance.md": page(result),
        docs / "images" / "step.svg": contestants(result),
        **({docs / "images" / "cost.svg": costs(result)} if "curves" in result["parts"] else {}),
    }


def main() -> None:
    for path, text in written(json.loads(RESULTS.read_text(encoding="utf-8"))).items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
