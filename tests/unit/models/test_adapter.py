"""The fused adapted layer equals peft's own: values, gradients, and everything that it does not compute itself."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gad.models.adapter import AdaptedLinear, fuse

K, M, R = 6, 5, 2


class Block(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.layer = nn.Linear(K, M, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        return found


def pair(*, bias: bool = False, dropout: float = 0.0, **special: Any) -> tuple[nn.Module, nn.Module]:
    """The same adapted block by peft and fused, with an adapter that is not the identity."""
    torch.manual_seed(0)
    config = LoraConfig(r=R, lora_alpha=3.0, target_modules=["layer"], lora_dropout=dropout, **special)
    theirs: Any = get_peft_model(Block(bias=bias).double(), config).double()  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    ours = copy.deepcopy(theirs)
    fuse(ours)
    return ours, theirs


def layer(model: nn.Module, kind: type[nn.Module] = PeftLinear) -> Any:
    return next(module for module in model.modules() if isinstance(module, kind))


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    (model(x) * torch.arange(1.0, M + 1, dtype=torch.float64)).sum().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [x.grad, *(parameter.grad for parameter in trained)]  # type: ignore[list-item]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, K), (2, 3, K), (1, 1, K)])
def test_values_and_gradients_are_those_of_peft(shape: tuple[int, ...], bias: bool) -> None:
    ours, theirs = pair(bias=bias)
    x = torch.randn(shape, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    found, expected = gradients(ours, x), gradients(theirs, x)
    assert len(found) == 3
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_an_input_without_gradient_still_trains_the_adapter() -> None:
    ours, theirs = pair()
    x = torch.randn(3, K, dtype=torch.float64)
    for model in (ours, theirs):
        model(x).sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.requires_grad == other.requires_grad
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, other.grad, rtol=0, atol=1e-12)


def test_autocast_computes_in_bfloat16_and_gives_gradients_in_the_adapters_type() -> None:
    ours, theirs = pair()
    ours, theirs = ours.float(), theirs.float()
    for model in (ours, theirs):
        layer(model).base_layer.to(torch.bfloat16)
        layer(model).cast_input_dtype_enabled = False  # as `Network` has it
    x = torch.randn(7, K)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = ours(x), theirs(x)
        found.sum().backward()
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected.float(), rtol=2e-2, atol=5e-2)
    assert {p.grad.dtype for p in ours.parameters() if p.grad is not None} == {torch.float32}


class Passes(TorchDispatchMode):
    """How many operations made or changed a matrix as large as the layer's output."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.count = elements, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        views = ("view", "reshape", "t.default", "transpose", "detach", "expand", "alias", "_unsafe_view")
        if isinstance(result, Tensor) and result.numel() == self.elements and not any(v in str(func) for v in views):
            self.count += 1
        return result


def test_the_update_costs_one_pass_and_not_three() -> None:
    counts = []
    for model in pair():
        with torch.no_grad(), Passes(4 * M) as passes:
            model(torch.randn(4, K, dtype=torch.float64))
        counts.append(passes.count)
    assert counts == [2, 4]  # product and update; peft: product, update, scaling, sum


@pytest.mark.parametrize("special", [{"dropout": 0.5}, {"use_dora": True}, {"lora_bias": True, "bias": True}])
def test_what_is_not_plain_is_left_to_peft(special: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    inner = PeftLinear.forward
    monkeypatch.setattr(PeftLinear, "forward", lambda self, x, *a, **k: (asked.append(x), inner(self, x, *a, **k))[1])
    ours, theirs = pair(**special)
    x = torch.randn(3, K, dtype=torch.float64)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=0, atol=1e-12)
    assert len(asked) == 2


def test_a_disabled_or_merged_adapter_is_left_to_peft() -> None:
    ours, theirs = pair()
    x = torch.randn(3, K, dtype=torch.float64)
    for model in (ours, theirs):
        layer(model).merge()
    torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-12)
    for model in (ours, theirs):
        layer(model).unmerge()
        layer(model).enable_adapters(False)
    assert torch.equal(ours(x), layer(ours).base_layer(x))


def test_a_base_that_is_trained_is_left_to_peft() -> None:
    ours, theirs = pair()
    x = torch.randn(3, K, dtype=torch.float64)
    for model in (ours, theirs):
        layer(model).base_layer.weight.requires_grad_(True)
        model(x).sum().backward()
    mine, other = (layer(model).base_layer.weight.grad for model in (ours, theirs))
    assert mine.abs().sum() > 0
    torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


def test_only_plain_layers_are_taken() -> None:
    ours, theirs = pair()
    assert type(layer(ours)) is AdaptedLinear
    assert type(layer(theirs)) is PeftLinear
    assert list(ours.state_dict()) == list(theirs.state_dict())
