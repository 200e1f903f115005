"""P prompts, G replies per prompt, B = P*G rows, T reply tokens.

Advantages: how much better a reply is than the other replies to its prompt (arXiv 2511.10643, Eq. 5-7).

Every function maps rewards_PG to advantages_PG of the same shape, in float32 or wider, and in every group the
advantages sum to 0. Advantages are constants to the policy gradient, so the results carry no gradient,
although the rewards may come from the discriminator's own training forward. A reward that is inf or NaN makes
its group NaN or inf (and with `batch_scaled` the batch): it stays visible, for the caller to count and to
stop on.
"""

import torch
from torch import Tensor

from gad.objectives._tensors import require, widen


def centered(rewards_PG: Tensor) -> Tensor:
    """Reward minus the mean of its group: `r_i - mean(r)`; exactly 0 where a group ties.

    The default: dividing by the group's spread as the paper does weights prompts by how little their replies
    differ (arXiv 2503.20783, section 3.1). ValueError when G < 2.
    """
    assert rewards_PG.ndim == 2, rewards_PG.shape
    G = rewards_PG.shape[1]
    require(G >= 2, "replies per prompt", G, "one reply has no baseline; use 2 or more")
    r_PG = widen(rewards_PG.detach())
    # Measured from the lowest reward, so that ties give exactly 0 and a large common offset costs no digits.
    r_PG = r_PG - r_PG.amin(dim=1, keepdim=True)
    return r_PG - r_PG.mean(dim=1, keepdim=True)


def standardized(rewards_PG: Tensor, eps: float = 1e-6) -> Tensor:
    """The paper's advantage: `(r_i - mean(r)) / (std(r) + eps)` per group (arXiv 2511.10643, Eq. 5).

    `std` is the unbiased one, over G - 1, and eps is 1e-6, as in the official scripts (verl's GRPO:
    `torch.std`, `epsilon=1e-6`). Two replies: +-1/sqrt(2) whatever their rewards; a group that ties: exactly
    0. ValueError when G < 2 or eps <= 0.
    """
    require(eps > 0, "eps", eps, "a group that ties would divide 0 by 0; use a small positive number")
    a_PG = centered(rewards_PG)
    std_P1 = (a_PG.square().sum(dim=1, keepdim=True) / (a_PG.shape[1] - 1)).sqrt()
    return a_PG / (std_P1 + eps)


def centered_rms(rewards_PG: Tensor) -> Tensor:
    """Root mean square (scalar) of the centered rewards, over all P*G of them. ValueError when G < 2."""
    return centered(rewards_PG).square().mean().sqrt()


def batch_scaled(rewards_PG: Tensor, rms: Tensor | None = None) -> Tensor:
    """Centered per group, then divided by one number: the rms of the centered rewards of the whole batch.

    This is REINFORCE++ with baseline (arXiv 2501.03262): the spread between prompts does not enter, and
    prompts keep their relative weight. The mean square of the result over the batch is 1; a group that ties
    is exactly 0, the whole batch included.

    rms: scalar tensor; the global `centered_rms` when `rewards_PG` is only one rank's or one micro-batch's
    share: sqrt(sum over shares of `centered(r).square().sum()` / sum over shares of P*G). None takes that of
    `rewards_PG`. ValueError when G < 2.
    """
    a_PG = centered(rewards_PG)
    if rms is None:
        rms = centered_rms(rewards_PG)
    assert rms.ndim == 0, rms.shape
    return torch.where(a_PG == 0, 0.0, a_PG / rms)


def leave_one_out(rewards_PG: Tensor) -> Tensor:
    """RLOO: reward minus the mean of the *other* replies of its group (arXiv 2402.14740).

    Equal to `centered * G / (G - 1)`; two replies give +-(r_1 - r_2). ValueError when G < 2.
    """
    a_PG = centered(rewards_PG)
    G = a_PG.shape[1]
    return a_PG * (G / (G - 1))


def zero_std_groups(rewards_PG: Tensor) -> Tensor:
    """Number (scalar, int64) of groups whose replies all tie: they add nothing to the policy gradient.

    Groups with a NaN or inf reward are not counted. ValueError when G < 2.
    """
    return (centered(rewards_PG) == 0).all(dim=1).sum()


def length_correlation(rewards_PG: Tensor, lengths_PG: Tensor) -> Tensor:
    """Pearson's correlation (scalar, float64) of rewards and lengths within groups, both measured from their group's
    mean, over the batch; 0 where either does not vary. ValueError when G < 2."""
    r_PG, l_PG = centered(rewards_PG).double(), centered(lengths_PG).double()
    norms = (r_PG.square().sum() * l_PG.square().sum()).sqrt()
    return torch.where(norms == 0, 0.0, (r_PG * l_PG).sum() / norms)


def length_guarded(rewards_PG: Tensor, lengths_PG: Tensor, length_ratio: float) -> Tensor:
    """Rewards less what a straight line in length explains of them within groups, where that leads away from the
    teacher's length; each group's mean stays.

    The line is the least-squares one of the centered rewards on the centered lengths, one for the whole batch: it says
    longer or shorter. Where that leads back to the teacher's mean length, the rewards are returned as they are: the
    discriminator is right. Where it leads on and away from it, it is the rest of a lesson that the student has learned,
    and `slope * (length_i - mean(length))` is taken off: then the policy gradient moves no probability to longer or to
    shorter replies on the whole. Regressing length out of a comparison is what length-controlled AlpacaEval does (arXiv
    2404.04475).

    lengths_PG: tokens of each reply. length_ratio: their mean over the teacher's. One reward that is inf or NaN makes
    all NaN. ValueError when G < 2.
    """
    assert rewards_PG.shape == lengths_PG.shape, (rewards_PG.shape, lengths_PG.shape)
    r_PG, l_PG = centered(rewards_PG), centered(lengths_PG)
    square = l_PG.square().sum()
    slope = torch.where(square == 0, 0.0, (r_PG * l_PG).sum() / square)
    leads_back = slope * (1.0 - length_ratio) > 0
    return widen(rewards_PG.detach()) - torch.where(leads_back, 0.0, slope) * l_PG
