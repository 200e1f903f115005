"""P prompts, G replies per prompt, B = P*G rows, T reply tokens."""

import math

import pytest
import torch

from gad.objectives import constant_length, sequence_mean, sequence_sum, token_mean

LIMIT = 5
AGGREGATIONS = {
    "token_mean": lambda v, m, tokens, _: token_mean(v, m, tokens),
    "sequence_mean": lambda v, m, _, sequences: sequence_mean(v, m, sequences),
    "constant_length": lambda v, m, _, sequences: constant_length(v, m, sequences, LIMIT),
}
every_aggregation = pytest.mark.parametrize("name", AGGREGATIONS)


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Four replies of 3, 1, 0 and 4 tokens, padded on the right."""
    values_BT = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return values_BT, torch.arange(4) < torch.tensor([[3], [1], [0], [4]])


def aggregate(name: str, values_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    return AGGREGATIONS[name](values_BT, mask_BT, int(mask_BT.sum()), len(mask_BT))


def reference(name: str, values: list[list[float]], mask: list[list[bool]]) -> float:
    replies = [[v for v, on in zip(vs, ms, strict=True) if on] for vs, ms in zip(values, mask, strict=True)]
    if name == "token_mean":
        return sum(map(sum, replies)) / sum(map(len, replies))
    if name == "sequence_mean":
        return sum(sum(r) / len(r) if r else 0.0 for r in replies) / len(replies)
    return sum(sum(r) / LIMIT for r in replies) / len(replies)


@every_aggregation
def test_agrees_with_the_definition(name):
    values_BT, mask_BT = batch()
    expected = reference(name, values_BT.tolist(), mask_BT.tolist())
    assert aggregate(name, values_BT, mask_BT).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "expected"), [("token_mean", 7 / 4), ("sequence_mean", 3 / 2), ("constant_length", 7 / 10)]
)
def test_one_token_worth_one_and_three_worth_two(name, expected):
    values_BT = torch.tensor([[1.0, 9.0, 9.0], [2.0, 2.0, 2.0]])
    mask_BT = torch.tensor([[True, False, False], [True, True, True]])
    assert aggregate(name, values_BT, mask_BT).item() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("name", "weight_of_row"),
    [("token_mean", [1 / 8, 1 / 8, 0, 1 / 8]), ("sequence_mean", [1 / 12, 1 / 4, 0, 1 / 16]),
     ("constant_length", [1 / 20, 1 / 20, 0, 1 / 20])],
)  # fmt: skip
def test_gradient_is_the_weight_of_each_token(name, weight_of_row):
    values_BT, mask_BT = batch()
    values_BT.requires_grad_()
    aggregate(name, values_BT, mask_BT).backward()
    expected_BT = mask_BT * torch.tensor(weight_of_row, dtype=torch.float64)[:, None]
    torch.testing.assert_close(values_BT.grad, expected_BT, rtol=1e-12, atol=0)


def test_sequence_sum():
    values_BT = torch.tensor([[1.0, 2.0, math.nan], [math.inf, 8.0, 16.0], [math.nan] * 3])
    mask_BT = torch.tensor([[True, True, False], [False, True, True], [False] * 3])
    assert sequence_sum(values_BT, mask_BT).tolist() == [3.0, 24.0, 0.0]


@every_aggregation
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e38])
def test_padding_reaches_neither_value_nor_gradient(name, garbage):
    values_BT, mask_BT = batch()
    dirty_BT = torch.where(mask_BT, values_BT, garbage).requires_grad_()
    loss = aggregate(name, dirty_BT, mask_BT)
    loss.backward()
    assert loss.item() == aggregate(name, values_BT, mask_BT).item()
    assert dirty_BT.grad[~mask_BT].tolist() == [0.0] * 8


@every_aggregation
def test_wider_padding_changes_nothing(name):
    values_BT, mask_BT = batch()
    wide_BT = torch.nn.functional.pad(values_BT, (0, 3), value=math.nan)
    wider_BT = torch.nn.functional.pad(mask_BT, (0, 3), value=False)
    torch.testing.assert_close(
        aggregate(name, wide_BT, wider_BT), aggregate(name, values_BT, mask_BT), rtol=1e-12, atol=0
    )


@every_aggregation
def test_order_of_replies_does_not_matter(name):
    values_BT, mask_BT = batch()
    order = torch.tensor([3, 1, 0, 2])
    torch.testing.assert_close(
        aggregate(name, values_BT[order], mask_BT[order]),
        aggregate(name, values_BT, mask_BT),
        rtol=1e-12,
        atol=0,
    )


@every_aggregation
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_add_up_in_loss_and_gradient(name, as_tensor):
    values_BT, mask_BT = batch()
    tokens, sequences = int(mask_BT.sum()), len(mask_BT)
    counts = (torch.tensor(tokens), torch.tensor(sequences)) if as_tensor else (tokens, sequences)

    def loss_and_gradient(splits):
        leaf_BT = values_BT.clone().requires_grad_()
        rows = torch.arange(4).split(splits)
        loss = sum(AGGREGATIONS[name](leaf_BT[r], mask_BT[r], *counts) for r in rows)
        loss.backward()
        return loss, leaf_BT.grad

    for splits in ([1, 3], [2, 1, 1], [3, 1]):
        torch.testing.assert_close(loss_and_gradient(splits), loss_and_gradient([4]), rtol=1e-12, atol=1e-15)


@every_aggregation
@pytest.mark.parametrize("count", [0, torch.tensor(0)], ids=["int", "tensor"])
def test_a_batch_of_empty_replies_is_zero(name, count):
    values_BT = torch.full((2, 3), math.nan, requires_grad=True)
    loss = AGGREGATIONS[name](values_BT, torch.zeros(2, 3, dtype=torch.bool), count, count)
    loss.backward()
    assert loss.item() == 0.0
    assert values_BT.grad.tolist() == [[0.0] * 3] * 2


@every_aggregation
@pytest.mark.parametrize("count", [1, torch.tensor(1)], ids=["int", "tensor"])
def test_one_token_is_its_own_mean(name, count):
    loss = AGGREGATIONS[name](torch.tensor([[6.0]]), torch.tensor([[True]]), count, count)
    assert loss.item() == pytest.approx(6.0 / LIMIT if name == "constant_length" else 6.0)


@every_aggregation
def test_a_count_on_the_device_is_never_read_back(name):
    """The meta device has no data: reading a value there, which on a GPU would wait for it, raises."""
    count = torch.ones((), dtype=torch.int64, device="meta")
    mask_BT = torch.ones(2, 3, dtype=torch.bool, device="meta")
    loss = AGGREGATIONS[name](torch.ones(2, 3, device="meta"), mask_BT, count, count)
    assert loss.device.type == "meta"


@every_aggregation
def test_a_batch_without_columns_is_zero(name):
    loss = AGGREGATIONS[name](torch.zeros(2, 0), torch.zeros(2, 0, dtype=torch.bool), 0, 2)
    assert loss.item() == 0.0


@every_aggregation
def test_half_precision_is_summed_in_single(name):
    values_BT = torch.full((1, 1000), 1.0, dtype=torch.bfloat16)
    mask_BT = torch.ones(1, 1000, dtype=torch.bool)
    mask_BT[0, 3:] = False
    loss = aggregate(name, values_BT / 3, mask_BT)
    assert loss.dtype == torch.float32
    assert loss.item() == aggregate(name, (values_BT / 3).float(), mask_BT).item()


@pytest.mark.parametrize("length", [0, -3])
def test_constant_length_refuses_a_length_without_tokens(length):
    values_BT, mask_BT = batch()
    with pytest.raises(ValueError, match=rf"^length = {length}: sums are divided by it; use the reply limit in"):
        constant_length(values_BT, mask_BT, 4, length)


def test_constant_length_of_one_token():
    values_BT, mask_BT = batch()
    torch.testing.assert_close(constant_length(values_BT, mask_BT, 1, 1), values_BT[mask_BT].sum())


@every_aggregation
@pytest.mark.parametrize(
    "mask_BT", [torch.ones(4, 4), torch.ones(4, 3, dtype=torch.bool), torch.ones(1, 4, 4, dtype=torch.bool)]
)
def test_a_mask_of_another_type_or_shape_is_a_bug(name, mask_BT):
    with pytest.raises(AssertionError):
        AGGREGATIONS[name](torch.zeros(4, 4), mask_BT, 4, 4)


@every_aggregation
def test_values_that_are_not_rows_of_tokens_are_a_bug(name):
    with pytest.raises(AssertionError):
        AGGREGATIONS[name](torch.zeros(2, 2, 2), torch.ones(2, 2, 2, dtype=torch.bool), 4, 4)
