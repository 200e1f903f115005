"""Attention of a packed row cut into kernels, by hand. What it computes is in models/test_layout_equivalence.py."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gad import packing
from gad.packing import Portion, Shape, Span, apart, portions, query_blocks

NO_PROMPT = (Span(0, 0),)
GROUPS = st.lists(
    st.tuples(st.integers(1, 300), st.lists(st.integers(0, 200), min_size=1, max_size=5)), min_size=1, max_size=8
)


def shapes(groups: list[tuple[int, list[int]]]) -> list[Shape]:
    return [(prompt, tuple(sorted(lengths, reverse=True))) for prompt, lengths in groups]


def test_query_blocks_by_hand() -> None:
    """32 positions a block, or about a sixth of the longest row."""
    assert query_blocks([70, 40, 33, 32, 0]) == [(0, 32, 4), (32, 64, 3), (64, 70, 1)]
    assert query_blocks([400, 81]) == [(0, 80, 2), (80, 160, 2), (160, 240, 1), (240, 320, 1), (320, 400, 1)]
    assert query_blocks([0, 0]) == query_blocks([]) == []


def test_one_reply_is_the_end_of_its_prompt_s_row() -> None:
    assert apart([(5, (3,))]) == apart([(5, (3, 0))]) == [Portion(NO_PROMPT, ((Span(0, 8),),))]
    assert apart([(5, (0, 0))]) == [Portion(NO_PROMPT, ((Span(0, 5),),))]


def test_several_replies_read_their_prompt() -> None:
    assert apart([(5, (3,)), (4, (9, 2, 0))]) == [
        Portion(NO_PROMPT, ((Span(0, 8),),)),
        Portion(NO_PROMPT, ((Span(8, 4),),)),
        Portion((Span(8, 4),), ((Span(12, 9), Span(21, 2)),)),
    ]


def test_like_groups_share_their_kernels() -> None:
    """Rows without prompts of others are rows of one span; those with a prompt are padded rank by rank."""
    alone, shared = portions([(4, (9, 2)), (6, (3,)), (5, (7, 6, 1))])
    assert alone == Portion(NO_PROMPT, ((Span(15, 9), Span(24, 5), Span(0, 4)),))
    assert shared.prompts == (Span(0, 4), Span(24, 5))
    assert shared.rows == ((Span(4, 9), Span(13, 2)), (Span(29, 7), Span(36, 6), Span(42, 1)))
    assert (shared.prompt, shared.lengths) == (5, [9, 6, 1])


def test_pairs_by_hand() -> None:
    """Two prompts of at most 5 tokens; 3 rows of at most 40 in blocks of 32, of which one has more than 32."""
    portion = Portion((Span(0, 5), Span(50, 4)), ((Span(5, 40),), (Span(54, 20), Span(74, 3), Span(77, 1))))
    assert portion.pairs == 2 * (3 * 32 * (5 + 32) + 1 * 8 * (5 + 40))


def test_lengths_apart_have_kernels_of_their_own() -> None:
    assert [len(each.rows[0]) for each in portions([(1000, ()), (12, ()), (10, ())])] == [1, 2]
    kept = portions([(500, (400, 400)), (10, (8, 8)), (10, (7, 7))])
    assert [each.prompt for each in kept] == [0, 0, 500, 10]
    assert kept[3].prompts == (Span(1300, 10), Span(1326, 10))


@given(GROUPS)
def test_every_token_is_in_one_row_and_little_is_padded(groups: list[tuple[int, list[int]]]) -> None:
    made = shapes(groups)
    found = portions(made)
    places = [
        place
        for portion in found
        for rows in portion.rows
        for span in rows
        for place in range(span.start, span.start + span.length)
    ]
    assert sorted(places) == list(range(sum(prompt + sum(lengths) for prompt, lengths in made)))
    single = apart(made)
    saved = len(single) - len(found)
    assert sum(each.pairs for each in found) <= sum(each.pairs for each in single) + saved * packing.PAIRS_OF_A_PORTION
    for portion in found:
        assert len(portion.rows) == len(portion.prompts)
        assert all(list(rows) == sorted(rows, key=lambda span: -span.length) for rows in portion.rows)


def test_where_kernels_cost_nothing_nothing_is_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "PAIRS_OF_A_PORTION", -1)
    made = shapes([(4, [9, 2]), (6, [3]), (5, [7, 7])])
    assert set(portions(made)) == set(apart(made))
