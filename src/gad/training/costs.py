"""What a trainer's passes cost, for the log: operations by arithmetic, and the layouts that were taken and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gad.layouts import TokenGroup
from gad.models.counting import arithmetic
from gad.models.network import Member
from gad.training.batching import MicroBatch
from gad.training.optimizer import Metrics


class Costs:
    """Of one member's passes. `note`: why the first micro-batch has the layout that it has; empty before it."""

    def __init__(self, member: Member, player: str, *, layers: int | None = None) -> None:
        self.note = ""
        self._player = player
        self._known = member.network.known
        self._arithmetic = arithmetic(member.network, member.name, layers=layers)
        self._layouts: Counter[str] = Counter()

    def saw(self, micro: MicroBatch) -> None:
        """A micro-batch is about to be computed."""
        self._layouts[micro.layout] += 1
        if not self.note:
            self.note = f"the {self._player}'s first micro-batch, {micro.explain()}"

    def layouts(self) -> Metrics:
        """Micro-batches of each layout since this was last asked."""
        counts: Metrics = {f"layout/{self._player}_{name}": count for name, count in sorted(self._layouts.items())}
        self._layouts.clear()
        return counts

    def imitation(self, rows: Sequence[TokenGroup]) -> Metrics:
        """FLOPs and layouts of an update by cross-entropy on `rows`."""
        return {"flops/student": self.train(rows) - self.spared(), **self.layouts()}

    def update(
        self,
        rows: Sequence[TokenGroup],
        reference: Costs | None,
        *,
        pulled: Sequence[TokenGroup],
        before: Sequence[TokenGroup],
    ) -> Metrics:
        """FLOPs and layouts of a policy update on `rows`.

        pulled: replies that the reference computes beside the student; before: those that both have computed before
        the update.
        """
        found = {"flops/student": self.train(rows) + self.forward(before) - self.spared(), **self.layouts()}
        if reference is not None:
            # Beside the student's pass, which has what they have in common.
            found["flops/reference"] = reference.forward(before) + reference.forward(pulled, common=False)
        return found

    def forward(self, groups: Sequence[TokenGroup], *, predicts: bool = True, common: bool = True) -> float:
        """FLOPs of a forward pass; 0 for a model whose operations are not counted."""
        own = self._arithmetic
        lengths = [group.lengths for group in groups]
        return 0.0 if own is None else own.forward(lengths, predicts=predicts, common=common)

    def train(self, groups: Sequence[TokenGroup], *, predicts: bool = True) -> float:
        """FLOPs of a forward and a backward pass; 0 for a model whose operations are not counted."""
        own = self._arithmetic
        return 0.0 if own is None else own.train([group.lengths for group in groups], predicts=predicts)

    def spared(self) -> float:
        """FLOPs of the common layers that were not computed since this was last asked, because their states were known;
        0 for a model whose operations are not counted."""
        asked, computed = (self._lower(groups) for groups in self._known.spared())
        return asked - computed

    def _lower(self, groups: Sequence[TokenGroup]) -> float:
        whole, upper = (self.forward(groups, predicts=False, common=common) for common in (True, False))
        return whole - upper
