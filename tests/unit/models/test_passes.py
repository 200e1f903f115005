"""What nobody reads is not computed, what all members have in common is computed once; nothing else changes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from gad.config.models import Full, Lora, Tuning
from gad.errors import ModelError
from gad.layouts import LayoutName, Readout, TokenBatch, TokenGroup, build
from gad.models.forward import hidden_states, reply_logps
from gad.models.network import Member
from gad.models.passes import Passes, lasts, predictors
from support import tiny
from unit.models import plain
from unit.models.test_layout_equivalence import GROUPS, LAYOUTS, tokens, weights

LORA = Lora(rank=2, alpha=3.0)
UPPER = Lora(rank=2, alpha=3.0, first_layer=2)
LONG_PROMPTS = [*GROUPS, TokenGroup(tokens(40, 20), (tokens(4, 21), tokens(3, 22)))]
"""Most tokens are prompts, so that it is worth picking those that predict a reply."""


def read(states_MH: Tensor, readout: Readout, member: Member, *, scores: bool) -> Tensor:
    """One number of each reply token, or of each reply."""
    if scores:
        return states_MH[readout.last_B] @ weights(tiny.SHAPE["hidden_size"], 0, torch.float64)
    network = member.network
    logps_BL, _ = reply_logps(states_MH, readout, network.head_VH, softcap=network.softcap)
    return logps_BL[readout.mask_BL]


def gradients(values_N: Tensor, member: Member) -> dict[str, Tensor]:
    (values_N * weights(len(values_N), 1, torch.float64)).sum().backward()
    return {name: gradient.clone() for name, gradient in plain.gradients(member).items()}


def found(
    member: Member, batch: TokenBatch, *, scores: bool, whole: bool, backbone: Any = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Values and gradients, by the passes or by the model as it is."""
    for parameter in member.parameters():
        parameter.grad = None
    with member.using():
        if whole:
            states_MH = hidden_states(backbone or member.network.backbone(), batch)
        else:
            states_MH = member.passes.states(batch, (lasts if scores else predictors)(batch.readout))
        values_N = read(states_MH, batch.readout, member, scores=scores)
        return values_N.detach(), gradients(values_N, member)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("tuning", [LORA, UPPER, Full()], ids=["lora", "upper", "full"])
def test_what_is_read_is_what_the_whole_model_gives(architecture: str, tuning: Tuning) -> None:
    """Values and gradients, in every layout, with activations recomputed or kept; the model's by padded rows."""
    padded = build(LONG_PROMPTS, "padded")
    with plain.wide():
        _, (model,) = plain.network(architecture, tuning, "first")
        wanted = {scores: found(model, padded, scores=scores, whole=True) for scores in (True, False)}
        for checkpointing in (False, True):
            _, (member,) = plain.network(architecture, tuning, "first", checkpointing=checkpointing)
            for layout in LAYOUTS:
                batch = build(LONG_PROMPTS, layout)
                for scores, (wanted_N, wanted_gradients) in wanted.items():
                    found_N, gradients = found(member, batch, scores=scores, whole=False)
                    torch.testing.assert_close(found_N, wanted_N, rtol=0, atol=1e-11)
                    plain.assert_same_gradients(gradients, wanted_gradients, 1e-9)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_last_layer_works_for_what_is_read_alone(layout: LayoutName) -> None:
    network, (member,) = plain.network("qwen2", LORA, "first")
    batch = build(LONG_PROMPTS, layout)
    last: Any = network.backbone().layers[-1]  # type: ignore[index, union-attr]
    rows: Counter[str] = Counter()
    for name, module in (("mlp", last.mlp.up_proj), ("q", last.self_attn.q_proj), ("k", last.self_attn.k_proj)):
        module.register_forward_pre_hook(
            lambda _, arguments, name=name: rows.update({name: arguments[0].shape[:-1].numel()})
        )
    with member.using(), torch.no_grad():
        member.passes.states(batch, lasts(batch.readout))
    replies = sum(len(group.replies) for group in LONG_PROMPTS)
    # An empty reply is read at its prompt's last token, which the cache layout computes for every prompt.
    assert rows["mlp"] == rows["q"] == (replies - 1 + len(LONG_PROMPTS) if layout == "cache" else replies)
    assert rows["k"] > 5 * rows["mlp"]


@pytest.mark.parametrize("architecture", ["qwen2", "gemma", "gemma3"])
@pytest.mark.parametrize("layout", LAYOUTS)
@plain.wide()
def test_what_members_have_in_common_is_computed_once_and_not_backwards(architecture: str, layout: LayoutName) -> None:
    network, (student, reference) = plain.network(architecture, UPPER, "student", "reference")
    layers: Any = network.backbone()
    calls: Counter[int] = Counter()
    for place, layer in enumerate(layers.layers):
        layer.register_forward_hook(lambda *_, place=place: calls.update({place: 1}))
    batch = build(LONG_PROMPTS, layout)
    places_N = predictors(batch.readout)
    below = student.below(batch)
    assert below is not None
    assert not below.rows_RTH.requires_grad
    states = []
    for member in (reference, student):
        with member.using():
            states.append(member.passes.states(batch, places_N, below)[places_N])
            if member is student:
                states[-1].sum().backward()
    passes = 2 if layout == "cache" else 1
    assert calls == {0: passes, 1: passes, 2: 2 * passes, 3: 2 * passes}
    owned = network.tensors("student")
    assert {name.split("layers.")[1][0] for name in owned} == {"2", "3"}
    assert sum(float(parameter.grad.abs().sum()) for parameter in owned.values() if parameter.grad is not None) > 0
    for member, found_NH in zip((reference, student), states, strict=True):
        with member.using(), torch.no_grad():
            torch.testing.assert_close(found_NH, hidden_states(layers, batch)[places_N])


def test_the_adapters_below_are_not_there_and_those_above_are_all_there() -> None:
    everywhere, _ = plain.network("qwen2", LORA, "first")
    above, _ = plain.network("qwen2", UPPER, "first")
    wanted = {name for name in everywhere.tensors("first") if "layers.2." in name or "layers.3." in name}
    assert set(above.tensors("first")) == wanted
    by_suffix, _ = plain.network("qwen2", Lora(rank=2, targets=("q_proj", "mlp.up_proj"), first_layer=3), "first")
    assert {name.split("layers.")[1].split(".lora")[0] for name in by_suffix.tensors("first")} == {
        "3.self_attn.q_proj",
        "3.mlp.up_proj",
    }
    by_pattern, _ = plain.network("qwen2", Lora(rank=2, targets=r".*\.v_proj", first_layer=2), "first")
    assert len(by_pattern.tensors("first")) == 2 * 2
    assert above.adapter_config()["target_modules"] == [
        name for name in everywhere.adapter_config()["target_modules"] if "layers.2." in name or "layers.3." in name
    ]


def test_a_first_layer_that_is_not_there() -> None:
    with pytest.raises(ModelError, match=r"tuning\.first_layer=4: the model has 4 layers.*use 3 or less"):
        plain.network("qwen2", Lora(first_layer=4), "first")


def test_a_layer_that_is_built_otherwise_is_left_whole() -> None:
    """As of models whose queries, keys and values are one projection."""
    network, (member,) = plain.network("qwen2", Full(), "first")
    layers: Any = network.backbone()
    last = layers.layers[-1]
    last.mlp.experts = last.mlp.gate_proj
    gate = last.mlp._modules.pop("gate_proj")
    last.mlp.__dict__["gate_proj"] = lambda x: gate(x)
    batch = build(LONG_PROMPTS, "padded")
    places_N = lasts(batch.readout)
    calls: list[int] = []
    last.mlp.up_proj.register_forward_pre_hook(lambda _, arguments: calls.append(arguments[0].shape[:-1].numel()))
    with member.using(), torch.no_grad():
        Passes(network.backbone()).states(batch, places_N)
    assert calls == [batch.input_ids_RT.numel()]  # type: ignore[union-attr]
