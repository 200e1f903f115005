"""Adapted linear layers with fewer passes over memory than peft's, which adds its update in steps of their own.

peft computes `base(x) + up(down(x)) * scaling`: the update, its scaling and the sum each read and write a matrix as
large as the layer's output, in both directions, and autograd sums two gradients by x. Here the update is accumulated
into the product that is there already.

N rows, K inputs, M outputs, R rank.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gad.models.linear import product


class AdaptedLinear(PeftLinear):  # type: ignore[misc]
    """peft's layer, computed in one function where it is plain: one adapter, no dropout, nothing merged or sharded."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As peft's."""
        base = cast(nn.Linear, self.base_layer)
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        if args or kwargs or self.disable_adapters or self.merged or name not in self.lora_A or not self._plain(name):
            result: Tensor = super().forward(x, *args, **kwargs)
            return result
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        adapted: Tensor = _Adapted.apply(x, base.weight, base.bias, down, up, self.scaling[name])  # type: ignore[no-untyped-call]
        return adapted

    def _plain(self, name: str) -> bool:
        base, down, up = self.base_layer, self.lora_A[name], self.lora_B[name]
        return (
            isinstance(base, nn.Linear)
            and isinstance(self.lora_dropout[name], nn.Identity)
            and name not in self.lora_variant
            and not base.weight.requires_grad
            and down.bias is None
            and up.bias is None
            and all(type(weight) in (Tensor, nn.Parameter) for weight in (base.weight, down.weight, up.weight))
        )


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight_MK: Tensor, bias_M: Tensor | None, down_RK: Tensor, up_MR: Tensor, scaling: float
    ) -> Tensor:
        x_NK = x.reshape(-1, x.shape[-1])
        down_RK, scaled_MR = down_RK.to(x.dtype), (up_MR * scaling).to(x.dtype)
        inner_NR = x_NK @ down_RK.T
        out_NM = product(x_NK, weight_MK, bias_M).addmm_(inner_NR, scaled_MR.T)
        ctx.scaling, ctx.types = scaling, (ctx.needs_input_grad[0], up_MR.dtype)
        ctx.save_for_backward(x_NK, weight_MK, down_RK, scaled_MR, inner_NR)
        return out_NM.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x_NK, weight_MK, down_RK, scaled_MR, inner_NR = ctx.saved_tensors
        wants_x, dtype = ctx.types
        grad_NM = grad.reshape(-1, grad.shape[-1])
        inner_grad_NR = grad_NM @ scaled_MR
        x_grad = None
        if wants_x:
            x_grad = product(grad_NM, weight_MK.T).addmm_(inner_grad_NR, down_RK).view(*grad.shape[:-1], -1)
        down_grad_RK = (inner_grad_NR.T @ x_NK).to(dtype)
        up_grad_MR = (grad_NM.T @ inner_NR).to(dtype).mul_(ctx.scaling)
        return x_grad, None, None, down_grad_RK, up_grad_MR, None


def fuse(model: nn.Module) -> None:
    """Let every plain adapted layer of the model compute as `AdaptedLinear`; weights and names stay."""
    for module in model.modules():
        if type(module) is PeftLinear:
            module.__class__ = AdaptedLinear
