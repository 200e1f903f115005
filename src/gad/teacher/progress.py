"""A collection as a person sees it: a bar with cost, rate and time left on a terminal, plain lines in a log.

Bars and lines are `gad.progress`'s; this gives them their words.
"""

from __future__ import annotations

from types import TracebackType

from gad.progress import Progress, Task
from gad.teacher.watching import Snapshot


class Display:
    """Shows a collection while its block lasts. `watch` may be called from another thread.

    total, done: requests of the prompt set, and how many of them were settled before. cap: max_cost_usd.
    """

    def __init__(self, progress: Progress, title: str, total: int, done: int, cap: float | None) -> None:
        self._context = progress.task(title, total, done)
        self._task: Task | None = None
        self._cap = cap
        self._settled = 0

    def __enter__(self) -> Display:
        self._task = self._context.__enter__()
        return self

    def watch(self, snapshot: Snapshot) -> None:
        """Show how things stand."""
        settled = snapshot.replies + snapshot.given_up
        if self._task is not None:
            self._task.advance(settled - self._settled, note(snapshot, self._cap))
        self._settled = settled

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._context.__exit__(kind, error, at)


def note(snapshot: Snapshot, cap: float | None) -> str:
    """What stands beside the bar; what is nought is left out, but for rate and cost."""
    bill = snapshot.bill
    cost = usd(bill.spent) + (f" of {usd(cap)}" if cap is not None else "")
    parts = [f"{snapshot.rate:.1f}/s", cost]
    if bill.maybe:
        parts.append(f"+{usd(bill.maybe)} possibly")
    counts = {
        "under way": snapshot.under_way,
        "waiting": snapshot.waiting,
        "tried again": snapshot.retries,
        "slow down (429)": snapshot.refused,
        "given up": snapshot.given_up,
    }
    return ", ".join([*parts, *(f"{count} {what}" for what, count in counts.items() if count)])


def usd(amount: float) -> str:
    """Dollars, with cents; small sums with what makes them differ from nothing."""
    return f"${amount:,.2f}" if amount >= 1.0 or amount == 0.0 else f"${amount:.4f}"
