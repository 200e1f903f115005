"""RMS norms that go back in closed form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from gad.models.norm import rms_norm, speed_up
from support import tiny

SHAPE = (2, 5, 8)


def draw(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_by_hand() -> None:
    """x = (3, 4): the mean of squares is 12.5."""
    found = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 10.0]), eps=3.5)
    assert found.tolist() == [[0.75, 10.0]]


def test_gradients_are_those_of_finite_differences() -> None:
    x, weight = draw(*SHAPE, seed=0).requires_grad_(), draw(8, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: rms_norm(x, w, 1e-3), (x, weight))
    frozen = weight.detach()
    assert torch.autograd.gradcheck(lambda x: rms_norm(x, frozen, 1e-3), (x,))


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_the_norms_of_each_architecture(architecture: str) -> None:
    """Values and gradients are those of transformers, also where weights count from 1; the same without gradients."""
    usual, ours = (tiny.model(architecture, dtype=torch.float32) for _ in range(2))
    norms = {name: module for name, module in ours.named_modules() if type(module).__name__.endswith("RMSNorm")}
    for name, module in norms.items():
        module.weight.data += 0.3 * torch.randn(module.weight.shape, generator=torch.Generator().manual_seed(1))  # type: ignore[operator, union-attr]
        usual.get_submodule(name).weight.data.copy_(module.weight.data)  # type: ignore[operator, union-attr]
    speed_up(ours)
    assert len(norms) >= 9
    calls: list[str] = []
    for name, module in norms.items():
        x = draw(*SHAPE[:2], len(module.weight), seed=2).float()  # type: ignore[arg-type]
        results = []
        for model in (usual, ours):
            norm: Any = model.get_submodule(name)
            inputs = x.clone().requires_grad_()
            out = norm(inputs)
            out.square().sum().backward()
            results.append((out, inputs.grad, norm.weight.grad))
            norm.weight.grad = None
            calls.append(out.grad_fn.name())
        for found, wanted in zip(results[1], results[0], strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        with torch.no_grad():  # to score is to compute what is trained on, to the last bit
            assert torch.equal(ours.get_submodule(name)(x), results[1][0])
    assert calls[1::2] == ["_NormBackward"] * len(norms)
    assert "_NormBackward" not in calls[::2]


def test_what_only_has_the_name_is_left_as_it_is() -> None:
    class OddRMSNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(8))
            self.eps = 1e-6

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight / (x.abs().mean(-1, keepdim=True) + self.eps)

    model = nn.Sequential(OddRMSNorm(), nn.LayerNorm(8))
    speed_up(model)
    assert type(model[0]) is OddRMSNorm


def test_mixed_precision_goes_transformers_way() -> None:
    model = tiny.model("qwen2", dtype=torch.float32)
    speed_up(model)
    norm: Any = model.model.norm
    with torch.autocast("cpu", torch.bfloat16):
        out = norm(draw(*SHAPE[:2], 32, seed=2).float().requires_grad_())
    assert out.grad_fn.name() != "_NormBackward"
