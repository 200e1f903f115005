"""Floating-point operations of a step, by arithmetic from lengths. Imports nothing heavy.

What is counted is the least that the mathematics asks for: each prompt once per group, no padding, of attention only
the pairs that see each other, nothing that activation checkpointing computes again. So the same step has the same count
in every layout, and its share of what the machine could do in the same time is the model FLOPs utilisation. Matrix
products alone are counted, a multiplication with its addition as two; norms, activations, softmax and the optimizer are
not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Lengths = tuple[int, Sequence[int]]
"""Tokens of a prompt, and of each of the replies that share it."""


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """FLOPs of one model.

    frozen, trained: of the linear layers, a token, by whether their weights are trained.
    head: of the output head, a predicted token. train_head: whether its weights are trained.
    pair: of one layer's attention, a query and a key that see each other.
    windows: of each layer, how many tokens back a query sees, its own included; None: all.
    """

    frozen: int
    trained: int
    head: int
    train_head: bool
    pair: int
    windows: tuple[int | None, ...]

    def forward(self, groups: Iterable[Lengths], *, predicts: bool = True) -> float:
        """A forward pass. predicts: the reply tokens' log-probabilities are wanted, not only a score."""
        tokens, replies, attention = self._sizes(groups)
        return float(tokens * (self.frozen + self.trained) + attention + replies * self.head * predicts)

    def train(self, groups: Iterable[Lengths], *, predicts: bool = True) -> float:
        """A forward and a backward pass: gradients by all inputs, and by the weights that are trained."""
        tokens, replies, attention = self._sizes(groups)
        head = replies * self.head * predicts * (3 if self.train_head else 2)
        return float(tokens * (2 * self.frozen + 3 * self.trained) + 3 * attention + head)

    def sample(self, groups: Iterable[Lengths]) -> float:
        """Sampling: all tokens but each reply's last one go through the layers, all reply tokens through the head."""
        groups = list(groups)
        drawn = [(prompt, [max(0, reply - 1) for reply in replies]) for prompt, replies in groups]
        return self.forward(drawn, predicts=False) + sum(sum(replies) for _, replies in groups) * self.head

    def _sizes(self, groups: Iterable[Lengths]) -> tuple[int, int, int]:
        """Tokens, reply tokens, FLOPs of attention."""
        groups = list(groups)
        replies = sum(sum(each) for _, each in groups)
        seen = {window: sum(pairs(prompt, each, window) for prompt, each in groups) for window in set(self.windows)}
        return (
            sum(prompt for prompt, _ in groups) + replies,
            replies,
            self.pair * sum(seen[window] for window in self.windows),
        )


def pairs(prompt: int, replies: Sequence[int], window: int | None = None) -> int:
    """Queries and keys that see each other in one layer, a prompt's own counted once for all its replies."""
    own = _triangle(prompt, window)
    return own + sum(_triangle(prompt + reply, window) - own for reply in replies)


def _triangle(tokens: int, window: int | None) -> int:
    """Of one row: token t sees t + 1 tokens, or as many as the window holds."""
    full = tokens if window is None else min(tokens, window)
    return full * (full + 1) // 2 + (tokens - full) * full
