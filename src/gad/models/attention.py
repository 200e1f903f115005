"""Attention for the layouts and for prompts, as one function that transformers models call.

transformers hands every keyword argument of a forward pass down to the attention function, so a forward pass carries
an attention *plan*: who sees whom. Rotary positions, projections and head norms stay the model's own.

R rows, T query tokens, S key tokens, H query heads, Hk key heads, D head width, P prompts, K replies per prompt.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

IMPLEMENTATION = "gad"
"""The value of `attn_implementation` that selects this module."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A layer's own settings."""

    scaling: float
    window: int | None
    softcap: float | None


@dataclass(frozen=True, slots=True)
class Heads:
    """One layer's call: queries (R, H, T, D), keys and values (R, Hk, T, D)."""

    q: Tensor
    k: Tensor
    v: Tensor
    layer: int
    rule: Rule


class Plan(Protocol):
    """Who sees whom in one forward pass."""

    def attend(self, heads: Heads) -> Tensor:
        """Attention output (R, H, T, D)."""
        ...


class Carried:
    """What goes through a model beside its states. No dataclass: FSDP looks into those and hooks their tensors.

    read_N: flat places in (rows, tokens) of the states that somebody will read, None for all (`views.narrowed`).
    below_RTH: states to go on from (`views.above`).
    """

    __slots__ = ("below_RTH", "plan", "read_N")

    def __init__(self, plan: Plan, read_N: Tensor | None = None, below_RTH: Tensor | None = None) -> None:
        self.plan = plan
        self.read_N = read_N
        self.below_RTH = below_RTH


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, _mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """The function that transformers calls in every layer; returns (R, T, H, D)."""
    carried: Carried = kwargs["plan"]
    rule = Rule(kwargs["scaling"], kwargs.get("sliding_window"), kwargs.get("softcap"))
    heads = Heads(query, key, value, cast(int, module.layer_idx), rule)
    return carried.plan.attend(heads).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, attention)


def _weights(scores: Tensor, bias: Tensor | None, softcap: float | None) -> Tensor:
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    return F.softmax(scores if bias is None else scores + bias, dim=-1)


def _grouped(q: Tensor, key_heads: int) -> Tensor:
    """Queries (R, H, T, D) to (R, Hk, H/Hk * T, D): heads that share a key head side by side."""
    rows, heads, steps, width = q.shape
    return q.reshape(rows, key_heads, heads // key_heads * steps, width)


def _dense(heads: Heads, bias: Tensor) -> Tensor:
    """Attention as two matrix products; `bias` broadcasts over (R, Hk, H/Hk, T, T).

    On CPU this is faster than torch's flash kernel, whose backward is slow there, and nothing is expanded for grouped
    queries.
    """
    rows, count, steps, width = heads.q.shape
    key_heads = heads.k.shape[1]
    scores = _grouped(heads.q * heads.rule.scaling, key_heads) @ heads.k.transpose(-1, -2)
    weights = _weights(scores.view(rows, key_heads, count // key_heads, steps, -1), bias, heads.rule.softcap)
    return (weights.view(rows, key_heads, -1, weights.shape[-1]) @ heads.v).view(rows, count, steps, width)


def _bias(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, float("-inf"))


@dataclass
class Prefix:
    """Keys and values (P, Hk, L, D) of P prompts, layer by layer, and the layers' settings.

    lengths_P: tells real tokens from right padding.
    """

    lengths_P: Tensor
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)
    rules: dict[int, Rule] = field(default_factory=dict)

    def record(self, heads: Heads) -> None:
        """Keep a layer's keys and values."""
        self.keys[heads.layer], self.values[heads.layer], self.rules[heads.layer] = heads.k, heads.v, heads.rule

    def contiguous(self) -> Prefix:
        """The same in memory of its own, to be read many times."""
        return self._each(lambda tensor: tensor.contiguous())

    def select(self, prompts: Tensor) -> Prefix:
        """Only these prompts."""
        chosen = self._each(lambda tensor: tensor.index_select(0, prompts))
        return replace(chosen, lengths_P=self.lengths_P[prompts])

    def _each(self, change: Callable[[Tensor], Tensor]) -> Prefix:
        keys, values = ({n: change(tensor) for n, tensor in kept.items()} for kept in (self.keys, self.values))
        return replace(self, keys=keys, values=values)


@dataclass
class Causal:
    """Rows of their own, right-padded. `record` keeps keys and values for replies that come later."""

    record: Prefix | None = None
    _biases: dict[tuple[int, int | None], Tensor] = field(default_factory=dict)

    def attend(self, heads: Heads) -> Tensor:
        if self.record is not None:
            self.record.record(heads)
        steps = heads.q.shape[2]
        windowed = heads.rule.window is not None and heads.rule.window < steps
        if heads.q.device.type != "cpu" and not windowed and heads.rule.softcap is None:
            return F.scaled_dot_product_attention(
                heads.q, heads.k, heads.v, is_causal=True, scale=heads.rule.scaling, enable_gqa=True
            )
        return _dense(heads, self._bias(steps, heads))

    def _bias(self, steps: int, heads: Heads) -> Tensor:
        cached = self._biases.get((steps, heads.rule.window))
        if cached is None:
            visible = torch.ones(steps, steps, dtype=torch.bool, device=heads.q.device).tril()
            if heads.rule.window is not None:
                visible &= ~torch.ones_like(visible).tril(-heads.rule.window)
            cached = self._biases[(steps, heads.rule.window)] = _bias(visible, heads.q.dtype)
        return cached


@dataclass
class Masked:
    """Rows with a mask of their own: the tree layout. Sliding windows count positions, not columns."""

    visible_RTT: Tensor
    positions_RT: Tensor
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def attend(self, heads: Heads) -> Tensor:
        if heads.rule.window not in self._biases:
            visible = self.visible_RTT
            if heads.rule.window is not None:
                distance = self.positions_RT[:, :, None] - self.positions_RT[:, None, :]
                visible = visible & (distance < heads.rule.window)
            self._biases[heads.rule.window] = _bias(visible, heads.q.dtype)[:, None, None]
        return _dense(heads, self._biases[heads.rule.window])


@dataclass(frozen=True, slots=True)
class Owners:
    """Which prompt each reply row belongs to. Rows of a prompt are neighbours; prompts may have different numbers.

    slots_PK: row that sits in each prompt's k-th place, any row where it has fewer; None where all have as many.
    places_R: flat place (P*K) of each row; None likewise.
    """

    prompt_of_row_R: Tensor
    prompts: int
    slots_PK: Tensor | None = None
    places_R: Tensor | None = None

    @classmethod
    def of(cls, counts: list[int], device: torch.device | None = None) -> Owners:
        """From the number of rows of each prompt, in order."""
        counts_P = torch.tensor(counts, device=device)
        owner_R = torch.arange(len(counts), device=device).repeat_interleave(counts_P)
        most = max(counts)
        if min(counts) == most:
            return cls(owner_R, len(counts))
        starts_P = counts_P.cumsum(0) - counts_P
        steps_K = torch.arange(most, device=device)
        slots_PK = torch.where(steps_K < counts_P[:, None], starts_P[:, None] + steps_K, 0)
        places_R = owner_R * most + torch.arange(len(owner_R), device=device) - starts_P[owner_R]
        return cls(owner_R, len(counts), slots_PK, places_R)

    def by_prompt(self, x: Tensor) -> Tensor:
        """(R, Hk, N, W) to (P, Hk, K*N, W): all queries of a prompt's replies in one block."""
        if self.slots_PK is not None:
            x = x.index_select(0, self.slots_PK.flatten())
        x = x.view(self.prompts, -1, *x.shape[1:]).transpose(1, 2)
        return x.reshape(self.prompts, x.shape[1], -1, x.shape[-1])

    def by_row(self, x: Tensor, length: int) -> Tensor:
        """The way back: (P, Hk, K*N, W) to (R, Hk, N, W), with N = `length`."""
        x = x.view(self.prompts, x.shape[1], -1, length, x.shape[-1]).transpose(1, 2).flatten(0, 1)
        return x if self.places_R is None else x.index_select(0, self.places_R)


@dataclass
class Prefixed:
    """Whole reply rows that read their prompt's keys and values and their own past.

    Nothing is expanded: the replies of a prompt are one block of queries to the prompt's keys.
    """

    prefix: Prefix
    owners: Owners
    positions_RT: Tensor
    _biases: dict[int | None, Tensor] = field(default_factory=dict)

    def attend(self, heads: Heads) -> Tensor:
        rows, count, steps, width = heads.q.shape
        key_heads = heads.k.shape[1]
        prefix_k, prefix_v = self.prefix.keys[heads.layer], self.prefix.values[heads.layer]
        q = _grouped(heads.q * heads.rule.scaling, key_heads)
        length = q.shape[2]
        to_prefix = self.owners.by_row(self.owners.by_prompt(q) @ prefix_k.transpose(-1, -2), length)
        scores = torch.cat([to_prefix, q @ heads.k.transpose(-1, -2)], dim=-1)
        scores = scores.view(rows, key_heads, -1, steps, scores.shape[-1])
        weights = _weights(scores, self._bias(heads), heads.rule.softcap).view(rows, key_heads, length, -1)
        on_prefix, on_own = weights[..., : prefix_k.shape[2]], weights[..., prefix_k.shape[2] :]
        from_prefix = self.owners.by_row(self.owners.by_prompt(on_prefix) @ prefix_v, length)
        return (from_prefix + on_own @ heads.v).reshape(rows, count, steps, width)

    def _bias(self, heads: Heads) -> Tensor:
        """Added to the scores, (R, 1, 1, T, S): prompt padding, the future and what is beyond a window are hidden."""
        window = heads.rule.window
        if window not in self._biases:
            query_RT1 = self.positions_RT[:, :, None]
            lengths_R = self.prefix.lengths_P[self.owners.prompt_of_row_R]
            prefix = torch.arange(self.prefix.keys[heads.layer].shape[2], device=query_RT1.device)
            own_RS = lengths_R[:, None] + torch.arange(heads.k.shape[2], device=query_RT1.device)
            keys_RS = torch.cat([prefix.expand(len(lengths_R), -1), own_RS], dim=-1)
            real_RS = torch.cat([prefix < lengths_R[:, None], torch.ones_like(own_RS, dtype=torch.bool)], dim=-1)
            visible = real_RS[:, None, :] & (keys_RS[:, None, :] <= query_RT1)
            if window is not None:
                visible &= query_RT1 - keys_RS[:, None, :] < window
            self._biases[window] = _bias(visible, heads.q.dtype)[:, None, None]
        return self._biases[window]
