"""One forward pass over a token batch, whatever its layout.

M hidden states, H width, V vocabulary, N predicted tokens, B replies, L reply tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gad.layouts import CacheBatch, PackedBatch, PaddedBatch, Readout, TokenBatch, TreeBatch
from gad.models.attention import Carried, Causal, Masked, Owners, Plan, Prefix, Prefixed
from gad.models.flex import Fused
from gad.models.linear import product
from gad.models.packed import Packed

CHUNK = 128
"""Rows of logits that exist at a time. Few enough that glibc keeps the memory of a chunk for the next one (32 MiB)."""
WORTH = 0.75
"""A narrowed layer computes what is read where that is at most this share of the tokens: picking them is a copy."""


def run(
    backbone: nn.Module,
    input_ids_RT: Tensor,
    position_ids_RT: Tensor,
    plan: Plan,
    *,
    read_N: Tensor | None = None,
    below_RTH: Tensor | None = None,
) -> Tensor:
    """Hidden states (R, T, H) of a transformers backbone whose attention is `gad.models.attention`.

    read_N, below_RTH: see `Carried`.
    """
    if read_N is not None and not 0 < len(read_N) <= WORTH * input_ids_RT.numel():
        read_N = None
    carried = Carried(plan, read_N, below_RTH)
    output = backbone(input_ids=input_ids_RT, position_ids=position_ids_RT, use_cache=False, plan=carried)
    states: Tensor = output.last_hidden_state
    return states


@dataclass(frozen=True, slots=True)
class Below:
    """Hidden states (R, T, H) of a batch after the layers that all members of a network have in common.

    replies_RTH: of the reply rows, where the layout has rows of their own for them.
    """

    rows_RTH: Tensor
    replies_RTH: Tensor | None = None


def hidden_states(
    backbone: nn.Module, batch: TokenBatch, *, read_N: Tensor | None = None, below: Below | None = None
) -> Tensor:
    """The matrix of hidden states (M, H) that `batch.readout` indexes.

    read_N: the rows of it that will be read; of a narrowed backbone the others mean nothing. below: states to go on
    from, of `below_states`.
    """
    rows, replies = _passes(backbone, batch, read_N, below)
    if not isinstance(batch, CacheBatch):
        return rows.flatten(0, 1)
    assert replies is not None
    last_PH = rows[torch.arange(len(rows), device=rows.device), batch.prompt_lengths_P - 1]
    return torch.cat([last_PH, replies.flatten(0, 1)])


def below_states(lower: nn.Module, batch: TokenBatch) -> Below:
    """What `lower`, of `views.below`, gives for every token; no gradient goes back into it."""
    with torch.no_grad():
        return Below(*_passes(lower, batch, None, None))


def _passes(
    backbone: nn.Module, batch: TokenBatch, read_N: Tensor | None, below: Below | None
) -> tuple[Tensor, Tensor | None]:
    """Hidden states of the rows, and of reply rows where there are any."""
    given = None if below is None else below.rows_RTH
    if not isinstance(batch, CacheBatch):
        plan = _plan(batch)
        ids, positions = batch.input_ids_RT, batch.position_ids_RT
        return run(backbone, ids, positions, plan, read_N=read_N, below_RTH=given), None
    count = len(batch.prompt_lengths_P)
    narrow = read_N is not None
    prefix, prompts = _prompts(backbone, batch.prompt_ids_PT, batch.prompt_lengths_P, given, narrow=narrow)
    owners = Owners.of(list(batch.replies_per_prompt), batch.reply_ids_BL.device)
    replies = run(
        backbone,
        batch.reply_ids_BL,
        batch.position_ids_BL,
        Prefixed(prefix, owners, batch.position_ids_BL),
        read_N=None if read_N is None else read_N[read_N >= count] - count,
        below_RTH=None if below is None else below.replies_RTH,
    )
    return prompts, replies


def _plan(batch: PaddedBatch | TreeBatch | PackedBatch) -> Plan:
    match batch:
        case PaddedBatch():
            return Causal()
        case TreeBatch():
            return Fused.tree(batch) if batch.fused else Masked(batch.visible_RTT, batch.position_ids_RT)
        case PackedBatch():
            return Fused.packed(batch) if batch.fused else Packed(batch.shapes)


def prompt_states(backbone: nn.Module, prompt_ids_PT: Tensor, lengths_P: Tensor) -> tuple[Prefix, Tensor]:
    """Keys and values of the prompts, and the hidden state (P, H) of each prompt's last token."""
    prefix, states = _prompts(backbone, prompt_ids_PT, lengths_P, None, narrow=True)
    return prefix, states[torch.arange(len(lengths_P), device=states.device), lengths_P - 1]


def _prompts(
    backbone: nn.Module, ids_PT: Tensor, lengths_P: Tensor, below_PTH: Tensor | None, *, narrow: bool
) -> tuple[Prefix, Tensor]:
    """Keys and values of the prompts, and their hidden states; narrow: of their last tokens alone."""
    prefix, width = Prefix(lengths_P), ids_PT.shape[1]
    positions = torch.arange(width, device=ids_PT.device).expand_as(ids_PT)
    last_P = torch.arange(len(lengths_P), device=ids_PT.device) * width + lengths_P - 1
    read_P = last_P if narrow else None
    return prefix, run(backbone, ids_PT, positions, Causal(record=prefix), read_N=read_P, below_RTH=below_PTH)


def reply_logps(
    states_MH: Tensor, readout: Readout, head_VH: Tensor, *, temperature: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (nats) of the reply tokens and entropies of their distributions, both (B, L), 0 on padding.

    Entropies carry no gradient.
    """
    mask_BL = readout.mask_BL
    rows_NH = states_MH[readout.predictors_BL[mask_BL]]
    logps_N, entropies_N = token_logps(
        rows_NH, head_VH, readout.targets_BL[mask_BL], temperature=temperature, softcap=softcap
    )
    empty_BL = torch.zeros(mask_BL.shape, dtype=logps_N.dtype, device=logps_N.device)
    return empty_BL.masked_scatter(mask_BL, logps_N), empty_BL.masked_scatter(mask_BL, entropies_N)


def token_logps(
    rows_NH: Tensor, head_VH: Tensor, targets_N: Tensor, *, temperature: float = 1.0, softcap: float | None = None
) -> tuple[Tensor, Tensor]:
    """log softmax of `rows @ head.T / temperature` at the targets, and the entropies; N x V never exists at once."""
    device = rows_NH.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else head_VH.dtype
    rows_NH, head_VH = rows_NH.to(dtype), head_VH.to(dtype)
    logps_N, entropies_N = _TokenLogps.apply(  # type: ignore[no-untyped-call]
        rows_NH, head_VH, targets_N, temperature, softcap
    )
    return logps_N, entropies_N


class _TokenLogps(torch.autograd.Function):
    """Chunked log-probabilities.

    With a frozen head the gradient by the rows, head[target] - sum_v p_v head[v], is computed in the forward pass
    while the chunk's probabilities exist: the backward pass is one multiplication. With a trained head the backward
    pass computes the chunk's logits again, because the head's gradient needs the incoming one.
    """

    @staticmethod
    def forward(
        ctx: Any, rows_NH: Tensor, head_VH: Tensor, targets_N: Tensor, temperature: float, softcap: float | None
    ) -> tuple[Tensor, Tensor]:
        train_head, train_rows = head_VH.requires_grad, rows_NH.requires_grad
        precompute = train_rows and not train_head
        logps, entropies, slopes = [], [], []
        for start in range(0, len(rows_NH), CHUNK):
            rows, targets = rows_NH[start : start + CHUNK], targets_N[start : start + CHUNK]
            logits, slope = _logits(rows, head_VH, temperature, softcap)
            probs = logits.softmax(-1)
            # Of the likeliest token both logit and probability are known, and the latter is at least 1 / V.
            normalizers = logits.amax(-1) - probs.amax(-1).log()
            logps.append(logits.gather(-1, targets[:, None])[:, 0] - normalizers)
            entropies.append(normalizers - torch.linalg.vecdot(probs, logits))
            if precompute:
                slopes.append(_row_gradient(probs, targets, slope, head_VH))
        ctx.settings = (temperature, softcap)
        ctx.save_for_backward(rows_NH, head_VH, targets_N, torch.cat(slopes) if slopes else None)
        empty = rows_NH.new_zeros(0, dtype=torch.promote_types(rows_NH.dtype, torch.float32))
        logps_N = torch.cat(logps) if logps else empty
        entropies_N = torch.cat(entropies) if entropies else empty.clone()
        ctx.mark_non_differentiable(entropies_N)
        return logps_N, entropies_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None]:
        gradient_N = gradients[0]
        rows_NH, head_VH, targets_N, slopes_NH = ctx.saved_tensors
        if slopes_NH is not None:
            return (gradient_N[:, None] * slopes_NH).to(rows_NH.dtype), None, None, None, None
        rows_grad = torch.zeros_like(rows_NH)
        head_grad = torch.zeros_like(head_VH, dtype=gradient_N.dtype)
        for start in range(0, len(rows_NH), CHUNK):
            part = slice(start, start + CHUNK)
            logits, slope = _logits(rows_NH[part], head_VH, *ctx.settings)
            delta = _delta(logits.softmax(-1), targets_N[part], slope) * -gradient_N[part, None]
            delta = delta.to(head_VH.dtype)
            rows_grad[part] = product(delta, head_VH.T)
            head_grad += product(delta.T, rows_NH[part].T)
        return rows_grad, head_grad.to(head_VH.dtype), None, None, None


def _logits(rows: Tensor, head: Tensor, temperature: float, softcap: float | None) -> tuple[Tensor, Tensor | float]:
    """float32 (or wider) logits over the temperature, and their derivative by the raw product."""
    raw = product(rows, head)
    raw = raw if raw.dtype == torch.float64 else raw.float()
    if softcap is None:
        return (raw if temperature == 1.0 else raw / temperature), 1.0 / temperature
    squashed = torch.tanh(raw / softcap)
    return squashed * (softcap / temperature), (1.0 - squashed.square()) / temperature


def _delta(probs: Tensor, targets: Tensor, slope: Tensor | float) -> Tensor:
    """-d log p[target] / d raw logits. Overwrites `probs`."""
    probs[torch.arange(len(targets), device=probs.device), targets] -= 1.0
    return probs if isinstance(slope, float) and slope == 1.0 else probs.mul_(slope)


def _row_gradient(probs: Tensor, targets: Tensor, slope: Tensor | float, head: Tensor) -> Tensor:
    return product(_delta(probs, targets, slope).to(head.dtype), head.T).neg_()
