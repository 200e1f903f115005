"""AdamW with a schedule, clipping, and a check that nothing that is not finite reaches the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gad.config.training import Optimizer
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
    """The optimizer of one model's trained weights."""

    def __init__(self, parameters: Sequence[nn.Parameter], config: Optimizer, total_steps: int) -> None:
        self._parameters = list(parameters)
        self._config = config
        self._total_steps = total_steps
        self._adamw = torch.optim.AdamW(
            self._parameters,
            lr=config.learning_rate,
            betas=config.betas,
            weight_decay=config.weight_decay,
        )

    def step(self, step: int) -> float | None:
        """Apply the gradients of update `step`, then clear them. Returns the gradient's norm before clipping.

        None where the norm is not finite: then nothing was changed.
        """
        norm = float(nn.utils.clip_grad_norm_(self._parameters, self._config.max_grad_norm))
        finite = math.isfinite(norm)
        if finite:
            for group in self._adamw.param_groups:
                group["lr"] = learning_rate(self._config, step, self._total_steps)
            self._adamw.step()
        self.discard()
        return norm if finite else None

    def discard(self) -> None:
        """Forget the gradients."""
        self._adamw.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """Moments and counts by parameter index; empty before the first step."""
        saved = self._adamw.state_dict()["state"]
        return {f"{index}.{key}": value for index, entry in saved.items() for key, value in entry.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Raises CheckpointError where the moments are those of other parameters."""
        moments: dict[int, dict[str, Tensor]] = {}
        for name, value in state.items():
            position, key = name.split(".", 1)
            moments.setdefault(int(position), {})[key] = value
        for index, entry in moments.items():
            if index >= len(self._parameters) or entry["exp_avg"].shape != self._parameters[index].shape:
                raise CheckpointError("the optimizer's state belongs to another model; start the stage anew")
        fresh = self._adamw.state_dict()
        self._adamw.load_state_dict({"state": moments, "param_groups": fresh["param_groups"]})


def entries(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
