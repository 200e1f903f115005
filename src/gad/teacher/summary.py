"""What a collection came to, for `collect.json` and in words."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from gad.teacher.progress import usd


@dataclass(frozen=True, slots=True)
class CollectSummary:
    """What `collect.json` holds.

    requested: different requests of the prompt set. repeated: prompts that say word for word what an earlier one says
    (bought once). kept: replies in `teacher.jsonl`. left_out, given_up: counts by reason; the lists are in `teacher/`.
    missing: not asked yet, or asked without a lasting outcome. lost: requests that the last collector left under way.
    removed: replies to prompts that are no longer in the set; they stay in the ledger. spent_usd, maybe_usd: of the
    whole ledger. stopped: on request, before the end.
    """

    requested: int
    repeated: int
    kept: int
    missing: int
    in_batches: int
    left_out: dict[str, int]
    given_up: dict[str, int]
    removed: int
    removed_ids: list[str]
    models: dict[str, int]
    tokens: dict[str, int]
    spent_usd: float
    maybe_usd: float
    lost: int
    lost_usd: float
    estimated_costs: int
    prices_from: str
    retries: int
    refused_429: int
    stopped: bool

    @property
    def complete(self) -> bool:
        """Every request has a reply or was given up."""
        return self.missing == 0 and self.in_batches == 0


def describe(summary: CollectSummary) -> list[str]:
    """The summary in lines for people; what is nought is left out."""
    possibly = f", and up to {usd(summary.maybe_usd)} for replies that never came" if summary.maybe_usd else ""
    lines = [f"teacher: {summary.kept} replies in teacher.jsonl; {usd(summary.spent_usd)} spent{possibly}"]
    for what, counts in (("left out", summary.left_out), ("given up", summary.given_up)):
        if counts:
            reasons = ", ".join(f"{count} {reason}" for reason, count in counts.items())
            lines.append(f"teacher: {sum(counts.values())} {what} ({reasons})")
    if summary.given_up:
        lines.append("teacher: `gad collect --retry-failed` asks for those again; teacher/given_up.jsonl lists them")
    if summary.missing:
        lines.append(f"teacher: {summary.missing} replies are missing; run `gad collect` again to go on")
    if summary.in_batches:
        lines.append(f"teacher: {summary.in_batches} requests are in batches; `gad collect --batch` fetches them")
    if summary.removed:
        shown = ", ".join(summary.removed_ids[:5]) + (", ..." if summary.removed > 5 else "")
        lines.append(
            f"teacher: {summary.removed} replies are to prompts no longer asked for; kept in the ledger ({shown})"
        )
    if len(summary.models) > 1:
        lines.append(f"teacher: replies by model: {', '.join(f'{n} {m}' for m, n in Counter(summary.models).items())}")
    if summary.estimated_costs:
        lines.append(f"teacher: {summary.estimated_costs} replies came without usage; their cost is estimated")
    return lines
