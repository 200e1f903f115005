"""P prompts, G replies per prompt, B = P*G rows, T reply tokens, V vocabulary."""

import math

import pytest
import torch

from gad.objectives import reinforce, token_cross_entropy, token_mean


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    logps_BT = -torch.rand(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    return logps_BT, torch.arange(4) < torch.tensor([[4], [1], [0]])


@pytest.mark.parametrize("V", [2, 49152])
def test_uniform_student_pays_log_of_the_vocabulary(V):
    logps_BT = torch.full((2, 3), -math.log(V))
    assert token_cross_entropy(logps_BT, torch.ones(2, 3, dtype=torch.bool), 6).item() == pytest.approx(math.log(V))


def test_agrees_with_the_definition_and_with_torch():
    g = torch.Generator().manual_seed(1)
    logits_BTV = torch.randn(3, 4, 7, generator=g, dtype=torch.float64)
    tokens_BT = torch.randint(7, (3, 4), generator=g)
    _, mask_BT = batch()
    logps_BT = logits_BTV.log_softmax(-1).gather(-1, tokens_BT[..., None])[..., 0]
    loss = token_cross_entropy(logps_BT, mask_BT, 5)
    rows = zip(logps_BT.tolist(), mask_BT.tolist(), strict=True)
    by_hand = -math.fsum(p for row in rows for p, on in zip(*row, strict=True) if on) / 5
    assert loss.item() == pytest.approx(by_hand, rel=1e-12)
    by_torch = torch.nn.functional.cross_entropy(logits_BTV[mask_BT], tokens_BT[mask_BT])
    torch.testing.assert_close(loss, by_torch)


def test_gradient_raises_every_teacher_token_alike():
    logps_BT, mask_BT = batch()
    token_cross_entropy(logps_BT.requires_grad_(), mask_BT, 10).backward()
    torch.testing.assert_close(logps_BT.grad, -0.1 * mask_BT.double())


@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_padding_reaches_neither_value_nor_gradient(garbage):
    logps_BT, mask_BT = batch()
    dirty_BT = torch.where(mask_BT, logps_BT, garbage).requires_grad_()
    loss = token_cross_entropy(dirty_BT, mask_BT, 5)
    loss.backward()
    assert loss.item() == token_cross_entropy(logps_BT, mask_BT, 5).item()
    assert dirty_BT.grad[~mask_BT].tolist() == [0.0] * 7


@pytest.mark.parametrize("total", [5, torch.tensor(5)], ids=["int", "tensor"])
def test_micro_batches_add_up(total):
    logps_BT, mask_BT = batch()
    parts = sum(token_cross_entropy(logps_BT[i : i + 1], mask_BT[i : i + 1], total) for i in range(3))
    torch.testing.assert_close(parts, token_cross_entropy(logps_BT, mask_BT, 5), rtol=1e-12, atol=0)


def test_no_tokens_no_loss():
    assert token_cross_entropy(torch.full((1, 2), math.nan), torch.zeros(1, 2, dtype=torch.bool), 0).item() == 0.0


def test_mixed_into_the_adversarial_stage_it_fills_in_where_the_advantage_is_silent():
    """A group that ties moves nothing; the teacher's reply, whose tokens share the logits, still does."""
    logits_V = torch.tensor([0.0, 0.0, 0.0], requires_grad=True)
    logps_V = logits_V.log_softmax(0)
    ones_BT = torch.ones(2, 1, dtype=torch.bool)
    policy = token_mean(reinforce(logps_V[:2, None], torch.zeros(2), ones_BT), ones_BT, 2)
    loss = policy + 0.3 * token_cross_entropy(logps_V[2:, None], ones_BT[:1], 1)
    loss.backward()
    torch.testing.assert_close(logits_V.grad, 0.3 * torch.tensor([1 / 3, 1 / 3, -2 / 3]))
