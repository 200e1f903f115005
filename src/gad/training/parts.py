"""Parts of a policy update: a micro-batch with what belongs to its replies, and what the parts add up to.

P prompts, G replies per prompt, B = P * G rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gad.crew import Crew
from gad.layouts import Readout, TokenBatch
from gad.records import RolloutGroup
from gad.training.batching import MicroBatch


@dataclass(frozen=True, slots=True)
class Part:
    """A micro-batch: where sampled and imitated replies are in it, and what belongs to the sampled ones."""

    batch: TokenBatch
    sampled: Readout
    imitated: Readout | None
    advantages_B: Tensor
    sampler_logps: list[tuple[float, ...]]
    spare: bool

    @classmethod
    def of(
        cls, micro: MicroBatch, groups: Sequence[RolloutGroup], advantages_PG: Tensor, *, with_teacher: bool
    ) -> Part:
        batch, count = micro.batch, advantages_PG.shape[1]
        place_B = torch.arange(len(batch.readout.last_B), device=batch.readout.last_B.device) % (count + with_teacher)
        return cls(
            batch,
            batch.readout.rows(place_B < count),
            batch.readout.rows(place_B == count) if with_teacher else None,
            advantages_PG.flatten().to(place_B.device),
            [rollout.logps for group in groups for rollout in group.rollouts],
            micro.spare,
        )


@dataclass(slots=True)
class Sums:
    """What a step adds up over its micro-batches."""

    loss: float = 0.0
    tokens: float = 0.0
    kl: float = 0.0
    entropy: float = 0.0
    cross_entropy: float = 0.0
    logp_gap: float = 0.0
    importance: float = 0.0
    capped: float = 0.0

    def add(self, other: Sums) -> None:
        for name in Sums.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def over(self, crew: Crew) -> Sums:
        """Added up over the processes."""
        values = torch.tensor([getattr(self, name) for name in Sums.__slots__], dtype=torch.float64)
        return Sums(*crew.sum(values).tolist())
