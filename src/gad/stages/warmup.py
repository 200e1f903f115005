"""Stage 1 of arXiv 2511.10643: the student imitates the teacher's replies, the discriminator learns to tell the
student's fresh samples from them. A phase trains one of the two, or both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

from gad.records import RolloutGroup
from gad.schedule import Who
from gad.stages.sampling import Sampler
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.optimizer import Metrics
from gad.training.run import StageRun
from gad.training.student import StudentTrainer

Replies = tuple[list[RolloutGroup], Metrics]


def train(
    run: StageRun,
    phases: Sequence[tuple[Who, int]],
    student: StudentTrainer,
    discriminator: DiscriminatorTrainer,
    sampler: Sampler,
    *,
    side_by_side: int,
) -> None:
    """Phases, each with its number of steps, one after another.

    The discriminator is born as a copy of the student at its first update; it meets samples of the student as it is
    before the step's update. A phase that leaves the student as it is samples for several steps at a time, up to
    `side_by_side` replies.
    """
    ends = list(accumulate(steps for _, steps in phases))
    sampled_from, waiting = -1, dict[int, Replies]()
    for step, batch in run.batches():
        phase = bisect_left(ends, step)
        who, count = phases[phase]
        metrics: list[Metrics] = []
        if who != "student":
            if discriminator.updates == 0:
                discriminator.scorer.start_from(student.member)
            if student.updates != sampled_from:
                sampler.engine.load_weights(student.member, version=student.updates)
                sampled_from = student.updates
            if step not in waiting:
                size = 1 if who == "both" else max(1, side_by_side // (len(batch) * sampler.replies_per_prompt))
                block = _block(step, ends[phase] - count + 1, ends[phase], size)
                sampled = sampler.several([(each, run.batch(each)) for each in block])
                run.spread(sum(figures["time/sampling"] for _, figures in sampled), block.stop - step)
                waiting = dict(zip(block, sampled, strict=True))
            groups, reply_metrics = waiting.pop(step)
            metrics += [reply_metrics, discriminator.update(groups)[1]]
        if who != "discriminator":
            metrics.append(student.imitate([(drawn.example, drawn.teacher) for drawn in batch]))
        run.log(step, *metrics)
        run.checkpoint_if_due(step)


def _block(step: int, first: int, last: int, size: int) -> range:
    """The steps that are sampled for together with `step`: the same ones wherever a run is taken up again."""
    start = step - (step - first) % size
    return range(start, min(start + size - 1, last) + 1)
