"""What a layout computes for given lengths, which layout computes least, and how groups become micro-batches.

P prompts, B replies. Counts are those of dense kernels, padding included. "Fused" are `tree` and `packed` where
FlexAttention computes them, which is on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

from gad.layouts import LayoutName, TokenGroup
from gad.packing import apart

DENSE: tuple[LayoutName, ...] = ("padded", "tree", "cache")
"""Layouts of few large kernels, for any device. `packed` is many small ones, which suits a CPU alone, or on CUDA one of
FlexAttention's."""
ALL: tuple[LayoutName, ...] = (*DENSE, "packed")
BLOCK = 128
"""FlexAttention computes or leaves out blocks of so many queries by so many keys (torch's default)."""


def choose(
    groups: Sequence[TokenGroup],
    *,
    linear_flops: float,
    pair_flops: float,
    among: Sequence[LayoutName] = DENSE,
    fused: bool = False,
) -> LayoutName:
    """The layout that computes least: `linear_flops` a token, `pair_flops` a query-key pair, padding included.

    `cache` goes through the layers twice, which pays only where a prompt has several replies: with one each, the
    quickstart's steps took 2.3 s by it and 1.9 s padded.
    """
    costs = weigh(groups, linear_flops=linear_flops, pair_flops=pair_flops, among=among, fused=fused)
    fair = [layout for layout in among if layout != "cache" or shares(groups)]
    return min(fair, key=lambda layout: costs[layout])


def weigh(
    groups: Sequence[TokenGroup],
    *,
    linear_flops: float,
    pair_flops: float,
    among: Sequence[LayoutName],
    fused: bool = False,
) -> dict[LayoutName, float]:
    """What each layout costs, in the unit of `linear_flops` and `pair_flops`."""
    costs: dict[LayoutName, float] = {}
    for layout in among:
        tokens, pairs = computed(groups, layout, fused=fused)
        costs[layout] = tokens * linear_flops + pairs * pair_flops
    return costs


def shares(groups: Sequence[TokenGroup]) -> bool:
    """Whether any prompt has several replies."""
    return any(len(group.replies) > 1 for group in groups)


def computed(groups: Sequence[TokenGroup], layout: LayoutName, *, fused: bool = False) -> tuple[int, int]:
    """Tokens and query-key pairs that are computed for one batch of these groups, padding included.

    Windows, by which fewer may be computed, are not looked at, nor the few pairs by which `packed` has fewer kernels.
    """
    count = len(groups)
    replies = sum(len(group.replies) for group in groups)
    prompt = max(len(group.prompt) for group in groups)
    reply = max(len(reply) for group in groups for reply in group.replies)
    match layout:
        case "padded":
            width = max(group.longest_row for group in groups)
            return replies * width, replies * width**2
        case "tree":
            width = max(len(group.prompt) + sum(map(len, group.replies)) for group in groups)
            pairs = sum(_block_pairs([group.lengths], width) for group in groups) if fused else count * width**2
            return count * width, pairs
        case "cache":
            return count * prompt + replies * reply, count * prompt**2 + replies * reply * (prompt + reply)
        case "packed":
            tokens = sum(len(group.prompt) + sum(map(len, group.replies)) for group in groups)
            shapes = [(prompt, tuple(sorted(replies)[::-1])) for prompt, replies in (each.lengths for each in groups)]
            if not fused:
                return tokens, sum(portion.pairs for portion in apart(shapes))
            return tokens, _block_pairs(shapes, tokens)
        case _:
            assert_never(layout)


def _block_pairs(groups: Sequence[tuple[int, Sequence[int]]], width: int) -> int:
    """Pairs in the blocks of a row of `width` tokens where anything is visible: of every branch its own past and its
    prompt. groups: tokens of each prompt and of its replies, in the order of the row."""
    seen: list[set[int]] = [set() for _ in range(0, width, BLOCK)]
    start = 0
    for prompt, replies in groups:
        shared = range(start // BLOCK, (start + prompt - 1) // BLOCK + 1)
        for length in (prompt, *replies):
            _see(seen, shared, start, start + length)
            start += length
    _see(seen, shared, start, width)  # padding
    return BLOCK**2 * sum(map(len, seen))


def _see(seen: list[set[int]], prompt: range, start: int, end: int) -> None:
    """Note for the blocks of a branch which blocks of keys it looks at."""
    first = start // BLOCK
    for block in range(first, (end - 1) // BLOCK + 1) if end > start else ():
        seen[block].update(range(first, block + 1), (each for each in prompt if each <= block))


def micro_batches(
    groups: Sequence[TokenGroup], budget: int, tokens: Callable[[Sequence[TokenGroup]], int]
) -> list[list[int]]:
    """Indices of whole groups, the largest first, in batches of at most `budget` tokens with their padding.

    tokens: how many a batch of such groups computes. Groups of like size are neighbours, so little is padded. A group
    that is larger than the budget is a batch of its own. Raises ValueError where a row alone is longer than the budget.
    """
    longest = max((group.longest_row for group in groups), default=0)
    if longest > budget:
        raise ValueError(f"tokens_per_micro_batch={budget} is less than the longest row: use {longest} or more")
    order = sorted(range(len(groups)), key=lambda index: (-_padded_tokens(groups[index]), index))
    batches: list[list[int]] = []
    for index in order:
        if batches and tokens([groups[i] for i in (*batches[-1], index)]) <= budget:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def _padded_tokens(group: TokenGroup) -> int:
    return len(group.prompt) + len(group.replies) * max(map(len, group.replies))
