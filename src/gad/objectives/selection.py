"""P prompts, G replies per prompt, K of them that are kept.

Down-sampling of rollouts: replies are cheap to sample and to score, an update on them is dear. So many are sampled and
the student learns from those whose rewards say most (PODS, arXiv 2504.13818).
"""

import torch
from torch import Tensor

from gad.objectives._tensors import require, widen


def most_varied(rewards_PG: Tensor, count: int) -> Tensor:
    """Indices (P, K) of the `count` replies of each group whose rewards have the greatest variance, in order.

    Those are some of the lowest and the rest of the highest ones (arXiv 2504.13818), one of each at least, so
    `count` - 1 ways of sharing are compared. Two of a group: its worst and its best reply. Where several ways are
    level, the one with fewer low ones is taken; of equal rewards, earlier replies count as lower. A reward that is NaN
    or inf is kept, so that it stays visible. ValueError when `count` is not from 2 to G.
    """
    assert rewards_PG.ndim == 2, rewards_PG.shape
    G = rewards_PG.shape[1]
    require(2 <= count <= G, "replies to keep", count, f"use 2 to {G}, the replies of a group")
    ordered_PG, order_PG = widen(rewards_PG.detach()).sort(dim=1, stable=True)
    ranks_K = torch.arange(count, device=rewards_PG.device)
    lows_C1 = torch.arange(1, count, device=rewards_PG.device)[:, None]
    ranks_CK = torch.where(ranks_K < lows_C1, ranks_K, ranks_K + G - count)
    variances_PC = ordered_PG[:, ranks_CK].var(dim=-1, correction=0)
    variances_PC = torch.where(variances_PC.isnan(), torch.inf, variances_PC)
    chosen_PK = order_PG.gather(1, ranks_CK[variances_PC.argmax(dim=1)])
    return chosen_PK.sort(dim=1).values
