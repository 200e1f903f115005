"""Stage 1 of arXiv 2511.10643: the student imitates the teacher's replies, the discriminator learns to tell the
student's fresh samples from them. A phase trains one of the two, or both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from gad.schedule import Who
from gad.stages.sampling import Sampler
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.optimizer import Metrics
from gad.training.run import StageRun
from gad.training.student import StudentTrainer


def train(
    run: StageRun,
    phases: Sequence[tuple[Who, int]],
    student: StudentTrainer,
    discriminator: DiscriminatorTrainer,
    sampler: Sampler,
) -> None:
    """Phases, each with its number of steps, one after another.

    The discriminator is born as a copy of the student at its first update; it meets samples of the student as it is
    before the step's update.
    """
    ends = list(accumulate(steps for _, steps in phases))
    sampled_from = -1
    for step, batch in run.batches():
        who = phases[bisect_left(ends, step)][0]
        metrics: list[Metrics] = []
        if who != "student":
            if discriminator.updates == 0:
                discriminator.scorer.start_from(student.member)
            if student.updates != sampled_from:
                sampler.engine.load_weights(student.member, version=student.updates)
                sampled_from = student.updates
            groups, reply_metrics = sampler.groups(batch, step)
            metrics += [reply_metrics, discriminator.update(groups)[1]]
        if who != "discriminator":
            metrics.append(student.imitate([(drawn.example, drawn.teacher) for drawn in batch]))
        run.log(step, *metrics)
        run.checkpoint_if_due(step)
