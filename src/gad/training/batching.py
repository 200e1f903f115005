"""Token groups to micro-batches in the cheapest layout that holds them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gad.config.run import ComputeConfig
from gad.errors import ConfigError
from gad.layouts import LayoutName, TokenBatch, TokenGroup, build, choose, computed, micro_batches, to_device

CPU_PAIR_COST = 5.5
"""On CPU a query-key pair takes this many times longer than its FLOPs say, because scores and softmax are bound by
memory: SmolLM2-135M in bfloat16, 8 prompts x 8 replies of 38 tokens, forward and backward, one thread: tree 7.2 s for
2,730 tokens and 930,000 pairs, cache 4.7 s for 2,840 tokens and 290,000 pairs."""


@dataclass(frozen=True, slots=True)
class Batcher:
    """Cuts a step's groups into micro-batches.

    linear_flops, pair_flops: what a token costs in the linear layers and a query-key pair in attention; only their
    ratio matters.
    """

    compute: ComputeConfig
    device: torch.device
    linear_flops: float
    pair_flops: float

    @classmethod
    def of(cls, compute: ComputeConfig, device: torch.device, config: object) -> Batcher:
        """For a transformers config: 2 FLOPs a weight of the linear layers, 4 a head channel and query-key pair."""
        hidden = getattr(config, "hidden_size")  # noqa: B009 - transformers configs are not typed
        inner = getattr(config, "intermediate_size", 4 * hidden)
        heads = getattr(config, "num_attention_heads", 1)
        width = getattr(config, "head_dim", None) or hidden // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        linear = 2.0 * (hidden * width * (2 * heads + 2 * key_heads) + 3 * hidden * inner)
        on_cpu = CPU_PAIR_COST if device.type == "cpu" else 1.0
        return cls(compute, device, linear, 4.0 * heads * width * on_cpu)

    def micro_batches(self, groups: Sequence[TokenGroup]) -> Iterator[tuple[list[int], LayoutName, TokenBatch]]:
        """Indices of the groups in each micro-batch, its layout, and the batch on the device.

        Raises ConfigError where a single row is longer than the token budget.
        """
        try:
            parts = micro_batches(groups, self.compute.tokens_per_micro_batch, self._tokens)
        except ValueError as error:
            raise ConfigError(f"compute.{error}") from error
        for part in parts:
            picked = [groups[index] for index in part]
            layout = self._layout(picked)
            yield part, layout, to_device(build(picked, layout), self.device)

    def _layout(self, groups: Sequence[TokenGroup]) -> LayoutName:
        if self.compute.layout == "auto":
            return choose(groups, linear_flops=self.linear_flops, pair_flops=self.pair_flops)
        return self.compute.layout

    def _tokens(self, groups: Sequence[TokenGroup]) -> int:
        return computed(groups, self._layout(groups))[0]
