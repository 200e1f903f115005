"""Linear layers on a CPU, by the faster of the two libraries that torch carries.

torch multiplies float32 matrices by MKL, which uses no AVX-512 on CPUs that are not Intel's. oneDNN, which torch keeps
for bfloat16, does: on an AMD EPYC with AVX-512 it is 2.1 to 2.4 times as fast, forward and backward, at the same
precision (one thread, 1,400 rows, widths 256 and 1,024: 95-110 GFLOP/s against 210-245). On an AMD EPYC without AVX-512
MKL is the faster one (the same shapes: 79-84 against 58-83; `make bench` measures both on the machine at hand).

For each product both libraries sort the weight into their own blocks. With few rows that is a large part of the time,
so a model that only samples keeps its weights sorted (`prepacked`). `make bench` has what that saves on the machine at
hand, all linear layers of SmolLM2-135M at a time.

N rows, K inputs, M outputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gad.models.arithmetic import fastest

CPU_INFO = Path("/proc/cpuinfo")
PREPACKED_BYTES = 4 * 2**30
"""The largest model whose weights are held twice for the sake of speed."""
Product = Callable[[Tensor], Tensor]
Maker = Callable[[Tensor, Tensor | None, int], Product]
"""From a weight (M, K), a bias (M,) or None, and a number of rows to be fast at, to `product` by them."""


@functools.cache
def prefers_onednn() -> bool:
    """Whether this machine's float32 products go to oneDNN: it is there, it is right, on AMD's CPUs with AVX-512.

    By what the CPU is, not by a stopwatch: on another day a stopwatch may choose the other library, whose rounding is
    another, and a run that is taken up again would not be the run that was stopped.
    """
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        known = set(CPU_INFO.read_text(encoding="utf-8", errors="replace").split())
    except OSError:
        return False
    return {"AuthenticAMD", "avx512f"} <= known and _agrees(_plain_onednn, torch.float32)


def _plain_onednn(weight_MK: Tensor, bias_M: Tensor | None, _rows: int) -> Product:
    return lambda x: _onednn(x, weight_MK, bias_M)


def _sorted_onednn(weight_MK: Tensor, bias_M: Tensor | None, rows: int) -> Product:
    blocks = torch.ops.mkldnn._reorder_linear_weight(weight_MK, rows)
    return lambda x: _onednn(x, blocks, bias_M)


def _sorted_mkl(weight_MK: Tensor, bias_M: Tensor | None, rows: int) -> Product:
    blocks = torch.ops.mkl._mkl_reorder_linear_weight(weight_MK, rows)
    # The number of rows is said to be what was sorted for: with another one torch would take the plain weight.
    return lambda x: torch.ops.mkl._mkl_linear(x, blocks, weight_MK, bias_M, x.numel() // x.shape[-1])


def _agrees(made: Maker, dtype: torch.dtype) -> bool:
    """These operators belong to torch's compiler and are not promised to users: they are tried before they are trusted,
    with more and fewer rows than the weight was sorted for. All results are whole and below 256, which bfloat16 holds
    exactly."""
    numbers = torch.arange(40 * 64)
    x, weight = (numbers % 5 == 0).view(40, 64).float(), (numbers % 7 < 3).view(40, 64).float()
    bias = torch.arange(40.0)
    expected = x @ weight.T + bias
    try:
        compute = made(weight.to(dtype), bias.to(dtype), 8)
        return all(torch.equal(compute(x[:rows].to(dtype)).float(), expected[:rows]) for rows in (1, 8, 40))
    except (AttributeError, RuntimeError, TypeError):
        return False


def _onednn(x: Tensor, weight_MK: Tensor, bias_M: Tensor | None = None) -> Tensor:
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight_MK, bias_M, "none", [], "")
    return product


def _suits(x: Tensor, weight_MK: Tensor) -> bool:
    return (
        x.dtype is torch.float32
        and weight_MK.dtype is torch.float32
        and x.device.type == "cpu"
        and x.numel() > 0
        and type(weight_MK) in (Tensor, nn.Parameter)  # a shard of a weight is neither
        and prefers_onednn()
        and not torch.is_autocast_enabled("cpu")
    )


def product(x: Tensor, weight_MK: Tensor, bias_M: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias` outside of autograd; x (..., K)."""
    return _onednn(x, weight_MK, bias_M) if _suits(x, weight_MK) else F.linear(x, weight_MK, bias_M)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_MK: Tensor, bias_M: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight_MK)
        return _onednn(x, weight_MK, bias_M)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight_MK = ctx.saved_tensors
        wants_x, wants_weight, wants_bias = ctx.needs_input_grad
        grad_NM = grad.reshape(-1, grad.shape[-1])
        x_grad = _onednn(grad, weight_MK.T) if wants_x else None
        weight_grad = _onednn(grad_NM.T, x.reshape(-1, x.shape[-1]).T) if wants_weight else None
        return x_grad, weight_grad, grad_NM.sum(0) if wants_bias else None


class Linear(nn.Linear):
    """`nn.Linear`, computed by oneDNN where that is faster."""

    def forward(self, x: Tensor) -> Tensor:
        """As `nn.Linear`."""
        if not _suits(x, self.weight):
            return F.linear(x, self.weight, self.bias)
        if not torch.is_grad_enabled():
            return _onednn(x, self.weight, self.bias)
        result: Tensor = _Linear.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return result


def speed_up(model: nn.Module) -> None:
    """Let every plain linear layer of the model compute as `Linear`; weights, names and hooks stay."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def direct(module: nn.Module, few_rows: int | None = None) -> Product:
    """The module's own computation without gradients; a plain linear layer's without what a module's call adds.

    few_rows: `prepacked` for so many; weights that the module gets later are not seen then.
    """
    if type(module) is not Linear or module._forward_hooks or module._forward_pre_hooks:
        return module.__call__
    weight_MK, bias_M = module.weight, module.bias
    if few_rows is not None:
        return prepacked(weight_MK, bias_M, few_rows)
    if _by_mkl(weight_MK) or weight_MK.dtype is not torch.float32:
        return lambda x: F.linear(x, weight_MK, bias_M)
    return lambda x: product(x, weight_MK, bias_M)


def prepacked(weight_MK: Tensor, bias_M: Tensor | None, rows: int) -> Product:
    """`product` by a copy of the weight in the blocks in which a library multiplies about so many rows, if it may."""
    made = _makers().get(weight_MK.dtype)
    if weight_MK.device.type != "cpu" or made is None:
        return lambda x: product(x, weight_MK, bias_M)
    return made(weight_MK, bias_M, rows)


def gains_by_prepacking(model: nn.Module) -> bool:
    """Whether there is room for copies of the model's weights, and a use for them."""
    weights = list(model.parameters())
    here = all(weight.device.type == "cpu" and weight.dtype in _makers() for weight in weights)
    return here and sum(weight.nbytes for weight in weights) <= PREPACKED_BYTES


@functools.cache
def _makers() -> dict[torch.dtype, Maker]:
    """For each number type the library that computes its products here, where that may get weights in its own order."""
    found: dict[torch.dtype, Maker] = {}
    if prefers_onednn():
        found[torch.float32] = _sorted_onednn
    elif torch.backends.mkl.is_available():
        found[torch.float32] = _sorted_mkl
    if fastest(torch.device("cpu")) == "bfloat16" and torch.backends.mkldnn.is_available():
        found[torch.bfloat16] = _sorted_onednn
    return {dtype: made for dtype, made in found.items() if _agrees(made, dtype)}


def suit_few_rows(model: nn.Module) -> None:
    """Lay the linear layers' weights out in memory by inputs rather than by outputs; shapes and values stay.

    For a model that only samples: MKL multiplies a few dozen rows faster that way by weights that are not in the CPU's
    caches, and between two steps of decoding all other layers' weights have gone through those.
    """
    shared = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, nn.Linear) and id(module.weight) not in shared and _by_mkl(module.weight):
            module.weight.data = module.weight.data.T.contiguous().T


def _by_mkl(weight_MK: Tensor) -> bool:
    return weight_MK.device.type == "cpu" and weight_MK.dtype is torch.float32 and not prefers_onednn()
