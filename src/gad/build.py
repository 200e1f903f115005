"""From the run file to objects: the one place that knows which class serves which variant of the config."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from gad import engines
from gad.config.compared import LocalModel
from gad.config.models import Full, Lora, OwnDiscriminator, PromptConfig, SharedDiscriminator, StudentConfig, Tuning
from gad.config.run import RunConfig
from gad.config.training import BradleyTerry, Optimizer, Sampling
from gad.crew import ALONE, Crew, Here, everywhere, shared
from gad.errors import ConfigError, ModelError
from gad.models import arithmetic, counting, quantized, trial
from gad.models.known import Known
from gad.models.loading import check_vocabulary, load_model, load_tokenizer
from gad.models.network import Member, Network
from gad.models.scorer import Scorer
from gad.models.tokens import Codec
from gad.records import Example, Prompt
from gad.rollout.engine import Engine
from gad.rollout.local import LocalEngine
from gad.seeds import stable_seed
from gad.stages import export
from gad.stages.sampling import Sampler
from gad.training.batching import Batcher
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.optimizer import Updater
from gad.training.peak import peak_flops
from gad.training.student import PolicyObjective, StudentTrainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def device(name: str, local: int | None = None) -> torch.device:
    """Raises ConfigError for a device that is not there. `local`: of several processes here, the number of this one."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and local is not None:
        name = f"cuda:{local}"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"compute.device={name}: no such device here; use cpu, or auto") from error
    return chosen


def set_threads(threads: int | None, processes: int = 1) -> None:
    """As many threads as the run file says, else as many as cores this process may use; processes here share them."""
    torch.set_num_threads(threads or max(1, len(os.sched_getaffinity(0)) // processes))


class Workshop:
    """Models and trainers of a run, made when first asked for and then kept; made in all processes of a crew alike."""

    def __init__(self, config: RunConfig, crew: Crew = ALONE) -> None:
        self._config = config
        self.crew = crew
        set_threads(config.compute.threads, crew.here)
        self.device = device(config.compute.device, crew.local)
        self._auto: arithmetic.Type = arithmetic.fastest(self.device)
        crew.adopt(self)

    @everywhere("choosing a number type")
    def compute_in(self, auto: arithmetic.Type) -> None:
        """What `dtype: auto` means from now on; before the first model is loaded."""
        self._auto = auto

    @cached_property
    def codec(self) -> Codec:
        """The student's tokens."""
        student = self._config.student
        tokenizer = load_tokenizer(student.model, trust_remote_code=student.trust_remote_code)
        return Codec(tokenizer, self._config.prompt)

    @shared
    def engine(self) -> Engine:
        """Samples from the student's network."""
        return engines.engine(self._config, *self._network, self.codec, lambda: self.prompt_limit)

    def check_engine(self) -> None:
        """Raises ConfigError, MissingExtra or RolloutError where who is to sample the replies could not."""
        engines.check_engine(self._config, self.codec, self.crew)

    def visitor(self, model: LocalModel) -> tuple[LocalEngine, Codec]:
        """A model that nobody trains here, to sample from; it is not kept. Raises as `visitor_codec`."""
        codec = self.visitor_codec(model)
        loaded, compute = self._load(model), self._config.compute
        trial.unfit(loaded, model.model, trains=False)
        network = Network(loaded, Lora())
        network.shortcuts = trial.shortcuts(loaded)
        engine = LocalEngine(
            network,
            codec,
            max_reply_tokens=self._config.prompt.max_reply_tokens,
            rows_per_batch=compute.rows_per_sampling_batch,
            plain=loaded,
        )
        engine.take_plain()
        return engine, codec

    def visitor_codec(self, model: LocalModel) -> Codec:
        """Its tokens. Raises ModelError where there is no tokenizer, or no chat template."""
        limits = {**self._config.prompt.model_dump(), "format": model.format, "template_arguments": {}}
        tokenizer = load_tokenizer(model.model, trust_remote_code=model.trust_remote_code)
        try:
            return Codec(tokenizer, PromptConfig(**limits))
        except ModelError as error:
            way_out = str(error).replace("prompt.format", "format")
            raise ModelError(f"evaluation.models, {model.name}: {way_out}") from error

    @shared
    def student(self) -> Member:
        """The student as it was before any training."""
        return self._network[0].member("student", seed=self._seed("student"))

    @shared
    def reference(self) -> Member:
        """Holds the policy that the KL term pulls to."""
        student = self._config.student
        if isinstance(student.tuning, Lora):
            return self._network[0].member("reference", seed=self._seed("reference"))
        network = self._made(student, Full())
        network.shard()
        return network.member("reference")

    @cached_property
    def prompt_limit(self) -> int:
        """Tokens a prompt may have: the run file's limit, or what the longest reply leaves of the model's context.

        Raises ConfigError where it leaves nothing.
        """
        limit = self._config.prompt.max_prompt_tokens
        context = self._network[0].context_length
        if context is not None:
            limit = min(limit, context - self._config.prompt.max_reply_tokens)
        if limit < 1:
            raise ConfigError(
                f"prompt.max_reply_tokens={self._config.prompt.max_reply_tokens} fills the model's context of "
                f"{context} tokens: leave room for the prompt"
            )
        return limit

    def usable(self, examples: Sequence[Example]) -> list[Example]:
        """Examples whose prompt is within the limit."""
        return [example for example in examples if self.fits(example.prompt)]

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt is within the limit."""
        return len(self.codec.prompt_ids(prompt)) <= self.prompt_limit

    @everywhere("loading models")
    def student_trainer(
        self, optimizer: Optimizer, total_steps: int, *, reference: Member | None = None
    ) -> StudentTrainer:
        """A trainer for the student as it is now."""
        member = self.student
        updater = Updater(member.parameters(), optimizer, total_steps, self.crew)
        return StudentTrainer(member, self.codec, self._batcher(member), updater, reference=reference)

    @everywhere("loading models")
    def discriminator_trainer(self, optimizer: Optimizer | None, total_steps: int) -> DiscriminatorTrainer:
        """A trainer for the discriminator as it is now; None leaves it as it is."""
        return self._scorer_trainer(self._discriminator, optimizer, total_steps)

    @everywhere("loading models")
    def independent_trainer(self, total_steps: int) -> DiscriminatorTrainer:
        """The evaluation's own discriminator."""
        optimizer = self._config.evaluation.independent.optimizer
        return self._scorer_trainer(self._independent, optimizer, total_steps)

    def sampler(self, stage: str, sampling: Sampling, replies_per_prompt: int) -> Sampler:
        """Fresh replies for a stage."""
        member = None if self._config.compute.merge_adapters else self.student.name
        counted = counting.arithmetic(self._network[0], member)
        return Sampler(self.engine, self.codec, sampling, replies_per_prompt, self._config.seed, stage, counted)

    @cached_property
    def peak_flops(self) -> tuple[float, str]:
        """FLOPs a second that all processes could make at best, and how that is known. Measured once."""
        own, how = peak_flops(self.device, self._type(self._config.student.dtype))
        return own * self.crew.size, how + (f", {self.crew.size} processes" if self.crew.size > 1 else "")

    def objective(self) -> PolicyObjective:
        """What the adversarial stage minimises."""
        adversarial = self._config.adversarial
        assert adversarial is not None
        return PolicyObjective(
            adversarial.policy_loss,
            adversarial.kl,
            adversarial.cross_entropy_weight,
            adversarial.sampling.temperature,
            self._config.prompt.max_reply_tokens,
            adversarial.importance_cap if self._config.weighs_replies else None,
        )

    def export(self, member: Member, target: Path, folder: Path) -> None:
        """Write a member's effective weights, the tokenizer and a model card."""
        student = self._config.student
        plain = load_model(
            student.model,
            dtype=self._type(student.dtype),
            device=self.device if student.quantization is None else torch.device("cpu"),  # it may not fit beside
            trust_remote_code=student.trust_remote_code,
        )
        self._write(member, Here(plain))
        tokenizer = load_tokenizer(student.model, trust_remote_code=student.trust_remote_code)
        export.export(target, self._config, folder, plain, tokenizer)

    @everywhere("gathering weights")
    def _write(self, member: Member, plain: Here[PreTrainedModel]) -> None:
        member.write_into(plain.value)

    @shared
    def _network(self) -> tuple[Network, PreTrainedModel | None]:
        student = self._config.student
        network = self._made(student, student.tuning, gradient_checkpointing=student.gradient_checkpointing)
        plain = network.plain_copy() if engines.needs_plain_copy(self._config) else None
        network.shard()
        return network, plain

    @shared
    def _discriminator(self) -> Scorer:
        match self._config.discriminator:
            case SharedDiscriminator(layer=layer, head_rate=rate):
                member = self._network[0].member("discriminator", seed=self._seed("discriminator"))
                return Scorer(member, self.codec, layer=layer, like_student=True, head_rate=rate)
            case OwnDiscriminator() as own:
                network = self._made(own, own.tuning, gradient_checkpointing=own.gradient_checkpointing)
                network.shard()
                codec = Codec(load_tokenizer(own.model, trust_remote_code=own.trust_remote_code), self._config.prompt)
                like_student = (own.model, own.tuning) == (self._config.student.model, self._config.student.tuning)
                member = network.member("discriminator", seed=self._seed("discriminator"))
                return Scorer(member, codec, layer=own.layer, like_student=like_student, head_rate=own.head_rate)

    @shared
    def _independent(self) -> Scorer:
        student, layer = self._config.student, self._config.evaluation.independent.layer
        beside = isinstance(student.tuning, Lora)
        network = self._network[0] if beside else self._made(student, Lora())
        if not beside:
            network.shard()
        member = network.member("independent", seed=self._seed("independent"))
        rate = self._config.discriminator.head_rate
        return Scorer(member, self.codec, layer=layer, like_student=False, head_rate=rate)

    def _type(self, dtype: str) -> torch.dtype:
        return arithmetic.TYPES[self._auto if dtype == "auto" else dtype]

    def _made(
        self, source: StudentConfig | OwnDiscriminator, tuning: Tuning, *, gradient_checkpointing: bool = False
    ) -> Network:
        quantized.check_processes(source, self.crew.size, self._config.compute.shard)
        model = self._load(source)
        cannot, shortcuts = trial.unfit(model, source.model), trial.shortcuts(model)
        network = Network(model, tuning, gradient_checkpointing=gradient_checkpointing, crew=self.crew)
        network.unfit, network.shortcuts = cannot, shortcuts
        if self.crew.size == 1:  # several would have to find the same, to stay in step
            network.known = Known(self._config.compute.kept_states_mib * 2**20)
        return network

    def _load(self, source: StudentConfig | OwnDiscriminator | LocalModel) -> PreTrainedModel:
        model = load_model(
            source.model,
            dtype=self._type(source.dtype),
            device=self.device,
            trust_remote_code=source.trust_remote_code,
            quantization=None if isinstance(source, LocalModel) else source.quantization,
        )
        tokenizer = load_tokenizer(source.model, trust_remote_code=source.trust_remote_code)
        check_vocabulary(model, tokenizer, source.model)
        return model

    def _scorer_trainer(self, scorer: Scorer, optimizer: Optimizer | None, total_steps: int) -> DiscriminatorTrainer:
        adversarial = self._config.adversarial
        loss = BradleyTerry() if adversarial is None else adversarial.discriminator_loss
        updater = None
        if optimizer is not None:
            updater = Updater(scorer.parameters(), optimizer, total_steps, self.crew, scorer.rates())
        return DiscriminatorTrainer(scorer, self._batcher(scorer.member), loss, updater)

    def _batcher(self, member: Member) -> Batcher:
        network = member.network
        return Batcher.of(self._config.compute, self.device, network.config, self.crew, network.unfit)

    def _seed(self, name: str) -> int:
        return stable_seed(self._config.seed, "adapter", name)
