"""P prompts, G replies per prompt, B = P*G rows, T reply tokens."""

import math

import pytest
import torch

from gad.objectives import (
    clip_fraction,
    clipped_surrogate,
    importance_weights,
    reinforce,
    sequence_mean,
    sequence_ratio,
    sequence_surrogate,
    token_mean,
    token_ratio,
)

LOSSES = {
    "reinforce": lambda now, _, A, mask: reinforce(now, A, mask),
    "clipped_surrogate": clipped_surrogate,
    "sequence_surrogate": sequence_surrogate,
}
every_loss = pytest.mark.parametrize("name", LOSSES)


def batch(spread: float = 0.5):
    """Five replies of 3, 1, 4, 2 and 0 tokens: log-probabilities now and when sampled, advantages, mask."""
    g = torch.Generator().manual_seed(0)
    now_BT = -torch.rand(5, 4, generator=g, dtype=torch.float64) * 3
    old_BT = now_BT + spread * torch.randn(5, 4, generator=g, dtype=torch.float64)
    advantages_B = torch.tensor([1.5, -0.5, 0.25, -2.0, 1.0], dtype=torch.float64)
    mask_BT = torch.arange(4) < torch.tensor([[3], [1], [4], [2], [0]])
    return now_BT, old_BT, advantages_B, mask_BT


def one_token(ratio: float, advantage: float):
    """A reply of one token whose ratio and advantage are given."""
    now_BT = torch.tensor([[math.log(ratio) - 1.0]], dtype=torch.float64, requires_grad=True)
    old_BT = torch.full((1, 1), -1.0, dtype=torch.float64)
    return now_BT, old_BT, torch.tensor([advantage], dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)


def reference(name: str, now, old, advantages, mask) -> list[list[float]]:
    rows = []
    for nows, olds, A, on in zip(now, old, advantages, mask, strict=True):
        logs = [n - o for n, o, m in zip(nows, olds, on, strict=True) if m]
        row = []
        for n, o, m in zip(nows, olds, on, strict=True):
            if not m:
                row.append(0.0)
            elif name == "reinforce":
                row.append(-A * n)
            elif name == "clipped_surrogate":
                r = math.exp(n - o)
                gain = min(r * A, min(max(r, 0.8), 1.2) * A)
                row.append(-max(gain, 3.0 * A) if A < 0 else -gain)
            else:
                s = math.exp(sum(logs) / len(logs))
                row.append(-min(s * A, min(max(s, 0.9997), 1.0004) * A))
        rows.append(row)
    return rows


@every_loss
@pytest.mark.parametrize("spread", [1e-4, 0.5, 3.0])
def test_agrees_with_the_definition(name, spread):
    arguments = batch(spread)
    expected_BT = torch.tensor(reference(name, *(a.tolist() for a in arguments)), dtype=torch.float64)
    torch.testing.assert_close(LOSSES[name](*arguments), expected_BT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        (1.0, 0.5, -0.5, -0.5),
        (1.0, 1.19, -1.19, -1.19),
        (1.0, 1.21, -1.2, 0.0),
        (1.0, 5.0, -1.2, 0.0),
        (-1.0, 0.5, 0.8, 0.0),
        (-1.0, 0.79, 0.8, 0.0),
        (-1.0, 0.81, 0.81, 0.81),
        (-1.0, 2.99, 2.99, 2.99),
        (-1.0, 3.01, 3.0, 0.0),
        (-2.0, 9.0, 6.0, 0.0),
        (0.0, 9.0, 0.0, 0.0),
    ],
)
def test_clip_and_dual_clip_by_default(advantage, ratio, loss, gradient):
    now_BT, *rest = one_token(ratio, advantage)
    loss_BT = clipped_surrogate(now_BT, *rest)
    loss_BT.sum().backward()
    assert loss_BT.item() == pytest.approx(loss, rel=1e-12)
    assert now_BT.grad.item() == pytest.approx(gradient, rel=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss"), [(1.0, 2.0, -1.5), (-1.0, 0.1, 0.9), (-1.0, 7.0, 7.0), (-1.0, 0.95, 0.95)]
)
def test_clip_takes_other_bounds_and_no_dual_clip(advantage, ratio, loss):
    loss_BT = clipped_surrogate(*one_token(ratio, advantage), clip_low=0.1, clip_high=0.5, dual_clip=None)
    assert loss_BT.item() == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize(
    ("advantage", "ratio", "loss", "gradient"),
    [
        (1.0, 0.5, -0.5, -0.5),
        (1.0, 1.00039, -1.00039, -1.00039),
        (1.0, 1.00041, -1.0004, 0.0),
        (-1.0, 0.99969, 0.9997, 0.0),
        (-1.0, 0.99971, 0.99971, 0.99971),
        (-1.0, 9.0, 9.0, 9.0),
    ],
)
def test_sequence_clip_by_default(advantage, ratio, loss, gradient):
    now_BT, *rest = one_token(ratio, advantage)
    loss_BT = sequence_surrogate(now_BT, *rest)
    loss_BT.sum().backward()
    assert loss_BT.item() == pytest.approx(loss, rel=1e-12)
    assert now_BT.grad.item() == pytest.approx(gradient, rel=1e-12)


def test_sequence_clip_takes_other_bounds():
    assert sequence_surrogate(*one_token(2.0, 1.0), clip_low=0.1, clip_high=0.3).item() == pytest.approx(-1.3)
    assert sequence_surrogate(*one_token(0.2, -1.0), clip_low=0.1, clip_high=0.3).item() == pytest.approx(0.9)


@every_loss
def test_a_policy_that_has_not_moved(name):
    """Ratio 1: `-A` per token (REINFORCE: `-A log p`), and the policy gradient `-A / tokens` in all three."""
    now_BT, _, advantages_B, mask_BT = batch()
    now_BT.requires_grad_()
    loss_BT = LOSSES[name](now_BT, None, advantages_B, mask_BT)
    value_BT = now_BT.detach() if name == "reinforce" else torch.ones_like(now_BT)
    torch.testing.assert_close(loss_BT.detach(), -advantages_B[:, None] * value_BT * mask_BT)
    sequence_mean(loss_BT, mask_BT, 5).backward()
    lengths_B1 = mask_BT.sum(dim=1, keepdim=True).clamp(min=1)
    torch.testing.assert_close(now_BT.grad, -advantages_B[:, None] / lengths_B1 / 5 * mask_BT)


@pytest.mark.parametrize("name", ["clipped_surrogate", "sequence_surrogate"])
def test_no_old_logps_means_those_of_now(name):
    now_BT, _, advantages_B, mask_BT = batch()
    torch.testing.assert_close(
        LOSSES[name](now_BT, None, advantages_B, mask_BT),
        LOSSES[name](now_BT, now_BT.clone(), advantages_B, mask_BT),
    )


def test_reinforce_is_the_gradient_of_the_expected_reward():
    """Over all three outcomes of one token, weighted by their probability."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    rewards = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    p = logits.softmax(0).detach()
    loss_BT = reinforce(logits.log_softmax(0)[:, None], rewards - (p * rewards).sum(), torch.ones(3, 1).bool())
    (surrogate,) = torch.autograd.grad((p * loss_BT[:, 0]).sum(), logits)
    (exact,) = torch.autograd.grad((logits.softmax(0) * rewards).sum(), logits)
    torch.testing.assert_close(surrogate, -exact)


@every_loss
def test_descent_raises_good_replies_and_lowers_bad_ones(name):
    now_BT, _, advantages_B, mask_BT = batch()
    now_BT.requires_grad_()
    LOSSES[name](now_BT, None, advantages_B, mask_BT).sum().backward()
    up_BT = -now_BT.grad
    assert (up_BT[mask_BT].sign() == advantages_B[:, None].expand_as(up_BT)[mask_BT].sign()).all()


@every_loss
@pytest.mark.parametrize("spread", [1e-4, 0.3])
def test_gradcheck(name, spread):
    now_BT, old_BT, advantages_B, mask_BT = batch(spread)
    assert torch.autograd.gradcheck(
        lambda x: LOSSES[name](x, old_BT, advantages_B, mask_BT), now_BT.requires_grad_(), eps=1e-7
    )


@every_loss
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e30])
def test_padding_reaches_neither_value_nor_gradient(name, garbage):
    now_BT, old_BT, advantages_B, mask_BT = batch()

    def loss_and_gradient(fill_now, fill_old):
        leaf_BT = torch.where(mask_BT, now_BT, fill_now).requires_grad_()
        loss_BT = LOSSES[name](leaf_BT, torch.where(mask_BT, old_BT, fill_old), advantages_B, mask_BT)
        loss_BT.sum().backward()
        return loss_BT.detach(), leaf_BT.grad

    clean = loss_and_gradient(-1.0, -1.0)
    assert clean[0][~mask_BT].tolist() == clean[1][~mask_BT].tolist() == [0.0] * 10
    assert torch.equal(torch.stack(loss_and_gradient(garbage, -1.0)), torch.stack(clean))
    assert torch.equal(torch.stack(loss_and_gradient(-1.0, garbage)), torch.stack(clean))
    assert torch.equal(torch.stack(loss_and_gradient(garbage, garbage)), torch.stack(clean))


@every_loss
@pytest.mark.parametrize("spread", [1e-4, 0.5])
def test_micro_batches_of_any_width_add_up_in_loss_and_gradient(name, spread):
    now_BT, old_BT, advantages_B, mask_BT = batch(spread)

    def loss_and_gradient(splits):
        leaf_BT = now_BT.clone().requires_grad_()
        total = 0
        for rows in torch.arange(5).split(splits):
            width = int(mask_BT[rows].sum(dim=1).max())
            mask = mask_BT[rows, :width]
            loss = LOSSES[name](leaf_BT[rows, :width], old_BT[rows, :width], advantages_B[rows], mask)
            total = total + token_mean(loss, mask, int(mask_BT.sum())) + sequence_mean(loss, mask, 5)
        total.backward()
        return total, leaf_BT.grad

    for splits in ([2, 3], [1, 2, 1, 1]):
        torch.testing.assert_close(loss_and_gradient(splits), loss_and_gradient([5]), rtol=1e-12, atol=1e-15)


@every_loss
def test_order_of_replies_does_not_matter(name):
    arguments, order = batch(), torch.tensor([3, 4, 0, 2, 1])
    moved_BT = LOSSES[name](*(a[order] for a in arguments))
    assert torch.equal(moved_BT, LOSSES[name](*arguments)[order])


@every_loss
def test_only_the_policy_of_now_gets_a_gradient(name):
    now_BT, old_BT, advantages_B, mask_BT = batch(1e-4)
    leaves = [t.clone().requires_grad_() for t in (now_BT, old_BT, advantages_B)]
    loss = LOSSES[name](*leaves, mask_BT).sum()
    now, old, advantages = torch.autograd.grad(loss, leaves, allow_unused=True)
    assert now.abs().sum() > 0
    assert old is None
    assert advantages is None


@every_loss
def test_half_precision_is_widened(name):
    now_BT, old_BT, advantages_B, mask_BT = batch()
    halves = [t.bfloat16() for t in (now_BT, old_BT, advantages_B)]
    loss_BT = LOSSES[name](*halves, mask_BT)
    assert loss_BT.dtype == torch.float32
    assert torch.equal(loss_BT, LOSSES[name](*(t.float() for t in halves), mask_BT))


def test_the_dual_clip_of_a_half_precision_advantage_is_exact():
    """3 * (1 + 1/128) has more digits than bf16 holds."""
    now_BT, old_BT, advantages_B, mask_BT = one_token(9.0, -1 - 1 / 128)
    assert clipped_surrogate(now_BT, old_BT, advantages_B.bfloat16(), mask_BT).item() == 3 + 3 / 128


@pytest.mark.parametrize("ratio", [token_ratio, sequence_ratio])
@pytest.mark.parametrize(("log_ratio", "expected"), [(19.0, 19.0), (25.0, 20.0), (-19.0, -19.0), (-25.0, -20.0)])
def test_log_ratios_are_held_within_twenty(ratio, log_ratio, expected):
    now_BT = torch.full((1, 2), log_ratio, dtype=torch.float64)
    ratio_BT = ratio(now_BT, torch.zeros_like(now_BT), torch.ones(1, 2, dtype=torch.bool))
    assert ratio_BT.log().tolist() == [pytest.approx([expected] * 2, rel=1e-12)]


@pytest.mark.parametrize("name", ["clipped_surrogate", "sequence_surrogate"])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_a_token_that_the_old_policy_called_impossible_has_a_finite_gradient(name, advantage):
    now_BT = torch.tensor([[-1.0]], requires_grad=True)
    old_BT, mask_BT = torch.tensor([[-math.inf]]), torch.tensor([[True]])
    loss_BT = LOSSES[name](now_BT, old_BT, torch.tensor([advantage]), mask_BT)
    loss_BT.sum().backward()
    assert loss_BT.isfinite().all()
    assert now_BT.grad.tolist() == [[0.0]]


def test_token_ratio():
    now_BT, old_BT, _, mask_BT = batch()
    expected_BT = torch.where(mask_BT, now_BT.exp() / old_BT.exp(), 1.0)
    torch.testing.assert_close(token_ratio(now_BT, old_BT, mask_BT), expected_BT)


def test_sequence_ratio_is_the_geometric_mean_of_the_tokens():
    now_BT = torch.tensor([[2.0, 8.0, math.nan], [3.0, math.nan, math.nan], [math.nan] * 3]).log()
    mask_BT = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    ratio_BT = sequence_ratio(now_BT, torch.zeros(3, 3), mask_BT)
    torch.testing.assert_close(ratio_BT, torch.tensor([[4.0], [3.0], [1.0]]).expand(3, 3))


def test_sequence_surrogate_equals_the_clip_for_replies_of_one_token():
    now_BT, old_BT, advantages_B, mask_BT = (t[:, :1] if t.ndim == 2 else t for t in batch())
    bounds = {"clip_low": 0.1, "clip_high": 0.3}
    torch.testing.assert_close(
        sequence_surrogate(now_BT, old_BT, advantages_B, mask_BT, **bounds),
        clipped_surrogate(now_BT, old_BT, advantages_B, mask_BT, **bounds, dual_clip=None),
    )


@pytest.mark.parametrize("loss", [clipped_surrogate, sequence_surrogate])
@pytest.mark.parametrize("clip_low", [0.0, 1.0, -0.2, math.nan])
def test_clip_low_is_refused(loss, clip_low):
    message = rf"^clip_low = {clip_low}: the floor is 1 - clip_low; use above 0, below 1$"
    with pytest.raises(ValueError, match=message):
        loss(*batch(), clip_low=clip_low)


@pytest.mark.parametrize("loss", [clipped_surrogate, sequence_surrogate])
@pytest.mark.parametrize("clip_high", [0.0, -0.2, math.nan])
def test_clip_high_is_refused(loss, clip_high):
    message = rf"^clip_high = {clip_high}: the ceiling is 1 \+ clip_high; use above 0$"
    with pytest.raises(ValueError, match=message):
        loss(*batch(), clip_high=clip_high)


@pytest.mark.parametrize("dual_clip", [1.0, 0.5, math.nan])
def test_dual_clip_is_refused(dual_clip):
    message = rf"^dual_clip = {dual_clip}: a ceiling for the ratio; use more than 1, or None$"
    with pytest.raises(ValueError, match=message):
        clipped_surrogate(*batch(), dual_clip=dual_clip)


def test_bounds_at_the_edge_of_what_is_allowed():
    loss_BT = clipped_surrogate(*one_token(5.0, 1.0), clip_low=0.999, clip_high=1.5, dual_clip=1.001)
    assert loss_BT.item() == pytest.approx(-2.5)


@every_loss
def test_an_advantage_per_token_is_a_bug(name):
    now_BT, old_BT, _, mask_BT = batch()
    with pytest.raises(AssertionError):
        LOSSES[name](now_BT, old_BT, torch.zeros(5, 4), mask_BT)


def test_importance_weights_are_the_ratio_up_to_the_cap():
    trainer_BT = torch.tensor([[1.0, 0.5, 1.9, 2.1, 1e9, math.nan]], dtype=torch.float64).log().requires_grad_()
    mask_BT = torch.tensor([[True] * 5 + [False]])
    weights_BT = importance_weights(trainer_BT, torch.zeros_like(trainer_BT), mask_BT, cap=2.0)
    assert weights_BT.flatten().tolist() == pytest.approx([1.0, 0.5, 1.9, 2.0, 2.0, 0.0])
    assert not weights_BT.requires_grad


def test_importance_weights_turn_samples_of_one_policy_into_an_average_over_another():
    trainer, sampler = torch.tensor([0.2, 0.3, 0.5]), torch.tensor([0.5, 0.3, 0.2])
    values = torch.tensor([4.0, -1.0, 2.0])
    weights_BT = importance_weights(trainer.log()[:, None], sampler.log()[:, None], torch.ones(3, 1).bool(), 10.0)
    torch.testing.assert_close((sampler * weights_BT[:, 0] * values).sum(), (trainer * values).sum())


@pytest.mark.parametrize("cap", [0.99, 0.0, -1.0, math.nan])
def test_a_cap_below_one_is_refused(cap):
    now_BT, old_BT, _, mask_BT = batch()
    with pytest.raises(ValueError, match=rf"^cap = {cap}: where both agree the weight is 1 and must not be cut; use"):
        importance_weights(now_BT, old_BT, mask_BT, cap)


def test_a_cap_of_one_is_allowed():
    now_BT, _, _, mask_BT = batch()
    assert torch.equal(importance_weights(now_BT, now_BT - 1, mask_BT, 1.0), mask_BT.double())


@pytest.mark.parametrize(
    ("advantage", "ratio", "dual_clip", "clipped"),
    [
        (1.0, 1.29, None, 0.0), (1.0, 1.31, None, 1.0), (1.0, 0.1, None, 0.0), (1.0, 9.0, 3.0, 1.0),
        (-1.0, 0.89, None, 1.0), (-1.0, 0.91, None, 0.0), (-1.0, 9.0, None, 0.0), (-1.0, 9.0, 3.0, 1.0),
        (-1.0, 2.9, 3.0, 0.0), (0.0, 9.0, 3.0, 0.0), (0.0, 0.1, 3.0, 0.0),
    ],
)  # fmt: skip
def test_clip_fraction_of_one_token(advantage, ratio, dual_clip, clipped):
    ratio_BT, mask_BT = torch.tensor([[ratio]]), torch.tensor([[True]])
    fraction = clip_fraction(
        ratio_BT, torch.tensor([advantage]), mask_BT, 1, clip_low=0.1, clip_high=0.3, dual_clip=dual_clip
    )
    assert fraction.item() == clipped


@pytest.mark.parametrize(("advantage", "ratio"), [(1.0, 1.5), (-1.0, 0.75), (-1.0, 3.0)])
def test_a_ratio_on_the_bound_still_has_its_gradient_and_is_not_counted(advantage, ratio):
    bounds = {"clip_low": 0.25, "clip_high": 0.5, "dual_clip": 3.0}
    ratio_BT, advantages_B = torch.tensor([[ratio]]), torch.tensor([advantage])
    assert clip_fraction(ratio_BT, advantages_B, torch.tensor([[True]]), 1, **bounds).item() == 0.0


@pytest.mark.parametrize("dual_clip", [None, 1.6])
def test_clip_fraction_is_the_share_of_tokens_without_gradient(dual_clip):
    now_BT, old_BT, advantages_B, mask_BT = batch(spread=1.0)
    bounds = {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": dual_clip}
    now_BT.requires_grad_()
    clipped_surrogate(now_BT, old_BT, advantages_B, mask_BT, **bounds).sum().backward()
    dead = int((now_BT.grad[mask_BT] == 0).sum())
    ratio_BT = token_ratio(now_BT.detach(), old_BT, mask_BT)
    assert 0 < dead < 10
    fraction = clip_fraction(ratio_BT, advantages_B, mask_BT, int(mask_BT.sum()), **bounds)
    assert fraction.item() == pytest.approx(dead / 10)
