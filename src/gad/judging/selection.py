"""Which checkpoint becomes the student, and the reason in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from gad.config.run import CheckpointChoice

Figures = tuple[float, float]
"""The metric, and mean reply length over the teacher's."""


def best_checkpoint(candidates: Mapping[str, Figures], choice: CheckpointChoice) -> tuple[str, str]:
    """The best candidate whose length ratio lies in the window, and why it was taken.

    candidates: name -> (metric, length ratio), the latest first; it wins a tie. A preference is best high, an AUC best
    near .5. Where none lies in the window, the one that misses it by the smallest factor is taken and the reason says
    so. Raises ValueError for no candidates, or for a figure that is not finite or a length ratio of 0.
    """
    if not candidates:
        raise ValueError("no checkpoint to choose from")
    for name, (value, ratio) in candidates.items():
        if not math.isfinite(value) or not math.isfinite(ratio) or ratio <= 0.0:
            raise ValueError(f"checkpoint {name}: {choice.metric}={value}, length ratio {ratio} cannot be compared")
    if choice.metric == "last":
        return next(iter(candidates)), "the last one; nothing was selected (metric: last)"
    window = f"{choice.min_length_ratio:g} to {choice.max_length_ratio:g} times the teacher's length"
    inside = {name: figures for name, figures in candidates.items() if _excess(figures[1], choice) == 0.0}
    if not inside:
        chosen = min(candidates, key=lambda name: _excess(candidates[name][1], choice))
        value, ratio = candidates[chosen]
        return chosen, (
            f"none of {len(candidates)} checkpoints writes {window}; {chosen} comes nearest to it with {ratio:.2f} "
            f"({choice.metric} {value:.3f})"
        )
    chosen = min(inside, key=lambda name: _loss(inside[name][0], choice.metric))
    value, ratio = inside[chosen]
    best = "the AUC nearest to .5" if choice.metric == "c2st_auc" else "the highest preference"
    reason = f"{best}, {value:.3f}, of {len(inside)} checkpoints that write {window} (it writes {ratio:.2f} times)"
    if out := len(candidates) - len(inside):
        reason += f"; {out} outside of that window {'was' if out == 1 else 'were'} not considered"
    return chosen, reason


def _loss(value: float, metric: Literal["preference", "c2st_auc", "last"]) -> float:
    return abs(value - 0.5) if metric == "c2st_auc" else -value


def _excess(ratio: float, choice: CheckpointChoice) -> float:
    """By which factor (its logarithm) a length ratio misses the window; 0 inside."""
    return max(0.0, math.log(choice.min_length_ratio / ratio), math.log(ratio / choice.max_length_ratio))
