"""Attention of packed rows and of trees by FlexAttention: one kernel that torch compiles for CUDA.

A token sees its own branch so far and its group's prompt. So whole blocks of 128 x 128 query-key pairs that nobody sees
are never computed: those between groups, between siblings, of the future and beyond a window.

R rows, T tokens of a row, H query heads, Hk key heads, D head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch._dynamo
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from gad.layouts import PackedBatch, TreeBatch
from gad.models.attention import Heads

EVERYTHING = 2**31 - 1
"""A window that hides nothing. With a number in its place layers with and without windows share a compiled kernel."""
COMPILE: dict[str, Any] = {"dynamic": True, "fullgraph": True}
"""One kernel for batches of all lengths. With `fullgraph` torch raises where it gives up compiling; without, it would
go on with all scores in memory."""
KERNELS = 64
"""So many kernels torch may compile before it gives up (8 by default): one for each model's heads, with and without
gradients and caps, for one row and several, for up to 128 tokens and more."""

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""Row, head, query's place, key's place to: may the query see the key."""


@functools.cache
def kernel(device: str) -> Callable[..., Tensor]:
    """Compiled once. torch has no backward pass of it for CPUs, where the plain formula serves tests."""
    if device == "cpu":
        return flex_attention
    settings: Any = torch._dynamo.config
    settings.recompile_limit = max(settings.recompile_limit, KERNELS)
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, **COMPILE)
    return compiled


def visible(branch_RT: Tensor, root_RT: Tensor, position_RT: Tensor, window: int | None) -> Rule:
    """Own branch or the branch of the group's prompt, nothing of the future, positions less than a window apart."""
    reach = torch.tensor(EVERYTHING if window is None else window, dtype=torch.int32, device=branch_RT.device)

    def rule(row: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        branch = branch_RT[row, key]
        related = (branch == branch_RT[row, query]) | (branch == root_RT[row, query])
        return related & (key <= query) & (position_RT[row, query] - position_RT[row, key] < reach)

    return rule


def capped(softcap: float) -> Callable[..., Tensor]:
    """The layer's own cap on scores."""

    def squash(score: Tensor, _row: Tensor, _head: Tensor, _query: Tensor, _key: Tensor) -> Tensor:
        return softcap * torch.tanh(score / softcap)

    return squash


@dataclass
class Fused:
    """The plan of a batch. Block masks are made once for each window that its layers have.

    branch_RT: a number for each prompt and reply, other than those of all others in the row; root_RT: its prompt's.
    """

    branch_RT: Tensor
    root_RT: Tensor
    position_RT: Tensor
    _masks: dict[int | None, BlockMask] = field(default_factory=dict)

    @classmethod
    def tree(cls, batch: TreeBatch) -> Fused:
        """A group a row."""
        branch_RT = batch.branch_RT.int()
        return cls(branch_RT, torch.zeros_like(branch_RT), batch.position_ids_RT.int())

    @classmethod
    def packed(cls, batch: PackedBatch) -> Fused:
        """All groups in one row."""
        lengths = [length for prompt, replies in batch.shapes for length in (prompt, *replies)]
        roots: list[int] = []
        for _, replies in batch.shapes:
            roots += [len(roots)] * (1 + len(replies))
        both = torch.tensor([range(len(roots)), roots], dtype=torch.int32)
        branch_T, root_T = both.repeat_interleave(torch.tensor(lengths), dim=1).to(batch.input_ids_RT.device)
        return cls(branch_T[None], root_T[None], batch.position_ids_RT.int())

    def attend(self, heads: Heads) -> Tensor:
        """Attention output (R, H, T, D)."""
        q, k, v = heads.q, heads.k, heads.v
        device = q.device.type
        if torch.is_autocast_enabled(device):
            q, k, v = (x.to(torch.get_autocast_dtype(device)) for x in (q, k, v))
        # Without it rows of less than 128 tokens would go to another kernel, made for decoding.
        options: dict[str, Any] = {} if device == "cpu" else {"FORCE_USE_FLEX_ATTENTION": True}
        with torch.autocast(device, enabled=False):
            return kernel(device)(
                q,
                k,
                v,
                score_mod=None if heads.rule.softcap is None else capped(heads.rule.softcap),
                block_mask=self.mask(heads.rule.window),
                scale=heads.rule.scaling,
                enable_gqa=q.shape[1] != k.shape[1],
                kernel_options=options,
            )

    def mask(self, window: int | None) -> BlockMask:
        """For a moment the dense mask exists, R x T x T bytes."""
        if window not in self._masks:
            rows, steps = self.branch_RT.shape
            rule = visible(self.branch_RT, self.root_RT, self.position_RT, window)
            self._masks[window] = create_block_mask(rule, rows, None, steps, steps, device=self.branch_RT.device)
        return self._masks[window]
