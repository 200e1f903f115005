"""P prompts, G replies per prompt, B = P*G rows, T reply tokens.

Policy losses per token: the generator's side of the game (arXiv 2511.10643, Eq. 2 and 5-7). `aggregation`
makes one number of them.

logps_BT        log-probability of each sampled token under the policy now; carries the gradient
old_logps_BT    the same when the reply was sampled; None where the policy has not changed since (ratio 1)
advantages_B    one advantage per reply, advantages_PG flattened; constant to the gradient, and finite
mask_BT         bool, True on reply tokens; every result is 0 elsewhere, and what the other inputs hold there
                (inf and NaN included) reaches neither value nor gradient

Losses are to be minimised: a positive advantage raises the log-probability of its tokens.
"""

import math

import torch
from torch import Tensor

from gad.objectives._tensors import Count, keep, require, widen
from gad.objectives.aggregation import sequence_sum, token_mean

LOG_RATIO_BOUND = 20.0
"""Log-ratios are held within +-20, as in verl: exp stays finite, and inf * 0 cannot make a NaN gradient."""


def token_ratio(logps_BT: Tensor, old_logps_BT: Tensor | None, mask_BT: Tensor) -> Tensor:
    """Ratio `p_now / p_old` of each sampled token (B, T); 1 off the mask."""
    return _log_ratio(logps_BT, old_logps_BT, mask_BT).clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()


def sequence_ratio(logps_BT: Tensor, old_logps_BT: Tensor | None, mask_BT: Tensor) -> Tensor:
    """Geometric mean of a reply's token ratios, `exp(mean log ratio)`, at each of its tokens (B, T).

    arXiv 2507.18071, Eq. 7. An empty reply gives 1.
    """
    sums_B = sequence_sum(_log_ratio(logps_BT, old_logps_BT, mask_BT), mask_BT)
    means_B = sums_B / mask_BT.sum(dim=1).clamp(min=1)
    return means_B.clamp(-LOG_RATIO_BOUND, LOG_RATIO_BOUND).exp()[:, None].expand_as(mask_BT)


def reinforce(logps_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor) -> Tensor:
    """`-A * log p` per token (B, T): the policy gradient, exact while the policy is the one that sampled.

    Its gradient at ratio 1 is that of `clipped_surrogate`.
    """
    return -_column(advantages_B) * keep(logps_BT, mask_BT)


def clipped_surrogate(
    logps_BT: Tensor,
    old_logps_BT: Tensor | None,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = 3.0,
) -> Tensor:
    """PPO's and GRPO's loss per token (B, T): `max(-A r, -A clip(r, 1 - clip_low, 1 + clip_high))`.

    arXiv 1707.06347, Eq. 7; arXiv 2402.03300, Eq. 3. Dual clip (arXiv 1912.09729): where A < 0 the loss is
    at most `-A * dual_clip`; without it a token whose ratio explodes has no bound. Defaults: official GAD
    scripts (clip 0.2, dual clip 3.0). Value `-A` at ratio 1.
    ValueError unless 0 < clip_low < 1, clip_high > 0, dual_clip > 1.
    """
    if dual_clip is not None:
        require(dual_clip > 1, "dual_clip", dual_clip, "a ceiling for the ratio; use more than 1, or None")
    ratio_BT = token_ratio(logps_BT, old_logps_BT, mask_BT)
    return keep(_pessimistic(ratio_BT, _column(advantages_B), clip_low, clip_high, dual_clip), mask_BT)


def sequence_surrogate(
    logps_BT: Tensor,
    old_logps_BT: Tensor | None,
    advantages_B: Tensor,
    mask_BT: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """GSPO: the clipped loss of the *sequence* ratio, at each token of the reply (B, T).

    arXiv 2507.18071, Eq. 5 when aggregated by `sequence_mean`; `token_mean` weighs replies by their length.
    Defaults: section 5.1 of that paper; a mean of log-ratios moves far less than one token's, hence values
    this small. ValueError unless 0 < clip_low < 1 and clip_high > 0.
    """
    ratio_BT = sequence_ratio(logps_BT, old_logps_BT, mask_BT)
    return keep(_pessimistic(ratio_BT, _column(advantages_B), clip_low, clip_high, None), mask_BT)


def importance_weights(
    trainer_logps_BT: Tensor,
    sampler_logps_BT: Tensor,
    mask_BT: Tensor,
    cap: float,
) -> Tensor:
    """Truncated weights `min(p_trainer / p_sampler, cap)` per token (B, T); no gradient, 0 off the mask.

    Multiply a loss per token by them where the engine that sampled and the model that is trained disagree on
    the same weights (precision, kernels). Truncation trades bias for variance (Ionides 2008). ValueError when
    cap < 1.
    """
    require(cap >= 1, "cap", cap, "where both agree the weight is 1 and must not be cut; use 1 or more")
    ratio_BT = token_ratio(trainer_logps_BT.detach(), sampler_logps_BT, mask_BT)
    return keep(ratio_BT.clamp(max=cap), mask_BT)


def clip_fraction(
    ratio_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    total_tokens: Count,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    """Share (scalar, 0 to 1) of reply tokens that the clip leaves without gradient.

    ratio_BT: `token_ratio` or `sequence_ratio`. total_tokens: as in `token_mean`. The bounds have no
    defaults: pass those of the loss.
    """
    A_B1 = _column(advantages_B)
    ceiling = math.inf if dual_clip is None else dual_clip
    raised_BT = (A_B1 > 0) & (ratio_BT > 1 + clip_high)
    lowered_BT = (A_B1 < 0) & ((ratio_BT < 1 - clip_low) | (ratio_BT > ceiling))
    return token_mean(raised_BT | lowered_BT, mask_BT, total_tokens)


def _column(advantages_B: Tensor) -> Tensor:
    assert advantages_B.ndim == 1, advantages_B.shape
    return widen(advantages_B.detach())[:, None]


def _log_ratio(logps_BT: Tensor, old_logps_BT: Tensor | None, mask_BT: Tensor) -> Tensor:
    old_BT = logps_BT if old_logps_BT is None else old_logps_BT
    return keep(logps_BT, mask_BT) - keep(old_BT.detach(), mask_BT)


def _pessimistic(
    ratio_BT: Tensor,
    A_B1: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    require(0 < clip_low < 1, "clip_low", clip_low, "the floor is 1 - clip_low; use above 0, below 1")
    require(clip_high > 0, "clip_high", clip_high, "the ceiling is 1 + clip_high; use above 0")
    loss_BT = torch.maximum(-A_B1 * ratio_BT, -A_B1 * ratio_BT.clamp(1 - clip_low, 1 + clip_high))
    if dual_clip is None:
        return loss_BT
    return torch.where(A_B1 < 0, torch.minimum(loss_BT, -A_B1 * dual_clip), loss_BT)
