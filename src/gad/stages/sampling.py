"""Fresh replies for a training batch, and what can be said of them at a glance."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from gad.config.training import Sampling
from gad.flops import Arithmetic
from gad.judging.overlap import repetition
from gad.models.tokens import Codec
from gad.records import RolloutGroup
from gad.rollout.engine import Engine, Request
from gad.seeds import stable_seed
from gad.training.optimizer import Metrics
from gad.training.run import Drawn


@dataclass(frozen=True, slots=True)
class Sampler:
    """Draws groups of replies; a reply depends on seed, stage, step, prompt and weights, on nothing else.

    arithmetic: of the weights that are sampled from; None where operations are not counted.
    """

    engine: Engine
    codec: Codec
    sampling: Sampling
    replies_per_prompt: int
    seed: int
    stage: str
    arithmetic: Arithmetic | None = None

    def groups(self, batch: Sequence[Drawn], step: int) -> tuple[list[RolloutGroup], Metrics]:
        """One group for each prompt of the batch, in its order."""
        started = time.perf_counter()
        requests = [
            Request(drawn.example.prompt, self.codec.prompt_ids(drawn.example.prompt), self._seeds(drawn, step))
            for drawn in batch
        ]
        replies = self.engine.generate(requests, self.sampling)
        groups = [
            RolloutGroup(drawn.example, drawn.teacher, tuple(rollouts))
            for drawn, rollouts in zip(batch, replies, strict=True)
        ]
        metrics = {"time/sampling": time.perf_counter() - started, **reply_metrics(groups, self.codec)}
        metrics.update(self.engine.counts())
        if self.arithmetic is not None:
            drawn = [
                (len(request.prompt_ids), [len(rollout.token_ids) for rollout in rollouts])
                for request, rollouts in zip(requests, replies, strict=True)
            ]
            metrics["flops/sampling"] = self.arithmetic.sample(drawn)
        return groups, metrics

    def _seeds(self, drawn: Drawn, step: int) -> tuple[int, ...]:
        identity = (self.seed, self.stage, step, drawn.epoch, drawn.example.prompt.id)
        return tuple(stable_seed(*identity, reply) for reply in range(self.replies_per_prompt))


def reply_metrics(groups: Sequence[RolloutGroup], codec: Codec) -> Metrics:
    """Length in tokens with end-of-text, length over the teacher's, share cut at the limit, repetition."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    length = fmean(len(rollout.token_ids) for rollout in rollouts)
    teacher = fmean(
        len(codec.reply_ids(group.teacher.text, finished=group.teacher.finished).token_ids) for group in groups
    )
    return {
        "reply/length_mean": length,
        "reply/length_ratio_to_teacher": length / teacher,
        "reply/truncated": fmean(not rollout.finished for rollout in rollouts),
        "reply/repetition": fmean(repetition(rollout.text) for rollout in rollouts),
        "tokens/sampled": float(sum(len(rollout.token_ids) for rollout in rollouts)),
    }
