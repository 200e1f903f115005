"""Rewards and the lengths of replies. P prompts, G replies per prompt."""

import math

import numpy as np
import pytest
import torch

from gad.objectives import centered, length_correlation, length_guarded

AWAY, BACK = 1.25, 0.75
"""Ratios to the teacher's length: of replies that are too long, where `drawn` rewards longer ones, and too short."""


def drawn(P: int = 6, G: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths_PG = torch.randint(1, 60, (P, G), generator=generator).double()
    noise_PG = torch.randn(P, G, generator=generator, dtype=torch.float64)
    return 0.3 * lengths_PG + noise_PG + 5 * torch.arange(P)[:, None], lengths_PG


def test_by_hand():
    """Centered rewards -1, 1 and -3, 3; centered lengths -1, 1 and -2, 2: the slope is (2 + 12) / (2 + 8)."""
    rewards_PG = torch.tensor([[4.0, 6.0], [-3.0, 3.0]])
    lengths_PG = torch.tensor([[10.0, 12.0], [30.0, 34.0]])
    found_PG = length_guarded(rewards_PG, lengths_PG, AWAY)
    torch.testing.assert_close(found_PG, torch.tensor([[4.0 + 1.4, 6.0 - 1.4], [-3.0 + 2.8, 3.0 - 2.8]]))
    assert length_correlation(rewards_PG, lengths_PG).item() == pytest.approx(14 / math.sqrt(20 * 10))


@pytest.mark.parametrize(("longer_is_better", "ratio"), [(True, 0.99), (False, 1.01), (True, 0.2), (False, 3.0)])
def test_a_line_that_leads_back_to_the_teachers_length_stays(longer_is_better: bool, ratio: float):
    rewards_PG, lengths_PG = drawn()
    rewards_PG = rewards_PG if longer_is_better else -rewards_PG
    assert torch.equal(length_guarded(rewards_PG, lengths_PG, ratio), rewards_PG)


@pytest.mark.parametrize(("longer_is_better", "ratio"), [(True, 1.01), (False, 0.99), (True, 1.0), (False, 1.0)])
def test_a_line_that_leads_away_is_taken_off(longer_is_better: bool, ratio: float):
    """At the teacher's own length every line does."""
    rewards_PG, lengths_PG = drawn()
    rewards_PG = rewards_PG if longer_is_better else -rewards_PG
    left_PG = length_guarded(rewards_PG, lengths_PG, ratio)
    assert abs(length_correlation(left_PG, lengths_PG).item()) < 1e-12


def test_agrees_with_a_regression_with_a_constant_for_each_prompt():
    rewards_PG, lengths_PG = drawn()
    columns = [lengths_PG.flatten(), *torch.eye(6, dtype=torch.float64).repeat_interleave(4, 0).T]
    design = np.stack([column.numpy() for column in columns], axis=1)
    solved = np.linalg.lstsq(design, rewards_PG.flatten().numpy(), rcond=None)[0]
    residual_PG = rewards_PG - torch.from_numpy(design @ solved).view(6, 4)
    found_PG = length_guarded(rewards_PG, lengths_PG, AWAY)
    torch.testing.assert_close(centered(found_PG), centered(residual_PG), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found_PG.mean(1), rewards_PG.mean(1), rtol=1e-12, atol=1e-12)


def test_correlation_is_pearsons_of_what_is_left_without_the_groups_means():
    rewards_PG, lengths_PG = drawn()
    expected = np.corrcoef(centered(rewards_PG).flatten().numpy(), centered(lengths_PG).flatten().numpy())[0, 1]
    assert length_correlation(rewards_PG, lengths_PG).item() == pytest.approx(expected, rel=1e-12)
    assert length_correlation(-2 * rewards_PG, lengths_PG).item() == pytest.approx(-expected, rel=1e-12)
    assert length_correlation(3 * lengths_PG + 1, lengths_PG).item() == pytest.approx(1.0, rel=1e-12)


def test_what_is_left_does_not_know_length():
    rewards_PG, lengths_PG = drawn()
    assert length_correlation(rewards_PG, lengths_PG) > 0.9
    assert abs(length_correlation(length_guarded(rewards_PG, lengths_PG, AWAY), lengths_PG).item()) < 1e-12
    of_length_alone_PG = 0.7 * lengths_PG + 3 * torch.arange(6)[:, None]
    assert centered(length_guarded(of_length_alone_PG, lengths_PG, AWAY)).abs().max() < 1e-12


def test_twice_is_once():
    rewards_PG, lengths_PG = drawn()
    once_PG = length_guarded(rewards_PG, lengths_PG, AWAY)
    torch.testing.assert_close(length_guarded(once_PG, lengths_PG, AWAY), once_PG, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shift", [torch.zeros(6, 1), 100 * torch.arange(6)[:, None]], ids=["none", "by prompt"])
@pytest.mark.parametrize("unit", [1.0, 0.01, 7.0])
def test_blind_to_the_unit_of_length_and_to_what_a_prompt_adds(unit: float, shift: torch.Tensor):
    rewards_PG, lengths_PG = drawn()
    found_PG = length_guarded(rewards_PG, unit * lengths_PG + shift, AWAY)
    torch.testing.assert_close(found_PG, length_guarded(rewards_PG, lengths_PG, AWAY), rtol=1e-9, atol=1e-9)


def test_follows_a_permutation_of_replies_and_prompts():
    rewards_PG, lengths_PG = drawn()
    replies, prompts = torch.tensor([2, 0, 3, 1]), torch.tensor([4, 2, 0, 5, 1, 3])
    moved_PG = length_guarded(rewards_PG[prompts][:, replies], lengths_PG[prompts][:, replies], AWAY)
    expected_PG = length_guarded(rewards_PG, lengths_PG, AWAY)[prompts][:, replies]
    torch.testing.assert_close(moved_PG, expected_PG, rtol=1e-12, atol=1e-12)


def test_lengths_that_do_not_differ_within_groups_change_nothing():
    rewards_PG, _ = drawn()
    lengths_PG = (10.0 * torch.arange(1, 7))[:, None].expand(6, 4)
    assert torch.equal(length_guarded(rewards_PG, lengths_PG, AWAY), rewards_PG)
    assert length_correlation(rewards_PG, lengths_PG).item() == 0.0
    assert length_correlation(torch.ones(6, 4), rewards_PG).item() == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_broken_reward_stays_visible(bad: float):
    rewards_PG, lengths_PG = drawn()
    rewards_PG[1, 2] = bad
    assert length_guarded(rewards_PG, lengths_PG, AWAY).isnan().all()
    assert length_correlation(rewards_PG, lengths_PG).isnan()


def test_one_reply_has_no_baseline():
    one = torch.zeros(3, 1)
    for asked in (lambda: length_correlation(one, one), lambda: length_guarded(one, one, AWAY)):
        with pytest.raises(ValueError, match=r"^replies per prompt = 1: one reply has no baseline; use 2 or more$"):
            asked()


@pytest.mark.parametrize("ratio", [AWAY, BACK])
def test_half_precision_is_widened_and_no_gradient_is_carried(ratio: float):
    rewards_PG, lengths_PG = drawn()
    half_PG, lengths_PG = rewards_PG.bfloat16().requires_grad_(), lengths_PG.float()
    found_PG = length_guarded(half_PG, lengths_PG, ratio)
    assert found_PG.dtype is torch.float32
    assert not found_PG.requires_grad
    assert torch.equal(found_PG, length_guarded(half_PG.detach().float(), lengths_PG, ratio))
    assert not length_correlation(half_PG, lengths_PG).requires_grad


def test_lengths_of_another_shape_are_a_bug():
    with pytest.raises(AssertionError):
        length_guarded(torch.zeros(3, 2), torch.zeros(3, 4), AWAY)
