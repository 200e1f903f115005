"""P prompts, G replies per prompt, B = P*G rows, T reply tokens."""

import math
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gad.objectives import (
    batch_scaled,
    centered,
    centered_rms,
    leave_one_out,
    standardized,
    zero_std_groups,
)

ALL = [centered, standardized, batch_scaled, leave_one_out]
every_advantage = pytest.mark.parametrize("advantage", ALL, ids=lambda f: f.__name__)


def random_rewards(P: int = 5, G: int = 4, seed: int = 0) -> torch.Tensor:
    return torch.randn(P, G, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def reference(name: str, rewards: list[list[float]]) -> list[list[float]]:
    """The same four formulas over lists, from the definitions."""
    deviations = [[r - statistics.fmean(group) for r in group] for group in rewards]
    if name == "centered":
        return deviations
    if name == "standardized":
        return [[(r - statistics.fmean(group)) / (statistics.stdev(group) + 1e-6) for r in group] for group in rewards]
    if name == "batch_scaled":
        flat = [a for group in deviations for a in group]
        return [[a / math.sqrt(math.fsum(x * x for x in flat) / len(flat)) for a in g] for g in deviations]
    return [[r - statistics.fmean(g[:i] + g[i + 1 :]) for i, r in enumerate(g)] for g in rewards]


@every_advantage
@pytest.mark.parametrize("shape", [(1, 2), (5, 4), (3, 7)])
def test_agrees_with_the_definition(advantage, shape):
    rewards_PG = random_rewards(*shape)
    expected_PG = torch.tensor(reference(advantage.__name__, rewards_PG.tolist()), dtype=torch.float64)
    torch.testing.assert_close(advantage(rewards_PG), expected_PG, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("advantage", "expected"),
    [(centered, 1.0), (standardized, 1 / math.sqrt(2)), (batch_scaled, 1.0), (leave_one_out, 2.0)],
)
def test_two_replies_two_apart(advantage, expected):
    advantages_PG = advantage(torch.tensor([[3.0, 1.0]], dtype=torch.float64))
    assert advantages_PG.flatten().tolist() == pytest.approx([expected, -expected], rel=1e-6)


def test_standardized_adds_one_millionth_to_the_unbiased_std():
    advantages_PG = standardized(torch.tensor([[0.0, 1e-6]], dtype=torch.float64))
    std = 1e-6 / math.sqrt(2)
    assert advantages_PG[0, 1].item() == pytest.approx(0.5e-6 / (std + 1e-6), rel=1e-12)


def test_standardized_takes_another_eps():
    advantages_PG = standardized(torch.tensor([[0.0, 1.0]], dtype=torch.float64), eps=0.5)
    assert advantages_PG[0, 1].item() == pytest.approx(0.5 / (math.sqrt(0.5) + 0.5), rel=1e-12)


@pytest.mark.parametrize("eps", [0.0, -1e-6, math.nan])
def test_standardized_refuses_an_eps_that_divides_zero_by_zero(eps):
    with pytest.raises(ValueError, match=rf"^eps = {eps}: a group that ties would divide 0 by 0; use a small"):
        standardized(random_rewards(), eps=eps)


@every_advantage
@given(value=st.floats(-1e6, 1e6, width=32), G=st.integers(2, 9))
def test_a_group_that_ties_is_exactly_zero_beside_one_that_does_not(advantage, value, G):
    rewards_PG = torch.full((2, G), value)
    rewards_PG[1] = torch.arange(G)
    advantages_PG = advantage(rewards_PG)
    assert advantages_PG[0].tolist() == [0.0] * G
    assert (advantages_PG[1, 1:] > advantages_PG[1, :-1]).all()


@every_advantage
def test_a_batch_that_ties_is_exactly_zero(advantage):
    assert advantage(torch.full((2, 3), 0.1)).tolist() == [[0.0] * 3] * 2


@every_advantage
def test_sums_to_zero_in_every_group(advantage):
    torch.testing.assert_close(
        advantage(random_rewards()).sum(dim=1), torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-12
    )


@every_advantage
def test_keeps_the_order_of_the_rewards(advantage):
    rewards_PG = random_rewards()
    assert torch.equal(advantage(rewards_PG).argsort(dim=1), rewards_PG.argsort(dim=1))


@every_advantage
def test_blind_to_a_shift_of_each_prompt(advantage):
    rewards_PG = random_rewards()
    shifts_P1 = random_rewards(5, 1, seed=1) * 10
    torch.testing.assert_close(advantage(rewards_PG + shifts_P1), advantage(rewards_PG), rtol=1e-10, atol=1e-10)


def test_a_large_offset_costs_no_digits():
    rewards_PG = torch.tensor([[2.0**24, 2.0**24 + 2]])
    assert centered(rewards_PG).tolist() == [[-1.0, 1.0]]


@every_advantage
def test_follows_a_permutation_of_replies_and_prompts(advantage):
    rewards_PG = random_rewards()
    replies, prompts = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 1, 3])
    moved_PG = advantage(rewards_PG[prompts][:, replies])
    torch.testing.assert_close(moved_PG, advantage(rewards_PG)[prompts][:, replies], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("advantage", "power"), [(centered, 1), (standardized, 0), (batch_scaled, 0), (leave_one_out, 1)]
)
def test_answer_to_a_scaled_reward(advantage, power):
    rewards_PG = random_rewards()
    torch.testing.assert_close(advantage(rewards_PG * 7), advantage(rewards_PG) * 7**power, rtol=1e-5, atol=1e-12)


def test_batch_scaled_keeps_the_relative_weight_of_prompts_and_standardized_does_not():
    rewards_PG = torch.tensor([[-1.0, 1.0], [-7.0, 7.0]], dtype=torch.float64)
    assert batch_scaled(rewards_PG)[:, 1].tolist() == pytest.approx([0.2, 1.4], rel=1e-12)
    assert standardized(rewards_PG)[:, 1].tolist() == pytest.approx([math.sqrt(0.5)] * 2, rel=1e-5)


def test_centered_rms_of_the_whole_batch():
    assert centered_rms(torch.tensor([[-1.0, 1.0], [93.0, 107.0]])).item() == pytest.approx(5.0)


def test_batch_scaled_in_parts_with_the_global_rms_equals_the_whole():
    rewards_PG = random_rewards()
    parts = [rewards_PG[:2], rewards_PG[2:]]
    squares = sum(centered(part).square().sum() for part in parts)
    rms = (squares / rewards_PG.numel()).sqrt()
    split_PG = torch.cat([batch_scaled(part, rms) for part in parts])
    torch.testing.assert_close(split_PG, batch_scaled(rewards_PG), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(torch.cat([batch_scaled(part) for part in parts]), split_PG)


def test_batch_scaled_divides_by_the_given_rms():
    assert batch_scaled(torch.tensor([[0.0, 2.0]]), torch.tensor(4.0)).tolist() == [[-0.25, 0.25]]


def test_an_rms_of_zero_over_rewards_that_differ_stays_visible():
    advantages_PG = batch_scaled(torch.tensor([[0.0, 1.0, 2.0]]), torch.tensor(0.0))
    assert advantages_PG.tolist() == [[-math.inf, 0.0, math.inf]]


def test_an_rms_per_prompt_is_a_bug():
    with pytest.raises(AssertionError):
        batch_scaled(random_rewards(), torch.ones(5))


@pytest.mark.parametrize("function", [*ALL, centered_rms, zero_std_groups], ids=lambda f: f.__name__)
def test_one_reply_has_no_baseline(function):
    message = r"^replies per prompt = 1: one reply has no baseline; use 2 or more$"
    with pytest.raises(ValueError, match=message):
        function(torch.zeros(3, 1))


@every_advantage
def test_rewards_without_groups_are_a_bug(advantage):
    with pytest.raises(AssertionError):
        advantage(torch.zeros(6))


@every_advantage
def test_no_gradient_reaches_the_rewards(advantage):
    rewards_PG = random_rewards().requires_grad_()
    assert not advantage(rewards_PG).requires_grad


def test_no_gradient_reaches_the_given_or_computed_rms():
    assert not centered_rms(random_rewards().requires_grad_()).requires_grad


@every_advantage
def test_half_precision_rewards_are_widened(advantage):
    rewards_PG = random_rewards().bfloat16()
    assert torch.equal(advantage(rewards_PG), advantage(rewards_PG.float()))
    assert advantage(rewards_PG).dtype == torch.float32


@every_advantage
def test_integer_rewards_are_allowed(advantage):
    assert torch.equal(advantage(torch.tensor([[0, 1, 5]])), advantage(torch.tensor([[0.0, 1.0, 5.0]])))


@every_advantage
@pytest.mark.parametrize("bad", [[math.nan, 0.0], [math.inf, 0.0], [-math.inf, 0.0], [math.inf, math.inf]])
def test_a_reward_that_is_not_finite_stays_visible(advantage, bad):
    advantages_PG = advantage(torch.tensor([bad, [0.0, 2.0]]))
    assert not advantages_PG[0].isfinite().any()
    if advantage is not batch_scaled:
        assert advantages_PG[1].isfinite().all()


def test_zero_std_groups_counts_ties_and_neither_spread_nor_nan():
    rewards_PG = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.2], [7.0, 7.0, 7.0], [math.nan] * 3, [math.inf] * 3])
    assert zero_std_groups(rewards_PG).item() == 2
    assert zero_std_groups(rewards_PG[1:2]).item() == 0
