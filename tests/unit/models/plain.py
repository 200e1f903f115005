"""An independent reference: one row at a time through transformers' own eager attention, adapters merged by hand.

Nothing here uses the layouts, the attention plans, peft or the objectives of gad.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from gad.config.models import Full, Lora, Tuning
from gad.models.known import Known
from gad.models.network import Member, Network
from support import tiny

STRONG: dict[str, Any] = {"initializer_range": 0.3}
"""Weights large enough that attention is far from uniform: at the usual 0.02 a wrong mask would hardly show."""
MILD: dict[str, Any] = {"initializer_range": 0.1}


@contextmanager
def wide() -> Iterator[None]:
    """Keeps float64 wide where transformers narrows to float32 whatever the model's type (norms, softmax).

    Patched for the whole process, because a mode would not reach what activation checkpointing computes again.
    """
    to, narrow, softmax = Tensor.to, Tensor.float, F.softmax

    def to_but_not_narrower(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if x.dtype == torch.float64 and torch.float32 in (*args, kwargs.get("dtype")):
            return x
        return to(x, *args, **kwargs)

    def wide_softmax(x: Tensor, *args: Any, dtype: torch.dtype | None = None, **kwargs: Any) -> Tensor:
        return softmax(x, *args, dtype=x.dtype if x.dtype == torch.float64 else dtype, **kwargs)

    with (
        mock.patch.object(Tensor, "to", to_but_not_narrower),
        mock.patch.object(Tensor, "float", lambda x: x if x.dtype == torch.float64 else narrow(x)),
        mock.patch.object(F, "softmax", wide_softmax),
    ):
        yield


def model(architecture: str, *, dtype: torch.dtype, attention: str, seed: int = 0, **changes: Any) -> Any:
    """A tiny model with strong weights; norms and biases, which are born as ones and zeros, are shaken."""
    made = tiny.model(architecture, seed=seed, dtype=dtype, attention=attention, **{**STRONG, **changes})
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in made.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator).to(dtype)
    return made


def network(
    architecture: str,
    tuning: Tuning,
    *members: str,
    dtype: torch.dtype = torch.float64,
    checkpointing: bool = False,
    kept_bytes: int = 0,
    **changes: Any,
) -> tuple[Network, list[Member]]:
    """A network whose members have adapters far from the identity, in the model's type."""
    from gad.models.attention import IMPLEMENTATION

    base = model(architecture, dtype=dtype, attention=IMPLEMENTATION, **changes)
    made = Network(base, tuning, gradient_checkpointing=checkpointing)
    made.known = Known(kept_bytes)
    born = [made.member(name, seed=index) for index, name in enumerate(members)]
    if isinstance(tuning, Lora):
        for index, member in enumerate(born):
            shake(member, dtype, seed=100 + index)
    return made, born


def shake(member: Member, dtype: torch.dtype, *, seed: int, scale: float = 0.3) -> None:
    """Random adapters, cast to `dtype`."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in member.parameters():
        tensor.data = (scale * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)).to(dtype)


class Plain:
    """A member's policy and states, by one row of one prompt and one reply."""

    def __init__(self, architecture: str, member: Member, tuning: Tuning, **changes: Any) -> None:
        dtype = next(iter(member.state().values())).dtype
        self.model = model(architecture, dtype=dtype, attention="eager", **changes)
        self.leaves = {name: tensor.clone().requires_grad_() for name, tensor in member.state().items()}
        self._tuning = tuning

    def weights(self) -> dict[str, Tensor]:
        """Effective weights as functions of the leaves."""
        if isinstance(self._tuning, Full):
            return self.leaves
        base = dict(self.model.named_parameters())
        merged = {}
        for name, down in self.leaves.items():
            if ".lora_A." in name:
                module = name.split(".lora_A.")[0]
                up = self.leaves[name.replace(".lora_A.", ".lora_B.")]
                merged[f"{module}.weight"] = (
                    base[f"{module}.weight"] + self._tuning.alpha / self._tuning.rank * up @ down
                )
        return merged

    def row(self, prompt: Sequence[int], reply: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Logits (L, V) that predict the reply's tokens, and the state (H,) of the row's last token."""
        ids = torch.tensor([[*prompt, *reply]])
        inputs = {"input_ids": ids, "output_hidden_states": True, "use_cache": False}
        output = functional_call(self.model, self.weights(), (), inputs)
        return output.logits[0, len(prompt) - 1 : len(prompt) - 1 + len(reply)], output.hidden_states[-1][0, -1]

    def logps(self, prompt: Sequence[int], reply: Sequence[int], temperature: float = 1.0) -> list[Tensor]:
        """Log-probability of each reply token."""
        logits, _ = self.row(prompt, reply)
        rows = [logits[index] / temperature for index in range(len(reply))]
        return [row[token] - torch.logsumexp(row, 0) for row, token in zip(rows, reply, strict=True)]

    def entropies(self, prompt: Sequence[int], reply: Sequence[int], temperature: float = 1.0) -> list[float]:
        """Entropy in nats of each predicting distribution."""
        logits, _ = self.row(prompt, reply)
        result = []
        for index in range(len(reply)):
            probs = torch.softmax(logits[index].double() / temperature, 0).tolist()
            result.append(-math.fsum(p * math.log(p) for p in probs if p > 0))
        return result

    def gradients(self, loss: Tensor) -> dict[str, Tensor]:
        """By every leaf; zeros where the loss does not depend on it."""
        found = torch.autograd.grad(loss, list(self.leaves.values()), allow_unused=True)
        return {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(self.leaves.items(), found, strict=True)
        }


def assert_same_gradients(found: dict[str, Tensor], expected: dict[str, Tensor], relative: float) -> None:
    """Tensor by tensor, in the Euclidean norm. A tensor's error is measured against the whole gradient's share too,
    so that one whose true gradient is zero may hold rounding."""
    assert set(found) == set(expected)
    total = math.sqrt(sum(float(value.double().square().sum()) for value in expected.values()))
    assert total > 0
    for name, value in expected.items():
        error = float((found[name].double() - value.double()).norm())
        assert error <= relative * max(float(value.double().norm()), 1e-3 * total), (name, error, float(value.norm()))


def gradients(member: Member) -> dict[str, Tensor]:
    """What a backward pass left, by name; then forgotten."""
    tensors = member.network.tensors(member.name)
    found = {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
        for name, tensor in tensors.items()
    }
    for tensor in tensors.values():
        tensor.grad = None
    return found
