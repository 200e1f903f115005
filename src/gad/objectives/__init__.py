"""Objectives: pure functions of tensors, from scores and log-probabilities to losses (imports torch only).

| equation of arXiv 2511.10643 | function |
|---|---|
| Eq. 2, policy gradient with reward D(x, y_s) | `reinforce`, `clipped_surrogate`, `sequence_surrogate` |
| Eq. 3 and 8, Bradley-Terry discriminator | `bradley_terry` |
| Eq. 4, cross-entropy discriminator (ablation) | `cross_entropy` |
| Eq. 5-7, group advantage | `standardized` (the paper's), `centered` (the default here) |
| warm-up and SeqKD | `token_cross_entropy` |
| KL term of the GRPO loss | `k3` (official scripts), `k1`, `k2`, `kl_in_reward` |

Losses are per token until an aggregation (`token_mean`, `sequence_mean`, `constant_length`) divides them by a
global count: a batch split over micro-batches or ranks has the same loss and the same gradient as the whole.
"""

from gad.objectives.advantages import (
    batch_scaled,
    centered,
    centered_rms,
    leave_one_out,
    length_correlation,
    length_guarded,
    standardized,
    zero_std_groups,
)
from gad.objectives.aggregation import constant_length, sequence_mean, sequence_sum, token_mean
from gad.objectives.discriminator import (
    accuracy,
    bradley_terry,
    cross_entropy,
    least_squares,
    margins,
    score_centering,
)
from gad.objectives.kl import k1, k2, k3, kl_in_reward
from gad.objectives.likelihood import token_cross_entropy
from gad.objectives.policy import (
    clip_fraction,
    clipped_surrogate,
    importance_weights,
    reinforce,
    sequence_ratio,
    sequence_surrogate,
    token_ratio,
)
from gad.objectives.selection import most_varied

__all__ = [
    "accuracy",
    "batch_scaled",
    "bradley_terry",
    "centered",
    "centered_rms",
    "clip_fraction",
    "clipped_surrogate",
    "constant_length",
    "cross_entropy",
    "importance_weights",
    "k1",
    "k2",
    "k3",
    "kl_in_reward",
    "least_squares",
    "leave_one_out",
    "length_correlation",
    "length_guarded",
    "margins",
    "most_varied",
    "reinforce",
    "score_centering",
    "sequence_mean",
    "sequence_ratio",
    "sequence_sum",
    "sequence_surrogate",
    "standardized",
    "token_cross_entropy",
    "token_mean",
    "token_ratio",
    "zero_std_groups",
]
