"""How far the sampler and the trained policy are apart, and what a token's loss is weighed by for it.

They differ by bfloat16, by kernels and another order of sums, or by stale weights. B replies, T reply tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gad import objectives


@dataclass(frozen=True, slots=True)
class Weighed:
    """Weights (B, T) of the tokens' losses, None for 1 throughout; sums over tokens: |log p_trained - log p_sampled|,
    weights, and how many of them are at the cap."""

    weights_BT: Tensor | None = None
    gap: float = 0.0
    total: float = 0.0
    capped: float = 0.0


def weigh(logps_BT: Tensor, mask_BT: Tensor, sampler_logps: Sequence[tuple[float, ...]], cap: float | None) -> Weighed:
    """sampler_logps: of each reply, nats, empty where the engine does not know them. cap: None weighs nothing."""
    known = [value for row in sampler_logps for value in row]
    if len(known) < int(mask_BT.sum()):
        assert cap is None, "the run file lets no engine without log-probabilities be weighed"
        return Weighed()
    known_N = torch.tensor(known, dtype=logps_BT.dtype, device=logps_BT.device)
    sampler_BT = torch.zeros_like(logps_BT).masked_scatter(mask_BT, known_N)
    gap = (logps_BT - sampler_BT)[mask_BT].abs().sum().item()
    if cap is None:
        return Weighed(gap=gap)
    weights_BT = objectives.importance_weights(logps_BT, sampler_BT, mask_BT, cap)
    return Weighed(weights_BT, gap, weights_BT.sum().item(), float((weights_BT >= cap).sum().item()))
