"""How the attention of a packed row is cut into kernels: which rows are computed together, and which queries of them.

A packed row holds groups one after another: a prompt, then its replies, the longest first. Tokens of a *portion* go
through the same kernels. So few short rows cost few kernels, and long ones are padded little. P prompts of a portion.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, zip_longest

Shape = tuple[int, tuple[int, ...]]
"""Tokens of a prompt and of each of its replies, the longest first."""

PAIRS_OF_A_PORTION = 8192
"""The query-key pairs that take as long as a portion's kernels take to start: so much padding is worth one fewer.

By the times in docs/performance.md, of one run, short rows gain by sharing; 4,096 and 8,192 are not told apart, and
above them prompts of many replies lose."""


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring tokens of the packed row."""

    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Portion:
    """Rows that see their own past, and each a prompt before it, or none.

    prompts: P spans; rows: of each, the longest first. Rows without a prompt belong to one span of no tokens.
    """

    prompts: tuple[Span, ...]
    rows: tuple[tuple[Span, ...], ...]

    @property
    def prompt(self) -> int:
        """Tokens of the longest prompt."""
        return max(span.length for span in self.prompts)

    @property
    def lengths(self) -> list[int]:
        """Of the longest first row, of the longest second row and so on: what all rows are padded to."""
        ranks = zip_longest(*self.rows, fillvalue=Span(0, 0))
        return [max(span.length for span in spans) for spans in ranks]

    @property
    def pairs(self) -> int:
        """Query-key pairs that are computed, padding included."""
        blocks = query_blocks(self.lengths)
        return len(self.prompts) * sum(rows * (end - start) * (self.prompt + end) for start, end, rows in blocks)

    def and_more(self, other: Portion) -> Portion:
        """Both in the same kernels; the other one's rows are no longer than these."""
        if self.prompt:
            return Portion(self.prompts + other.prompts, self.rows + other.rows)
        return Portion(self.prompts, ((*self.rows[0], *other.rows[0]),))


def portions(shapes: Sequence[Shape]) -> list[Portion]:
    """All tokens of a packed row, each in one portion's rows: those of `apart`, and those of like lengths together,
    where what is padded then costs less than kernels of its own."""
    found = apart(shapes)
    alone, shared = ([each for each in found if bool(each.prompt) is reads] for reads in (False, True))
    return [*_merged(alone), *_merged(shared)]


def apart(shapes: Sequence[Shape]) -> list[Portion]:
    """Portions of one group each, nothing padded but queries in blocks.

    A reply that has its prompt for itself is the end of one row. Where a prompt has several, it is a row, and they are
    rows that read it.
    """
    found = []
    start = 0
    for prompt, lengths in shapes:
        replies = [length for length in lengths if length]
        shared = len(replies) > 1
        found.append(Portion((Span(0, 0),), ((Span(start, prompt if shared else prompt + sum(replies)),),)))
        if shared:
            starts = accumulate(replies[:-1], initial=start + prompt)
            found.append(Portion((Span(start, prompt),), (tuple(map(Span, starts, replies)),)))
        start += prompt + sum(replies)
    return found


def _merged(found: list[Portion]) -> list[Portion]:
    kept: list[Portion] = []
    for portion in sorted(found, key=lambda each: -(each.prompt + each.lengths[0])):
        both = kept[-1].and_more(portion) if kept else portion
        if kept and both.pairs - kept[-1].pairs - portion.pairs <= PAIRS_OF_A_PORTION:
            kept[-1] = both
        else:
            kept.append(portion)
    return kept


def query_blocks(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Blocks of query positions for rows of these lengths, longest first: start, end, and how many rows reach there."""
    longest = lengths[0] if lengths else 0
    step = max(32, -(-longest // 96) * 16)
    return [
        (start, min(start + step, longest), sum(length > start for length in lengths))
        for start in range(0, longest, step)
    ]
