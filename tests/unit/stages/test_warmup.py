"""Which steps are sampled for together."""

from __future__ import annotations

import pytest

from gad.stages.warmup import _block


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_blocks_share_out_a_phase_whatever_step_they_are_asked_for_at(size: int) -> None:
    first, last = 4, 13
    blocks = {_block(step, first, last, size) for step in range(first, last + 1)}
    assert sorted(step for block in blocks for step in block) == list(range(first, last + 1))
    for block in blocks:
        assert all(_block(step, first, last, size) == block for step in block)
        assert len(block) == size or block[-1] == last


def test_blocks_by_hand() -> None:
    assert [list(_block(step, 4, 8, 2)) for step in range(4, 9)] == [[4, 5], [4, 5], [6, 7], [6, 7], [8]]
