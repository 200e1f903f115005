"""What is kept of a step that was skipped because its loss or gradient was not finite, so that one can see why.

P prompts, G replies per prompt.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gad.records import Example, RolloutGroup, TeacherReply
from gad.storage import write_json

FOLDER = "skipped"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Evidence:
    """Loss, norm of the gradient before clipping, names of the tensors whose gradient was not finite, and the batch."""

    loss: float
    norm: float
    tensors: tuple[str, ...]
    batch: tuple[Row, ...]

    def what(self) -> str:
        """In words: the loss, or how many tensors' gradients."""
        if not math.isfinite(self.loss):
            return f"loss was {self.loss}"
        of = f" (that of {len(self.tensors)} tensors, the first is {self.tensors[0]})" if self.tensors else ""
        return f"gradient was not finite{of}"


def write(folder: Path, stage: str, step: int, part: str, evidence: Evidence) -> Path:
    """One JSON file for each skipped update: `skipped/<stage>-<step>-<part>.json`. Values not finite are text there."""
    path = folder / FOLDER / f"{stage}-{step}-{part}.json"
    found = {
        "stage": stage,
        "step": step,
        "part": part,
        "loss": _number(evidence.loss),
        "gradient_norm": _number(evidence.norm),
        "tensors": list(evidence.tensors),
        "batch": list(evidence.batch),
    }
    write_json(path, found)
    return path


def group_rows(groups: Sequence[RolloutGroup], values_PG: Tensor, name: str) -> tuple[Row, ...]:
    """Prompts with their replies, each with the value that it had in the step: a score, or an advantage."""
    return tuple(
        {
            "prompt": group.example.prompt.id,
            "teacher": group.teacher.text,
            "replies": [
                {"text": rollout.text, "tokens": len(rollout.token_ids), name: _number(value)}
                for rollout, value in zip(group.rollouts, values_G, strict=True)
            ],
        }
        for group, values_G in zip(groups, values_PG.tolist(), strict=True)
    )


def example_rows(examples: Sequence[tuple[Example, TeacherReply]]) -> tuple[Row, ...]:
    """Prompts with the teacher's replies that were imitated."""
    return tuple({"prompt": example.prompt.id, "teacher": reply.text} for example, reply in examples)


def _number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)
