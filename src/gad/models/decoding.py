"""Decoding: one token more for every row, with little besides the products.

With a few dozen rows of a token each, a layer's products are small, and what transformers writes between them (norms,
rotations, calls within calls) takes as long as they do. `stepwise` puts a model's parts together anew, in fewer
operations. Which models it is right for, `models/trial.py` finds out; others decode by transformers' own layers, with
the same attention.

R rows, H query heads, K key heads, G = H / K, D head width, E model width, P prompts, L prompt tokens, S reply tokens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gad.models import norm
from gad.models.attention import Heads, Owners, Prefix, Rule
from gad.models.forward import run
from gad.models.linear import Product, direct

MODEL = frozenset({"embed_tokens", "layers", "norm", "rotary_emb"})
LAYER = frozenset({"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"})
SANDWICH = LAYER | {"pre_feedforward_layernorm", "post_feedforward_layernorm"}
"""Gemma's, from the second on: a norm before and after attention, before and after the MLP."""
ATTENTION = frozenset({"q_proj", "k_proj", "v_proj", "o_proj"})
HEAD_NORMS = ATTENTION | {"q_norm", "k_norm"}
MLP = frozenset({"gate_proj", "up_proj", "down_proj", "act_fn"})
Forward = Callable[[Tensor, Tensor, "Decoder"], Tensor]
"""States (R, E) after a token a row: from ids and positions, both (R), and the decoder, which attends."""


class Decoder:
    """Replies that grow by a token at a time and read their prompt's keys and values and their own past.

    forward: `stepwise` or `layerwise`; counts: rows of each prompt; limit: the most tokens of a reply. A prompt's keys
    and values are held once for all its rows; those of replies lie in buffers that are allocated once.
    """

    def __init__(self, forward: Forward, prefix: Prefix, counts: list[int], limit: int) -> None:
        self._forward = forward
        self._prefix = prefix.contiguous()
        self._limit, self._length = limit, 0
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}
        self._take(Owners.of(counts, prefix.lengths_P.device))

    def step(self, ids_R: Tensor) -> Tensor:
        """Hidden states (R, E) after these tokens."""
        positions_R = self._prefix.lengths_P[self.owners.prompt_of_row_R] + self._length
        states = self._forward(ids_R, positions_R, self)
        self._length += 1
        return states

    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only; prompts without a row are dropped too."""
        kept_R = torch.tensor(rows, device=self._prefix.lengths_P.device)
        prompts_P, counts_P = self.owners.prompt_of_row_R[kept_R].unique_consecutive(return_counts=True)
        if len(prompts_P) < self.owners.prompts:
            self._prefix = self._prefix.select(prompts_P)
        for layer, both in self._buffers.items():
            self._buffers[layer] = self._kept(both[0], kept_R), self._kept(both[1], kept_R)
        self._take(Owners.of(counts_P.tolist(), kept_R.device))

    def _kept(self, buffer: Tensor, kept_R: Tensor) -> Tensor:
        """These rows' tokens so far, in a buffer of their own."""
        made = buffer.new_empty((len(kept_R), *buffer.shape[1:]))
        made[:, :, : self._length] = buffer[:, :, : self._length].index_select(0, kept_R)
        return made

    def _take(self, owners: Owners) -> None:
        self.owners = owners
        self._biases: dict[tuple[int, int | None, int], Tensor] = {}

    def attend(self, heads: Heads) -> Tensor:
        """See `Plan`; queries, keys and values are those of one token."""
        q, k, v = (each[:, :, 0] for each in (heads.q, heads.k, heads.v))
        return self.attention(heads.layer, q, k, v).view(heads.q.shape)

    def attention(self, layer: int, q_RHD: Tensor, k_RKD: Tensor, v_RKD: Tensor) -> Tensor:
        """The output (R, H * D) for this step's queries. Its keys and values are kept."""
        rule, owners = self._prefix.rules[layer], self.owners
        rows, key_heads, width = k_RKD.shape
        own_k, own_v = self._extended(layer, k_RKD, v_RKD, rule.window)
        prefix_k, prefix_v = self._prefix.keys[layer].flatten(0, 1), self._prefix.values[layer].flatten(0, 1)
        q = q_RHD.reshape(rows, key_heads, -1, width)
        group = q.shape[2]
        scores = _scores(
            rule, owners.by_prompt(q).flatten(0, 1), prefix_k, self._bias(rule.window, prefix_k, key_heads)
        )
        to_prefix = owners.by_row(scores.view(owners.prompts, key_heads, -1, scores.shape[-1]), group)
        to_own = _scores(rule, q.flatten(0, 1), own_k, None).view(rows, key_heads, group, -1)
        weights = F.softmax(torch.cat([to_prefix, to_own], dim=-1), dim=-1)
        on_prefix, on_own = weights.split([to_prefix.shape[-1], to_own.shape[-1]], dim=-1)
        read = torch.bmm(owners.by_prompt(on_prefix).flatten(0, 1), prefix_v)
        from_prefix = owners.by_row(read.view(owners.prompts, key_heads, -1, width), group)
        return torch.baddbmm(from_prefix.flatten(0, 1), on_own.flatten(0, 1), own_v).view(rows, -1)

    def _extended(self, layer: int, k_RKD: Tensor, v_RKD: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
        """Own keys and values that this step sees, itself among them, both (R * K, S, D)."""
        if layer not in self._buffers:
            shape = (*k_RKD.shape[:2], self._limit, k_RKD.shape[2])
            self._buffers[layer] = k_RKD.new_empty(shape), v_RKD.new_empty(shape)
        end = self._length + 1
        start = 0 if window is None else max(0, end - window)
        for buffer, new in zip(self._buffers[layer], (k_RKD, v_RKD), strict=True):
            buffer[:, :, self._length] = new
        keys, values = (buffer[:, :, start:end].flatten(0, 1) for buffer in self._buffers[layer])
        return keys, values

    def _bias(self, window: int | None, keys: Tensor, key_heads: int) -> Tensor | None:
        """Added to scores of a prompt's tokens, (P * K, 1, L): padding, and what is beyond a window, are hidden."""
        length = self._length if window is not None else 0  # without a window all steps see the same
        key = (length, window, key_heads)
        if key not in self._biases:
            lengths_P1 = self._prefix.lengths_P[:, None]
            places_L = torch.arange(keys.shape[1], device=keys.device)
            visible_PL = places_L < lengths_P1
            if window is not None:
                visible_PL &= places_L > lengths_P1 + self._length - window
            bias_PL = torch.zeros_like(visible_PL, dtype=keys.dtype).masked_fill_(~visible_PL, float("-inf"))
            self._biases = {k: bias for k, bias in self._biases.items() if k[0] in (0, length)}
            self._biases[key] = bias_PL.repeat_interleave(key_heads, dim=0)[:, None]
        return self._biases[key]


def _scores(rule: Rule, q_BND: Tensor, k_BSD: Tensor, bias_B1S: Tensor | None) -> Tensor:
    """Scores (B, N, S) of queries for keys."""
    keys_BDS = k_BSD.transpose(1, 2)
    if rule.softcap is None:
        added = keys_BDS[:, :1] if bias_B1S is None else bias_B1S  # without a bias whatever has a shape that fits
        return torch.baddbmm(added, q_BND, keys_BDS, beta=int(bias_B1S is not None), alpha=rule.scaling)
    capped = rule.softcap * torch.tanh(torch.bmm(q_BND, keys_BDS) * (rule.scaling / rule.softcap))
    return capped if bias_B1S is None else capped + bias_B1S


def layerwise(backbone: nn.Module) -> Forward:
    """A step by the model's own layers."""
    return lambda ids_R, positions_R, decoder: run(backbone, ids_R[:, None], positions_R[:, None], decoder)[:, 0]


def stepwise(backbone: nn.Module, few_rows: int | None = None) -> Forward | None:
    """A step by the same parts put together anew, without gradients; None where the model is built of others.

    few_rows: see `models.linear.direct`; for weights that stay as they are until the next call.
    """
    parts = dict(backbone.named_children())
    if parts.keys() != MODEL or not all(map(_known, cast(nn.ModuleList, parts["layers"]))):
        return None
    return _Steps(backbone, few_rows)


def _known(layer: nn.Module) -> bool:
    """Whether a layer is built of the parts that `_Layer` puts together."""
    parts = dict(layer.named_children())
    return (
        parts.keys() in (LAYER, SANDWICH)
        and {name for name, _ in parts["self_attn"].named_children()} in (ATTENTION, HEAD_NORMS)
        and {name for name, _ in parts["mlp"].named_children()} == MLP
    )


class _Steps:
    """All of a backbone for one token a row. It registers no module: the parts are the model's."""

    def __init__(self, backbone: nn.Module, few_rows: int | None) -> None:
        built: Any = backbone
        self._embed: Callable[[Tensor], Tensor] = built.embed_tokens.__call__
        self._rotary: Callable[..., tuple[Tensor, Tensor]] = built.rotary_emb.__call__
        self._by_kind = "layer_type" in inspect.signature(built.rotary_emb.forward).parameters
        self._layers = [_Layer(layer, partial(direct, few_rows=few_rows)) for layer in built.layers]
        self._norm = norm.scale_only(built.norm)

    def __call__(self, ids_R: Tensor, positions_R: Tensor, decoder: Decoder) -> Tensor:
        """States (R, E)."""
        states = self._embed(ids_R)
        rotations: dict[str | None, tuple[Tensor, Tensor]] = {}
        for layer in self._layers:
            kind = layer.kind if self._by_kind else None
            if kind not in rotations:
                places_R1 = positions_R[:, None]
                rotations[kind] = self._rotary(states, places_R1, kind) if kind else self._rotary(states, places_R1)
            states = layer(states, rotations[kind], decoder)
        return self._norm(states)


class _Layer:
    """A decoder layer for one token a row. kind: which rotary positions it takes, where a model has several."""

    def __init__(self, layer: nn.Module, linear: Callable[[nn.Module], Product]) -> None:
        built: Any = layer
        attention, mlp = built.self_attn, built.mlp
        self.kind: str | None = getattr(attention, "layer_type", None)
        self._place: int = attention.layer_idx
        self._width: int = attention.head_dim
        self._q, self._k, self._v, self._o = (linear(getattr(attention, f"{name}_proj")) for name in "qkvo")
        norms = (getattr(attention, f"{name}_norm", None) for name in "qk")
        self._q_norm, self._k_norm = (_same if each is None else norm.scale_only(each) for each in norms)
        self._gate, self._up, self._down = (linear(getattr(mlp, f"{name}_proj")) for name in ("gate", "up", "down"))
        self._act: Callable[[Tensor], Tensor] = mlp.act_fn.__call__
        self._before, after = norm.scale_only(built.input_layernorm), norm.scale_only(built.post_attention_layernorm)
        sandwich = hasattr(built, "pre_feedforward_layernorm")
        self._middle = norm.scale_only(built.pre_feedforward_layernorm) if sandwich else after
        self._after = (after, norm.scale_only(built.post_feedforward_layernorm)) if sandwich else (_same, _same)

    def __call__(self, states: Tensor, rotation: tuple[Tensor, Tensor], decoder: Decoder) -> Tensor:
        """States (R, E); rotation: cosines and sines, both (R, 1, D)."""
        x = self._before(states)
        rows, width = len(x), self._width
        q_RHD, k_RKD = self._q_norm(self._q(x).view(rows, -1, width)), self._k_norm(self._k(x).view(rows, -1, width))
        both = _rotated(torch.cat([q_RHD, k_RKD], dim=1), *rotation)
        heads = q_RHD.shape[1]
        v_RKD = self._v(x).view(rows, -1, width)
        states = states + self._after[0](
            self._o(decoder.attention(self._place, both[:, :heads], both[:, heads:], v_RKD))
        )
        x = self._middle(states)
        return states + self._after[1](self._down(self._act(self._gate(x)).mul_(self._up(x))))


def _rotated(x_RND: Tensor, cos_R1D: Tensor, sin_R1D: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) in the halves' order of transformers."""
    half = x_RND.shape[-1] // 2
    first, second = slice(None, half), slice(half, None)
    rotated = x_RND * cos_R1D
    rotated[..., first].addcmul_(x_RND[..., second], sin_R1D[..., first], value=-1.0)
    rotated[..., second].addcmul_(x_RND[..., first], sin_R1D[..., second])
    return rotated


def _same(x: Tensor) -> Tensor:
    return x
