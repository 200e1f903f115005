"""Groups of replies to token batches: the one place that knows padding, positions and masks.

P prompts, K replies per prompt, B = P*K replies, R rows, T tokens of a row, L reply tokens, M hidden states, H width.

Four layouts of the same groups, same results:

padded  one row per reply: prompt, reply, right padding. A causal kernel never looks at right padding: no mask.
tree    one row per prompt: prompt, then its replies as sibling branches; a mask keeps branches apart.
cache   one row per prompt and one per reply: the prompt is computed once, its keys and values are read by all replies.
packed  all groups in one row without any padding: each prompt, then its replies. Attention goes group by group, over
        queries in blocks, so that neither padding nor the future is computed (but within a block).

Whatever the layout, a forward pass yields a matrix of hidden states (M, H), and `Readout` says where in it the states
are that predict each reply token, and the state of each reply's last token. A batch knows the `groups` it was built of.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, assert_never

import torch
from torch import Tensor

LayoutName = Literal["padded", "tree", "cache", "packed"]
PAD_ID = 0
"""Never looked at, never predicted: any valid id does, also where a tokenizer's pad is its end-of-text."""


@dataclass(frozen=True, slots=True)
class TokenGroup:
    """A prompt and the replies that share it, as token ids. A reply may be empty; a prompt may not."""

    prompt: tuple[int, ...]
    replies: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError("a token group needs a prompt of at least one token")
        if not self.replies:
            raise ValueError("a token group needs at least one reply")

    @property
    def longest_row(self) -> int:
        """Tokens of the prompt with its longest reply."""
        return len(self.prompt) + max(map(len, self.replies))

    @property
    def lengths(self) -> tuple[int, list[int]]:
        """Tokens of the prompt, and of each reply."""
        return len(self.prompt), [len(reply) for reply in self.replies]


@dataclass(frozen=True, slots=True)
class Readout:
    """Where the replies are in the matrix of hidden states.

    predictors_BL: index of the state that predicts each reply token; 0 on padding.
    targets_BL: the reply tokens; PAD_ID on padding.
    mask_BL: True on reply tokens.
    last_B: index of the state of each reply's last token; the prompt's last one for an empty reply.
    """

    predictors_BL: Tensor
    targets_BL: Tensor
    mask_BL: Tensor
    last_B: Tensor

    def rows(self, picked_B: Tensor) -> Readout:
        """Only these replies (a boolean mask or indices)."""
        return Readout(*(getattr(self, name)[picked_B] for name in Readout.__slots__))


@dataclass(frozen=True, slots=True)
class PaddedBatch:
    """One row per reply."""

    input_ids_RT: Tensor
    position_ids_RT: Tensor
    readout: Readout
    groups: tuple[TokenGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class TreeBatch:
    """One row per prompt. branch_RT: 0 on the prompt, 1 and more on its replies, -1 on padding.

    fused: attention is FlexAttention's, which needs no mask of T x T.
    """

    input_ids_RT: Tensor
    position_ids_RT: Tensor
    branch_RT: Tensor
    readout: Readout
    fused: bool = False
    groups: tuple[TokenGroup, ...] = ()

    @property
    def visible_RTT(self) -> Tensor:
        """Query may see key: its own branch so far, and the prompt."""
        keys_R1T = self.branch_RT[:, None, :]
        return ((self.branch_RT[:, :, None] == keys_R1T) | (keys_R1T == 0)).tril()


@dataclass(frozen=True, slots=True)
class CacheBatch:
    """Prompt rows, and reply rows that read the keys and values of their prompt.

    The matrix of hidden states is the prompts' last states (P rows) followed by the replies' states (B*L rows).
    """

    prompt_ids_PT: Tensor
    prompt_lengths_P: Tensor
    replies_per_prompt: tuple[int, ...]
    reply_ids_BL: Tensor
    position_ids_BL: Tensor
    readout: Readout
    groups: tuple[TokenGroup, ...] = ()


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """One row for all groups; R is 1. In the row a group's replies stand longest first; the readout has them in order.

    shapes: of each group the prompt's tokens and its replies', longest first.
    fused: attention is FlexAttention's, and not computed group by group.
    """

    input_ids_RT: Tensor
    position_ids_RT: Tensor
    shapes: tuple[tuple[int, tuple[int, ...]], ...]
    readout: Readout
    fused: bool = False
    groups: tuple[TokenGroup, ...] = ()


TokenBatch = PaddedBatch | TreeBatch | CacheBatch | PackedBatch


def build(groups: Sequence[TokenGroup], layout: LayoutName, *, fused: bool = False) -> TokenBatch:
    """Lay out whole groups. Replies keep their order: group by group, as given. fused: see `TreeBatch`."""
    match layout:
        case "padded":
            return replace(_padded(groups), groups=tuple(groups))
        case "tree":
            return replace(_tree(groups), fused=fused, groups=tuple(groups))
        case "cache":
            return replace(_cache(groups), groups=tuple(groups))
        case "packed":
            return replace(_packed(groups), fused=fused, groups=tuple(groups))
        case _:
            assert_never(layout)


def to_device(batch: TokenBatch, device: torch.device) -> TokenBatch:
    """The same batch on another device."""
    if device.type == "cpu":
        return batch
    readout = Readout(*(getattr(batch.readout, name).to(device) for name in Readout.__slots__))
    moved = {name: getattr(batch, name).to(device) for name in batch.__slots__ if name.endswith(("T", "P", "L"))}
    return replace(batch, readout=readout, **moved)


def tokens_of(batch: TokenBatch) -> int:
    """Tokens that a forward pass computes, padding included."""
    match batch:
        case CacheBatch():
            return batch.prompt_ids_PT.numel() + batch.reply_ids_BL.numel()
        case PaddedBatch() | TreeBatch() | PackedBatch():
            return batch.input_ids_RT.numel()
        case _:
            assert_never(batch)


def _padded(groups: Sequence[TokenGroup]) -> PaddedBatch:
    rows = [(group.prompt, reply) for group in groups for reply in group.replies]
    width = max(len(prompt) + len(reply) for prompt, reply in rows)
    ids_RT = pad([prompt + reply for prompt, reply in rows], width)
    starts = [row * width + len(prompt) for row, (prompt, _) in enumerate(rows)]
    return PaddedBatch(
        ids_RT, torch.arange(width).expand(len(rows), width), _readout([reply for _, reply in rows], starts)
    )


def _tree(groups: Sequence[TokenGroup]) -> TreeBatch:
    width = max(len(group.prompt) + sum(map(len, group.replies)) for group in groups)
    ids_RT = pad([group.prompt + tuple(t for reply in group.replies for t in reply) for group in groups], width)
    positions_RT = torch.zeros(len(groups), width, dtype=torch.long)
    branch_RT = torch.full((len(groups), width), -1)
    starts: list[int] = []
    firsts: list[int] = []
    for row, group in enumerate(groups):
        offset = len(group.prompt)
        positions_RT[row, :offset] = torch.arange(offset)
        branch_RT[row, :offset] = 0
        for branch, reply in enumerate(group.replies, start=1):
            end = offset + len(reply)
            positions_RT[row, offset:end] = torch.arange(len(reply)) + len(group.prompt)
            branch_RT[row, offset:end] = branch
            starts.append(row * width + offset)
            firsts.append(row * width + len(group.prompt) - 1)
            offset = end
    replies = [reply for group in groups for reply in group.replies]
    return TreeBatch(ids_RT, positions_RT, branch_RT, _readout(replies, starts, firsts))


def _cache(groups: Sequence[TokenGroup]) -> CacheBatch:
    sizes = tuple(len(group.replies) for group in groups)
    replies = [reply for group in groups for reply in group.replies]
    width = max(1, max(map(len, replies)))
    lengths_P = torch.tensor([len(group.prompt) for group in groups])
    lengths_B = lengths_P.repeat_interleave(torch.tensor(sizes))
    starts = [len(groups) + row * width for row in range(len(replies))]
    firsts = [index for index, group in enumerate(groups) for _ in group.replies]
    return CacheBatch(
        pad([group.prompt for group in groups], int(lengths_P.max())),
        lengths_P,
        sizes,
        pad(replies, width),
        lengths_B[:, None] + torch.arange(width),
        _readout(replies, starts, firsts),
    )


def _packed(groups: Sequence[TokenGroup]) -> PackedBatch:
    ids: list[int] = []
    positions: list[int] = []
    starts: list[int] = []
    firsts: list[int] = []
    shapes = []
    for group in groups:
        prompt, first = len(group.prompt), len(ids) + len(group.prompt) - 1
        ids += group.prompt
        positions += range(prompt)
        order = sorted(range(len(group.replies)), key=lambda index: (-len(group.replies[index]), index))
        found = [0] * len(order)
        for index in order:
            found[index] = len(ids)
            ids += group.replies[index]
            positions += range(prompt, prompt + len(group.replies[index]))
        starts += found
        firsts += [first] * len(order)
        shapes.append((prompt, tuple(len(group.replies[index]) for index in order)))
    replies = [reply for group in groups for reply in group.replies]
    return PackedBatch(torch.tensor([ids]), torch.tensor([positions]), tuple(shapes), _readout(replies, starts, firsts))


def _readout(replies: Sequence[tuple[int, ...]], starts: Sequence[int], firsts: Sequence[int] | None = None) -> Readout:
    """`starts`: where each reply's first token is; `firsts`: the state that predicts it, by default the one before."""
    lengths_B = torch.tensor([len(reply) for reply in replies])
    starts_B = torch.tensor(starts)
    firsts_B = starts_B - 1 if firsts is None else torch.tensor(firsts)
    steps_L = torch.arange(max(1, int(lengths_B.max())))
    mask_BL = steps_L < lengths_B[:, None]
    predictors_BL = torch.where(steps_L == 0, firsts_B[:, None], starts_B[:, None] + steps_L - 1) * mask_BL
    last_B = torch.where(lengths_B > 0, starts_B + lengths_B - 1, firsts_B)
    return Readout(predictors_BL, pad(replies, len(steps_L)), mask_BL, last_B)


def pad(rows: Sequence[Sequence[int]], width: int) -> Tensor:
    """Token rows to a (rows, width) matrix, padded on the right."""
    padded = torch.full((len(rows), width), PAD_ID, dtype=torch.long)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row, dtype=torch.long)
    return padded
