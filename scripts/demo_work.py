"""How much work a form of the quickstart is, in steps of imitation of 16 rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from gad.config.models import Lora, SharedDiscriminator
from gad.config.run import RunConfig

ROWS = 16
PROMPTS, SETS, ARMS = 300, 2, 3


@dataclass(frozen=True, slots=True)
class Costs:
    """What else there is, in steps of imitation of 16 rows. From the `time/*` of runs' logs on two cores.

    batch, sampled: a batch of replies of 64 tokens, and each of them. critic_row, student_row, reference_row,
    independent_row: a row of the discriminator's update, of the student's, of the reference's part in it, of the
    independent discriminator's update. scored, likelihood: one reply. rest: all that does not grow.
    """

    batch: float
    sampled: float
    critic_row: float
    student_row: float
    reference_row: float
    independent_row: float
    scored: float
    likelihood: float
    rest: float


COSTS = {
    "float32": Costs(0.4, 0.02, 0.015, 0.043, 0.02, 0.027, 0.0135, 0.03, 9.0),
    "bfloat16": Costs(0.4, 0.02, 0.017, 0.047, 0.015, 0.028, 0.013, 0.03, 14.0),
}
"""From runs on an Intel Xeon with AVX-512, and on an AMD EPYC with bfloat16 instructions; at the recipe's layers."""
SHORT_ROW = 0.85
"""A row without a system prompt, of one with it."""
LAYERS, CRITIC_LAYER, JUDGE_LAYER = 30, 15, 20
"""Of the student, and where the recipe's discriminators read."""
HEAD = 5
"""The output head costs as much as so many layers: 28 M weights, a layer has 3.5 M, but for replies alone, which are
about three of five tokens."""


@dataclass(frozen=True, slots=True)
class Depth:
    """What adapters from a layer on, and scores that are read elsewhere than in the recipe, make of the costs.

    A layer is passed forward, and back where there are adapters. What lies below them is passed once for what is
    imitated (`lower`, of a row), and in the discriminators' passes, whose replies are new.
    """

    student: float
    lower: float
    critic: float
    judge: float
    scored: float

    @classmethod
    def of(cls, config: RunConfig) -> Depth:
        tuning, discriminator, judge = config.student.tuning, config.discriminator, config.evaluation.independent.layer
        assert isinstance(tuning, Lora)
        assert isinstance(discriminator, SharedDiscriminator)
        assert discriminator.layer is not None
        assert judge is not None
        first = tuning.first_layer
        return cls(
            (LAYERS - first + HEAD) / (LAYERS + HEAD),
            first / 2 / (LAYERS + HEAD),
            (2 * discriminator.layer - first) / (2 * CRITIC_LAYER),
            (2 * judge - first) / (2 * JUDGE_LAYER),
            judge / JUDGE_LAYER,
        )


@dataclass(frozen=True, slots=True)
class Work:
    """Of a run, in steps of imitation of 16 rows.

    before: what is computed once for the warm-up. warmup: its steps. step: one of the game. rest: all else.
    """

    before: float
    warmup: float
    step: float
    steps: int
    rest: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.before + self.warmup + self.after

    @property
    def after(self) -> float:
        """What comes after the warm-up."""
        return self.step * self.steps + self.rest


def work_of(config: RunConfig, costs: Costs) -> Work:
    """Of a quickstart's config."""
    assert config.seqkd is not None
    assert config.warmup is not None
    assert config.adversarial is not None
    warmup, judge, depth = config.warmup, config.evaluation.independent, Depth.of(config)
    epoch = _row(config) * PROMPTS
    taught = warmup.batch_size * warmup.replies_per_prompt
    lesson = (taught + warmup.batch_size) * costs.critic_row * depth.critic
    lessons = math.ceil(float(warmup.phases[1].epochs or 0) * PROMPTS / warmup.batch_size)
    imitated = float(warmup.phases[0].epochs or 0) * epoch
    repeats = imitated > epoch
    warm = imitated * (depth.student + (0.0 if repeats else depth.lower))
    warm += lessons * lesson + _sampled(config, costs, lessons * taught)
    judged = judge.epochs * PROMPTS
    judging = 2 * _sampled(config, costs, judged) + 3 * judged * costs.independent_row * depth.judge
    shown = min(60, config.evaluation.max_prompts or 60)
    drawn = ARMS * len(config.evaluation.decodings)
    measured = drawn * _sampled(config, costs, shown) + (drawn + 1) * shown * costs.scored * depth.scored
    measured += ARMS * shown * costs.likelihood
    control = config.seqkd.epochs * epoch * (depth.student + depth.lower)
    rest = control + judging + SETS * measured + costs.rest
    return Work(
        depth.lower * epoch if repeats else 0.0,
        warm,
        _game_step(config, costs, depth),
        int(config.adversarial.steps or 0),
        rest,
    )


def _game_step(config: RunConfig, costs: Costs, depth: Depth) -> float:
    assert config.adversarial is not None
    game = config.adversarial
    replies = game.batch_size * game.replies_per_prompt
    trained = game.batch_size * (game.trained_replies or game.replies_per_prompt)
    student = trained * (costs.student_row + (costs.reference_row if game.kl.weight else 0.0))
    student += game.batch_size * _row(config) if game.cross_entropy_weight else 0.0
    critic = (replies + game.batch_size) * costs.critic_row * depth.critic
    return _sampled(config, costs, replies) + student * depth.student + critic


def _row(config: RunConfig) -> float:
    return (SHORT_ROW if config.prompt.system == "" else 1.0) / ROWS


def _sampled(config: RunConfig, costs: Costs, replies: float) -> float:
    batches = math.ceil(replies / config.compute.rows_per_sampling_batch)
    return config.prompt.max_reply_tokens / 64 * (batches * costs.batch + replies * costs.sampled)
