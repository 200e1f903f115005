"""States after the layers that all members of a network have in common, for token groups that come again.

Nothing trains those layers, so a prompt and a reply to it have the same states in every epoch, in the discriminator's
pass and in the student's. Two kinds are kept: those of the rows that a stage imitates, until another stage asks for
other rows, and those of a step's replies, until the step is over.

P tokens of a prompt, L of a reply, H width, R rows, T tokens of a row, N tokens of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from gad.layouts import CacheBatch, PackedBatch, PaddedBatch, TokenBatch, TokenGroup, TreeBatch, build, to_device
from gad.models.forward import Below

Key = tuple[tuple[int, ...], tuple[int, ...] | None]
"""A prompt and one of its replies, whose states they are; None for the prompt's own."""
Compute = Callable[[TokenBatch], Below]


class Known:
    """limit: bytes of either kind. Rows that do not fit are not kept at all, a step's replies as far as they fit."""

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self._rows: tuple[TokenGroup, ...] = ()
        self._of_rows: dict[Key, Tensor] = {}
        self._open = False
        self._of_step: dict[Key, Tensor] | None = None
        self._room = 0
        self._asked: list[TokenGroup] = []
        self._computed: list[TokenGroup] = []

    def keep(
        self, rows: Sequence[TokenGroup], batches: Iterable[TokenBatch], compute: Compute, token_bytes: int
    ) -> Iterator[int]:
        """The states of a stage's rows, unless they are there; `batches` lays all of them out. Yields rows that are
        done.

        All are computed, and always in the order given, so that a run which is taken up again has the same bits.
        """
        if tuple(rows) == self._rows:
            return
        self._rows, self._of_rows = tuple(rows), {}
        if sum(len(row.prompt) + sum(map(len, row.replies)) for row in rows) * token_bytes <= self.limit:
            for batch in batches:
                self._of_rows.update(_pieces(batch, compute(batch)))
                yield len(batch.groups)

    @contextmanager
    def rows(self) -> Iterator[None]:
        """Within, the states of the stage's rows are used. Elsewhere they are not, because a process that takes a run
        up in a later stage never had them."""
        self._open = True
        try:
            yield
        finally:
            self._open = False

    @contextmanager
    def step(self) -> Iterator[None]:
        """Within, what is computed is kept and used, beside the states of the stage's rows."""
        self._of_step, self._room = {}, self.limit
        try:
            with self.rows():
                yield
        finally:
            self._of_step = None

    def below(self, batch: TokenBatch, compute: Compute) -> Below:
        """Of a batch: what is known, and the rest as `compute` gives it."""
        known = {key: piece for key in _keys(batch.groups) if (piece := self._piece(key)) is not None}
        rest = [part for group in batch.groups if (part := _unknown(group, known)) is not None]
        if not known:
            whole = compute(batch)
            if self._of_step is not None:
                self._add(dict(_pieces(batch, whole)))
            return whole
        self._asked += batch.groups
        self._computed += rest
        if rest:
            missing = _like(batch, rest)
            found = dict(_pieces(missing, compute(missing)))
            self._add(found)
            known |= found
        return _assembled(batch, known)

    def spared(self) -> tuple[list[TokenGroup], list[TokenGroup]]:
        """Groups of batches of which something was known, and what was computed of them, since this was last asked."""
        found = self._asked, self._computed
        self._asked, self._computed = [], []
        return found

    def _piece(self, key: Key) -> Tensor | None:
        found = self._of_rows.get(key) if self._open else None
        return found if found is not None or self._of_step is None else self._of_step.get(key)

    def _add(self, found: dict[Key, Tensor]) -> None:
        self._room -= sum(piece.nbytes for piece in found.values())
        if self._of_step is not None and self._room >= 0:
            self._of_step.update(found)


def _keys(groups: Sequence[TokenGroup]) -> Iterator[Key]:
    for group in groups:
        yield group.prompt, None
        for reply in group.replies:
            yield group.prompt, reply


def _unknown(group: TokenGroup, known: Mapping[Key, Tensor]) -> TokenGroup | None:
    """The prompt with the replies that are not known; None where all are."""
    replies = tuple(reply for reply in group.replies if (group.prompt, reply) not in known)
    return TokenGroup(group.prompt, replies) if replies else None


def _assembled(batch: TokenBatch, known: Mapping[Key, Tensor]) -> Below:
    pieces = [known[key] for key in _keys(batch.groups)]
    table_NH = torch.cat([torch.zeros_like(pieces[0][:1]), *pieces])
    rows_RT, replies_BL = _numbered(batch)
    return Below(table_NH[rows_RT], None if replies_BL is None else table_NH[replies_BL])


def _pieces(batch: TokenBatch, below: Below) -> Iterator[tuple[Key, Tensor]]:
    """States (P, H) and (L, H) of each group's prompt and replies."""
    rows_RT, replies_BL = _numbered(batch)
    numbers, states = rows_RT.flatten(), below.rows_RTH.flatten(0, 1)
    if replies_BL is not None and below.replies_RTH is not None:
        numbers = torch.cat([numbers, replies_BL.flatten()])
        states = torch.cat([states, below.replies_RTH.flatten(0, 1)])
    places = numbers.new_zeros(int(numbers.max()) + 1)
    steps = torch.arange(len(numbers), device=numbers.device)
    places.scatter_reduce_(0, numbers, steps, "amin", include_self=False)  # a padded prompt stands in several rows
    ordered_NH, start = states[places[1:]], 0
    for key in _keys(batch.groups):
        end = start + len(key[0] if key[1] is None else key[1])
        yield key, ordered_NH[start:end]
        start = end


def _numbered(batch: TokenBatch) -> tuple[Tensor, Tensor | None]:
    """The batch's rows, and its reply rows if it has any, with the number of each token in the order of `_keys`, from
    1; 0 on padding."""
    groups, first = [], 1
    for group in batch.groups:
        ends = list(accumulate(map(len, (group.prompt, *group.replies)), initial=first))
        prompt, *replies = (tuple(range(start, end)) for start, end in pairwise(ends))
        groups.append(TokenGroup(prompt, tuple(replies)))
        first = ends[-1]
    match _like(batch, groups):
        case CacheBatch() as cache:
            return cache.prompt_ids_PT, cache.reply_ids_BL
        case PaddedBatch() | TreeBatch() | PackedBatch() as plain:
            return plain.input_ids_RT, None


def _like(batch: TokenBatch, groups: Sequence[TokenGroup]) -> TokenBatch:
    """Other groups in the batch's layout, on its device."""
    match batch:
        case PaddedBatch():
            made = build(groups, "padded")
        case TreeBatch(fused=fused):
            made = build(groups, "tree", fused=fused)
        case CacheBatch():
            made = build(groups, "cache")
        case PackedBatch(fused=fused):
            made = build(groups, "packed", fused=fused)
    return to_device(made, batch.readout.last_B.device)
