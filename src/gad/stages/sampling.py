"""Fresh replies for a training batch, and what can be said of them at a glance."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from statistics import fmean
from typing import Protocol

from gad.config.training import Sampling
from gad.flops import Arithmetic
from gad.judging.overlap import repetition
from gad.models.network import Member
from gad.models.tokens import Codec
from gad.records import Rollout, RolloutGroup
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
        return self.begin(batch, step).groups()

    def several(self, batches: Sequence[tuple[int, Sequence[Drawn]]]) -> list[tuple[list[RolloutGroup], Metrics]]:
        """As `groups` for each of (step, batch), all sampled side by side; each takes the same share of the time."""
        started = time.perf_counter()
        requests = [self._requests(batch, step) for step, batch in batches]
        replies = iter(self.engine.begin([each for part in requests for each in part], self.sampling)())
        share = (time.perf_counter() - started) / len(batches)
        return [
            self._ready(batch, part, list(islice(replies, len(part))), share).groups()
            for (_, batch), part in zip(batches, requests, strict=True)
        ]

    def begin(self, batch: Sequence[Drawn], step: int) -> Pending:
        """Ask for the replies to a batch; what is done until they are wanted may run beside their sampling."""
        started = time.perf_counter()
        requests = self._requests(batch, step)
        replies = self.engine.begin(requests, self.sampling)
        return Pending(self, batch, requests, replies, time.perf_counter() - started)

    def kept(self, batch: Sequence[Drawn], step: int, replies: list[list[Rollout]]) -> Pending:
        """Replies to a batch that were sampled before and kept."""
        return self._ready(batch, self._requests(batch, step), replies, 0.0)

    def _ready(
        self, batch: Sequence[Drawn], requests: Sequence[Request], replies: list[list[Rollout]], seconds: float
    ) -> Pending:
        return Pending(self, batch, requests, lambda: replies, seconds)

    def metrics(self, requests: Sequence[Request], groups: Sequence[RolloutGroup]) -> Metrics:
        """What can be said of a batch's replies, and of how they were had."""
        found = {**reply_metrics(groups, self.codec), **self.engine.counts()}
        if self.arithmetic is not None:
            drawn = [
                (len(request.prompt_ids), [len(rollout.token_ids) for rollout in group.rollouts])
                for request, group in zip(requests, groups, strict=True)
            ]
            found["flops/sampling"] = self.arithmetic.sample(drawn)
        return found

    def _requests(self, batch: Sequence[Drawn], step: int) -> list[Request]:
        return [
            Request(drawn.example.prompt, self.codec.prompt_ids(drawn.example.prompt), self._seeds(drawn, step))
            for drawn in batch
        ]

    def _seeds(self, drawn: Drawn, step: int) -> tuple[int, ...]:
        identity = (self.seed, self.stage, step, drawn.epoch, drawn.example.prompt.id)
        return tuple(stable_seed(*identity, reply) for reply in range(self.replies_per_prompt))


class Replies(Protocol):
    """Where a stage's replies come from."""

    def groups(self, batch: Sequence[Drawn], step: int) -> tuple[list[RolloutGroup], Metrics]:
        """One group for each prompt of a step's batch, in its order, and what can be said of them."""
        ...


@dataclass(frozen=True, slots=True)
class Fresh:
    """Replies by the weights as they are now."""

    sampler: Sampler
    member: Member

    def groups(self, batch: Sequence[Drawn], step: int) -> tuple[list[RolloutGroup], Metrics]:
        """See `Replies`."""
        self.sampler.engine.load_weights(self.member, version=step)
        return self.sampler.groups(batch, step)


class Pending:
    """Replies that were asked for. seconds: what asking took."""

    def __init__(
        self,
        sampler: Sampler,
        batch: Sequence[Drawn],
        requests: Sequence[Request],
        replies: Callable[[], list[list[Rollout]]],
        seconds: float,
    ) -> None:
        self._sampler, self._batch, self._requests = sampler, batch, requests
        self._replies, self._seconds = replies, seconds

    def groups(self) -> tuple[list[RolloutGroup], Metrics]:
        """One group for each prompt of the batch, in its order; waits for them. `time/sampling` is what was waited."""
        return self._found

    @cached_property
    def _found(self) -> tuple[list[RolloutGroup], Metrics]:
        started = time.perf_counter()
        groups = [
            RolloutGroup(drawn.example, drawn.teacher, tuple(rollouts))
            for drawn, rollouts in zip(self._batch, self._replies(), strict=True)
        ]
        seconds = self._seconds + time.perf_counter() - started
        return groups, {"time/sampling": seconds, **self._sampler.metrics(self._requests, groups)}


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
