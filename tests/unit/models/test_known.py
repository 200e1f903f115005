"""States below the adapters are computed once; what is found again gives what would have been computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from gad.config.models import Lora
from gad.layouts import LayoutName, TokenBatch, TokenGroup, build
from gad.models.network import Member
from gad.models.passes import lasts, predictors
from support import tiny
from unit.models import plain
from unit.models.test_layout_equivalence import LAYOUTS, tokens, weights

UPPER = Lora(rank=2, alpha=3.0, first_layer=2)
TEACHER, OWN, OTHER = tokens(6, 1), (tokens(4, 2), tokens(7, 3), tokens(4, 2)), tokens(9, 4)
PROMPTS = tokens(5, 5), tokens(11, 6), tokens(2, 7)
SCORED = [TokenGroup(prompt, (TEACHER, *OWN[:2])) for prompt in PROMPTS]
"""As the discriminator has them: the teacher's reply first, each distinct one once."""
LEARNED = [TokenGroup(prompt, OWN) for prompt in PROMPTS]
"""As the student has them: twins are two rows, and the teacher's is not there."""
ENOUGH = 10**6
TOKEN_BYTES = 8 * tiny.SHAPE["hidden_size"]


class Calls:
    """Tokens that went through the first layer."""

    def __init__(self, member: Member) -> None:
        self.tokens = 0
        layers: Any = member.network.backbone()
        layers.layers[0].register_forward_hook(self._count)

    def _count(self, _module: Any, arguments: tuple[Tensor, ...], _output: Any) -> None:
        self.tokens += arguments[0].shape[:-1].numel()

    def new(self) -> int:
        """Since this was last asked."""
        found, self.tokens = self.tokens, 0
        return found


def made(architecture: str = "qwen2", kept_bytes: int = ENOUGH) -> tuple[Member, Calls]:
    _, (member,) = plain.network(architecture, UPPER, "student", kept_bytes=kept_bytes)
    return member, Calls(member)


def values(member: Member, batch: TokenBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """States that predict replies or end them, and the gradients of something made of them."""
    places_N = torch.cat([predictors(batch.readout), lasts(batch.readout)]).unique()
    with member.using():
        states_NH = member.passes.states(batch, places_N)[places_N]
        (states_NH @ weights(states_NH.shape[1], 1, torch.float64)).sum().backward()
    return states_NH.detach(), plain.gradients(member)


def size(groups: list[TokenGroup]) -> int:
    return sum(len(group.prompt) + sum(map(len, group.replies)) for group in groups)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize(
    ("scored", "learned"), [("packed", "packed"), ("padded", "cache"), ("cache", "tree"), ("tree", "padded")]
)
def test_what_is_known_is_what_would_be_computed(architecture: str, scored: LayoutName, learned: LayoutName) -> None:
    """Found in the layout of one pass, read in that of another; one group is new, and one has a new reply."""
    mixed = [LEARNED[0], TokenGroup(PROMPTS[1], (OTHER, OWN[0])), TokenGroup(tokens(3, 8), OWN), LEARNED[2]]
    member, calls = made(architecture)
    plain_member, _ = made(architecture, kept_bytes=0)
    with plain.wide(), member.keeping():
        with member.using():
            member.passes.below(build(SCORED, scored))
        assert calls.new() > 0
        for groups in (LEARNED, mixed):
            wanted_NH, wanted_gradients = values(plain_member, build(groups, learned))
            found_NH, found_gradients = values(member, build(groups, learned))
            torch.testing.assert_close(found_NH, wanted_NH, rtol=0, atol=1e-11)
            plain.assert_same_gradients(found_gradients, wanted_gradients, 1e-9)
            new = calls.new()
            assert (new == 0) if groups is LEARNED else (0 < new < size(mixed) * 2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_is_forgotten_when_it_is_over(layout: LayoutName) -> None:
    member, calls = made()
    batch = build(LEARNED, layout)
    with member.using():
        with member.keeping():
            member.passes.below(batch)
            assert calls.new() > 0
            member.passes.below(batch)
            assert calls.new() == 0
        member.passes.below(batch)
        assert calls.new() > 0
        member.passes.below(batch)
        assert calls.new() > 0
        with member.keeping():
            member.passes.below(batch)
            assert calls.new() > 0


def test_of_a_step_as_much_is_kept_as_fits() -> None:
    member, calls = made(kept_bytes=(size(SCORED[:1]) + size(SCORED[1:2])) * TOKEN_BYTES)
    with member.using(), member.keeping():
        for group in SCORED:
            member.passes.below(build([group], "packed"))
        assert calls.new() == size(SCORED)
        member.passes.below(build(SCORED, "packed"))
        assert calls.new() == size(SCORED[2:])  # computed again, and together with what is known
        member.passes.below(build(SCORED[:2], "packed"))
        assert calls.new() == 0


def test_the_rows_of_a_stage_are_computed_once_in_one_order() -> None:
    member, calls = made()
    rows = [TokenGroup(prompt, (TEACHER,)) for prompt in PROMPTS]
    orders: Counter[tuple[TokenGroup, ...]] = Counter()

    def batches() -> Iterator[TokenBatch]:
        for part in (rows[:2], rows[2:]):
            orders[tuple(part)] += 1
            yield build(part, "padded")

    for wanted in ([2, 1], []):
        assert list(member.keep(rows, batches())) == wanted
        assert orders == {tuple(rows[:2]): 1, tuple(rows[2:]): 1}
    calls.new()
    with member.using(), member.imitating():
        member.passes.below(build([rows[2], rows[0]], "packed"))
        assert calls.new() == 0
        assert list(member.keep(rows[:1], [build(rows[:1], "padded")])) == [1]
        assert calls.new() == size(rows[:1])
        member.passes.below(build(rows[1:], "packed"))
        assert calls.new() == size(rows[1:])
    with member.using():
        member.passes.below(build(rows[:1], "packed"))
        assert calls.new() == size(rows[:1])  # rows are for those who ask
        with member.keeping():
            member.passes.below(build([TokenGroup(PROMPTS[0], (TEACHER, OTHER))], "packed"))
            assert calls.new() == len(PROMPTS[0]) + len(OTHER)


@pytest.mark.parametrize("spare", [0, -1])
def test_rows_that_do_not_fit_are_not_kept_at_all(spare: int) -> None:
    rows = [TokenGroup(prompt, (TEACHER,)) for prompt in PROMPTS]
    member, calls = made(kept_bytes=size(rows) * TOKEN_BYTES + spare)
    assert list(member.keep(rows, [build(rows, "padded")])) == [3] * (spare == 0)
    assert (calls.new() > 0) == (spare == 0)
    with member.using(), member.imitating():
        member.passes.below(build(rows[:1], "padded"))
    assert (calls.new() == 0) == (spare == 0)


def test_what_was_found_is_told_once() -> None:
    member, _ = made()
    known = member.network.known
    with member.using(), member.keeping():
        member.passes.below(build(SCORED[:2], "packed"))
        assert known.spared() == ([], [])
        groups = [LEARNED[0], LEARNED[2], TokenGroup(PROMPTS[1], (OWN[0], OTHER, OTHER))]
        member.passes.below(build(groups, "packed"))
        assert known.spared() == (groups, [LEARNED[2], TokenGroup(PROMPTS[1], (OTHER, OTHER))])
        assert known.spared() == ([], [])


def test_without_common_layers_nothing_is_kept() -> None:
    _, (member,) = plain.network("qwen2", Lora(rank=2), "student", kept_bytes=ENOUGH)

    assert list(member.keep(SCORED, [build(SCORED, "packed")])) == []
    assert member.below(build(SCORED, "packed")) is None
