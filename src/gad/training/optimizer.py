"""AdamW with a schedule, clipping, and a check that nothing that is not finite reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gad.config.training import Optimizer
from gad.crew import ALONE, Crew, Here, everywhere
from gad.errors import CheckpointError

Metrics = dict[str, float]
"""Figures of one update by their names in `metrics.jsonl`."""


def learning_rate(config: Optimizer, step: int, total_steps: int) -> float:
    """The rate of update `step` = 1, 2, ..., `total_steps`. A linear decay would reach zero one step after the last."""
    rate = config.learning_rate
    if step <= config.warmup_steps:
        return rate * step / config.warmup_steps
    if config.schedule == "linear":
        span = max(1, total_steps - config.warmup_steps)
        return rate * max(0.0, 1.0 - (step - 1 - config.warmup_steps) / span)
    return rate


class Updater:
    """The optimizer of one model's trained weights. rates: what the learning rate of each is multiplied by."""

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        config: Optimizer,
        total_steps: int,
        crew: Crew = ALONE,
        rates: Sequence[float] | None = None,
    ) -> None:
        self._parameters = list(parameters)
        self._config = config
        self._total_steps = max(1, total_steps)
        self.crew = crew
        # Sharded and whole tensors cannot be updated in one fused call: each kind is a group of its own.
        kinds: dict[tuple[type, float], list[nn.Parameter]] = {}
        for parameter, rate in zip(self._parameters, rates or [1.0] * len(self._parameters), strict=True):
            kinds.setdefault((type(parameter.data), rate), []).append(parameter)
        self._adamw = torch.optim.AdamW(
            [{"params": group, "rate": rate} for (_, rate), group in kinds.items()],
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
            fused=(crew.size == 1 and _on_cpu_or_cuda(self._parameters)) or None,
        )
        self.norm = 0.0
        self.broken: list[int] = []
        self.crew.adopt(self)

    def step(self, step: int, loss: float = 0.0) -> float | None:
        """Apply the gradients of update `step`, then clear them. Returns the gradient's norm before clipping.

        None where the norm or the `loss` is not finite: then nothing was changed, `norm` is what it was, and `broken`
        holds the places of the parameters whose gradients were not finite.
        """
        self.norm = self.crew.clip(self._parameters, self._config.max_grad_norm)
        finite = math.isfinite(self.norm) and math.isfinite(loss)
        self.broken = [] if finite else self.crew.broken(self._parameters)
        if finite:
            for group in self._adamw.param_groups:
                group["lr"] = group["rate"] * learning_rate(self._config, step, self._total_steps)
            self._adamw.step()
        self.discard()
        return self.norm if finite else None

    def discard(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    @everywhere("gathering the optimizer's state")
    def state(self) -> dict[str, Tensor]:
        """Moments and counts by parameter index; empty before the first step."""
        saved = self._adamw.state
        return {
            f"{index}.{key}": self.crew.to_first(value)
            for index, parameter in enumerate(self._parameters)
            for key, value in saved.get(parameter, {}).items()
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises CheckpointError where the moments are those of other parameters."""
        for name, value in state.items():
            position, key = name.split(".", 1)
            index = int(position)
            if index >= len(self._parameters) or (key != "step" and value.shape != self._parameters[index].shape):
                raise CheckpointError("the optimizer's state belongs to another model; start the stage anew")
        self._take(list(state), Here(state))

    @everywhere("taking up the optimizer's state")
    def _take(self, names: Sequence[str], state: Here[Mapping[str, Tensor]]) -> None:
        self._adamw.state.clear()
        for name in names:
            position, key = name.split(".", 1)
            parameter = self._parameters[int(position)]
            moment = torch.zeros(()) if key == "step" else torch.zeros_like(parameter.data)
            self.crew.fill(moment, None if state.value is None else state.value[name])
            self._adamw.state[parameter][key] = moment


def _on_cpu_or_cuda(parameters: Sequence[nn.Parameter]) -> bool:
    """Where AdamW has a kernel that updates all in one go."""
    return all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)


def entries(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
