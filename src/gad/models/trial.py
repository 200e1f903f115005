"""Can this model's layers follow an attention plan? Tried once, on a few tokens, against transformers' own attention.

Layers that mix tokens by other means than attention (convolutions, recurrences), or attention with parts of its own
(sinks, chunks), ignore a plan without a word; what they compute then is something else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gad.errors import ModelError, is_out_of_memory
from gad.layout_costs import ALL
from gad.layouts import LayoutName, PaddedBatch, Readout, TokenGroup, build, pad, to_device
from gad.models.decoding import Decoder, Forward, layerwise, stepwise
from gad.models.forward import hidden_states, prompt_states
from gad.models.passes import Passes, Shortcuts, lasts, predictors

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROMPTS = ((2, 3, 5, 7, 11, 13), (17, 19, 23))
REPLIES = (((29, 31, 37, 41), (43, 47)), ((53,), (59, 61, 67, 71, 73)))
FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)
FAR = {torch.bfloat16: 0.3, torch.float16: 0.3}
FAR_IN_FULL = 1e-3
"""Relative distances that rounding alone does not make."""
FUSED: tuple[LayoutName, ...] = ("packed", "tree")
LONGER = 12
"""FlexAttention is tried on prompts and replies that are so many times longer: over several of its blocks."""


def unfit(model: PreTrainedModel, reference: str, *, trains: bool = True) -> dict[LayoutName, str]:
    """Layouts that the model cannot do, and why. trains: it will be trained, so kernels for that are tried too.

    Raises ModelError where it cannot do padded rows, or replies that read their prompt's keys and values, which is
    sampling too: without these nothing here works.
    """
    embeddings: Any = model.get_input_embeddings()
    rows = embeddings.weight.shape[0]
    groups = _groups(rows)
    kind = model.config.model_type
    try:
        with torch.no_grad():
            expected = _alone(model, groups)
            off = {layout: _distance(model, groups, layout, expected) for layout in ALL}
    except FAILURES as error:
        raise ModelError(f"{reference}: a {kind} model fails on a few tokens ({error}); take another model") from error
    far = FAR.get(model.dtype, FAR_IN_FULL)
    for layout in ("padded", "cache"):
        if off[layout] > far:
            raise ModelError(
                f"{reference}: a {kind} model computes something else with gad's attention than with its own (off by "
                f"{off[layout]:.1%}): its layers do more than attend; gad trains models whose layers attend and "
                "nothing else, such as Llama, Qwen2, Qwen3, Gemma, Mistral, SmolLM"
            )
    found: dict[LayoutName, str] = {
        layout: f"a {kind} model computes something else in it (off by {off[layout]:.1%})"
        for layout in ALL
        if off[layout] > far
    }
    if trains and model.device.type == "cuda" and "packed" not in found and (fault := fused_fault(model, groups, far)):
        found["packed"] = f"FlexAttention does not work here: {fault}"
    return found


def fused_fault(model: PreTrainedModel, groups: list[TokenGroup], far: float) -> str | None:
    """Why FlexAttention is of no use to this model on its device, or None.

    Both directions are tried: many a kernel that goes forward finds no room on the chip for its backward pass. What a
    missing compiler, a head width or a number type ends in is not documented, so every error counts.
    """
    longer = [TokenGroup(group.prompt * LONGER, tuple(reply * LONGER for reply in group.replies)) for group in groups]
    try:
        for layout in FUSED:
            plain, fused = (_both_ways(model, longer, layout, fused=fused) for fused in (False, True))
            off = max(float((a - b).norm() / b.norm()) for a, b in zip(fused, plain, strict=True))
            if not off <= far:
                return f"a {model.config.model_type} model computes something else by it (off by {off:.1%})"
    except Exception as error:
        if is_out_of_memory(error):
            raise
        return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    return None


def _both_ways(
    model: PreTrainedModel, groups: list[TokenGroup], layout: LayoutName, *, fused: bool
) -> tuple[Tensor, Tensor]:
    """States that predict replies, and the gradient of a sum of them by the embedded tokens; no weight gets one."""
    batch = to_device(build(groups, layout, fused=fused), model.device)
    embedded: list[Tensor] = []

    def keep(_module: object, _inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        states = _read(hidden_states(getattr(model, model.base_model_prefix), batch), batch.readout)
    finally:
        hook.remove()
    ramp_H = torch.linspace(-1.0, 1.0, states.shape[-1], dtype=states.dtype, device=states.device)
    (slope,) = torch.autograd.grad((states @ ramp_H).sum(), embedded)
    return states.detach(), slope.double()


def _groups(rows: int) -> list[TokenGroup]:
    return [
        TokenGroup(_within(prompt, rows), tuple(_within(reply, rows) for reply in replies))
        for prompt, replies in zip(PROMPTS, REPLIES, strict=True)
    ]


def _within(ids: tuple[int, ...], rows: int) -> tuple[int, ...]:
    return tuple(token % rows for token in ids)


def _alone(model: PreTrainedModel, groups: list[TokenGroup]) -> Tensor:
    """By transformers' own attention, row by row."""
    backbone: Any = getattr(model, model.base_model_prefix)
    batch = to_device(build(groups, "padded"), model.device)
    assert isinstance(batch, PaddedBatch)
    config: Any = model.config
    ours = config._attn_implementation
    config._attn_implementation = "eager"
    try:
        output = backbone(input_ids=batch.input_ids_RT, position_ids=batch.position_ids_RT, use_cache=False)
    finally:
        config._attn_implementation = ours
    return _read(output.last_hidden_state.flatten(0, 1), batch.readout)


def _distance(model: PreTrainedModel, groups: list[TokenGroup], layout: LayoutName, expected: Tensor) -> float:
    """Infinite where a pass fails, unless for want of memory."""
    batch = to_device(build(groups, layout), model.device)
    try:
        states_MH = hidden_states(getattr(model, model.base_model_prefix), batch)
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        return float("inf")
    return float((_read(states_MH, batch.readout) - expected).norm() / expected.norm())


def _read(states_MH: Tensor, readout: Readout) -> Tensor:
    """What predicts the replies' tokens, and their last states."""
    places = torch.cat([readout.predictors_BL[readout.mask_BL], readout.last_B])
    return states_MH[places].double()


def shortcuts(model: PreTrainedModel) -> Shortcuts:
    """What this model can leave out, tried on a few tokens: with and without it gives the same."""
    embeddings: Any = model.get_input_embeddings()
    groups = _groups(embeddings.weight.shape[0])
    batch = to_device(build(groups, "padded"), model.device)
    backbone: Any = getattr(model, model.base_model_prefix)
    read_N = torch.cat([predictors(batch.readout), lasts(batch.readout)]).unique()
    far = FAR.get(model.dtype, FAR_IN_FULL)

    def agrees(compute: Callable[[], Tensor], expected: Tensor) -> bool:
        try:
            found = compute().double()
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            return False
        return float((found - expected).norm() / expected.norm()) <= far

    with torch.no_grad():
        whole, forward = hidden_states(backbone, batch)[read_N].double(), stepwise(backbone)
        return Shortcuts(
            narrows=agrees(lambda: Passes(backbone).states(batch, read_N)[read_N], whole),
            shares=agrees(lambda: Passes(backbone, common=1, narrow=False).states(batch, read_N)[read_N], whole),
            steps=forward is not None
            and agrees(lambda: _decoded(backbone, forward, groups), _decoded(backbone, layerwise(backbone), groups)),
        )


def _decoded(backbone: nn.Module, forward: Forward, groups: list[TokenGroup]) -> Tensor:
    """States after each of a few steps, (steps * rows, H); the shorter replies are continued by their last token."""
    device = next(backbone.parameters()).device
    lengths_P = torch.tensor([len(group.prompt) for group in groups], device=device)
    prefix, _ = prompt_states(
        backbone, pad([group.prompt for group in groups], int(lengths_P.max())).to(device), lengths_P
    )
    replies = [reply for group in groups for reply in group.replies]
    limit = max(map(len, replies))
    decoder = Decoder(forward, prefix, [len(group.replies) for group in groups], limit)
    ids_SR = torch.tensor(
        [[reply[min(step, len(reply) - 1)] for reply in replies] for step in range(limit)], device=device
    )
    return torch.cat([decoder.step(ids_R) for ids_R in ids_SR]).double()
