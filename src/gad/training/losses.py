"""Config variants to pure functions of `gad.objectives`.

P prompts, G replies per prompt, B rows, T reply tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from torch import Tensor

from gad import objectives
from gad.config.training import (
    Advantages,
    BatchScaled,
    BradleyTerry,
    Clipped,
    ConstantLength,
    CrossEntropy,
    DiscriminatorLoss,
    Kl,
    LeastSquares,
    LeaveOneOut,
    MeanOnly,
    PolicyLoss,
    Reinforce,
    SequenceRatio,
    StdScaled,
)


@dataclass(frozen=True, slots=True)
class Totals:
    """Counts over the whole step, so that parts of it add up to the same gradient."""

    tokens: int
    sequences: int
    max_reply_tokens: int
    imitated: int = 0


def advantages(config: Advantages, rewards_PG: Tensor) -> Tensor:
    """Advantages (P, G) of a step's rewards."""
    match config:
        case MeanOnly():
            return objectives.centered(rewards_PG)
        case StdScaled():
            return objectives.standardized(rewards_PG)
        case BatchScaled():
            return objectives.batch_scaled(rewards_PG)
        case LeaveOneOut():
            return objectives.leave_one_out(rewards_PG)
        case _:
            assert_never(config)


def policy(
    config: PolicyLoss,
    logps_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    totals: Totals,
    weights_BT: Tensor | None = None,
) -> Tensor:
    """This part's share of the policy loss. Rollouts are of the weights being trained: the ratio is 1.

    weights_BT: where they are not quite, `objectives.importance_weights`.
    """
    aggregation: str
    match config:
        case Reinforce(aggregation=aggregation):
            loss_BT = objectives.reinforce(logps_BT, advantages_B, mask_BT)
        case Clipped(clip=clip, dual_clip=dual_clip, aggregation=aggregation):
            loss_BT = objectives.clipped_surrogate(
                logps_BT, None, advantages_B, mask_BT, clip_low=clip, clip_high=clip, dual_clip=dual_clip
            )
        case ConstantLength(clip=clip):
            loss_BT = objectives.clipped_surrogate(
                logps_BT, None, advantages_B, mask_BT, clip_low=clip, clip_high=clip, dual_clip=None
            )
            aggregation = "constant_length"
        case SequenceRatio(clip_low=low, clip_high=high):
            loss_BT = objectives.sequence_surrogate(logps_BT, None, advantages_B, mask_BT, clip_low=low, clip_high=high)
            aggregation = "sequence_mean"
        case _:
            assert_never(config)
    if weights_BT is not None:
        loss_BT = loss_BT * weights_BT
    if aggregation == "constant_length":
        return objectives.constant_length(loss_BT, mask_BT, totals.sequences, totals.max_reply_tokens)
    if aggregation == "token_mean":
        return objectives.token_mean(loss_BT, mask_BT, totals.tokens)
    return objectives.sequence_mean(loss_BT, mask_BT, totals.sequences)


def kl(config: Kl, logps_BT: Tensor, reference_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """The estimate of KL(student || reference) for each token."""
    estimators = {"k1": objectives.k1, "k2": objectives.k2, "k3": objectives.k3}
    return estimators[config.estimator](logps_BT, reference_logps_BT, mask_BT)


def discriminator(
    config: DiscriminatorLoss, teacher_scores_P: Tensor, student_scores_PG: Tensor, total_prompts: int
) -> Tensor:
    """This part's share of the discriminator's loss."""
    match config:
        case BradleyTerry(label_smoothing=smoothing):
            return objectives.bradley_terry(
                teacher_scores_P, student_scores_PG, label_smoothing=smoothing, total_prompts=total_prompts
            )
        case CrossEntropy(label_smoothing=smoothing):
            return objectives.cross_entropy(
                teacher_scores_P, student_scores_PG, label_smoothing=smoothing, total_prompts=total_prompts
            )
        case LeastSquares():
            return objectives.least_squares(teacher_scores_P, student_scores_PG, total_prompts=total_prompts)
        case _:
            assert_never(config)
