"""Which replies of a step the student learns from, and what their rewards say to it."""

from __future__ import annotations

from unittest.mock import MagicMock, Mock

import pytest
import torch
from torch import Tensor

from gad import objectives
from gad.config.training import MeanOnly
from gad.stages.adversarial import Game, lengths, telling, train
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


def advantages_and_log(
    *, length_guard: bool, ratio: float = 1.25, trained_replies: int | None = None
) -> tuple[Tensor, Tensor, dict]:
    """Of one step whose rewards say length and a little else, `ratio` of the teacher's: what the student gets, the
    lengths of its replies, and what the log gets of the rewards."""
    groups = game.groups()
    lengths_PG = lengths(groups)
    rewards_PG = 0.5 * lengths_PG + 0.1 * REWARDS_PG
    run, student, discriminator, replies = Mock(), MagicMock(), Mock(), Mock()
    run.batches.return_value = [(1, [])]
    replies.groups.return_value = (groups, {"reply/length_ratio_to_teacher": ratio})
    discriminator.update.return_value = (rewards_PG, {})
    objective = Mock(kl=Mock(in_reward=False))
    train(run, Game(student, discriminator, replies, MeanOnly(), objective, trained_replies, length_guard))
    trained, advantages_PK, _ = student.update.call_args.args
    return advantages_PK, lengths(trained), run.log.call_args.args[2]


def test_a_length_guard_takes_length_out_where_it_leads_away() -> None:
    plain_PG, lengths_PG, logged = advantages_and_log(length_guard=False)
    assert objectives.length_correlation(plain_PG, lengths_PG) > 0.9
    guarded_PG, _, also_logged = advantages_and_log(length_guard=True)
    assert objectives.length_correlation(guarded_PG, lengths_PG).item() == pytest.approx(0.0, abs=1e-5)
    assert guarded_PG.abs().sum() > 0.1
    assert torch.equal(advantages_and_log(length_guard=True, ratio=0.75)[0], plain_PG)
    # The log has the discriminator's own rewards either way.
    assert logged == also_logged
    assert logged["reward/length_correlation"] == pytest.approx(
        objectives.length_correlation(plain_PG, lengths_PG).item(), rel=1e-6
    )


def test_the_most_telling_replies_are_chosen_by_what_is_left() -> None:
    """One line through all replies of the step, not through those that were chosen."""
    everything_PG, lengths_PG, _ = advantages_and_log(length_guard=True)
    told_PK, lengths_PK, _ = advantages_and_log(length_guard=True, trained_replies=2)
    kept_PK = objectives.most_varied(everything_PG, 2)
    assert torch.equal(lengths_PK, lengths_PG.gather(1, kept_PK))
    torch.testing.assert_close(told_PK, objectives.centered(everything_PG.gather(1, kept_PK)))
