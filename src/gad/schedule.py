"""How many steps a stage takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from gad.config.training import AdversarialConfig, WarmupPhase

Who = Literal["student", "discriminator", "both"]


def steps_for(epochs: float, examples: int, batch_size: int) -> int:
    """Steps that see every example `epochs` times, at least one."""
    return max(1, math.ceil(epochs * examples / min(batch_size, examples) - 1e-9))


def phase_steps(phases: Sequence[WarmupPhase], examples: int, batch_size: int) -> list[tuple[Who, int]]:
    """Each warm-up phase with its number of steps."""
    return [(phase.train, phase.steps or steps_for(phase.epochs or 0.0, examples, batch_size)) for phase in phases]


def steps_of(phases: Sequence[tuple[Who, int]], part: Who) -> int:
    """Steps in which `part` is trained."""
    return sum(steps for who, steps in phases if who in (part, "both"))


def adversarial_steps(config: AdversarialConfig, examples: int) -> int:
    """`steps` where it is given, else `epochs` over the examples."""
    return config.steps or steps_for(config.epochs or 0.0, examples, config.batch_size)
