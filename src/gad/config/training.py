"""The training stages. Names follow arXiv 2511.10643 and TRL where they have one."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gad.config.base import Section

Decay = Annotated[float, Field(ge=0.0, lt=1.0)]


class Optimizer(Section):
    """AdamW and its schedule."""

    learning_rate: PositiveFloat
    """Each stage has a default of its own."""
    schedule: Literal["constant", "linear"] = "constant"
    """`linear` decays to zero at the last step of the stage; `constant` is the paper's."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises linearly from zero."""
    weight_decay: NonNegativeFloat = 0.01
    """The official scripts'."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's decay rates of gradient and squared gradient; torch's defaults."""
    max_grad_norm: PositiveFloat = 0.2
    """The gradient is scaled down to this norm; 0.2 is the official scripts' for both models."""


class Sampling(Section):
    """How replies are drawn."""

    temperature: NonNegativeFloat = 0.8
    """0 is greedy. The paper trains at 0.8; gradients are those of the policy at this temperature."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Only the likeliest tokens that make up this share are drawn; 1 is the paper's."""
    top_k: NonNegativeInt = 0
    """0 keeps the whole vocabulary."""


class SeqkdConfig(Section):
    """Sequence-level knowledge distillation: cross-entropy on the teacher's replies, no rollouts."""

    epochs: PositiveFloat = 3.0
    """The paper's baseline gets 3."""
    start_from: Literal["base", "warmup"] = "base"
    """`warmup` goes on from the warm-up's student, after that stage: `epochs` then come on top of the warm-up's."""
    batch_size: PositiveInt = 256
    """Prompts a step; the paper's."""
    optimizer: Optimizer = Optimizer(learning_rate=5e-6)
    """The paper's rate for full tuning."""
    max_bad_steps: NonNegativeInt = 5
    """An update whose loss or gradient is not finite is skipped, and noted in the folder `skipped`; after more than so
    many the stage stops. It may change within a run."""


class WarmupPhase(Section):
    """A part of the warm-up: who is trained, and for how long."""

    train: Literal["student", "discriminator", "both"] = "both"
    """Who is trained in this phase."""
    epochs: PositiveFloat | None = None
    """Times that every prompt is seen; or give `steps`."""
    steps: PositiveInt | None = None
    """So many steps; or give `epochs`."""

    @model_validator(mode="after")
    def _one_length(self) -> WarmupPhase:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a warm-up phase is given either `epochs` or `steps`")
        return self


class WarmupConfig(Section):
    """Stage 1: the student imitates, the discriminator learns to tell its fresh samples from the teacher's replies."""

    phases: tuple[WarmupPhase, ...] = (
        WarmupPhase(train="discriminator", steps=10),
        WarmupPhase(train="both", epochs=1.0),
    )
    """In order. The default is the official scripts': the discriminator alone for 10 steps, then both for an epoch."""
    batch_size: PositiveInt = 256
    """Prompts a step; the paper's."""
    replies_per_prompt: PositiveInt = 8
    """Samples of the student that meet each teacher reply in the discriminator's loss."""
    student: Optimizer = Optimizer(learning_rate=5e-6)
    """The paper's rate with an open teacher; 1e-6 with GPT-5-Chat."""
    discriminator: Optimizer = Optimizer(learning_rate=5e-6)
    """As the student's, as in the paper."""
    max_bad_steps: NonNegativeInt = 5
    """As in `seqkd`, for each of the two."""


class MeanOnly(Section):
    """Rewards minus their group's mean: the policy gradient of the reverse KL to the teacher."""

    kind: Literal["mean_only"] = "mean_only"


class StdScaled(Section):
    """Divided by the group's standard deviation: GRPO, and the paper."""

    kind: Literal["std_scaled"] = "std_scaled"


class BatchScaled(Section):
    """Group-centred rewards divided by their root mean square over the whole batch."""

    kind: Literal["batch_scaled"] = "batch_scaled"


class LeaveOneOut(Section):
    """Rewards minus the mean of the other replies of the group: RLOO."""

    kind: Literal["leave_one_out"] = "leave_one_out"


Advantages = Annotated[MeanOnly | StdScaled | BatchScaled | LeaveOneOut, Field(discriminator="kind")]


class Reinforce(Section):
    """The plain policy gradient."""

    kind: Literal["reinforce"] = "reinforce"
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """Mean over all tokens of a batch, or over replies with each reply's mean."""


class Clipped(Section):
    """PPO's clipped surrogate as in GRPO, with a dual clip for negative advantages."""

    kind: Literal["clipped"] = "clipped"
    clip: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """The ratio counts within 1 - clip and 1 + clip; 0.2 is the official scripts'."""
    dual_clip: Annotated[float, Field(gt=1.0)] | None = 3.0
    """Bound of the ratio for negative advantages; null for none. 3 is the official scripts'."""
    aggregation: Literal["token_mean", "sequence_mean"] = "token_mean"
    """As in `reinforce`; `token_mean` is the official scripts'."""


class ConstantLength(Section):
    """Dr.GRPO (arXiv 2503.20783): the clipped surrogate summed and divided by a constant length."""

    kind: Literal["constant_length"] = "constant_length"
    clip: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.2
    """As in `clipped`."""


class SequenceRatio(Section):
    """GSPO (arXiv 2507.18071): one ratio per reply."""

    kind: Literal["sequence_ratio"] = "sequence_ratio"
    clip_low: PositiveFloat = 3e-4
    """The ratio counts from 1 - clip_low; GSPO's value."""
    clip_high: PositiveFloat = 4e-4
    """The ratio counts up to 1 + clip_high; GSPO's value."""


PolicyLoss = Annotated[Reinforce | Clipped | ConstantLength | SequenceRatio, Field(discriminator="kind")]


class Kl(Section):
    """The pull back to the reference policy, the student at the start of the stage."""

    weight: NonNegativeFloat = 0.05
    """0.05 to 0.1 did best on the testbeds; the paper has 0.001."""
    estimator: Literal["k1", "k2", "k3"] = "k3"
    """k3 is the paper's low-variance estimator, exp(d) - d - 1."""
    place: Literal["loss", "reward"] = "loss"
    """A term of the loss, as in the paper, or a part of the reward."""

    @property
    def in_loss(self) -> bool:
        """Whether the loss has a KL term."""
        return self.place == "loss" and self.weight > 0

    @property
    def in_reward(self) -> bool:
        """Whether the reward has a KL term."""
        return self.place == "reward" and self.weight > 0

    @model_validator(mode="after")
    def _k1_has_no_gradient(self) -> Kl:
        if self.place == "loss" and self.estimator == "k1" and self.weight > 0:
            raise ValueError("the gradient of k1 in the loss is zero on average: use k2 or k3, or `place: reward`")
        return self


class BradleyTerry(Section):
    """Eq. 8 of the paper."""

    kind: Literal["bradley_terry"] = "bradley_terry"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """Share of pairs taken as if they were the other way round; above 0 did harm on the testbeds."""


class CrossEntropy(Section):
    """Eq. 4, the paper's ablation."""

    kind: Literal["cross_entropy"] = "cross_entropy"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=0.5)] = 0.0
    """As in `bradley_terry`."""


class LeastSquares(Section):
    """Least squares (arXiv 1611.04076): teacher scores to 1, student scores to 0."""

    kind: Literal["least_squares"] = "least_squares"


DiscriminatorLoss = Annotated[BradleyTerry | CrossEntropy | LeastSquares, Field(discriminator="kind")]


class AdversarialConfig(Section):
    """Stage 2: the student against a discriminator that keeps learning."""

    epochs: PositiveFloat | None = 2.0
    """The paper's; leave it empty (null) where `steps` is given."""
    steps: PositiveInt | None = None
    """So many steps, in place of `epochs`."""
    batch_size: PositiveInt = 256
    """Prompts a step."""
    replies_per_prompt: PositiveInt = 8
    """The group whose rewards are compared; the paper's N. Fewer than 8 did worse on the testbeds; on the
    quickstart 4 replies to twice as many prompts did better than 8."""
    trained_replies: PositiveInt | None = None
    """The student learns from so many replies of each group, those whose rewards vary most (PODS, arXiv 2504.13818):
    an update costs more than sampling and scoring. Empty (null): from all, as in the paper."""
    sampling: Sampling = Sampling()
    """How the replies that are scored are drawn."""
    student: Optimizer = Optimizer(learning_rate=1e-6, schedule="linear")
    """A linear decay did best on every testbed; the paper's schedule is constant."""
    discriminator: Optimizer = Optimizer(learning_rate=1e-6)
    """The paper's rate; on the testbeds about 7 times the student's did best."""
    on_policy_discriminator: bool = True
    """False freezes the discriminator after the warm-up: the arm that is hacked."""
    discriminator_loss: DiscriminatorLoss = BradleyTerry()
    """What the discriminator minimises; Bradley-Terry is the paper's."""
    advantages: Advantages = MeanOnly()
    """From a group's rewards to advantages; `mean_only` did best on the testbeds, `std_scaled` is the paper's."""
    length_guard: bool = False
    """Rewards less what a straight line in the replies' lengths explains of them within groups, where that leads away
    from the teacher's length: a discriminator sees length first, and large steps overshoot along it."""
    policy_loss: PolicyLoss = Clipped()
    """What the student minimises; `clipped` is the paper's."""
    kl: Kl = Kl()
    """The pull back to the student at the start of this stage."""
    cross_entropy_weight: NonNegativeFloat = 0.0
    """Cross-entropy on the teacher's replies, mixed in: a dial from mode seeking back to coverage."""
    one_step_off: bool = False
    """Sample the next batch while this step updates, from the weights before the update. Saves the time of the shorter
    of the two where vLLM servers sample; replies are one update old, and checkpoints wait for those under way. With
    other engines it saves nothing."""
    importance_cap: Annotated[float, Field(ge=1.0)] | None = 2.0
    """Where another engine than `local` samples, and with `one_step_off`, a token's loss is weighed by
    p_trained / p_sampled, at most this: 2 is what TRL caps at; null weighs nothing."""
    max_bad_steps: NonNegativeInt = 5
    """As in `seqkd`."""

    @model_validator(mode="after")
    def _consistent(self) -> AdversarialConfig:
        if self.replies_per_prompt < 2:
            raise ValueError(f"replies_per_prompt={self.replies_per_prompt}: one reply has no baseline; use 2 or more")
        if self.epochs is None and self.steps is None:
            raise ValueError("give `steps` or `epochs`")
        if self.trained_replies is not None and not 2 <= self.trained_replies <= self.replies_per_prompt:
            raise ValueError(
                f"trained_replies={self.trained_replies}: use 2 to {self.replies_per_prompt}, which is "
                "`replies_per_prompt`, or null for all"
            )
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature=0: greedy replies of a group are all alike; use a positive value")
        return self
