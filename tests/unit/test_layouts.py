"""Groups to token batches, by hand. That all layouts compute the same is in models/test_layout_equivalence.py."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gad.config.compute import ComputeConfig
from gad.errors import ConfigError
from gad.layout_costs import ALL, DENSE, choose, computed, micro_batches
from gad.layouts import (
    CacheBatch,
    LayoutName,
    PackedBatch,
    PaddedBatch,
    TokenGroup,
    TreeBatch,
    build,
    pad,
    to_device,
    tokens_of,
)
from gad.training.batching import CPU_PAIR_COST, Batcher

LAYOUTS: tuple[LayoutName, ...] = ("padded", "tree", "cache", "packed")
KINDS: dict[type, LayoutName] = {
    PaddedBatch: "padded",
    TreeBatch: "tree",
    CacheBatch: "cache",
    PackedBatch: "packed",
}
GROUPS = [TokenGroup((11, 12), ((21, 22, 23), (), (31,))), TokenGroup((13, 14, 15), ((41, 42),))]
"""Prompts of 2 and 3 tokens; replies of 3, 0 and 1, and of 2."""


def group(prompt: int, *replies: int) -> TokenGroup:
    return TokenGroup((1,) * prompt, tuple((2,) * length for length in replies))


def test_a_group_needs_a_prompt_and_a_reply() -> None:
    with pytest.raises(ValueError, match="a prompt of at least one token"):
        TokenGroup((), ((1,),))
    with pytest.raises(ValueError, match="at least one reply"):
        TokenGroup((1,), ())


def test_the_longest_row_is_the_prompt_with_its_longest_reply() -> None:
    assert [group.longest_row for group in GROUPS] == [5, 5]
    assert group(4, 0, 0).longest_row == 4


def test_lengths_by_hand() -> None:
    assert [group.lengths for group in GROUPS] == [(2, [3, 0, 1]), (3, [2])]


@pytest.mark.parametrize(
    ("layout", "tokens"), [("padded", 4 * 5), ("tree", 2 * 6), ("cache", 2 * 3 + 4 * 3), ("packed", 11)]
)
def test_tokens_that_are_computed_count_the_padding(layout: LayoutName, tokens: int) -> None:
    assert tokens_of(build(GROUPS, layout)) == tokens


def test_padded_by_hand() -> None:
    batch = build(GROUPS, "padded")
    assert isinstance(batch, PaddedBatch)
    assert batch.input_ids_RT.tolist() == [
        [11, 12, 21, 22, 23],
        [11, 12, 0, 0, 0],
        [11, 12, 31, 0, 0],
        [13, 14, 15, 41, 42],
    ]
    assert batch.position_ids_RT.tolist() == [[0, 1, 2, 3, 4]] * 4
    readout = batch.readout
    assert readout.targets_BL.tolist() == [[21, 22, 23], [0, 0, 0], [31, 0, 0], [41, 42, 0]]
    assert readout.mask_BL.int().tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert readout.predictors_BL.tolist() == [[1, 2, 3], [0, 0, 0], [11, 0, 0], [17, 18, 0]]
    assert readout.last_B.tolist() == [4, 6, 12, 19]


def test_tree_by_hand() -> None:
    batch = build(GROUPS, "tree")
    assert isinstance(batch, TreeBatch)
    assert batch.input_ids_RT.tolist() == [[11, 12, 21, 22, 23, 31], [13, 14, 15, 41, 42, 0]]
    assert batch.position_ids_RT.tolist() == [[0, 1, 2, 3, 4, 2], [0, 1, 2, 3, 4, 0]]
    assert batch.visible_RTT[0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 0],
        [1, 1, 0, 0, 0, 1],
    ]
    assert batch.visible_RTT[1].int().sum(-1).tolist() == [1, 2, 3, 4, 5, 4]
    readout = batch.readout
    assert readout.predictors_BL.tolist() == [[1, 2, 3], [0, 0, 0], [1, 0, 0], [8, 9, 0]]
    assert readout.last_B.tolist() == [4, 1, 5, 10]
    assert readout.targets_BL.tolist() == [[21, 22, 23], [0, 0, 0], [31, 0, 0], [41, 42, 0]]


def test_cache_by_hand() -> None:
    batch = build(GROUPS, "cache")
    assert isinstance(batch, CacheBatch)
    assert batch.prompt_ids_PT.tolist() == [[11, 12, 0], [13, 14, 15]]
    assert batch.prompt_lengths_P.tolist() == [2, 3]
    assert batch.replies_per_prompt == (3, 1)
    assert batch.reply_ids_BL.tolist() == [[21, 22, 23], [0, 0, 0], [31, 0, 0], [41, 42, 0]]
    assert batch.position_ids_BL.tolist() == [[2, 3, 4], [2, 3, 4], [2, 3, 4], [3, 4, 5]]
    readout = batch.readout
    assert readout.predictors_BL.tolist() == [[0, 2, 3], [0, 0, 0], [0, 0, 0], [1, 11, 0]]
    assert readout.mask_BL.int().tolist() == [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 0]]
    assert readout.last_B.tolist() == [4, 0, 8, 12]


def test_packed_by_hand() -> None:
    """The longest reply first in the row; the readout has the replies as they were given."""
    groups = [TokenGroup((11, 12), ((31,), (), (21, 22, 23))), GROUPS[1]]
    batch = build(groups, "packed")
    assert isinstance(batch, PackedBatch)
    assert batch.input_ids_RT.tolist() == [[11, 12, 21, 22, 23, 31, 13, 14, 15, 41, 42]]
    assert batch.position_ids_RT.tolist() == [[0, 1, 2, 3, 4, 2, 0, 1, 2, 3, 4]]
    assert batch.shapes == ((2, (3, 1, 0)), (3, (2,)))
    readout = batch.readout
    assert readout.targets_BL.tolist() == [[31, 0, 0], [0, 0, 0], [21, 22, 23], [41, 42, 0]]
    assert readout.predictors_BL.tolist() == [[1, 0, 0], [0, 0, 0], [1, 2, 3], [8, 9, 0]]
    assert readout.last_B.tolist() == [5, 1, 4, 10]


def test_picking_rows_keeps_each_reply_with_its_own() -> None:
    readout = build(GROUPS, "padded").readout.rows(torch.tensor([True, False, False, True]))
    assert readout.targets_BL.tolist() == [[21, 22, 23], [41, 42, 0]]
    assert readout.predictors_BL.tolist() == [[1, 2, 3], [17, 18, 0]]
    assert readout.mask_BL.sum(-1).tolist() == [3, 2]
    assert readout.last_B.tolist() == [4, 19]


def test_pad() -> None:
    assert pad([(5,), (), (6, 7, 8)], 4).tolist() == [[5, 0, 0, 0], [0, 0, 0, 0], [6, 7, 8, 0]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_all_tensors_move_to_the_device(layout: LayoutName) -> None:
    batch = build(GROUPS, layout)
    assert to_device(batch, torch.device("cpu")) is batch
    moved = to_device(batch, torch.device("meta"))
    tensors = [getattr(part, name) for part in (moved, moved.readout) for name in part.__slots__]
    devices = [value.device.type for value in tensors if isinstance(value, torch.Tensor)]
    assert devices == ["meta"] * {"padded": 6, "tree": 7, "cache": 8, "packed": 6}[layout]


def test_computed_by_hand() -> None:
    assert computed(GROUPS, "padded") == (4 * 5, 4 * 25)
    assert computed(GROUPS, "tree") == (2 * 6, 2 * 36)
    # no padding; a block for the first prompt and one for its replies, one for the row of the second: 2 * 2 + 2 * 3 *
    # (2 + 3), 5 * 5
    assert computed(GROUPS, "packed") == (2 + 4 + 3 + 2, 4 + 30 + 25)
    # 40 replies tokens in two blocks: 32 * (6 + 32) for two rows, 8 * (6 + 40) for one
    assert computed([group(6, 32, 40)], "packed") == (78, 36 + 2 * 32 * 38 + 8 * 46)
    assert computed(GROUPS, "cache") == (2 * 3 + 4 * 3, 2 * 9 + 4 * 3 * (3 + 3))


@pytest.mark.parametrize(
    ("groups", "linear", "pair", "cheapest"),
    [
        # one reply: 10 tokens in every layout; pairs 100, 100, 6*6 + 4*10, but nothing is shared for a second pass
        ([group(6, 4)], 1.0, 0.0, "padded"),
        ([group(6, 4)], 0.0, 1.0, "padded"),
        # two replies: pairs padded 200, tree 196, cache 6*6 + 8*10
        ([group(6, 4, 4)], 0.0, 1.0, "cache"),
        # short replies of unequal length: tree 10 + 8 = 18 tokens, cache 10 + 2 * 7 = 24, padded 34
        ([group(10, 7, 1)], 1.0, 0.0, "tree"),
        # tree 18^2 = 324 pairs, cache 100 + 14 * 17 = 338, padded 2 * 17^2 = 578
        ([group(10, 7, 1)], 0.0, 1.0, "tree"),
        # long replies: tokens padded 88, tree and cache 82; pairs 4 * 22^2 = 1936, 82^2 = 6724, 4 + 80 * 22 = 1764
        ([group(2, 20, 20, 20, 20)], 0.0, 1.0, "cache"),
        ([group(2, 20, 20, 20, 20)], 1.0, 1.0, "cache"),
        ([group(2, 20, 20, 20, 20)], 1e6, 1.0, "cache"),
        # one token shorter: tree 81 tokens, cache 82 with padding; that decides where attention costs nothing
        ([group(2, 20, 20, 20, 19)], 1e6, 1.0, "tree"),
    ],
)
def test_choose_takes_the_least_work(
    groups: list[TokenGroup], linear: float, pair: float, cheapest: LayoutName
) -> None:
    assert choose(groups, linear_flops=linear, pair_flops=pair) == cheapest


def test_packed_is_chosen_where_it_is_among_the_choices() -> None:
    """It computes no padding: 81 tokens as the tree, and far fewer pairs."""
    groups = [group(2, 20, 20, 20, 19)]
    assert choose(groups, linear_flops=1.0, pair_flops=1.0, among=ALL) == "packed"
    for among, expected in ((ALL, PackedBatch), (DENSE, CacheBatch)):
        made = Batcher(ComputeConfig(), torch.device("cpu"), linear_flops=1.0, pair_flops=1.0, among=among)
        assert [type(micro.batch) for micro in made.micro_batches(groups)] == [expected]


def padded_tokens(groups: list[TokenGroup]) -> int:
    return computed(groups, "padded")[0]


def cache_tokens(groups: list[TokenGroup]) -> int:
    return computed(groups, "cache")[0]


def test_micro_batches_by_hand() -> None:
    """Prompts and replies in one batch are padded to the longest of each; sizes 4, 30, 12, 12."""
    groups = [group(2, 2), group(10, 10, 10), group(4, 8), group(4, 4, 4)]
    # 1: 10 + 20 = 30 > 29. 2 and 3: prompts 2 * 4, replies 3 * 8: 32 > 29. 3 and 0: prompts 8, replies 3 * 4: 20.
    assert micro_batches(groups, 29, cache_tokens) == [[1], [2], [3, 0]]
    # 2 and 3 fit now; with 0 it would be 12 + 4 * 8 = 44
    assert micro_batches(groups, 32, cache_tokens) == [[1], [2, 3], [0]]
    assert micro_batches(groups, 44, cache_tokens) == [[1], [2, 3, 0]]
    # one row a reply: 40, 12, 16, 4 tokens; 2 and 3: 3 * 12 = 36, with 0: 4 * 12 = 48
    assert micro_batches(groups, 36, padded_tokens) == [[1], [2, 3], [0]]
    assert micro_batches(groups, 1000, padded_tokens) == [[1, 2, 3, 0]]
    assert micro_batches([], 5, padded_tokens) == []


def test_a_budget_below_the_longest_row_is_refused_with_its_length() -> None:
    groups = [group(3, 2), group(7, 1, 9)]
    with pytest.raises(ValueError, match="tokens_per_micro_batch=15 is less than the longest row: use 16 or more"):
        micro_batches(groups, 15, padded_tokens)
    assert micro_batches(groups, 16, padded_tokens) == [[1], [0]]


def batcher(budget: int, layout: str) -> Batcher:
    compute = ComputeConfig.model_validate({"layout": layout, "tokens_per_micro_batch": budget})
    return Batcher(compute, torch.device("cpu"), linear_flops=64.0, pair_flops=1.0)


def test_a_user_reads_the_name_of_the_setting() -> None:
    with pytest.raises(ConfigError, match=r"^compute\.tokens_per_micro_batch=4 is less than the longest row: use 5"):
        list(batcher(4, "auto").micro_batches(GROUPS))


@given(
    st.lists(
        st.tuples(st.integers(1, 9), st.lists(st.integers(0, 9), min_size=1, max_size=4)), min_size=1, max_size=12
    ),
    st.integers(18, 200),
    st.sampled_from(["padded", "tree", "cache", "packed", "auto"]),
)
def test_every_group_exactly_once_and_no_more_than_the_budget(
    sizes: list[tuple[int, list[int]]], budget: int, layout: str
) -> None:
    groups = [
        TokenGroup((index + 1,) * prompt, tuple((index + 1,) * n for n in replies))
        for index, (prompt, replies) in enumerate(sizes)
    ]
    seen: list[int] = []
    sizes_in_order: list[int] = []
    for micro in batcher(budget, layout).micro_batches(groups):
        part, batch = micro.picked, micro.batch
        name = KINDS[type(batch)]
        seen += part
        sizes_in_order += [
            len(groups[i].prompt) + len(groups[i].replies) * max(map(len, groups[i].replies)) for i in part
        ]
        assert layout in (name, "auto")
        expected = [list(reply) for i in part for reply in groups[i].replies]
        readout = batch.readout
        found = [row[mask].tolist() for row, mask in zip(readout.targets_BL, readout.mask_BL, strict=True)]
        assert found == expected
        match batch:
            case CacheBatch():
                tokens = batch.prompt_ids_PT.numel() + batch.reply_ids_BL.numel() * bool(readout.mask_BL.any())
            case PaddedBatch() | TreeBatch() | PackedBatch():
                tokens = batch.input_ids_RT.numel()
        assert tokens == computed([groups[i] for i in part], name)[0]
        assert tokens <= budget or len(part) == 1
    assert sorted(seen) == list(range(len(groups)))
    assert sizes_in_order == sorted(sizes_in_order, reverse=True)


def test_flops_by_hand() -> None:
    """hidden 8, inner 16, 4 heads of width 2, 2 key heads: 8 * 2 * (8 + 4) + 3 * 8 * 16 = 576 weights a layer."""

    class Config:
        hidden_size, intermediate_size, num_attention_heads, num_key_value_heads, head_dim = 8, 16, 4, 2, None

    for device, pair_cost in (("meta", 1.0), ("cpu", CPU_PAIR_COST)):
        made = Batcher.of(ComputeConfig(), torch.device(device), Config())
        assert (made.linear_flops, made.pair_flops) == (2.0 * 576, 4.0 * 4 * 2 * pair_cost)
    assert CPU_PAIR_COST == 5.5


@pytest.mark.parametrize(
    ("device", "dtype", "packed"),
    [("cpu", torch.float32, True), ("cpu", torch.bfloat16, False), ("meta", torch.float32, False)],
)
def test_packed_is_for_float32_on_cpu(device: str, dtype: torch.dtype, packed: bool) -> None:
    config = SimpleNamespace(hidden_size=8, intermediate_size=16, num_attention_heads=4, dtype=dtype)
    assert ("packed" in Batcher.of(ComputeConfig(), torch.device(device), config).among) == packed
