"""Attention of the packed layout: nothing of the future, and next to no padding.

Rows are computed in portions (`gad.packing`), queries in blocks: a block holds the same query positions of all rows of
a portion that reach there. Its keys are the rows' prompts, each of which all replies read in place, and the rows' own
keys up to the block's end. So what is computed beyond the triangle that theory asks for is at most a block's own half.

N packed tokens, H query heads, Hk key heads, G query heads per key head, D head width; of a portion: P prompts of at
most p tokens, R rows of each, L tokens of the longest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from gad.models.attention import Heads
from gad.packing import Portion, Shape, Span, portions, query_blocks

Shapes = tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class _Block:
    """Queries `start:end` of each prompt's first `rows` rows. bias: what is added to their scores,
    (P, 1, 1, T, p + end)."""

    start: int
    end: int
    rows: int
    bias: Tensor


@dataclass(frozen=True, slots=True)
class _Places:
    """Padded spans of the packed row. tokens: a flat place for each of their tokens, any one on padding; real: the
    places among those that hold tokens, in the order of `targets`, their flat places."""

    shape: tuple[int, ...]
    tokens: Tensor
    real: Tensor
    targets: Tensor

    @classmethod
    def of(cls, spans: Sequence[Span], shape: tuple[int, ...], device: torch.device) -> _Places:
        """shape: of the spans and of the longest one's tokens."""
        starts_S1 = torch.tensor([span.start for span in spans], device=device)[:, None]
        steps_T = torch.arange(shape[-1], device=device)
        real_ST = steps_T < torch.tensor([span.length for span in spans], device=device)[:, None]
        tokens = torch.where(real_ST, starts_S1 + steps_T, 0).flatten()
        real = real_ST.flatten().nonzero()[:, 0]
        return cls(shape, tokens, real, tokens[real])

    def gather(self, x: Tensor) -> Tensor:
        """Of (N, ...) the spans' tokens, (*shape, ...)."""
        return x.index_select(0, self.tokens).view(*self.shape, *x.shape[1:])

    def padded(self, x: Tensor) -> Tensor:
        """As `gather`, with zeros on padding."""
        flat = x.new_zeros(len(self.tokens), *x.shape[1:]).index_copy_(0, self.real, x.index_select(0, self.targets))
        return flat.view(*self.shape, *x.shape[1:])

    def scatter(self, x: Tensor, into: Tensor) -> None:
        """Write (*shape, ...) to where the tokens are."""
        into.index_copy_(0, self.targets, x.reshape(-1, *into.shape[1:]).index_select(0, self.real))

    def add(self, x: Tensor, into: Tensor) -> None:
        """Add (*shape, ...) to what is where the tokens are."""
        found = x.reshape(-1, *into.shape[1:]).index_select(0, self.real)
        into.index_copy_(0, self.targets, into.index_select(0, self.targets).add_(found))


@dataclass(frozen=True, slots=True)
class _Part:
    """A portion's places and blocks. rows: (P, R, L); prompts: (P, p), None where rows have none."""

    rows: _Places
    prompts: _Places | None
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
            parts = self._parts[heads.rule.window] = [
                _part(portion, heads.rule.window, q) for portion in portions(self.shapes)
            ]
        out: Tensor = _Attention.apply(q, k, v, parts, heads.rule.scaling, heads.rule.softcap)  # type: ignore[no-untyped-call]
        return out.transpose(0, 1)[None]


def _part(portion: Portion, window: int | None, like: Tensor) -> _Part:
    lengths = portion.lengths
    rows = [span for each in portion.rows for span in (*each, *[Span(0, 0)] * (len(lengths) - len(each)))]
    places = _Places.of(rows, (len(portion.prompts), len(lengths), lengths[0]), like.device)
    prompts = None
    if portion.prompt:
        prompts = _Places.of(portion.prompts, (len(portion.prompts), portion.prompt), like.device)
    blocks = tuple(
        _Block(start, end, count, _bias(portion, start, end, window, like))
        for start, end, count in query_blocks(lengths)
    )
    return _Part(places, prompts, blocks)


def _bias(portion: Portion, start: int, end: int, window: int | None, like: Tensor) -> Tensor:
    """(P, 1, 1, T, p + end): -inf on a prompt's padding, on the future and on what is beyond a window."""
    device = like.device
    before_P1 = torch.tensor([[span.length] for span in portion.prompts], device=device)
    steps_P = torch.arange(portion.prompt, device=device)
    hidden_PP = steps_P >= before_P1
    keys_PS = torch.cat([steps_P.expand(len(before_P1), -1), before_P1 + torch.arange(end, device=device)], dim=1)
    queries_PT = before_P1 + torch.arange(start, end, device=device)
    distance_PTS = queries_PT[:, :, None] - keys_PS[:, None, :]
    hidden_PTS = distance_PTS < 0
    if window is not None:
        hidden_PTS |= distance_PTS >= window
    hidden_PTS[:, :, : portion.prompt] |= hidden_PP[:, None, :]
    bias_PTS = torch.zeros(hidden_PTS.shape, dtype=like.dtype, device=device).masked_fill_(hidden_PTS, float("-inf"))
    return bias_PTS[:, None, None]


class _Rows:
    """Scaled queries, keys and values of a part, heads first: (Hk, P, R, G, L, D) and (Hk, P, R, L, D); the prompts',
    (Hk * P, p, D)."""

    def __init__(self, part: _Part, q: Tensor, k: Tensor, v: Tensor, scaling: float) -> None:
        self.group = q.shape[1] // k.shape[1]
        self.q = self.by_head(part.rows.gather(q)).mul_(scaling)
        self.k, self.v = (part.rows.gather(x).permute(3, 0, 1, 2, 4) for x in (k, v))
        self.prompt_k: Tensor | None = None
        self.prompt_v: Tensor | None = None
        if part.prompts is not None:
            self.prompt_k, self.prompt_v = (part.prompts.gather(x).permute(2, 0, 1, 3).flatten(0, 1) for x in (k, v))

    def by_head(self, x: Tensor) -> Tensor:
        """(P, R, L, H, D) to (Hk, P, R, G, L, D)."""
        return x.view(*x.shape[:3], -1, self.group, x.shape[-1]).permute(3, 0, 1, 4, 2, 5)

    def queries(self, x: Tensor, block: _Block) -> Tensor:
        """Of (Hk, P, R, G, L, D) the block's, (Hk, P, R', G * T, D)."""
        return x[:, :, : block.rows, :, block.start : block.end].flatten(3, 4)

    def keys(self, x: Tensor, block: _Block) -> Tensor:
        """Of (Hk, P, R, L, D) what the block may see, (Hk * P * R', S, D)."""
        return x[:, :, : block.rows, : block.end].flatten(0, 2)


def _by_prompt(x: Tensor) -> Tensor:
    """(Hk, P, R', T, S) to (Hk * P, R' * T, S)."""
    return x.flatten(2, 3).flatten(0, 1)


def _products(rows: _Rows, block: _Block, x: Tensor, own: Tensor, prompt: Tensor | None) -> Tensor:
    """Of x (Hk, P, R', G * T, D) with what the block sees of the prompts (Hk * P, p, D) and of its rows' own
    (Hk, P, R, L, D): (Hk, P, R', G * T, p + S)."""
    found = torch.bmm(x.flatten(0, 2), rows.keys(own, block).transpose(1, 2)).view(*x.shape[:4], -1)
    if prompt is None:
        return found
    return torch.cat([torch.bmm(_by_prompt(x), prompt.transpose(1, 2)).view(*x.shape[:4], -1), found], dim=-1)


def _mixture(rows: _Rows, block: _Block, weights: Tensor, own: Tensor, prompt: Tensor | None) -> Tensor:
    """The way back: weights (Hk, P, R', G * T, p + S) of what the block sees, (Hk, P, R', G * T, D)."""
    before = weights.shape[-1] - block.end
    found = torch.bmm(weights[..., before:].flatten(0, 2), rows.keys(own, block)).view(*weights.shape[:4], -1)
    if prompt is not None:
        found += torch.bmm(_by_prompt(weights[..., :before]), prompt).view(found.shape)
    return found


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
                rows = _Rows(part, q, k, v, scaling)
                mixed = q.new_empty(rows.q.shape)
                for block in part.blocks:
                    scores = _products(rows, block, rows.queries(rows.q, block), rows.k, rows.prompt_k)
                    slope = None
                    if softcap is not None:
                        slope = torch.tanh(scores / softcap)
                        scores = softcap * slope
                    grouped = scores.unflatten(3, (rows.group, -1))
                    weights = torch.softmax(grouped.add_(block.bias), -1).view(scores.shape)
                    saved += [weights] if slope is None else [weights, slope]
                    target = mixed[:, :, : block.rows, :, block.start : block.end]
                    target.copy_(_mixture(rows, block, weights, rows.v, rows.prompt_v).view(target.shape))
                part.rows.scatter(mixed.permute(1, 2, 4, 0, 3, 5), out)
        ctx.save_for_backward(q, k, v, *saved)
        ctx.settings = (parts, scaling, softcap)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, *saved = ctx.saved_tensors
        parts, scaling, softcap = ctx.settings
        q_grad, k_grad, v_grad = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        kept = iter(saved)
        found: list[_PartGradients] = []
        with torch.autocast(q.device.type, enabled=False):
            for part in parts:
                rows = _Rows(part, q, k, v, scaling)
                grads, out_grad = _PartGradients(part, rows), rows.by_head(part.rows.padded(grad))
                for block in part.blocks:
                    weights = next(kept)
                    grads.add(block, weights, None if softcap is None else next(kept), rows.queries(out_grad, block))
                grads.own_into(q_grad, k_grad, v_grad, scaling)
                found.append(grads)
            for grads in found:  # each token is in one part's rows, and may be in another one's prompts
                grads.prompts_into(k_grad, v_grad)
        return q_grad, k_grad, v_grad, None, None, None


class _PartGradients:
    """Gradients of a part's scaled queries, keys and values, summed over its blocks."""

    def __init__(self, part: _Part, rows: _Rows) -> None:
        self._part = part
        self._rows = rows
        self._q = rows.q.new_empty(rows.q.shape)
        self._k, self._v = (torch.zeros(rows.k.shape, dtype=rows.k.dtype, device=rows.k.device) for _ in range(2))
        self._prompt_k: Tensor | None = None
        self._prompt_v: Tensor | None = None

    def add(self, block: _Block, weights: Tensor, slope: Tensor | None, grad: Tensor) -> None:
        """grad (Hk, P, R', G * T, D): of the block's output."""
        rows = self._rows
        before = weights.shape[-1] - block.end
        weights_grad = _products(rows, block, grad, rows.v, rows.prompt_v)
        scores_grad = torch._softmax_backward_data(weights_grad, weights, -1, weights.dtype)
        if slope is not None:
            scores_grad = scores_grad * (1.0 - slope.square())
        q = rows.queries(rows.q, block)
        for total, weighed, x in ((self._k, scores_grad, q), (self._v, weights, grad)):
            target = total[:, :, : block.rows, : block.end]
            target += torch.bmm(weighed[..., before:].flatten(0, 2).transpose(1, 2), x.flatten(0, 2)).view(target.shape)
        if rows.prompt_k is not None:
            by_k, by_v = (
                torch.bmm(_by_prompt(weighed[..., :before]).transpose(1, 2), _by_prompt(x))
                for weighed, x in ((scores_grad, q), (weights, grad))
            )
            self._prompt_k = by_k if self._prompt_k is None else self._prompt_k + by_k
            self._prompt_v = by_v if self._prompt_v is None else self._prompt_v + by_v
        target = self._q[:, :, : block.rows, :, block.start : block.end]
        target.copy_(_mixture(rows, block, scores_grad, rows.k, rows.prompt_k).view(target.shape))

    def own_into(self, q_grad: Tensor, k_grad: Tensor, v_grad: Tensor, scaling: float) -> None:
        """Write what the part's own tokens get."""
        rows = self._part.rows
        rows.scatter(self._q.permute(1, 2, 4, 0, 3, 5).mul_(scaling), q_grad)
        rows.scatter(self._k.permute(1, 2, 3, 0, 4), k_grad)
        rows.scatter(self._v.permute(1, 2, 3, 0, 4), v_grad)

    def prompts_into(self, k_grad: Tensor, v_grad: Tensor) -> None:
        """Add what the prompts get that the part's rows read."""
        prompts = self._part.prompts
        if prompts is not None and self._prompt_k is not None and self._prompt_v is not None:
            for x, total in ((self._prompt_k, k_grad), (self._prompt_v, v_grad)):
                prompts.add(x.unflatten(0, (-1, prompts.shape[0])).permute(1, 2, 0, 3), total)
