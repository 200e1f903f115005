"""float32 products by oneDNN equal torch's own, forward and backward, and are used where they should be alone; so do
those by weights that a library keeps in its own order."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gad.models import linear
from gad.models.arithmetic import fastest
from gad.models.linear import Linear, gains_by_prepacking, prefers_onednn, prepacked, product, speed_up

ONEDNN = torch.backends.mkldnn.is_available()
MKL = torch.backends.mkl.is_available()
BFLOAT16 = ONEDNN and fastest(torch.device("cpu")) == "bfloat16"


@pytest.fixture
def on_amd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[int, ...]]]:
    """As if the CPU were AMD's with AVX-512; shapes of the first operand of each product that oneDNN computed."""
    info = tmp_path / "cpuinfo"
    info.write_text("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512bw\n", encoding="utf-8")
    monkeypatch.setattr(linear, "CPU_INFO", info)
    prefers_onednn.cache_clear()
    linear._makers.cache_clear()
    calls: list[tuple[int, ...]] = []
    inner = linear._onednn

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(tuple(x.shape))
        return inner(x, weight, bias)

    assert prefers_onednn() == ONEDNN
    monkeypatch.setattr(linear, "_onednn", counted)
    yield calls
    prefers_onednn.cache_clear()
    linear._makers.cache_clear()


@pytest.fixture
def on_intel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """As if the CPU were Intel's, whose products MKL computes."""
    info = tmp_path / "cpuinfo"
    info.write_text("vendor_id\t: GenuineIntel\nflags\t\t: avx2 avx512f\n", encoding="utf-8")
    monkeypatch.setattr(linear, "CPU_INFO", info)
    prefers_onednn.cache_clear()
    linear._makers.cache_clear()
    yield
    prefers_onednn.cache_clear()
    linear._makers.cache_clear()


@pytest.mark.skipif(not ONEDNN, reason="torch without oneDNN")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6), (1, 1, 6)])
def test_same_values_and_gradients(on_amd: list[tuple[int, ...]], shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(6, 4, bias=bias)
    fast = copy.deepcopy(plain)
    speed_up(nn.Sequential(fast))
    assert type(fast) is Linear
    x = torch.randn(shape)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    weights = torch.randn(*shape[:-1], 4)
    (fast(ours) * weights).sum().backward()
    (plain(theirs) * weights).sum().backward()
    assert len(on_amd) == 3  # forward, gradient by the input, gradient by the weight
    torch.testing.assert_close(fast(ours), plain(theirs), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)
    for found, expected in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.skipif(not ONEDNN, reason="torch without oneDNN")
def test_a_frozen_weight_costs_no_product(on_amd: list[tuple[int, ...]]) -> None:
    layer = nn.Linear(6, 4).requires_grad_(False)
    speed_up(nn.Sequential(layer))
    x = torch.randn(3, 6, requires_grad=True)
    layer(x).sum().backward()
    assert len(on_amd) == 2
    torch.testing.assert_close(x.grad, layer.weight.sum(0).expand(3, 6))
    with torch.inference_mode():
        layer(x)
    assert len(on_amd) == 3


def test_other_types_take_torchs_way(on_amd: list[tuple[int, ...]]) -> None:
    """float64, bfloat16, mixed precision, no rows at all."""
    layer = nn.Linear(6, 4)
    speed_up(nn.Sequential(layer))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.randn(3, 6)).dtype is torch.bfloat16
    assert layer(torch.randn(0, 6)).shape == (0, 4)
    double = copy.deepcopy(layer).double()
    x = torch.randn(3, 6, dtype=torch.float64)
    assert torch.equal(double(x), F.linear(x, double.weight, double.bias))
    assert torch.equal(product(x, double.weight), x @ double.weight.T)
    assert on_amd == []


def test_no_onednn_on_other_cpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Intel's, where MKL is good; AMD's without AVX-512, where MKL is faster; a machine that does not say."""
    without = "vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 fma\n"
    for text in ("vendor_id\t: GenuineIntel\nflags\t\t: avx2 avx512f\n", without, None):
        info = tmp_path / "cpuinfo"
        if text is None:
            info.unlink()
        else:
            info.write_text(text, encoding="utf-8")
        monkeypatch.setattr(linear, "CPU_INFO", info)
        prefers_onednn.cache_clear()
        assert not prefers_onednn()
    prefers_onednn.cache_clear()


def test_an_operator_that_computes_something_else_is_not_trusted(
    on_amd: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "_onednn", lambda x, weight, bias=None: x @ weight.T)  # forgets the bias
    prefers_onednn.cache_clear()
    assert not prefers_onednn()


@pytest.mark.skipif(not ONEDNN, reason="torch without oneDNN")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prepacked_weights_give_the_same_for_any_number_of_rows(
    on_amd: list[tuple[int, ...]], dtype: torch.dtype, bias: bool
) -> None:
    torch.manual_seed(0)
    weight, added = torch.randn(40, 24, dtype=dtype), torch.randn(40, dtype=dtype) if bias else None
    compute = prepacked(weight, added, 16)
    products = len(on_amd)
    for rows in (1, 3, 16, 50):
        x = torch.randn(rows, 24, dtype=dtype)
        torch.testing.assert_close(compute(x), F.linear(x, weight, added), rtol=1e-6, atol=1e-5)
    assert len(on_amd) == products + 4 * (dtype is torch.float32 or BFLOAT16)


@pytest.mark.skipif(not ONEDNN, reason="torch without oneDNN")
def test_what_gains_by_prepacking(on_amd: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Types that oneDNN multiplies here, and models that are small enough to be held twice."""
    model = nn.Linear(8, 4, bias=False)
    assert gains_by_prepacking(model)
    assert not gains_by_prepacking(copy.deepcopy(model).double())
    assert gains_by_prepacking(copy.deepcopy(model).bfloat16()) == BFLOAT16
    monkeypatch.setattr(linear, "PREPACKED_BYTES", 8 * 4 * 4)
    assert gains_by_prepacking(model)
    monkeypatch.setattr(linear, "PREPACKED_BYTES", 8 * 4 * 4 - 1)
    assert not gains_by_prepacking(model)


@pytest.mark.parametrize("fault", ["missing", "wrong"])
def test_prepacking_that_does_not_work_here_is_left_out(
    on_amd: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """torch has no such operator, or it sorts weights otherwise than its product reads them."""

    def reorder(weight: Tensor, _rows: int) -> Tensor:
        if fault == "missing":
            raise AttributeError("no such operator")
        return weight.flip(0)

    monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", reorder)
    assert not gains_by_prepacking(nn.Linear(8, 4))
    weight, x = torch.arange(8.0).view(2, 4), torch.arange(4.0)[None]
    assert torch.equal(prepacked(weight, None, 1)(x), x @ weight.T)


@pytest.mark.skipif(not MKL, reason="torch without MKL")
@pytest.mark.usefixtures("on_intel")
@pytest.mark.parametrize("bias", [True, False])
def test_weights_that_mkl_keeps_sorted_give_the_same(bias: bool) -> None:
    """Any number of rows, rows with steps between their numbers, several dimensions, a transposed weight."""
    torch.manual_seed(0)
    weight, added = torch.randn(40, 24), torch.randn(40) if bias else None
    assert linear._makers()[torch.float32] is linear._sorted_mkl
    for laid_out in (weight, weight.T.contiguous().T):
        compute = prepacked(laid_out, added, 16)
        wide = torch.randn(50, 48)
        for x in (wide[:1, :24], wide[:16, :24], wide[:, ::2], wide.view(5, 10, 48)[..., :24], wide[:0, :24]):
            torch.testing.assert_close(compute(x), F.linear(x, weight, added), rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not MKL, reason="torch without MKL")
@pytest.mark.usefixtures("on_intel")
def test_mkl_multiplies_by_the_sorted_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not by the plain one, which torch keeps for other numbers of rows."""
    weight = torch.randn(40, 24)
    compute = prepacked(weight, None, 16)
    expected = {rows: compute(torch.ones(rows, 24)) for rows in (1, 16, 50)}
    weight.zero_()
    assert all(torch.equal(compute(torch.ones(rows, 24)), found) for rows, found in expected.items())
    assert not torch.equal(expected[16], torch.zeros(16, 40))


@pytest.mark.skipif(not MKL, reason="torch without MKL")
@pytest.mark.usefixtures("on_intel")
@pytest.mark.parametrize("fault", ["missing", "by the rows it was sorted for"])
def test_mkl_that_does_not_work_here_is_left_out(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    def compute(x: Tensor, _blocks: Tensor, weight: Tensor, bias: Tensor | None, rows: int) -> Tensor:
        if fault == "missing":
            raise AttributeError("no such operator")
        return F.linear(x, weight, bias) if rows == 8 else torch.zeros(rows, len(weight))

    monkeypatch.setattr(torch.ops.mkl, "_mkl_linear", compute)
    model = nn.Linear(24, 40)
    assert not gains_by_prepacking(model)
    x = torch.randn(3, 24)
    assert torch.equal(prepacked(model.weight, None, 8)(x), F.linear(x, model.weight))
