"""The run file: one YAML, one run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gad.config.base import Section
from gad.config.data import DataConfig
from gad.config.models import DiscriminatorConfig, PromptConfig, SharedDiscriminator, StudentConfig
from gad.config.training import AdversarialConfig, Optimizer, Sampling, SeqkdConfig, WarmupConfig


class ComputeConfig(Section):
    """Where and in what pieces the work is done; nothing here changes the result beyond rounding."""

    device: str = "auto"
    """`auto` takes CUDA where there is one; or `cpu`, `cuda`, `cuda:1`."""
    threads: PositiveInt | None = None
    """CPU threads; empty takes the cores this process may use. Too many on a busy machine is many times slower."""
    layout: Literal["auto", "padded", "tree", "cache"] = "auto"
    """How a group becomes token rows; `auto` picks by a cost model of the lengths at hand."""
    tokens_per_micro_batch: PositiveInt = 4096
    """Token budget of one forward and backward pass. Lower it where memory runs out."""
    rows_per_sampling_batch: PositiveInt = 64
    """Replies that are sampled side by side."""
    merge_adapters: bool = True
    """Sample from a copy of the base with the adapter merged in: faster, at the memory of a second base."""


class CheckpointConfig(Section):
    """When training state is saved."""

    every_steps: PositiveInt = 50
    """The paper saves and tests every 50 steps."""
    keep_last: PositiveInt = 2


class IndependentDiscriminator(Section):
    """A discriminator that takes no part in training: own seed, own samples of the warm-up student."""

    epochs: PositiveFloat = 1.0
    replies_per_prompt: PositiveInt = 2
    batch_size: PositiveInt = 16
    layer: PositiveInt | None = None
    """As `discriminator.layer`."""
    optimizer: Optimizer = Optimizer(learning_rate=2e-4, max_grad_norm=1.0)


class NamedDecoding(Section):
    """A way to draw replies for evaluation; every student is decoded alike."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    sampling: Sampling


class CheckpointChoice(Section):
    """Which checkpoint becomes the student."""

    metric: Literal["preference", "c2st_auc", "last"] = "last"
    """Measured on the held-out set. `last` does not choose: nothing is selected on the set that is reported."""
    min_length_ratio: PositiveFloat = 0.67
    max_length_ratio: PositiveFloat = 1.5
    """Mean reply length over the teacher's must lie in this window; the paper asks for it but gives no bound."""


class EvaluationConfig(Section):
    """Figures without a judge."""

    decodings: tuple[NamedDecoding, ...] = (
        NamedDecoding(name="t1", sampling=Sampling(temperature=1.0)),
        NamedDecoding(name="greedy", sampling=Sampling(temperature=0.0)),
    )
    """The first one is the headline's."""
    independent: IndependentDiscriminator = IndependentDiscriminator()
    style: str | None = None
    """A regular expression that a reply of the house style matches."""
    checkpoint: CheckpointChoice = CheckpointChoice()
    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    max_prompts: PositiveInt | None = None
    """Use only so many prompts of each set."""

    @model_validator(mode="after")
    def _names_differ(self) -> EvaluationConfig:
        names = [decoding.name for decoding in self.decodings]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"decodings need different names, got {names}")
        return self


class RunConfig(Section):
    """Everything about a run."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run and of its folder."""
    seed: NonNegativeInt = 0
    runs_dir: Path = Path("runs")
    data: DataConfig
    prompt: PromptConfig = PromptConfig()
    student: StudentConfig
    discriminator: DiscriminatorConfig = SharedDiscriminator()
    seqkd: SeqkdConfig | None = None
    """The control: the same student trained by cross-entropy alone. Leave it out to skip it."""
    warmup: WarmupConfig | None = WarmupConfig()
    """null skips the warm-up: an ablation of the paper's that does badly."""
    adversarial: AdversarialConfig | None = AdversarialConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: ComputeConfig = ComputeConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.runs_dir / self.name
