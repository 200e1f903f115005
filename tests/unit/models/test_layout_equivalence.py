"""Whatever the layout, a reply's row gives what it gives alone in transformers' own eager attention."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from gad import packing
from gad.config.models import Full, Lora, Tuning
from gad.layouts import LayoutName, PackedBatch, TokenGroup, build
from gad.models.forward import hidden_states, reply_logps
from gad.models.network import Member
from support import tiny
from unit.models import plain

LAYOUTS: tuple[LayoutName, ...] = ("padded", "tree", "cache", "packed")
TEMPERATURE = 0.7
LORA = Lora(rank=2, alpha=3.0)


def tokens(count: int, seed: int) -> tuple[int, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randint(0, tiny.VOCABULARY, (count,), generator=generator).tolist())


GROUPS = [
    TokenGroup(tokens(9, 1), (tokens(7, 2), tokens(1, 3), (), tokens(12, 4))),
    TokenGroup(tokens(1, 5), (tokens(11, 6),)),
    TokenGroup(tokens(23, 7), (tokens(2, 8), tokens(2, 8), tokens(8, 9))),
]
"""Prompts of 1, 9 and 23 tokens around a window of 6; groups of 4, 1 and 3; an empty reply, one of one token, twins."""
ROWS = [(group.prompt, reply) for group in GROUPS for reply in group.replies]
EMPTY = [TokenGroup(tokens(3, 1), ((), ())), TokenGroup(tokens(7, 2), ((),))]


def weights(count: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def by_layout(
    member: Member, layout: LayoutName, width: int, dtype: torch.dtype, *, fused: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities of all reply tokens in order, scores, and their sum with random weights."""
    network = member.network
    batch = build(GROUPS, layout, fused=fused)
    states_MH = hidden_states(network.backbone(), batch)
    logps_BL, _ = reply_logps(
        states_MH, batch.readout, network.head_VH, temperature=TEMPERATURE, softcap=network.softcap
    )
    scores_B = states_MH[batch.readout.last_B].to(dtype) @ weights(width, 0, dtype)
    logps_N = logps_BL[batch.readout.mask_BL]
    loss = (logps_N * weights(len(logps_N), 1, dtype)).sum() + (scores_B * weights(len(scores_B), 2, dtype)).sum()
    return logps_N, scores_B, loss


def alone(reference: plain.Plain, width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """The same, row by row."""
    logps: list[Tensor] = []
    scores = []
    for prompt, reply in ROWS:
        logps += reference.logps(prompt, reply, TEMPERATURE)
        scores.append(reference.row(prompt, reply)[1] @ weights(width, 0, dtype))
    logps_N, scores_B = torch.stack(logps), torch.stack(scores)
    loss = (logps_N * weights(len(logps_N), 1, dtype)).sum() + (scores_B * weights(len(scores_B), 2, dtype)).sum()
    return logps_N, scores_B, loss


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("tuning", [LORA, Full()], ids=["lora", "full"])
def test_every_layout_equals_each_row_alone(architecture: str, tuning: Tuning) -> None:
    dtype, width = torch.float64, tiny.SHAPE["hidden_size"]
    with plain.wide():
        _, (first, *_) = plain.network(architecture, tuning, "first", *(["other"] * isinstance(tuning, Lora)))
        reference = plain.Plain(architecture, first, tuning)
        logps_N, scores_B, loss = alone(reference, width, dtype)
        expected = reference.gradients(loss)
        for layout, checkpointing in itertools.product(LAYOUTS, (False, True)):
            _, (member,) = plain.network(architecture, tuning, "first", checkpointing=checkpointing)
            member.load(first.state())
            with member.using():
                found_N, found_B, found = by_layout(member, layout, width, dtype)
                found.backward()
            torch.testing.assert_close(found_N, logps_N, rtol=0, atol=1e-11)
            torch.testing.assert_close(found_B, scores_B, rtol=0, atol=1e-11)
            plain.assert_same_gradients(plain.gradients(member), expected, 1e-9)


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2"])
def test_packed_groups_apart_as_together(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groups of like lengths share kernels, in which their prompts and replies are padded; those of others do not."""
    dtype, width = torch.float64, tiny.SHAPE["hidden_size"]
    found = []
    for worth in (packing.PAIRS_OF_A_PORTION, -1):
        monkeypatch.setattr(packing, "PAIRS_OF_A_PORTION", worth)
        _, (member,) = plain.network(architecture, LORA, "first")
        plain.shake(member, dtype, seed=1, scale=0.1)
        batch = build(GROUPS, "packed")
        assert isinstance(batch, PackedBatch)
        with plain.wide(), member.using():
            logps_N, scores_B, loss = by_layout(member, "packed", width, dtype)
            loss.backward()
        found.append((len(packing.portions(batch.shapes)), logps_N, scores_B, plain.gradients(member)))
    (together, logps_N, scores_B, gradients), (apart, other_N, other_B, others) = found
    assert (together, apart) == (2, 5)
    torch.testing.assert_close(logps_N, other_N, rtol=0, atol=1e-11)
    torch.testing.assert_close(scores_B, other_B, rtol=0, atol=1e-11)
    plain.assert_same_gradients(gradients, others, 1e-9)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_in_float32_as_well(architecture: str) -> None:
    """Milder weights: strong ones amplify the rounding of either side."""
    dtype, width = torch.float32, tiny.SHAPE["hidden_size"]
    _, (member,) = plain.network(architecture, LORA, "first", dtype=dtype, **plain.MILD)
    plain.shake(member, dtype, seed=1, scale=0.1)
    reference = plain.Plain(architecture, member, LORA, **plain.MILD)
    logps_N, scores_B, loss = alone(reference, width, dtype)
    expected = reference.gradients(loss)
    for layout in LAYOUTS:
        with member.using():
            found_N, found_B, found = by_layout(member, layout, width, dtype)
            found.backward()
        torch.testing.assert_close(found_N, logps_N, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found_B, scores_B, rtol=1e-5, atol=1e-5)
        plain.assert_same_gradients(plain.gradients(member), expected, 1e-5)


@pytest.mark.parametrize("tuning", [LORA, Full()], ids=["lora", "full"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_in_mixed_precision_as_well(architecture: str, tuning: Tuning) -> None:
    """bfloat16 arithmetic: no layout is farther from float32 than padded rows are, but for luck."""

    def computed(layout: LayoutName, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        _, (member,) = plain.network(architecture, tuning, "first", dtype=dtype, **plain.MILD)
        with member.using():
            logps_N, _, loss = by_layout(member, layout, tiny.SHAPE["hidden_size"], torch.float32)
            loss.backward()
        return logps_N.detach().float(), torch.cat([g.flatten().float() for g in plain.gradients(member).values()])

    exact_N, exact = computed("padded", torch.float32)
    errors = {}
    for layout in LAYOUTS:
        logps_N, gradient = computed(layout, torch.bfloat16)
        errors[layout] = ((logps_N - exact_N).abs().mean().item(), ((gradient - exact).norm() / exact.norm()).item())
    for by_value, by_gradient in errors.values():
        assert by_value < 2 * errors["padded"][0]
        assert by_gradient < 2 * errors["padded"][1]


@pytest.mark.parametrize("architecture", ["qwen2", "gemma2", "gemma3", "mistral"])
def test_the_groups_above_reach_beyond_the_window(architecture: str) -> None:
    """Without this the sliding windows of the test above might never matter."""
    narrow, wide = (
        plain.model(architecture, dtype=torch.float64, attention="eager", sliding_window=window) for window in (6, 500)
    )
    ids = torch.tensor([[*GROUPS[0].prompt, *GROUPS[0].replies[0]]])
    distance_T = (narrow(input_ids=ids).logits - wide(input_ids=ids).logits).abs().amax(-1)[0]
    assert distance_T[:6].max() < 1e-6
    assert distance_T[6:].min() > 0.01


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_but_empty_replies(layout: LayoutName) -> None:
    """Their score is read at the prompt's last token; no token is predicted, and a backward pass is still possible."""
    with plain.wide():
        network, (member,) = plain.network("gemma2", LORA, "first")
        reference = plain.Plain("gemma2", member, LORA)
        batch = build(EMPTY, layout)
        with member.using():
            states_MH = hidden_states(network.backbone(), batch)
            logps_BL, entropies_BL = reply_logps(states_MH, batch.readout, network.head_VH, softcap=network.softcap)
            logps_BL.sum().backward()
        expected = [reference.row(group.prompt, ())[1] for group in (EMPTY[0], EMPTY[0], EMPTY[1])]
    torch.testing.assert_close(states_MH[batch.readout.last_B], torch.stack(expected), rtol=0, atol=1e-11)
    assert logps_BL.tolist() == entropies_BL.tolist() == [[0.0]] * 3
    assert all(float(gradient.abs().sum()) == 0.0 for gradient in plain.gradients(member).values())


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("layers", [1, 3])
def test_the_first_layers_alone(layout: LayoutName, layers: int) -> None:
    """A view of the first layers, with the final norm, is the model that has only those layers."""
    with plain.wide():
        network, (member,) = plain.network("qwen3", Full(), "first")
        short = plain.model("qwen3", dtype=torch.float64, attention="eager", num_hidden_layers=layers)
        short.load_state_dict({n: t for n, t in member.state().items() if n in short.state_dict()})
        batch = build(GROUPS, layout)
        states_MH = hidden_states(network.backbone(layers), batch)
        expected = [
            short.model(input_ids=torch.tensor([[*prompt, *reply]])).last_hidden_state[0, -1] for prompt, reply in ROWS
        ]
    torch.testing.assert_close(states_MH[batch.readout.last_B], torch.stack(expected), rtol=0, atol=1e-11)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_row_does_not_see_its_neighbours(layout: LayoutName) -> None:
    """Other prompts, other siblings, other order: the same states."""
    with plain.wide():
        network, (member,) = plain.network("gemma3", LORA, "first")
        crowd = build(GROUPS, layout)
        other = build([GROUPS[2], TokenGroup(GROUPS[0].prompt, (tokens(20, 50), GROUPS[0].replies[0]))], layout)
        with member.using(), torch.no_grad():
            in_crowd = hidden_states(network.backbone(), crowd)[crowd.readout.last_B[0]]
            elsewhere = hidden_states(network.backbone(), other)[other.readout.last_B[4]]
    torch.testing.assert_close(in_crowd, elsewhere, rtol=0, atol=1e-12)
