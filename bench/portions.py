"""Attention of the packed layout with kernels for each group, and with groups of like lengths in the same ones.

One thread; one layer of SmolLM2-135M, forward and backward, by what a portion's own kernels are taken to be worth
(`gad.packing.PAIRS_OF_A_PORTION`).
"""

from __future__ import annotations

import random
from typing import Any

from bench.real import fastest

QUERY_HEADS, KEY_HEADS, WIDTH = 9, 3, 64
BATCHES = {
    "imitation, 8 rows": (8, 1),
    "8 groups of 3": (8, 3),
    "5 groups of 9": (5, 9),
}
"""Groups, and replies of each."""
PROMPT, REPLY = (20, 60), (25, 50)
"""Tokens, from and to."""
WORTHS = (0, 4096, 8192, 16384, 65536)


def measure() -> dict[str, Any]:
    """CPU milliseconds of each batch by the worth of a portion."""
    import torch

    from gad import packing
    from gad.models.attention import Heads, Rule
    from gad.models.packed import Packed

    torch.set_num_threads(1)
    rule = Rule(scaling=WIDTH**-0.5, window=None, softcap=None)
    settled = packing.PAIRS_OF_A_PORTION
    found: dict[str, dict[str, float]] = {}
    for name, (groups, replies) in BATCHES.items():
        shapes = _shapes(groups, replies)
        tokens = sum(prompt + sum(lengths) for prompt, lengths in shapes)
        q = torch.randn(1, QUERY_HEADS, tokens, WIDTH, requires_grad=True)
        k, v = (torch.randn(1, KEY_HEADS, tokens, WIDTH, requires_grad=True) for _ in range(2))
        heads = Heads(q, k, v, 0, rule)
        for worth in WORTHS:
            packing.PAIRS_OF_A_PORTION = worth
            plan = Packed(shapes)

            def both_ways(plan: Packed = plan, heads: Heads = heads) -> None:
                plan.attend(heads).sum().backward()

            both_ways()
            found.setdefault(name, {})[str(worth)] = 1000 * fastest(both_ways, repeats=20)
    packing.PAIRS_OF_A_PORTION = settled
    return {"portions": {"worth_taken": settled, "milliseconds": found}}


def _shapes(groups: int, replies: int) -> tuple[tuple[int, tuple[int, ...]], ...]:
    dice = random.Random(0)
    made = []
    for _ in range(groups):
        lengths = sorted((dice.randint(*REPLY) for _ in range(replies)), reverse=True)
        made.append((dice.randint(*PROMPT), tuple(lengths)))
    return tuple(made)
