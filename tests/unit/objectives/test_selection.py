"""P prompts, G replies per prompt, K of them that are kept."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gad.objectives import most_varied


def by_trying_all(rewards: list[float], count: int) -> float:
    """The greatest variance of any `count` rewards."""
    return max(statistics.pvariance(chosen) for chosen in itertools.combinations(rewards, count))


@given(st.lists(st.integers(-50, 50), min_size=2, max_size=8), st.data())
def test_no_other_replies_vary_more(rewards: list[int], data: st.DataObject) -> None:
    count = data.draw(st.integers(2, len(rewards)))
    kept = most_varied(torch.tensor([rewards], dtype=torch.float64), count)[0].tolist()
    assert kept == sorted(set(kept))
    assert len(kept) == count
    found = statistics.pvariance([float(rewards[index]) for index in kept])
    assert found == pytest.approx(by_trying_all([float(reward) for reward in rewards], count), rel=1e-12, abs=1e-12)


def test_two_are_the_worst_and_the_best_of_each_group() -> None:
    rewards_PG = torch.tensor([[0.5, 3.0, -2.0, 1.0], [9.0, 7.0, 8.0, 8.5]])
    assert most_varied(rewards_PG, 2).tolist() == [[1, 2], [0, 1]]


@pytest.mark.parametrize(
    ("rewards", "kept"),
    [
        ([0.0, 1.0, 2.0, 9.0], [0, 1, 3]),  # the one far above, and two from the crowd below
        ([0.0, 7.0, 8.0, 9.0], [0, 2, 3]),
        ([0.0, 1.0, 2.0, 3.0], [0, 2, 3]),  # level: fewer low ones
        ([5.0, 5.0, 5.0, 5.0], [0, 2, 3]),
    ],
)
def test_three_of_four(rewards: list[float], kept: list[int]) -> None:
    assert most_varied(torch.tensor([rewards]), 3)[0].tolist() == kept


def test_all_of_a_group() -> None:
    assert most_varied(torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), 4).tolist() == [[0, 1, 2, 3]] * 3


def test_neither_another_scale_nor_another_offset_nor_other_prompts_change_what_is_kept() -> None:
    rewards_PG = torch.randn(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    kept_PK = most_varied(rewards_PG, 3)
    assert torch.equal(most_varied(4.0 * rewards_PG - 100.0, 3), kept_PK)
    assert torch.equal(most_varied(rewards_PG.flip(0), 3), kept_PK.flip(0))
    order = torch.randperm(8, generator=torch.Generator().manual_seed(2))
    moved_PK = order[most_varied(rewards_PG[:, order], 3)].sort(dim=1).values
    assert torch.equal(moved_PK, kept_PK)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_kept(bad: float) -> None:
    kept = most_varied(torch.tensor([[0.0, 1.0, bad, 2.0, 3.0], [0.0, 9.0, 1.0, 2.0, 3.0]]), 2)
    assert 2 in kept[0].tolist()
    assert kept[1].tolist() == [0, 1]


def test_rewards_in_half_precision_and_with_gradients() -> None:
    rewards_PG = torch.tensor([[0.0, 1.0, 100.0, 101.0]], dtype=torch.bfloat16, requires_grad=True)
    assert most_varied(rewards_PG, 2).tolist() == [[0, 3]]


@pytest.mark.parametrize("count", [1, 5])
def test_too_few_and_too_many(count: int) -> None:
    with pytest.raises(ValueError, match=rf"^replies to keep = {count}: use 2 to 4, the replies of a group$"):
        most_varied(torch.zeros(1, 4), count)
