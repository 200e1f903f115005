"""What the teacher's replies may cost, before any is bought. Touches no network and asks no tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

from gad.config.teacher import TeacherConfig
from gad.data import AskedSets
from gad.records import Prompt
from gad.stages.collect_api import SUMMARY
from gad.teacher.client import address, key_in
from gad.teacher.money import CostEstimate, estimate_cost, prices_of
from gad.teacher.progress import usd


def bill(teacher: TeacherConfig, asked: AskedSets, folder: Path) -> list[tuple[str, str]]:
    """(What, value) lines. Where replies were bought already, the rest is reckoned at their mean length.

    Raises ConfigError where a cap is set and the price is not known.
    """
    prompts = [p for name, each in asked.sets.named.items() if name not in asked.answered for p in each.prompts]
    bought, written = _bought(folder / SUMMARY)
    cost = estimate_cost(teacher, prompts, reply_tokens=written)
    lines = [
        ("model", f"{teacher.model} at {address(teacher)}"),
        ("key", _key(teacher.endpoint.api_key_env)),
        ("replies", f"{cost.requests:,}; their prompts have about {cost.prompt_tokens:,} tokens"),
        ("prices", cost.source),
    ]
    if prices_of(teacher).prices is not None:
        lines += _money(teacher, prompts, cost, written)
    if bought is not None:
        lines.append(("bought before", bought))
    return lines


def _money(
    teacher: TeacherConfig, prompts: list[Prompt], cost: CostEstimate, written: float | None
) -> list[tuple[str, str]]:
    batched = estimate_cost(teacher, prompts, reply_tokens=written, batch=True)
    known = "the paper's mean" if written is None else "as so far"
    lines = [
        ("bill", f"about {usd(cost.expected)} at {cost.reply_tokens} tokens a reply, {known}"),
        ("", f"from {usd(cost.low)} to {usd(cost.high)}, as short or long as they can be"),
        ("with --batch", f"about {usd(batched.expected)}, from {usd(batched.low)} to {usd(batched.high)}"),
    ]
    cap = teacher.max_cost_usd
    if cap is not None:
        likely = "less than is expected" if cap < cost.expected else "likely enough"
        lines.append(("max_cost_usd", f"{usd(cap)}: {'enough' if cap >= cost.at_most else likely}"))
    return lines


def _key(variable: str | None) -> str:
    if variable is None:
        return "none"
    return f"in {variable}" + ("" if key_in(variable) else ", which is not set")


def _bought(summary: Path) -> tuple[str | None, float | None]:
    """What there is already, in words, and the mean tokens of a reply."""
    if not summary.exists():
        return None, None
    found = json.loads(summary.read_text(encoding="utf-8"))
    tokens = found["tokens"].get("completion_tokens", 0)
    mean = tokens / found["bought"] if tokens else None
    return f"{found['bought']:,} of these replies, for {usd(found['spent_usd'])}", mean
