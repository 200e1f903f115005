"""A small adversarial step in float64: groups with every trap in them, and updaters that keep the gradients."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from gad.config.compute import ComputeConfig
from gad.config.models import Lora, PromptConfig, Tuning
from gad.config.training import BradleyTerry, DiscriminatorLoss
from gad.layouts import TokenGroup
from gad.models.network import Member
from gad.models.scorer import Scorer
from gad.models.tokens import Codec
from gad.records import Example, Prompt, Rollout, RolloutGroup, TeacherReply
from gad.training.batching import Batcher, MicroBatch
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.student import StudentTrainer
from support import tiny
from unit.models import plain

LORA = Lora(rank=2, alpha=3.0)
LIMIT = 24
"""Reply tokens."""
TEMPERATURE = 0.8
END = 256
MERGES = [("t", "h"), ("th", "e"), ("i", "n"), ("Ġ", "a"), ("e", "r")]


@functools.cache
def merging_tokenizer(pad_is_end: bool = False) -> PreTrainedTokenizerFast:
    """The byte-level tokenizer with five merges: most texts can be spelled in several ways, one is canonical."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols = [*alphabet, *tiny.SPECIALS, *("".join(pair) for pair in MERGES)]
    raw = Tokenizer(models.BPE(vocab={symbol: index for index, symbol in enumerate(symbols)}, merges=MERGES))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        eos_token=tiny.SPECIALS[0],
        pad_token=tiny.SPECIALS[0 if pad_is_end else 2],
        additional_special_tokens=[tiny.SPECIALS[1]],
    )
    made.chat_template = tiny.CHAT_TEMPLATE
    return made


def codec(*, pad_is_end: bool = False, limit: int = LIMIT) -> Codec:
    return Codec(merging_tokenizer(pad_is_end), PromptConfig(max_reply_tokens=limit))


def spelled(text: str, *, finished: bool) -> tuple[int, ...]:
    """Byte by byte: canonical only where no merge applies."""
    ids = tiny.tokenizer()(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return (*ids, END) if finished else tuple(ids)


def canonical(text: str, *, finished: bool) -> tuple[int, ...]:
    """What a row must be, for texts within the limit."""
    return (*canonical_raw(text.strip()), END) if finished else canonical_raw(text.strip())


def canonical_raw(text: str) -> tuple[int, ...]:
    """With all merges, white space kept."""
    return tuple(merging_tokenizer()(text, add_special_tokens=False, split_special_tokens=True)["input_ids"])


def rollout(prompt: str, ids: tuple[int, ...], logps: tuple[float, ...] = ()) -> Rollout:
    """As an engine reports a reply that was sampled as `ids`."""
    return Rollout(prompt, ids, codec().text(ids), finished=ids[-1] == END, logps=logps)


def group(name: str, question: str, teacher: TeacherReply, *replies: tuple[int, ...]) -> RolloutGroup:
    example = Example(Prompt.from_text(name, question), (teacher,))
    return RolloutGroup(example, teacher, tuple(rollout(name, ids) for ids in replies))


def groups() -> list[RolloutGroup]:
    """Four prompts of unequal length, three replies each: twins, an empty reply, cut replies, odd spellings, white
    space around a text, and a reply that spells the teacher's text in another way."""
    return [
        group(
            "a",
            "Hi",
            TeacherReply("the inn"),
            spelled("  the inn\n", finished=True),
            spelled("other", finished=True),
            spelled("x", finished=True),
        ),
        group(
            "b",
            "Why is the sky blue in the morning?",
            TeacherReply("Rayleigh"),
            (END,),
            spelled("a thing inside the theatre", finished=False)[:LIMIT],
            spelled("no", finished=True),
        ),
        group(
            "c",
            "né 🎈?",
            TeacherReply("ça va in there", finished=False),
            spelled("🎈🎈", finished=True),
            spelled("🎈🎈", finished=True),
            spelled("the the", finished=False),
        ),
        group(
            "d",
            "Go",
            TeacherReply("z"),
            spelled("er", finished=True),
            canonical("er", finished=True),
            spelled("<|end|>", finished=True),
        ),
    ]


def batcher(config: Any, layout: str = "auto", budget: int = 4096) -> Batcher:
    compute = ComputeConfig.model_validate({"layout": layout, "tokens_per_micro_batch": budget})
    return Batcher.of(compute, torch.device("cpu"), config)


class SpyBatcher:
    """Passes micro-batches on and remembers what they were made of."""

    def __init__(self, inner: Batcher) -> None:
        self._inner = inner
        self.groups: list[TokenGroup] = []
        self.batches = 0

    def micro_batches(self, groups: Sequence[TokenGroup]) -> Iterator[MicroBatch]:
        self.groups = list(groups)
        for item in self._inner.micro_batches(groups):
            self.batches += 1
            yield item

    def room(self, phase: str, micro: MicroBatch) -> AbstractContextManager[None]:
        return self._inner.room(phase, micro)


class Keeper:
    """In the place of an optimizer: keeps the gradients of the step, changes nothing."""

    def __init__(self, named: Mapping[str, Tensor]) -> None:
        self._named = dict(named)
        self.gradients: dict[str, Tensor] = {}

    def step(self, step: int, loss: float = 0.0) -> float:
        self.gradients = {
            name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
            for name, tensor in self._named.items()
        }
        for tensor in self._named.values():
            tensor.grad = None
        return float(torch.stack([gradient.norm() for gradient in self.gradients.values()]).norm())

    def state(self) -> dict[str, Tensor]:
        return {}


def student(
    member: Member, batches: Batcher | SpyBatcher, reference: Member | None = None
) -> tuple[StudentTrainer, Keeper]:
    keeper = Keeper(member.network.tensors(member.name))
    trainer = StudentTrainer(member, codec(), batches, keeper, reference=reference)  # type: ignore[arg-type]
    return trainer, keeper


def scorer(member: Member, *, layer: int | None = None, made_by: Codec | None = None) -> Scorer:
    """With a head that is not zero."""
    made = Scorer(member, made_by or codec(), layer=layer, like_student=True)
    made.head_H.data.copy_(torch.randn(made.head_H.shape, generator=torch.Generator().manual_seed(5)) * 0.3)
    return made


def discriminator(
    made: Scorer, batches: Batcher | SpyBatcher, loss: DiscriminatorLoss | None = None
) -> tuple[DiscriminatorTrainer, Keeper]:
    keeper = Keeper({**made.member.network.tensors(made.member.name), "score_head": made.head_H})
    trainer = DiscriminatorTrainer(made, batches, loss or BradleyTerry(), keeper)  # type: ignore[arg-type]
    return trainer, keeper


def players(architecture: str, tuning: Tuning | None = None, **changes: Any) -> dict[str, Member]:
    """Student, discriminator and reference, all different; on one base with LoRA, else each on its own."""
    names = ("student", "discriminator", "reference")
    if tuning is None or isinstance(tuning, Lora):
        _, members = plain.network(architecture, tuning or LORA, *names, **changes)
        return dict(zip(names, members, strict=True))
    return {
        name: plain.network(architecture, tuning, name, seed=seed, **changes)[1][0] for seed, name in enumerate(names)
    }
