"""Log-probabilities in chunks. N predicted tokens, H width, V vocabulary."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gad.layouts import Readout
from gad.models.forward import CHUNK, reply_logps, token_logps

H, V = 5, 11
COUNTS = (0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 3)
SETTINGS = [(1.0, None), (0.7, None), (1.0, 2.0), (1.3, 2.0)]
every_setting = pytest.mark.parametrize(("temperature", "softcap"), SETTINGS)


def given(count: int, *, dtype: torch.dtype = torch.float64, train_head: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    rows = torch.randn(count, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    head = torch.randn(V, H, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(train_head)
    return rows, head, torch.randint(0, V, (count,), generator=generator)


def whole(
    rows: Tensor, head: Tensor, targets: Tensor, temperature: float, softcap: float | None
) -> tuple[Tensor, Tensor]:
    """The definition, with all the logits at once."""
    logits = rows @ head.T
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logps = torch.log_softmax(logits / temperature, -1)
    return logps[torch.arange(len(targets)), targets], -(logps.exp() * logps).sum(-1)


@every_setting
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("train_head", [False, True])
def test_values_and_gradients_are_those_of_the_whole(
    count: int, temperature: float, softcap: float | None, train_head: bool
) -> None:
    rows, head, targets = given(count, train_head=train_head)
    incoming = torch.randn(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = [rows, head] if train_head else [rows]
    expected_N, entropies_N = whole(rows, head, targets, temperature, softcap)
    expected = torch.autograd.grad(expected_N, wanted, incoming)
    found_N, found_entropies_N = token_logps(rows, head, targets, temperature=temperature, softcap=softcap)
    found = torch.autograd.grad(found_N, wanted, incoming)
    torch.testing.assert_close(found_N, expected_N, rtol=0, atol=1e-12)
    torch.testing.assert_close(found_entropies_N, entropies_N, rtol=0, atol=1e-12)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-10)


@every_setting
def test_float32_stays_within_a_millionth(temperature: float, softcap: float | None) -> None:
    rows, head, targets = given(CHUNK + 1, dtype=torch.float32)
    expected_N, entropies_N = whole(rows.double(), head.double(), targets, temperature, softcap)
    found_N, found_entropies_N = token_logps(rows, head, targets, temperature=temperature, softcap=softcap)
    torch.testing.assert_close(found_N.double(), expected_N, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found_entropies_N.double(), entropies_N, rtol=1e-6, atol=2e-6)


def test_bfloat16_logits_are_normalised_in_float32() -> None:
    """The only rounding is that of the product: log-probabilities of all tokens still sum to one."""
    rows, head, _ = given(1, dtype=torch.bfloat16)
    found = [token_logps(rows, head, torch.tensor([token]))[0] for token in range(V)]
    assert found[0].dtype == torch.float32
    assert math.fsum(math.exp(logp.item()) for logp in found) == pytest.approx(1.0, abs=1e-6)


def test_the_head_is_trained_where_the_rows_are_not() -> None:
    rows, head, targets = given(CHUNK + 1, train_head=True)
    rows = rows.detach()
    expected = torch.autograd.grad(whole(rows, head, targets, 0.7, 2.0)[0].sum(), head)[0]
    found = torch.autograd.grad(token_logps(rows, head, targets, temperature=0.7, softcap=2.0)[0].sum(), head)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_certainty_and_ignorance() -> None:
    """A zero state gives the uniform distribution: -log V and entropy log V; a huge one, certainty: 0 and 0."""
    head = torch.eye(V, dtype=torch.float64)
    rows = torch.stack([torch.zeros(V, dtype=torch.float64), 1e4 * head[3]])
    logps_N, entropies_N = token_logps(rows, head, torch.tensor([3, 3]))
    assert logps_N.tolist() == pytest.approx([-math.log(V), 0.0], abs=1e-12)
    assert entropies_N.tolist() == pytest.approx([math.log(V), 0.0], abs=1e-12)


def test_entropies_carry_no_gradient() -> None:
    rows, head, targets = given(3)
    logps_N, entropies_N = token_logps(rows, head, targets)
    assert (logps_N.requires_grad, entropies_N.requires_grad) == (True, False)


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes, in the forward and in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, Tensor):
                self.elements = max(self.elements, value.numel())
        return result


@pytest.mark.parametrize("train_head", [False, True])
@pytest.mark.parametrize("softcap", [None, 3.0])
def test_all_logits_never_exist_at_once(train_head: bool, softcap: float | None) -> None:
    count, vocabulary = 5 * CHUNK, 700
    rows = torch.randn(count, H, requires_grad=True)
    head = torch.randn(vocabulary, H, requires_grad=train_head)
    with Largest() as chunked:
        token_logps(rows, head, torch.zeros(count, dtype=torch.long), softcap=softcap)[0].sum().backward()
    with Largest() as at_once:
        whole(rows, head, torch.zeros(count, dtype=torch.long), 1.0, softcap)[0].sum().backward()
    assert chunked.elements == 128 * vocabulary
    assert at_once.elements == count * vocabulary


def test_reply_logps_stand_where_the_tokens_are() -> None:
    """Row 0 has two tokens predicted by states 4 and 0; row 1 has none; row 2 has one, predicted by state 2."""
    states, head, _ = given(6)
    readout = Readout(
        predictors_BL=torch.tensor([[4, 0], [0, 0], [2, 0]]),
        targets_BL=torch.tensor([[3, 10], [0, 0], [7, 0]]),
        mask_BL=torch.tensor([[True, True], [False, False], [True, False]]),
        last_B=torch.tensor([1, 3, 5]),
    )
    logps_BL, entropies_BL = reply_logps(states, readout, head, temperature=0.5)
    expected_N, expected_entropies_N = whole(states[[4, 0, 2]], head, torch.tensor([3, 10, 7]), 0.5, None)
    a, b, c = expected_N.tolist()
    torch.testing.assert_close(logps_BL.tolist(), [[a, b], [0.0, 0.0], [c, 0.0]])
    a, b, c = expected_entropies_N.tolist()
    torch.testing.assert_close(entropies_BL.tolist(), [[a, b], [0.0, 0.0], [c, 0.0]])
