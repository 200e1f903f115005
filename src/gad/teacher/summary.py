"""What a collection came to, for `collect.json` and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gad.teacher.files import LeftOut, SetContents
from gad.teacher.progress import usd


@dataclass(frozen=True, slots=True)
class CollectSummary:
    """What `collect.json` holds.

    requested: different requests of all prompt sets. repeated: requests that say word for word what an earlier one
    says (bought once). sets: what became of each set's requests. bought: replies that the sets ask for, kept or left
    out. removed: replies to prompts that are no longer in a set; they stay in the ledger. models: bought replies by the
    name that the provider gave. first_reply, last_reply: when they came, seconds since 1970. lost: requests that the
    last collector left under way. spent_usd, maybe_usd: of the whole ledger. stopped: on request, before the end.
    """

    model: str
    endpoint: str
    requested: int
    repeated: int
    sets: dict[str, SetContents]
    bought: int
    removed: int
    removed_ids: list[str]
    models: dict[str, int]
    tokens: dict[str, int]
    first_reply: float | None
    last_reply: float | None
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
    def kept(self) -> int:
        """Rows in `teacher.jsonl` and `sets/*.jsonl`."""
        return sum(each.kept for each in self.sets.values())

    @property
    def missing(self) -> int:
        """Not asked yet, or asked without a lasting outcome."""
        return sum(each.missing for each in self.sets.values())

    @property
    def in_batches(self) -> int:
        """Waiting at the provider, in batches."""
        return sum(each.in_batches for each in self.sets.values())

    @property
    def left_out(self) -> dict[str, int]:
        """Replies without a row, by reason; the lists are in `teacher/`."""
        return _sums(each.left_out for each in self.sets.values())

    @property
    def given_up(self) -> dict[str, int]:
        """Requests without a reply, by reason."""
        return _sums(each.given_up for each in self.sets.values())

    @property
    def complete(self) -> bool:
        """Every request has a reply or was given up."""
        return self.missing == 0 and self.in_batches == 0


def _sums(reasons: Iterable[Mapping[str, LeftOut]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for each in reasons:
        sums.update({reason: found.count for reason, found in each.items()})
    return dict(sums.most_common())


def describe(summary: CollectSummary) -> list[str]:
    """The summary in lines for people; what is nought is left out."""
    possibly = f", and up to {usd(summary.maybe_usd)} for replies that never came" if summary.maybe_usd else ""
    where = ", ".join(f"{each.kept} {name}" for name, each in summary.sets.items())
    lines = [f"teacher: replies: {where}; {usd(summary.spent_usd)} spent{possibly}"]
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
