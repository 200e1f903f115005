"""What processes that share a model keep and send each other: arithmetic from the model's shape. Imports no torch.

Matrices are cut by rows, and every process keeps equally many (the last ones less, or nothing); what travels is padded
to that. A whole tensor of S bytes costs each of n processes S (n - 1) / n bytes sent in a gather or a reduce-scatter
and twice that in an all-reduce, by the ring that gloo and NCCL use.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Matrix = tuple[int, int]
"""Rows and columns."""
FLOAT32 = 4


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder: the matrices of one layer, embedding and head, and `small`, the elements of all norms and biases."""

    layers: int
    layer: tuple[Matrix, ...]
    embedding: Matrix
    tied: bool
    small: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Shape:
        """By a transformers config of the Llama family (Qwen, SmolLM, Mistral). Raises KeyError where a size lacks."""
        hidden, inner, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
        keys, width = config.get("num_key_value_heads") or heads, config.get("head_dim") or hidden // heads
        layer = (
            (heads * width, hidden),
            (keys * width, hidden),
            (keys * width, hidden),
            (hidden, heads * width),
            (inner, hidden),
            (inner, hidden),
            (hidden, inner),
        )
        biased = config.get("model_type") == "qwen2" or bool(config.get("attention_bias"))
        biases = (heads + 2 * keys) * width if biased else 0
        layers = config["num_hidden_layers"]
        head_norms = 2 * width if config.get("model_type") == "qwen3" else 0
        small = layers * (2 * hidden + biases + head_norms) + hidden
        return cls(layers, layer, (config["vocab_size"], hidden), bool(config.get("tie_word_embeddings")), small)

    @property
    def parameters(self) -> int:
        """All elements."""
        head = 0 if self.tied else math.prod(self.embedding)
        return self.layers * sum(map(math.prod, self.layer)) + math.prod(self.embedding) + head + self.small

    def adapter(self, rank: int) -> int:
        """Elements of a low-rank adapter of every matrix of every layer."""
        return self.layers * sum(rank * (rows + columns) for rows, columns in self.layer)


@dataclass(frozen=True, slots=True)
class Split:
    """`shards` processes share each model; there are `copies` groups of them."""

    shards: int
    copies: int = 1

    @classmethod
    def of(cls, shard: Literal["all", "machine", "none"], processes: int, here: int) -> Split:
        """As `compute.shard` says, for `here` processes on each machine."""
        return {"all": cls(processes), "machine": cls(here, processes // here), "none": cls(1, processes)}[shard]

    def share(self, matrix: Matrix) -> int:
        """Elements of a matrix that a process keeps, at most."""
        return math.ceil(matrix[0] / self.shards) * matrix[1]

    def whole(self, matrix: Matrix) -> int:
        """Elements of a matrix as it travels, with its padding."""
        return self.share(matrix) * self.shards


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of whole tensors that are gathered, reduce-scattered and all-reduced by one process's collectives.

    across: all-reduced between copies, of a process's share; zero where there is one copy.
    """

    gathered: int = 0
    scattered: int = 0
    reduced: int = 0
    across: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(
            self.gathered + other.gathered,
            self.scattered + other.scattered,
            self.reduced + other.reduced,
            self.across + other.across,
        )

    def sent(self, split: Split) -> float:
        """Bytes that each process sends."""
        inside, outside = 1 - 1 / split.shards, 1 - 1 / split.copies
        everywhere = 1 - 1 / (split.shards * split.copies)
        return (self.gathered + self.scattered) * inside + 2 * self.across * outside + 2 * self.reduced * everywhere


@dataclass(frozen=True, slots=True)
class Sharing:
    """A model that several processes train: how it is cut, and what is trained of it.

    bytes: of an element of the frozen base, or of what matrices are gathered in to be multiplied.
    rank: of the adapters; None where the model is trained whole.
    """

    shape: Shape
    split: Split
    bytes: int
    rank: int | None

    @property
    def _outer(self) -> int:
        """Bytes of an element of embedding and head: with full tuning they stay float32."""
        return self.bytes if self.rank is not None else FLOAT32

    def _layer(self) -> int:
        return sum(map(self.split.whole, self.shape.layer))

    def _edge(self) -> int:
        return self.split.whole(self.shape.embedding)

    def _heads(self, heads: int) -> int:
        """A head that is the embedding is there already, gathered with what is around the layers."""
        return 0 if self.shape.tied else heads * self._edge()

    def _summed(self, layers: int | None, *, head: bool) -> int:
        """Elements of what is trained and whole everywhere, of so many layers; `head`: of the output head too."""
        shape, depth = self.shape, self.shape.layers if layers is None else layers
        if self.rank is not None:
            return shape.adapter(self.rank) * depth // shape.layers
        hidden = shape.embedding[1]
        small = (shape.small - hidden) * depth // shape.layers + hidden
        if self.split.shards > 1:
            return small
        edges = 2 if head and not shape.tied else 1
        return small + depth * sum(map(math.prod, shape.layer)) + edges * math.prod(shape.embedding)

    def forward(self, *, layers: int | None = None, passes: int = 1, heads: int = 1) -> Traffic:
        """A micro-batch that is not trained on. passes: 2 in layout `cache`. heads: times the output head is read."""
        if self.split.shards == 1:
            return Traffic()
        depth = self.shape.layers if layers is None else layers
        inside = passes * depth * self._layer() * self.bytes
        return Traffic(gathered=inside + self._edge() * self._outer + self._heads(heads) * self._outer)

    def trained(self, *, layers: int | None = None, passes: int = 1, heads: int = 1) -> Traffic:
        """A micro-batch that is trained on: each layer is gathered again for its backward pass.

        The first layer of a frozen base needs no gradient of its input: it stays gathered between two backward passes.
        """
        if self.split.shards == 1:
            return Traffic()
        depth = self.shape.layers if layers is None else layers
        again = passes * depth - (passes - 1 if self.rank is not None else 0)
        gathered = self.forward(layers=layers, passes=passes, heads=heads).gathered + again * self._layer() * self.bytes
        if self.rank is not None:
            return Traffic(gathered=gathered)
        inside = (depth * self._layer() + self._edge()) * FLOAT32
        head = self._heads(heads) * FLOAT32
        several = self.split.copies > 1
        across = (inside // self.split.shards + head) if several else 0
        return Traffic(gathered=gathered, scattered=inside + head, across=across)

    def update(self, *, layers: int | None = None, head: bool = True) -> Traffic:
        """The end of a step: gradients of what is whole everywhere are summed. `head`: whether the head is trained."""
        if self.split.shards * self.split.copies == 1:
            return Traffic()
        return Traffic(reduced=self._summed(layers, head=head) * FLOAT32)

    def to_sample(self) -> Traffic:
        """Weights gathered once an update into the copy that is sampled from: what differs from the base."""
        if self.split.shards == 1:
            return Traffic()
        inside = self.shape.layers * self._layer() * (FLOAT32 if self.rank is None else self.bytes)
        edges = 0 if self.rank is not None else (1 if self.shape.tied else 2) * self._edge() * FLOAT32
        return Traffic(gathered=inside + edges)

    def kept(self) -> int:
        """Bytes of weights, gradients and moments that a process keeps of it."""
        edges = 1 if self.shape.tied else 2
        matrices = self.shape.layers * sum(map(self.split.share, self.shape.layer))
        matrices += edges * self.split.share(self.shape.embedding)
        if self.rank is None:
            return 4 * FLOAT32 * (matrices + self.shape.small)
        return self.bytes * (matrices + self.shape.small) + 4 * FLOAT32 * self.shape.adapter(self.rank)
