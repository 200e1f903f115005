"""Sequence-level knowledge distillation: cross-entropy on the teacher's replies. The control; no rollouts, ever."""

from __future__ import annotations

from gad.training.run import StageRun
from gad.training.student import StudentTrainer


def train(run: StageRun, student: StudentTrainer) -> None:
    """Train the student on the run's batches."""
    for step, batch in run.batches():
        metrics = student.imitate([(drawn.example, drawn.teacher) for drawn in batch])
        run.log(step, metrics)
        run.checkpoint_if_due(step)
