"""Operations by arithmetic: pairs by hand and against the tree's mask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gad.flops import Arithmetic, Layer, pairs
from gad.layouts import TokenGroup, TreeBatch, build

ONE = Arithmetic((Layer(50, 5), Layer(50, 5, window=2)), head=7, train_head=False, pair=3)
GROUP = (3, [2, 0])
"""5 tokens, 2 of them reply tokens. Pairs: 6 of the prompt, 4 + 5 of the reply; in a window of two 5 and 4."""


def test_pairs_by_hand() -> None:
    assert pairs(3, [2, 0]) == 6 + 4 + 5
    assert pairs(3, [2, 2]) == 6 + 2 * (4 + 5)
    assert pairs(3, [2, 0], window=2) == 1 + 2 + 2 + 2 + 2
    assert pairs(3, [2], window=1) == 5
    assert pairs(3, [2], window=5) == pairs(3, [2]) == pairs(3, [2], window=99)


@given(
    prompt=st.integers(1, 9),
    replies=st.lists(st.integers(0, 7), min_size=1, max_size=4),
    window=st.none() | st.integers(1, 20),
)
def test_pairs_are_what_the_trees_mask_lets_through(prompt: int, replies: list[int], window: int | None) -> None:
    tree = build([TokenGroup((1,) * prompt, tuple((2,) * reply for reply in replies))], "tree")
    assert isinstance(tree, TreeBatch)
    position_T = tree.position_ids_RT[0]
    near_TT = position_T[:, None] - position_T[None, :] < (window or 99)
    assert pairs(prompt, replies, window) == int((tree.visible_RTT[0] & near_TT).sum())


def test_passes_by_hand() -> None:
    attention = 3 * (15 + 9)
    assert ONE.forward([GROUP], predicts=False) == 5 * 110 + attention
    assert ONE.forward([GROUP]) == 5 * 110 + attention + 2 * 7
    assert ONE.train([GROUP], predicts=False) == 5 * (200 + 30) + 3 * attention
    assert ONE.train([GROUP]) == 5 * (200 + 30) + 3 * attention + 2 * 2 * 7
    assert ONE.forward([GROUP, GROUP]) == 2 * ONE.forward([GROUP])
    assert ONE.forward([]) == 0.0


def test_a_trained_head_costs_its_own_gradient_too() -> None:
    trained = Arithmetic((Layer(0, 55), Layer(0, 55, window=2)), head=7, train_head=True, pair=3)
    assert trained.train([GROUP]) == 3 * trained.forward([GROUP])


NARROW = Arithmetic((Layer(50, 5), Layer(10, 1, 40, 4, window=2)), head=7, train_head=False, pair=3)
"""The same model, whose last layer is computed for what is read alone, but for 11 of its 55."""


def test_what_nobody_reads_is_not_counted() -> None:
    attention = 3 * (15 + 9)
    # Scores: the state of each reply's last token; of the empty one the prompt's last.
    assert NARROW.forward([GROUP], predicts=False) == 5 * 66 + 2 * 44 + attention
    # Likelihoods: the prompt's last token predicts the first one of every reply, a reply's first its second.
    assert NARROW.forward([GROUP]) == 5 * 66 + 2 * 44 + attention + 2 * 7
    assert NARROW.forward([(3, [2, 2])]) == 7 * 66 + 3 * 44 + 3 * (24 + 13) + 4 * 7
    assert NARROW.forward([(3, [0, 0])]) == 3 * 66 + 3 * (6 + 5)
    assert NARROW.train([GROUP]) == 5 * (120 + 18) + 2 * (80 + 12) + 3 * attention + 2 * 2 * 7
    # Sampling reads the prompt's last state and what is drawn after each token but a reply's last.
    assert NARROW.sample([(3, [2, 1])]) == 4 * 66 + 2 * 44 + 3 * (6 + 5) + 3 * (4 + 2) + 3 * 7


def test_nothing_goes_back_below_what_is_trained() -> None:
    """And what members have in common is counted for one of them."""
    upper = Arithmetic((Layer(50, 0), Layer(50, 5, window=2)), head=7, train_head=False, pair=3, common=1)
    full, windowed = 3 * 15, 3 * 9
    assert upper.forward([GROUP]) == 5 * 105 + full + windowed + 2 * 7
    assert upper.forward([GROUP], common=False) == 5 * 55 + windowed + 2 * 7
    assert upper.train([GROUP]) == upper.forward([GROUP]) + 5 * 60 + 2 * windowed + 2 * 7


def test_sampling_leaves_out_the_last_token_of_each_reply() -> None:
    """Nobody asks what follows it. A reply of one token costs the head alone: the prompt's last state predicts it."""
    first = 3 * (6 + 5)
    assert ONE.sample([(3, [1])]) == 3 * 110 + first + 7
    assert ONE.sample([(3, [2, 1])]) == 4 * 110 + first + 3 * (4 + 2) + 3 * 7


@pytest.mark.parametrize("replies", [1, 8])
def test_a_prompt_counts_once_however_many_replies_share_it(replies: int) -> None:
    alone = ONE.forward([(50, [0])])
    shared = ONE.forward([(50, [1] * replies)])
    assert shared - alone == pytest.approx(replies * (110 + 3 * (51 + 2) + 7))
