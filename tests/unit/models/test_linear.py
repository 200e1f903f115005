"""float32 products by oneDNN equal torch's own, forward and backward, and are used where they should be alone."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gad.models import linear
from gad.models.linear import Linear, prefers_onednn, product, speed_up

ONEDNN = torch.backends.mkldnn.is_available()


@pytest.fixture
def on_amd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[tuple[int, ...]]]:
    """As if the CPU were AMD's with AVX-512; shapes of the first operand of each product that oneDNN computed."""
    info = tmp_path / "cpuinfo"
    info.write_text("vendor_id\t: AuthenticAMD\nflags\t\t: fpu avx2 avx512f avx512bw\n", encoding="utf-8")
    monkeypatch.setattr(linear, "CPU_INFO", info)
    prefers_onednn.cache_clear()
    calls: list[tuple[int, ...]] = []
    inner = linear._onednn

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(tuple(x.shape))
        return inner(x, weight, bias)

    assert prefers_onednn() == ONEDNN
    monkeypatch.setattr(linear, "_onednn", counted)
    yield calls
    prefers_onednn.cache_clear()


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
