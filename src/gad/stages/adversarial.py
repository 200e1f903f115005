"""Stage 2 of arXiv 2511.10643: the student against a discriminator that keeps learning.

P prompts, G replies per prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gad import objectives
from gad.config.training import Advantages
from gad.stages.sampling import Replies
from gad.training import losses
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.optimizer import Metrics
from gad.training.run import StageRun
from gad.training.student import PolicyObjective, StudentTrainer


@dataclass(frozen=True, slots=True)
class Game:
    """The two players, the dice, and the rules."""

    student: StudentTrainer
    discriminator: DiscriminatorTrainer
    replies: Replies
    advantages: Advantages
    objective: PolicyObjective


def train(run: StageRun, game: Game) -> None:
    """The algorithm's box. The scores before the discriminator's update are the rewards; the updates commute."""
    for step, batch in run.batches():
        groups, reply_metrics = game.replies.groups(batch, step)
        rewards_PG, discriminator_metrics = game.discriminator.update(groups)
        if game.objective.kl.place == "reward":
            kl_sums_PG = game.student.kl_sums(groups, game.objective)
            rewards_PG = objectives.kl_in_reward(rewards_PG, kl_sums_PG, game.objective.kl.weight)
        advantages_PG = losses.advantages(game.advantages, rewards_PG)
        student_metrics = game.student.update(groups, advantages_PG, game.objective)
        run.log(step, reply_metrics, reward_metrics(rewards_PG), discriminator_metrics, student_metrics)
        run.checkpoint_if_due(step)


def reward_metrics(rewards_PG: Tensor) -> Metrics:
    """Their mean says nothing of quality: it wanders by construction. A spread of zero means nothing to learn from."""
    return {
        "reward/mean": rewards_PG.mean().item(),
        "reward/group_std": rewards_PG.std(dim=-1).mean().item(),
        "reward/zero_std_groups": float(objectives.zero_std_groups(rewards_PG)),
    }
