"""The discriminator's read-out."""

from __future__ import annotations

import pytest
import torch

from gad.config.models import Lora
from gad.errors import ModelError
from gad.layouts import build
from gad.models.forward import hidden_states
from gad.models.scorer import Scorer
from unit.models import plain
from unit.models.test_layout_equivalence import GROUPS
from unit.training import game


def test_everything_ties_at_birth() -> None:
    _, (member,) = plain.network("qwen2", game.LORA, "discriminator")
    scorer = Scorer(member, game.codec(), layer=None, like_student=True)
    with member.using():
        assert scorer.scores(build(GROUPS, "cache")).tolist() == [0.0] * 8


@pytest.mark.parametrize("layer", [None, 1, 3])
def test_the_score_is_linear_in_the_state_of_the_last_token(layer: int | None) -> None:
    network, (member,) = plain.network("qwen2", game.LORA, "discriminator")
    scorer = game.scorer(member, layer=layer)
    batch = build(GROUPS, "tree")
    with member.using(), torch.no_grad():
        states_BH = hidden_states(network.backbone(layer), batch)[batch.readout.last_B]
        expected = [sum(s * h for s, h in zip(row, scorer.head_H.tolist(), strict=True)) for row in states_BH.tolist()]
        assert scorer.scores(batch).tolist() == pytest.approx(expected, abs=1e-12)
        once = scorer.scores(batch)
        scorer.head_H.mul_(-2)
        torch.testing.assert_close(scorer.scores(batch), -2 * once)


def test_the_head_works_in_float32_beside_a_bfloat16_base() -> None:
    network, (member,) = plain.network("qwen2", game.LORA, "discriminator", dtype=torch.bfloat16)
    scorer = game.scorer(member)
    batch = build(GROUPS, "padded")
    with member.using(), torch.no_grad():
        states_BH = hidden_states(network.backbone(), batch)[batch.readout.last_B]
        scores_B = scorer.scores(batch)
    assert (scores_B.dtype, scorer.head_H.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(scores_B.double(), states_BH.double() @ scorer.head_H.double(), rtol=1e-5, atol=1e-5)


def test_it_starts_as_a_copy_of_the_student_where_the_weights_fit() -> None:
    _, (student, discriminator) = plain.network("qwen2", game.LORA, "student", "discriminator")
    scorer = game.scorer(discriminator)
    head = scorer.head_H.clone()
    scorer.start_from(student)
    for name, tensor in student.state().items():
        assert torch.equal(tensor, discriminator.state()[name])
    assert torch.equal(scorer.head_H, head)
    student.parameters()[0].data.add_(1.0)
    assert not torch.equal(student.parameters()[0], discriminator.parameters()[0])


def test_another_model_starts_from_its_own_weights() -> None:
    _, (student,) = plain.network("qwen2", game.LORA, "student")
    _, (other,) = plain.network("gemma2", Lora(rank=3), "discriminator")
    before = {name: tensor.clone() for name, tensor in other.state().items()}
    Scorer(other, game.codec(), layer=None, like_student=False).start_from(student)
    assert all(torch.equal(before[name], tensor) for name, tensor in other.state().items())


def test_state_holds_adapter_and_head() -> None:
    _, (first, second) = plain.network("qwen2", game.LORA, "first", "second")
    one, two = game.scorer(first), Scorer(second, game.codec(), layer=None, like_student=True)
    batch = build(GROUPS, "padded")

    def scores(scorer: Scorer) -> list[float]:
        with scorer.member.using(), torch.no_grad():
            return scorer.scores(batch).tolist()

    assert scores(one) != scores(two)
    two.load(one.state())
    assert scores(one) == scores(two)
    assert len(one.parameters()) == len(one.state()) == 57
    assert one.rates() == [1.0] * 57
    faster = Scorer(first, game.codec(), layer=None, like_student=True, head_rate=3.0)
    assert faster.rates() == [3.0 if name == "score_head" else 1.0 for name in faster.names()]
    with pytest.raises(ModelError, match="weights of another model"):
        two.load({name: tensor for name, tensor in one.state().items() if "layers.0" not in name})

    with pytest.raises(ModelError, match=r"score_head: \(32,\) is wanted, found none"):
        two.load(first.state())
    for shape in ((1,), (33,), (32, 1)):
        with pytest.raises(
            ModelError, match=r"score_head: \(32,\) is wanted, found one of shape \(.*; this is another"
        ):
            two.load({**one.state(), "score_head": torch.ones(shape)})
    assert scores(one) == scores(two)


def test_a_layer_that_is_not_there() -> None:
    _, (member,) = plain.network("qwen2", game.LORA, "discriminator")
    with pytest.raises(ModelError, match="layer 9: the model has 4 layers"):
        Scorer(member, game.codec(), layer=9, like_student=True)
