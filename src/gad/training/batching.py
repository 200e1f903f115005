"""Token groups to micro-batches in the cheapest layout that holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

import torch

from gad.config.compute import ComputeConfig
from gad.crew import ALONE, Crew, deal
from gad.errors import ConfigError, TrainingStopped, is_out_of_memory
from gad.layout_costs import ALL, DENSE, choose, computed, micro_batches, shares, weigh
from gad.layouts import LayoutName, TokenBatch, TokenGroup, build, to_device, tokens_of

NONE: Mapping[LayoutName, str] = MappingProxyType({})
CPU_PAIR_COST = 5.5
"""On CPU a query-key pair takes this many times longer than its FLOPs say, because scores and softmax are bound by
memory: SmolLM2-135M in bfloat16, 8 prompts x 8 replies of 38 tokens, forward and backward, one thread: tree 7.2 s for
2,730 tokens and 930,000 pairs, cache 4.7 s for 2,840 tokens and 290,000 pairs."""


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some groups of a step on the device. `picked`: their indices.

    explain: says which layout was taken, and why.
    spare: it is computed for company only, and counts for nothing. Processes that share a model make their passes
    together, and one that has fewer groups than another goes along.
    """

    picked: list[int]
    batch: TokenBatch
    layout: LayoutName
    explain: Callable[[], str]
    spare: bool = False


@dataclass(frozen=True, slots=True)
class Batcher:
    """Cuts a step's groups into micro-batches; of several processes each gets its share of them, by tokens.

    linear_flops, pair_flops: what a token costs in the linear layers and a query-key pair in attention; only their
    ratio matters.
    among: what `auto` picks from; out: why it leaves the others out.
    fused: `tree` and `packed` are computed by FlexAttention.
    """

    compute: ComputeConfig
    device: torch.device
    linear_flops: float
    pair_flops: float
    crew: Crew = ALONE
    among: tuple[LayoutName, ...] = DENSE
    out: Mapping[LayoutName, str] = field(default_factory=dict)
    fused: bool = False

    @classmethod
    def of(
        cls,
        compute: ComputeConfig,
        device: torch.device,
        config: object,
        crew: Crew = ALONE,
        unfit: Mapping[LayoutName, str] = NONE,
    ) -> Batcher:
        """For a transformers config: 2 FLOPs a weight of the linear layers, 4 a head channel and query-key pair.

        unfit: layouts that this model cannot do, and why. Raises ConfigError where the run file asks for one of them.
        On CUDA `packed` is FlexAttention's, which computes neither padding nor what nobody sees, in one kernel; where
        that fails (`models/trial.py`), `tree` is computed with a dense mask.
        """
        if compute.layout != "auto" and compute.layout in unfit:
            raise ConfigError(f"compute.layout={compute.layout}: {unfit[compute.layout]}; use auto, or padded")
        hidden = getattr(config, "hidden_size")  # noqa: B009 - transformers configs are not typed
        inner = getattr(config, "intermediate_size", 4 * hidden)
        heads = getattr(config, "num_attention_heads", 1)
        width = getattr(config, "head_dim", None) or hidden // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        linear = 2.0 * (hidden * width * (2 * heads + 2 * key_heads) + 3 * hidden * inner)
        on_cpu = CPU_PAIR_COST if device.type == "cpu" else 1.0
        out = dict(unfit)
        fused = device.type == "cuda" and "packed" not in unfit
        if device.type not in ("cpu", "cuda"):
            out["packed"] = "many small kernels, which suit a CPU alone"
        elif device.type == "cpu" and getattr(config, "dtype", None) in (torch.bfloat16, torch.float16):
            # SmolLM2-135M in bfloat16, 16 rows of 60 tokens, two threads: packed 3.7 s, padded 1.9 s, cache 2.6 s.
            out["packed"] = "slower than padded rows in bfloat16"
        among = tuple(name for name in ALL if name not in out)
        return cls(compute, device, linear, 4.0 * heads * width * on_cpu, crew, among, out, fused)

    def micro_batches(self, groups: Sequence[TokenGroup]) -> Iterator[MicroBatch]:
        """This process's micro-batches; several processes get equally many.

        Raises ConfigError where a single row is longer than the token budget.
        """
        if self.crew.size == 1:
            for part in self._parts(groups, self._tokens):
                yield self._made(groups, part, self._layout([groups[index] for index in part]))
            return
        # One layout for all: a pass of one layout gathers weights once, of another twice.
        layout = self._layout(groups)
        plans = self._plans(groups, layout)
        mine = plans[self.crew.rank]
        for part in mine:
            self.crew.tick()
            yield self._made(groups, part, layout)
        least = min(range(len(groups)), key=lambda index: self._computed([groups[index]], layout)[0])
        for _ in range(max(map(len, plans)) - len(mine)):
            yield self._made(groups, [least], layout, spare=True)

    def _plans(self, groups: Sequence[TokenGroup], layout: LayoutName) -> list[list[list[int]]]:
        """Everybody's micro-batches, known to all."""

        def tokens(picked: Sequence[TokenGroup]) -> int:
            return self._computed(picked, layout)[0]

        shares = deal([tokens([group]) for group in groups], self.crew.size)
        return [
            [[share[index] for index in part] for part in self._parts([groups[index] for index in share], tokens)]
            for share in shares
        ]

    @contextmanager
    def room(self, phase: str, micro: MicroBatch) -> Iterator[None]:
        """The passes of a micro-batch. Raises TrainingStopped where memory runs out, with what to lower to what."""
        try:
            yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            tokens, budget = tokens_of(micro.batch), self.compute.tokens_per_micro_batch
            raise TrainingStopped(
                f"{phase}: out of memory at {tokens:,} tokens in one pass; "
                + (
                    f"lower compute.tokens_per_micro_batch from {budget} to {min(tokens, budget) // 2} "
                    "(it may change within a run)"
                    if len(micro.picked) > 1
                    else "they are one prompt with its replies, which is never split: lower replies_per_prompt or "
                    "prompt.max_reply_tokens, or set student.gradient_checkpointing to true"
                )
            ) from error

    def _parts(self, groups: Sequence[TokenGroup], tokens: Callable[[Sequence[TokenGroup]], int]) -> list[list[int]]:
        try:
            return micro_batches(groups, self.compute.tokens_per_micro_batch, tokens)
        except ValueError as error:
            raise ConfigError(f"compute.{error}") from error

    def _made(
        self, groups: Sequence[TokenGroup], part: list[int], layout: LayoutName, *, spare: bool = False
    ) -> MicroBatch:
        picked = [groups[index] for index in part]
        built = to_device(build(picked, layout, fused=self.fused), self.device)
        return MicroBatch(part, built, layout, lambda: self._explain(picked, layout), spare)

    def _explain(self, groups: Sequence[TokenGroup], layout: LayoutName) -> str:
        tokens, pairs = self._computed(groups, layout)
        found = f"prompts {len(groups)}, replies {sum(len(group.replies) for group in groups)}: layout {layout}, "
        if self.compute.layout != "auto":
            return f"{found}as compute.layout says ({tokens:,} tokens, {pairs:,} query-key pairs)"
        costs = weigh(groups, linear_flops=self.linear_flops, pair_flops=self.pair_flops, among=ALL, fused=self.fused)
        others = [self._compared(name, costs[name] / costs[layout], groups) for name in ALL if name != layout]
        return f"{found}which computes least ({tokens:,} tokens, {pairs:,} query-key pairs); {', '.join(others)}"

    def _compared(self, other: LayoutName, ratio: float, groups: Sequence[TokenGroup]) -> str:
        if other not in self.among:
            return f"{other} is left out: {self.out.get(other, 'not among the choices')}"
        if other == "cache" and not shares(groups):
            return "cache is left out: no prompt has several replies"
        return f"{other} {ratio:.2f} times the work"

    def _layout(self, groups: Sequence[TokenGroup]) -> LayoutName:
        if self.compute.layout == "auto":
            return choose(
                groups,
                linear_flops=self.linear_flops,
                pair_flops=self.pair_flops,
                among=self.among,
                fused=self.fused,
            )
        return self.compute.layout

    def _tokens(self, groups: Sequence[TokenGroup]) -> int:
        return self._computed(groups, self._layout(groups))[0]

    def _computed(self, groups: Sequence[TokenGroup], layout: LayoutName) -> tuple[int, int]:
        return computed(groups, layout, fused=self.fused)
