"""The run file: one YAML, one run folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from gad.config.arena import ArenaConfig
from gad.config.base import Section
from gad.config.compared import TEACHER, AskedTeacher, ComparedModel, EndpointModel, name_mistakes
from gad.config.compute import CheckpointConfig, ComputeConfig
from gad.config.data import DataConfig
from gad.config.judging import JudgingConfig
from gad.config.models import (
    DiscriminatorConfig,
    Lora,
    PromptConfig,
    SharedDiscriminator,
    StudentConfig,
    discriminator_mistakes,
)
from gad.config.rollout import LocalEngine, VllmServers, quantization_mistakes
from gad.config.teacher import TeacherConfig
from gad.config.training import AdversarialConfig, Optimizer, Sampling, SeqkdConfig, WarmupConfig


class IndependentDiscriminator(Section):
    """A discriminator that takes no part in training: own seed, own samples of the base and the warm-up student."""

    epochs: PositiveFloat = 1.0
    """Times that every training prompt is seen."""
    batch_size: PositiveInt = 16
    """Prompts a step; each teacher reply meets one sample of either student."""
    layer: PositiveInt | None = None
    """As `discriminator.layer`."""
    optimizer: Optimizer = Optimizer(learning_rate=2e-4, max_grad_norm=1.0)
    """2e-4 taught an adapter of the quickstart's size within an epoch."""
    max_bad_steps: NonNegativeInt = 5
    """As in `seqkd`."""


class NamedDecoding(Section):
    """A way to draw replies for evaluation; every student is decoded alike."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    """Stands in file names and tables."""
    sampling: Sampling
    """How its replies are drawn; temperature 0 is greedy."""


class CheckpointChoice(Section):
    """Which checkpoint becomes the student."""

    metric: Literal["preference", "c2st_auc", "last"] = "last"
    """Measured on the held-out set. `last` does not choose: nothing is selected on the set that is reported."""
    min_length_ratio: PositiveFloat = 0.67
    """See `max_length_ratio`."""
    max_length_ratio: PositiveFloat = 1.5
    """Mean reply length over the teacher's must lie in this window; the paper asks for it but gives no bound."""

    @model_validator(mode="after")
    def _window_is_open(self) -> CheckpointChoice:
        if self.min_length_ratio >= self.max_length_ratio:
            raise ValueError(
                f"min_length_ratio={self.min_length_ratio} is not below max_length_ratio={self.max_length_ratio}: "
                "no reply length is acceptable"
            )
        return self


class EvaluationConfig(Section):
    """Figures without a judge."""

    decodings: tuple[NamedDecoding, ...] = (
        NamedDecoding(name="t1", sampling=Sampling(temperature=1.0)),
        NamedDecoding(name="greedy", sampling=Sampling(temperature=0.0)),
    )
    """The first one is the headline's."""
    independent: IndependentDiscriminator = IndependentDiscriminator()
    """The judge of preference, trained apart from the game."""
    style: str | None = None
    """A regular expression that a reply of the house style matches."""
    checkpoint: CheckpointChoice = CheckpointChoice()
    """Which checkpoint becomes the student."""
    models: tuple[ComparedModel, ...] = ()
    """Further models beside the run's own, in all tables. May change within a run."""
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Of all intervals."""
    max_prompts: PositiveInt | None = None
    """Use only so many prompts of each set."""

    @field_validator("style")
    @classmethod
    def _style_compiles(cls, style: str | None) -> str | None:
        try:
            re.compile(style or "")
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"is not a regular expression: {error}") from error
        return style

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluationConfig:
        names = [decoding.name for decoding in self.decodings]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"decodings need different names, got {names}")
        if mistakes := name_mistakes(self.models):
            raise ValueError("\n".join(f"`models`: {mistake}" for mistake in mistakes))
        return self


class RunConfig(Section):
    """Everything about a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]
    """Name of the run and of its folder."""
    seed: NonNegativeInt = 0
    """Everything random follows from it and from what it is for: order, samples, adapters, splits, intervals."""
    runs_dir: Path = Path("runs")
    """The run folder is made in here. May change within a run, when the folder is moved."""
    data: DataConfig
    """Prompts and the teacher's replies."""
    teacher: TeacherConfig | None = None
    """With it, `gad collect` asks an API for the replies to the prompts of `data`; without, they are in `data`."""
    prompt: PromptConfig = PromptConfig()
    """How conversations become tokens."""
    student: StudentConfig
    """The model that is trained."""
    discriminator: DiscriminatorConfig = SharedDiscriminator()
    """Who tells the student's replies from the teacher's; `shared` costs one adapter."""
    seqkd: SeqkdConfig | None = None
    """The control: the same student trained by cross-entropy alone. Leave it out to skip it."""
    warmup: WarmupConfig | None = WarmupConfig()
    """null skips the warm-up: an ablation of the paper's that does badly."""
    adversarial: AdversarialConfig | None = AdversarialConfig()
    """null leaves it out, and the warm-up's student is the result."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """What is measured when training is done."""
    judging: JudgingConfig | None = None
    """Who judges whose replies. Leave it out to do without. May change within a run."""
    arena: ArenaConfig = ArenaConfig()
    """What `gad arena` shows. May change within a run."""
    compute: ComputeConfig = ComputeConfig()
    """May change within a run."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """May change within a run."""

    @field_validator("runs_dir")
    @classmethod
    def _runs_dir_is_possible(cls, runs_dir: Path) -> Path:
        written = os.fsencode(runs_dir)
        if b"\0" in written or len(written) > 2000 or any(len(os.fsencode(part)) > 255 for part in runs_dir.parts):
            raise ValueError("is no name that a folder can have: too long, or with a zero character")
        return runs_dir

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs_dir.expanduser() / self.name

    @property
    def students(self) -> tuple[str, ...]:
        """Every model that is measured but the teacher, in the order of tables; the last one is the headline's."""
        made = ["base", *(["seqkd"] if self.seqkd is not None else [])]
        made += ["warmup"] if self.warmup is not None and self.adversarial is None else []
        headline = made.pop() if self.adversarial is None else "gad"
        return (*made, *(model.name for model in self.evaluation.models if model.name != TEACHER), headline)

    @property
    def seqkd_follows_warmup(self) -> bool:
        """Whether SeqKD goes on from the warm-up's student, and so comes after that stage."""
        return self.seqkd is not None and self.seqkd.start_from == "warmup"

    def decodings_of(self, student: str) -> tuple[NamedDecoding, ...]:
        """How a student's replies are drawn; an endpoint's stand for the headline's decoding."""
        decodings = self.evaluation.decodings
        return decodings[:1] if any(student == model.name for model in self.endpoints) else decodings

    @property
    def endpoints(self) -> tuple[EndpointModel, ...]:
        """The models of `evaluation.models` that are behind an API, the run's own teacher as one of them."""
        asked = self.teacher if self._asks_teacher else None
        own = () if asked is None else (EndpointModel(name=TEACHER, api=asked),)
        return (*(model for model in self.evaluation.models if isinstance(model, EndpointModel)), *own)

    @property
    def _asks_teacher(self) -> bool:
        return any(isinstance(model, AskedTeacher) for model in self.evaluation.models)

    @property
    def weighs_replies(self) -> bool:
        """Whether the adversarial stage weighs replies by p_trained / p_sampled."""
        if self.adversarial is None or self.adversarial.importance_cap is None:
            return False
        return self.adversarial.one_step_off or not isinstance(self.compute.engine, LocalEngine)

    @model_validator(mode="after")
    def _fits_together(self) -> RunConfig:
        mistakes = [*discriminator_mistakes(self.student, self.discriminator, self.evaluation.independent.layer)]
        mistakes += [*self._warmup_mistakes(), *self._prompt_mistakes()]
        mistakes += [*self._engine_mistakes(), *self._pair_mistakes()]
        mistakes += quantization_mistakes(self.student.quantization, self.compute.engine, self.compute.merge_adapters)
        if self._asks_teacher and self.teacher is None:
            mistakes.append("`evaluation.models`: kind: teacher asks the run's `teacher`, and there is none: add one")
        if mistakes:
            raise ValueError("\n".join(mistakes))
        return self

    def _warmup_mistakes(self) -> Iterator[str]:
        if self.seqkd_follows_warmup and self.warmup is None:
            yield "`seqkd.start_from`: warmup goes on from a warm-up, and there is none: write start_from: base"
        if self.warmup is not None and not self.warmup.phases:
            yield "`warmup.phases` is empty: write warmup: null to skip the warm-up"
        phases = () if self.warmup is None else self.warmup.phases
        trained = any(phase.train != "student" for phase in phases)
        if self.adversarial is not None and not self.adversarial.on_policy_discriminator and not trained:
            yield (
                "`adversarial.on_policy_discriminator`: false freezes a discriminator that no phase of the warm-up "
                "trains, and all replies would score alike; add a phase with train: discriminator"
            )

    def _prompt_mistakes(self) -> Iterator[str]:
        if self.prompt.format == "alpaca" and self.prompt.template_arguments:
            yield "`prompt.template_arguments` are for chat templates: leave them out with prompt.format: alpaca"

    def _engine_mistakes(self) -> Iterator[str]:
        engine = self.compute.engine
        if isinstance(engine, VllmServers) and engine.sync == "adapter" and not isinstance(self.student.tuning, Lora):
            yield "compute.engine.sync=adapter needs student.tuning.kind=lora: with full tuning write sync: weights"
        sampling = None if self.adversarial is None else self.adversarial.sampling
        cut = sampling is not None and (sampling.top_p < 1.0 or sampling.top_k > 0)
        if cut and self.weighs_replies and not isinstance(engine, LocalEngine):
            yield (
                f"compute.engine.kind={engine.kind} gives no log-probabilities from before top_p and top_k, which "
                "adversarial.importance_cap needs: leave top_p and top_k out, or set importance_cap to null"
            )

    def _pair_mistakes(self) -> Iterator[str]:
        known = (*self.students, TEACHER)
        for pair in () if self.judging is None else self.judging.pairs:
            for name in (pair.first, pair.second):
                if name not in known:
                    yield f"`judging.pairs`: no model {name!r} in this run; it has {', '.join(known)}"
