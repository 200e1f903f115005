"""Attention of the packed layout: group by group, queries in blocks; no padding, nothing of the future.

A block holds the same query positions of all replies of a group that reach there. Its keys are the whole prompt, which
all replies read in place, and the replies' own keys up to the block's end. So what is computed beyond the triangle that
theory asks for is at most a block's own half.

N packed tokens, H query heads, Hk key heads, G query heads per key head, D head width; of a group: R replies, longest
first, L tokens of the longest, p prompt tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gad.layouts import query_blocks
from gad.models.attention import Heads

Shapes = tuple[tuple[int, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries `start:end` of the first `rows` rows; `bias`: None, or what is added to their scores (T, p + end)."""

    start: int
    end: int
    rows: int
    bias: Tensor


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows that are computed together: a prompt alone, or a group's replies, who also read `prompt`.

    tokens: flat places of the rows' tokens, padded to the longest (R * L); real: the places in that block that hold
    tokens, in the order of `targets`, their flat places.
    """

    prompt: slice | None
    rows: int
    length: int
    tokens: Tensor
    real: Tensor
    targets: Tensor
    blocks: tuple[_Block, ...]


@dataclass
class Packed:
    """The plan of a packed batch. shapes: see `PackedBatch`."""

    shapes: Shapes
    _parts: dict[int | None, list[_Part]] = field(default_factory=dict)

    def attend(self, heads: Heads) -> Tensor:
        """Attention output (1, H, N, D)."""
        q, k, v = (x[0].transpose(0, 1) for x in (heads.q, heads.k, heads.v))
        if torch.is_autocast_enabled(q.device.type):
            dtype = torch.get_autocast_dtype(q.device.type)
            q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
        parts = self._parts.get(heads.rule.window)
        if parts is None:
            parts = self._parts[heads.rule.window] = _parts(self.shapes, heads.rule.window, q)
        out: Tensor = _Attention.apply(q, k, v, parts, heads.rule.scaling, heads.rule.softcap)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1)[None]


def _parts(shapes: Shapes, window: int | None, like: Tensor) -> list[_Part]:
    parts, start = [], 0
    for prompt, lengths in shapes:
        parts.append(_part(start, [prompt], None, window, like))
        if lengths[0]:
            parts.append(_part(start + prompt, lengths, slice(start, start + prompt), window, like))
        start += prompt + sum(lengths)
    return parts


def _part(
    start: int, lengths: list[int] | tuple[int, ...], prompt: slice | None, window: int | None, like: Tensor
) -> _Part:
    device = like.device
    lengths_R = torch.tensor([length for length in lengths if length], device=device)
    rows, longest = len(lengths_R), int(lengths_R[0])
    steps_L = torch.arange(longest, device=device)
    starts_R = start + lengths_R.cumsum(0) - lengths_R
    real_RL = steps_L < lengths_R[:, None]
    tokens_RL = starts_R[:, None] + torch.where(real_RL, steps_L, 0)
    real = real_RL.flatten().nonzero()[:, 0]
    before = 0 if prompt is None else prompt.stop - prompt.start
    blocks = tuple(
        _Block(first, end, count, _bias(before, first, end, window, like))
        for first, end, count in query_blocks(lengths)
    )
    return _Part(prompt, rows, longest, tokens_RL.flatten(), real, tokens_RL.flatten()[real], blocks)


def _bias(before: int, start: int, end: int, window: int | None, like: Tensor) -> Tensor:
    """(T, before + end): -inf on the future and on what is beyond a window."""
    query_T1 = before + torch.arange(start, end, device=like.device)[:, None]
    distance = query_T1 - torch.arange(before + end, device=like.device)
    hidden = distance < 0
    if window is not None:
        hidden |= distance >= window
    return torch.zeros(hidden.shape, dtype=like.dtype, device=like.device).masked_fill_(hidden, float("-inf"))


class _Rows:
    """Queries, keys and values of a part, heads first: (Hk, R, G, L, D) and (Hk, R, L, D), and the prompt's."""

    def __init__(self, part: _Part, q: Tensor, k: Tensor, v: Tensor) -> None:
        key_heads, width = k.shape[1:]
        self.group = q.shape[1] // key_heads
        shape = (part.rows, part.length, key_heads)
        self.q = q.index_select(0, part.tokens).view(*shape, self.group, width).permute(2, 0, 3, 1, 4)
        self.k, self.v = (x.index_select(0, part.tokens).view(*shape, width).permute(2, 0, 1, 3) for x in (k, v))
        self.prompt_k: Tensor | None = None
        self.prompt_v: Tensor | None = None
        if part.prompt is not None:
            self.prompt_k, self.prompt_v = (x[part.prompt].transpose(0, 1) for x in (k, v))

    def queries(self, x: Tensor, block: _Block) -> Tensor:
        """Of (Hk, R, G, L, D) the block's, (Hk, R', G * T, D)."""
        return x[:, : block.rows, :, block.start : block.end].flatten(2, 3)

    def keys(self, x: Tensor, block: _Block) -> Tensor:
        """Of (Hk, R, L, D) what the block may see, (Hk * R', S, D)."""
        return x[:, : block.rows, : block.end].flatten(0, 1)


def _padded(part: _Part, x: Tensor, shape: torch.Size) -> Tensor:
    """A part's rows of (N, H, D) as (Hk, R, G, L, D), with zeros on padding."""
    key_heads, rows, group, length, width = shape
    flat = x.new_zeros(rows * length, *x.shape[1:]).index_copy_(0, part.real, x.index_select(0, part.targets))
    return flat.view(rows, length, key_heads, group, width).permute(2, 0, 3, 1, 4)


def _scores(rows: _Rows, block: _Block, q: Tensor) -> Tensor:
    """Raw scores (Hk, R', G * T, p + S)."""
    own = torch.bmm(q.flatten(0, 1), rows.keys(rows.k, block).transpose(1, 2)).view(*q.shape[:3], -1)
    if rows.prompt_k is None:
        return own
    prompt = torch.bmm(q.flatten(1, 2), rows.prompt_k.transpose(1, 2)).view(*q.shape[:3], -1)
    return torch.cat([prompt, own], dim=-1)


class _Attention(torch.autograd.Function):
    """By hand, because autograd would write a zero tensor of the whole batch for every slice that it goes back through.

    q (N, H, D), k and v (N, Hk, D) to (N, H, D).
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[_Part], scaling: float, softcap: float | None
    ) -> Tensor:
        out = q.new_empty(q.shape)
        saved: list[Tensor] = []
        with torch.autocast(q.device.type, enabled=False):
            for part in parts:
                rows = _Rows(part, q, k, v)
                mixed = q.new_empty(rows.q.shape)
                for block in part.blocks:
                    scores = _scores(rows, block, rows.queries(rows.q, block) * scaling)
                    slope = None
                    if softcap is not None:
                        slope = torch.tanh(scores / softcap)
                        scores = softcap * slope
                    grouped = scores.view(*scores.shape[:2], rows.group, -1, scores.shape[-1])
                    weights = torch.softmax(grouped.add_(block.bias), -1).view(scores.shape)
                    saved += [weights] if slope is None else [weights, slope]
                    before = weights.shape[-1] - block.end
                    result = torch.bmm(weights[..., before:].flatten(0, 1), rows.keys(rows.v, block))
                    result = result.view(*weights.shape[:3], -1)
                    if rows.prompt_v is not None:
                        result += torch.bmm(weights[..., :before].flatten(1, 2), rows.prompt_v).view(result.shape)
                    target = mixed[:, : block.rows, :, block.start : block.end]
                    target.copy_(result.view(target.shape))
                flat = mixed.permute(1, 3, 0, 2, 4).reshape(-1, *q.shape[1:])
                out.index_copy_(0, part.targets, flat.index_select(0, part.real))
        ctx.save_for_backward(q, k, v, *saved)
        ctx.settings = (parts, scaling, softcap)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        parts, scaling, softcap = ctx.settings
        q_grad, k_grad, v_grad = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
        kept = iter(saved)
        with torch.autocast(q.device.type, enabled=False):
            for part in parts:
                rows = _Rows(part, q, k, v)
                grads, out_grad = _PartGradients(rows), _padded(part, grad, rows.q.shape)
                for block in part.blocks:
                    weights = next(kept)
                    grads.add(
                        block, weights, None if softcap is None else next(kept), rows.queries(out_grad, block), scaling
                    )
                grads.into(part, q_grad, k_grad, v_grad)
        return q_grad, k_grad, v_grad, None, None, None


class _PartGradients:
    """Gradients of a part's queries, keys and values, summed over its blocks."""

    def __init__(self, rows: _Rows) -> None:
        self._rows = rows
        self._q = rows.q.new_empty(rows.q.shape)
        self._k, self._v = (torch.zeros(rows.k.shape, dtype=rows.k.dtype, device=rows.k.device) for _ in range(2))
        self._prompt: list[tuple[Tensor, Tensor]] = []

    def add(self, block: _Block, weights: Tensor, slope: Tensor | None, grad: Tensor, scaling: float) -> None:
        """grad (Hk, R', G * T, D): of the block's output."""
        rows = self._rows
        before = weights.shape[-1] - block.end
        flat = grad.flatten(0, 1)
        weights_grad = torch.bmm(flat, rows.keys(rows.v, block).transpose(1, 2)).view(*grad.shape[:3], -1)
        if rows.prompt_v is not None:
            from_prompt = torch.bmm(grad.flatten(1, 2), rows.prompt_v.transpose(1, 2)).view(*grad.shape[:3], -1)
            weights_grad = torch.cat([from_prompt, weights_grad], dim=-1)
        scores_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
        if slope is not None:
            scores_grad = scores_grad * (1.0 - slope.square())
        q = rows.queries(rows.q, block) * scaling
        own = scores_grad[..., before:].flatten(0, 1)
        self._add_own(self._k, block, torch.bmm(own.transpose(1, 2), q.flatten(0, 1)))
        self._add_own(self._v, block, torch.bmm(weights[..., before:].flatten(0, 1).transpose(1, 2), flat))
        q_grad = torch.bmm(own, rows.keys(rows.k, block)).view(q.shape)
        if rows.prompt_k is not None:
            read = scores_grad[..., :before].flatten(1, 2)
            q_grad += torch.bmm(read, rows.prompt_k).view(q.shape)
            by_k = torch.bmm(read.transpose(1, 2), q.flatten(1, 2))
            by_v = torch.bmm(weights[..., :before].flatten(1, 2).transpose(1, 2), grad.flatten(1, 2))
            self._prompt.append((by_k, by_v))
        target = self._q[:, : block.rows, :, block.start : block.end]
        torch.mul(q_grad.view(target.shape), scaling, out=target)

    def _add_own(self, total: Tensor, block: _Block, found: Tensor) -> None:
        target = total[:, : block.rows, : block.end]
        target += found.view(target.shape)

    def into(self, part: _Part, q_grad: Tensor, k_grad: Tensor, v_grad: Tensor) -> None:
        """Add to the gradients of the whole batch."""
        flat = self._q.permute(1, 3, 0, 2, 4).reshape(-1, *q_grad.shape[1:])
        q_grad.index_copy_(0, part.targets, flat.index_select(0, part.real))
        for total, own in ((k_grad, self._k), (v_grad, self._v)):
            flat = own.permute(1, 2, 0, 3).reshape(-1, *total.shape[1:])
            place = slice(int(part.targets[0]), int(part.targets[-1]) + 1)
            total[place] += flat.index_select(0, part.real)
        if part.prompt is not None:
            for by_k, by_v in self._prompt:
                k_grad[part.prompt] += by_k.transpose(0, 1)
                v_grad[part.prompt] += by_v.transpose(0, 1)
