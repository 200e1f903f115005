"""Which replies of a step the student learns from."""

from __future__ import annotations

import torch

from gad.stages.adversarial import telling
from unit.training import game

REWARDS_PG = torch.tensor([[1.0, 5.0, 3.0], [0.0, 0.5, 9.0], [2.0, 2.0, 1.0], [7.0, -7.0, 0.0]])


def test_the_worst_and_the_best_reply_of_each_prompt_with_their_rewards() -> None:
    groups = game.groups()
    chosen, rewards_PK = telling(groups, REWARDS_PG, 2)
    assert rewards_PK.tolist() == [[1.0, 5.0], [0.0, 9.0], [2.0, 1.0], [7.0, -7.0]]
    for group, whole, kept in zip(chosen, groups, [(0, 1), (0, 2), (1, 2), (0, 1)], strict=True):
        assert (group.example, group.teacher) == (whole.example, whole.teacher)
        assert group.rollouts == tuple(whole.rollouts[index] for index in kept)


def test_all_replies_are_left_as_they_are() -> None:
    groups = game.groups()
    for count in (None, 3):
        chosen, rewards_PK = telling(groups, REWARDS_PG, count)
        assert list(chosen) == groups
        assert rewards_PK is REWARDS_PG
