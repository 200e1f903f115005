"""The evaluation's own discriminator: it learns from recorded samples, and takes no part in the game."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gad.models.tokens import Codec
from gad.records import GeneratedReply
from gad.stages.measure import group
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.run import StageRun

Samples = Mapping[str, GeneratedReply]
"""One reply of a student to each training prompt, by prompt id."""


def train(run: StageRun, discriminator: DiscriminatorTrainer, samples: Sequence[Samples], codec: Codec) -> None:
    """Each teacher reply meets one sample of every student, so that it learns more than one way to miss the style."""
    for step, batch in run.batches():
        groups = [
            group(drawn.example, drawn.teacher, [replies[drawn.example.prompt.id] for replies in samples], codec)
            for drawn in batch
        ]
        run.log(step, discriminator.update(groups)[1])
        run.checkpoint_if_due(step)
