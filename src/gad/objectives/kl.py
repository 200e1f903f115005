"""P prompts, G replies per prompt, B = P*G rows, T reply tokens.

Estimators of KL(policy || reference) from tokens that the policy sampled (Schulman 2020,
joschu.net/blog/kl-approx.html), with `d = ref_logp - logp`:

    estimator    per token         mean          gradient, in expectation, when put *in the loss*
    k1           -d                KL            0: no constraint at all
    k2           d^2 / 2           about KL      KL(policy || reference): the one to minimise
    k3           exp(d) - d - 1    KL            KL(reference || policy): equal only to second order

(Tang and Munos, arXiv 2506.09477.) In the *reward* (`kl_in_reward`) the value counts and nothing is
differentiated: k1 there gives the gradient of KL(policy || reference) over the whole reply, later tokens
included, which no estimator in the loss does.

mask_BT is bool and True on reply tokens; results (B, T) are 0 elsewhere, whatever the inputs hold there. The
gradient flows to logps_BT only.
"""

import math

import torch
from torch import Tensor

from gad.objectives._tensors import keep, require, widen

LOG_RATIO_BOUND = 20.0
"""`k3` holds d within +-20, as in verl, so that exp stays finite; verl's second clamp, of k3 at 10, is left
out: it would end the pull on exactly the tokens that have drifted most."""


def k1(logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`-d` per token (B, T): unbiased, may be negative. For rewards and metrics; useless in the loss."""
    return -_log_ratio(logps_BT, ref_logps_BT, mask_BT)


def k2(logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`d^2 / 2` per token (B, T): biased in value, right in gradient when put in the loss."""
    return _log_ratio(logps_BT, ref_logps_BT, mask_BT).square() / 2


def k3(logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`exp(d) - d - 1` per token (B, T): unbiased, never negative; the official scripts' loss term.

    (Their weight is 0.001.) In the loss its expected gradient is that of KL(reference || policy).
    """
    d_BT = _log_ratio(logps_BT, ref_logps_BT, mask_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND)
    return torch.expm1(d_BT) - d_BT


def kl_in_reward(rewards_PG: Tensor, kl_sum_PG: Tensor, weight: float) -> Tensor:
    """`reward - weight * KL of the whole reply` (P, G), without gradient; to be used before the advantages.

    kl_sum_PG: `sequence_sum` of `k1` per reply, in nats. ValueError unless weight is finite and >= 0.
    """
    require(0 <= weight < math.inf, "weight", weight, "a KL penalty needs a finite weight of 0 or more")
    assert rewards_PG.shape == kl_sum_PG.shape, (rewards_PG.shape, kl_sum_PG.shape)
    return rewards_PG.detach() - weight * widen(kl_sum_PG.detach())


def _log_ratio(logps_BT: Tensor, ref_logps_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return keep(ref_logps_BT.detach(), mask_BT) - keep(logps_BT, mask_BT)
