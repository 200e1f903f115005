"""Floating-point operations of a step, by arithmetic from lengths. Imports nothing heavy.

What is counted is the least that the mathematics asks for: each prompt once per group, no padding, of attention only
the pairs that see each other, of the last layer's queries and MLP those of tokens that are read, nothing backwards
below the first layer that is trained, nothing that activation checkpointing computes again. So the same step has the
same count in every layout, and its share of what the machine could do in the same time is the model FLOPs utilisation.
Matrix products alone are counted, a multiplication with its addition as two; norms, activations, softmax and the
optimizer are not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Lengths = tuple[int, Sequence[int]]
"""Tokens of a prompt, and of each of the replies that share it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """Linear layers' FLOPs of one layer, a token: of all tokens, and of those alone that are read.

    frozen, trained: by whether their weights are trained. read_frozen, read_trained: the last layer's queries and MLP.
    window: how many tokens back a query sees, its own included; None: all.
    """

    frozen: int = 0
    trained: int = 0
    read_frozen: int = 0
    read_trained: int = 0
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """FLOPs of one model.

    layers: of the linear layers. common: the first layers, which nothing is trained in and nothing goes back through.
    head: of the output head, a predicted token. train_head: whether its weights are trained.
    pair: of one layer's attention, a query and a key that see each other.
    """

    layers: tuple[Layer, ...]
    head: int
    train_head: bool
    pair: int
    common: int = 0

    def forward(self, groups: Iterable[Lengths], *, predicts: bool = True, common: bool = True) -> float:
        """A forward pass. predicts: the reply tokens' log-probabilities are wanted, not only a score.

        common: with the layers that another member's pass may have computed already.
        """
        groups = list(groups)
        layers = self.layers if common else self.layers[self.common :]
        tokens, read = _tokens(groups, predicts=predicts)
        linear = sum(
            tokens * (layer.frozen + layer.trained) + read * (layer.read_frozen + layer.read_trained)
            for layer in layers
        )
        return float(linear + self._attention(groups, layers) + _replies(groups) * self.head * predicts)

    def train(self, groups: Iterable[Lengths], *, predicts: bool = True) -> float:
        """A forward and a backward pass: gradients by all inputs, and by the weights that are trained."""
        groups = list(groups)
        upper = self.layers[self.common :]
        tokens, read = _tokens(groups, predicts=predicts)
        linear = sum(
            tokens * (layer.frozen + 2 * layer.trained) + read * (layer.read_frozen + 2 * layer.read_trained)
            for layer in upper
        )
        head = _replies(groups) * self.head * predicts * (2 if self.train_head else 1)
        backward = linear + 2 * self._attention(groups, upper) + head
        return self.forward(groups, predicts=predicts) + float(backward)

    def sample(self, groups: Iterable[Lengths]) -> float:
        """Sampling: all tokens but each reply's last one go through the layers, all reply tokens through the head."""
        groups = list(groups)
        drawn = [(prompt, [max(0, reply - 1) for reply in replies]) for prompt, replies in groups]
        tokens, _ = _tokens(drawn, predicts=True)
        # Of a prompt its last token is read, of a reply every one that a token is drawn after.
        read = tokens - sum(prompt - 1 for prompt, _ in groups)
        linear = sum(
            tokens * (layer.frozen + layer.trained) + read * (layer.read_frozen + layer.read_trained)
            for layer in self.layers
        )
        return float(linear + self._attention(drawn, self.layers) + _replies(groups) * self.head)

    def _attention(self, groups: Sequence[Lengths], layers: Sequence[Layer]) -> int:
        seen = {
            window: sum(pairs(prompt, each, window) for prompt, each in groups)
            for window in {layer.window for layer in layers}
        }
        return self.pair * sum(seen[layer.window] for layer in layers)


def _replies(groups: Sequence[Lengths]) -> int:
    return sum(sum(each) for _, each in groups)


def _tokens(groups: Sequence[Lengths], *, predicts: bool) -> tuple[int, int]:
    """All tokens, and those whose last hidden states are read: one a reply for scores, else one a predicted token, of
    which all first ones are predicted by the prompt's last token."""
    tokens = sum(prompt for prompt, _ in groups) + _replies(groups)
    if not predicts:
        return tokens, sum(len(each) for _, each in groups)
    return tokens, sum(any(each) + sum(max(0, reply - 1) for reply in each) for _, each in groups)


def pairs(prompt: int, replies: Sequence[int], window: int | None = None) -> int:
    """Queries and keys that see each other in one layer, a prompt's own counted once for all its replies."""
    own = _triangle(prompt, window)
    return own + sum(_triangle(prompt + reply, window) - own for reply in replies)


def _triangle(tokens: int, window: int | None) -> int:
    """Of one row: token t sees t + 1 tokens, or as many as the window holds."""
    full = tokens if window is None else min(tokens, window)
    return full * (full + 1) // 2 + (tokens - full) * full
