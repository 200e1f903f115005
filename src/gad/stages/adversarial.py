"""Stage 2 of arXiv 2511.10643: the student against a discriminator that keeps learning.

P prompts, G replies per prompt, K of them that the student learns from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gad import objectives
from gad.config.training import Advantages
from gad.records import RolloutGroup
from gad.stages.sampling import Replies
from gad.training import losses
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.optimizer import Metrics
from gad.training.run import StageRun
from gad.training.student import PolicyObjective, StudentTrainer


@dataclass(frozen=True, slots=True)
class Game:
    """The two players, the dice, and the rules. trained_replies: K, None for all."""

    student: StudentTrainer
    discriminator: DiscriminatorTrainer
    replies: Replies
    advantages: Advantages
    objective: PolicyObjective
    trained_replies: int | None = None
    length_guard: bool = False

    def told(self, rewards_PG: Tensor, lengths_PG: Tensor, reply_metrics: Metrics) -> Tensor:
        """What the student is told of the discriminator's scores of its replies."""
        if not self.length_guard:
            return rewards_PG
        return objectives.length_guarded(rewards_PG, lengths_PG, reply_metrics["reply/length_ratio_to_teacher"])


def train(run: StageRun, game: Game) -> None:
    """The algorithm's box. The scores before the discriminator's update are the rewards; the updates commute."""
    for step, batch in run.batches():
        groups, reply_metrics = game.replies.groups(batch, step)
        with game.student.member.keeping():
            rewards_PG, discriminator_metrics = game.discriminator.update(groups)
            lengths_PG = lengths(groups)
            told_PG = game.told(rewards_PG, lengths_PG, reply_metrics)
            trained, rewards_PK = telling(groups, told_PG, game.trained_replies)
            if game.objective.kl.in_reward:
                kl_sums_PK = game.student.kl_sums(trained, game.objective)
                rewards_PK = objectives.kl_in_reward(rewards_PK, kl_sums_PK, game.objective.kl.weight)
            advantages_PK = losses.advantages(game.advantages, rewards_PK)
            student_metrics = game.student.update(trained, advantages_PK, game.objective)
        run.log(step, reply_metrics, reward_metrics(rewards_PG, lengths_PG), discriminator_metrics, student_metrics)
        run.checkpoint_if_due(step)


def telling(
    groups: Sequence[RolloutGroup], rewards_PG: Tensor, count: int | None
) -> tuple[Sequence[RolloutGroup], Tensor]:
    """The groups with `count` replies each, those with the most varied rewards, and their rewards (P, K)."""
    if count is None or count == rewards_PG.shape[1]:
        return groups, rewards_PG
    kept_PK = objectives.most_varied(rewards_PG, count)
    chosen = [
        replace(group, rollouts=tuple(group.rollouts[index] for index in kept))
        for group, kept in zip(groups, kept_PK.tolist(), strict=True)
    ]
    return chosen, rewards_PG.gather(1, kept_PK)


def lengths(groups: Sequence[RolloutGroup]) -> Tensor:
    """Tokens (P, G) of each reply, end-of-text included."""
    return torch.tensor([[float(len(rollout.token_ids)) for rollout in group.rollouts] for group in groups])


def reward_metrics(rewards_PG: Tensor, lengths_PG: Tensor) -> Metrics:
    """Their mean says nothing of quality: it wanders by construction. A spread of zero means nothing to learn from."""
    return {
        "reward/mean": rewards_PG.mean().item(),
        "reward/group_std": rewards_PG.std(dim=-1).mean().item(),
        "reward/zero_std_groups": float(objectives.zero_std_groups(rewards_PG)),
        "reward/length_correlation": objectives.length_correlation(rewards_PG, lengths_PG).item(),
    }
