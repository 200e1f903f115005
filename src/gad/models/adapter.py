"""Which linear layers get adapters, and adapted layers with fewer passes over memory than peft's.

peft adds its update in steps of their own, `base(x) + up(down(x)) * scaling`: the update, its scaling and the sum each
read and write a matrix as large as the layer's output, in both directions, and autograd sums two gradients by x. Here
the update is accumulated into the product that is there already.

N rows, K inputs, M outputs, R rank.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from gad.config.models import Lora
from gad.errors import ModelError
from gad.models.linear import product

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Adapters:
    """The adapters that each member of a model gets. Made before the first of them, which renames layers."""

    def __init__(self, model: PreTrainedModel, lora: Lora) -> None:
        self._lora = lora
        self._model = model
        self._names = self._upper() if lora.first_layer else lora.targets

    def config(self) -> LoraConfig:
        """As peft takes it."""
        names = self._names if isinstance(self._names, str) else list(self._names)
        lora = self._lora
        return LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=names, lora_dropout=0.0, bias="none")

    def as_json(self) -> dict[str, Any]:
        """`adapter_config.json` as peft and vLLM read it, of a model that has adapters."""
        layers = [name for name, layer in self._model.named_modules() if isinstance(layer, BaseTunerLayer)]
        return {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": str(self._model.name_or_path),
            "r": self._lora.rank,
            "lora_alpha": self._lora.alpha,
            "target_modules": layers,
            "bias": "none",
        }

    def _upper(self) -> tuple[str, ...]:
        """Full names of the linear layers from `first_layer` on. Raises ModelError where there is no such layer."""
        backbone: Any = getattr(self._model, self._model.base_model_prefix)
        first, targets = self._lora.first_layer, self._lora.targets
        if first >= len(backbone.layers):
            raise ModelError(
                f"tuning.first_layer={first}: the model has {len(backbone.layers)} layers, counted from 0; "
                f"use {len(backbone.layers) - 1} or less"
            )
        upper = {id(module) for layer in backbone.layers[first:] for module in layer.modules()}
        return tuple(
            name
            for name, module in self._model.named_modules()
            if id(module) in upper and isinstance(module, nn.Linear) and _wanted(name, targets)
        )


def _wanted(name: str, targets: str | tuple[str, ...]) -> bool:
    """As peft reads them: the whole name by a pattern, or the end of it."""
    if isinstance(targets, str):
        return targets == "all-linear" or re.fullmatch(targets, name) is not None
    return any(name == target or name.endswith(f".{target}") for target in targets)


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
