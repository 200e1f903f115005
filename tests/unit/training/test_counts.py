"""What a step computes, counted at the embeddings: every forward pass of every member goes through them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor

from gad.config.training import Clipped, Kl
from gad.models.network import Network
from gad.records import RolloutGroup
from gad.training.student import PolicyObjective
from unit.training import game


@dataclass
class Passes:
    """Member and number of tokens of each forward pass."""

    members: list[str] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def of(self, member: str) -> list[int]:
        return [count for name, count in zip(self.members, self.tokens, strict=True) if name == member]


@contextmanager
def counting(network: Network) -> Iterator[Passes]:
    backbone: Any = network.backbone()
    layer = next(module for module in backbone.modules() if isinstance(module, BaseTunerLayer))
    passes = Passes()

    def hook(_module: Any, args: tuple[Tensor, ...], _output: Tensor) -> None:
        (active,) = layer.active_adapters
        passes.members.append(active)
        passes.tokens.append(args[0].numel())

    handle = backbone.embed_tokens.register_forward_hook(hook)
    try:
        yield passes
    finally:
        handle.remove()


def distinct_rows(group: RolloutGroup) -> set[tuple[int, ...]]:
    said = [(group.teacher.text, group.teacher.finished), *((r.text, r.finished) for r in group.rollouts)]
    return {game.canonical(text, finished=finished) for text, finished in said}


def prompt_tokens(groups: Sequence[RolloutGroup]) -> list[int]:
    return [len(game.codec().prompt_ids(group.example.prompt)) for group in groups]


def objective(*, kl: float = 0.1, cross_entropy: float = 0.0) -> PolicyObjective:
    return PolicyObjective(Clipped(), Kl(weight=kl), cross_entropy, game.TEMPERATURE, game.LIMIT)


def test_the_discriminator_computes_prompt_teacher_and_distinct_replies_once() -> None:
    groups = game.groups()
    players = game.players("qwen2")
    network = players["discriminator"].network
    trainer, _ = game.discriminator(game.scorer(players["discriminator"]), game.batcher(network.config, "tree"))
    with counting(network) as passes:
        metrics = [trainer.update([group])[1] for group in groups]
    expected = [
        prompt + sum(map(len, distinct_rows(group)))
        for prompt, group in zip(prompt_tokens(groups), groups, strict=True)
    ]
    assert [len(distinct_rows(group)) for group in groups] == [3, 4, 3, 3]
    assert passes.tokens == [m["tokens/discriminator"] for m in metrics] == expected
    assert set(passes.members) == {"discriminator"}


@pytest.mark.parametrize(("layout", "passes_per_batch"), [("padded", 1), ("tree", 1), ("cache", 2)])
@pytest.mark.parametrize("budget", [140, 4096])
def test_one_discriminator_pass_a_micro_batch(layout: str, passes_per_batch: int, budget: int) -> None:
    """Scores are the training pass's own: no pass before it, none after. The cache has prompts and replies apart."""
    players = game.players("qwen2")
    network = players["discriminator"].network
    spy = game.SpyBatcher(game.batcher(network.config, layout, budget))
    trainer, _ = game.discriminator(game.scorer(players["discriminator"]), spy)
    with counting(network) as passes:
        rewards_PG, _ = trainer.update(game.groups())
    assert len(passes.tokens) == passes_per_batch * spy.batches
    assert spy.batches == 1 if budget == 4096 else spy.batches > 1
    assert rewards_PG.std() > 0.1


@pytest.mark.parametrize("weight", [0.0, 0.5])
@pytest.mark.parametrize("layout", ["padded", "tree", "cache", "packed"])
def test_the_student_computes_each_row_once_and_kl_costs_one_pass_of_the_reference(layout: str, weight: float) -> None:
    """The teacher's reply rides along in the same pass where cross-entropy is mixed in."""
    groups = game.groups()
    players = game.players("qwen2")
    network = players["student"].network
    spies = [game.SpyBatcher(game.batcher(network.config, layout, 200)) for _ in range(2)]
    with_reference, _ = game.student(players["student"], spies[0], players["reference"])
    without, _ = game.student(players["student"], spies[1])
    advantages_PG = torch.ones(4, 3, dtype=torch.float64)
    with counting(network) as passes:
        with_reference.update(groups, advantages_PG, objective(cross_entropy=weight))
    with counting(network) as fewer:
        without.update(groups, advantages_PG, objective(kl=0.0, cross_entropy=weight))
    expected = spies[0].batches * (2 if layout == "cache" else 1)
    assert len(passes.of("student")) == len(passes.of("reference")) == expected
    assert passes.of("student") == passes.of("reference") == fewer.of("student")
    assert fewer.of("reference") == passes.of("discriminator") == []


def test_the_students_tokens_by_hand() -> None:
    """A tree of one group: prompt once, each sampled reply once, the teacher's reply once with cross-entropy."""
    groups = game.groups()
    players = game.players("qwen2")
    network = players["student"].network
    for weight in (0.0, 0.5):
        trainer, _ = game.student(players["student"], game.batcher(network.config, "tree"))
        with counting(network) as passes:
            metrics = [
                trainer.update([group], torch.ones(1, 3).double(), objective(kl=0.0, cross_entropy=weight))
                for group in groups
            ]
        sampled = [sum(len(rollout.token_ids) for rollout in group.rollouts) for group in groups]
        taught = [len(game.canonical(g.teacher.text, finished=g.teacher.finished)) * (weight > 0) for g in groups]
        rows = [sum(parts) for parts in zip(prompt_tokens(groups), sampled, taught, strict=True)]
        assert passes.tokens == [m["tokens/student"] for m in metrics] == rows
        assert [m["tokens/trained"] for m in metrics] == [a + b for a, b in zip(sampled, taught, strict=True)]


def test_a_discriminator_that_reads_an_earlier_layer_computes_no_later_one() -> None:
    players = game.players("qwen2")
    network = players["discriminator"].network
    made = game.scorer(players["discriminator"], layer=2)
    trainer, kept = game.discriminator(made, game.batcher(network.config))
    calls: list[int] = []
    layers: Any = network.backbone()
    handles = [
        layer.register_forward_hook(lambda *_, index=index: calls.append(index))
        for index, layer in enumerate(layers.layers)
    ]
    trainer.update(game.groups())
    for handle in handles:
        handle.remove()
    assert set(calls) == {0, 1}
    touched = {
        int(n.split(".layers.")[1].split(".")[0]) for n, g in kept.gradients.items() if "layers" in n and g.any()
    }
    assert touched == {0, 1}


@pytest.mark.parametrize("layout", ["padded", "tree", "cache", "packed"])
def test_activation_checkpointing_computes_every_layer_twice(layout: str) -> None:
    """And by that saves the memory of all that is between layers."""
    counts = {}
    for checkpointing in (False, True):
        players = game.players("qwen2", checkpointing=checkpointing)
        network = players["discriminator"].network
        trainer, _ = game.discriminator(game.scorer(players["discriminator"]), game.batcher(network.config, layout))
        calls: list[int] = []
        layers: Any = network.backbone()
        handles = [
            layer.mlp.down_proj.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
            for layer in layers.layers
        ]
        trainer.update(game.groups())
        for handle in handles:
            handle.remove()
        counts[checkpointing] = len(calls)
    assert counts[True] == 2 * counts[False]
    assert counts[False] == 4 * (2 if layout == "cache" else 1)


def test_scoring_trains_nothing_and_keeps_no_graph() -> None:
    players = game.players("qwen2")
    trainer, _ = game.discriminator(
        game.scorer(players["discriminator"]), game.batcher(players["discriminator"].network.config)
    )
    before = {name: tensor.clone() for name, tensor in trainer.state().items()}
    teacher_P, student_PG = trainer.score(game.groups())
    rewards_PG, _ = trainer.update(game.groups())
    assert torch.equal(rewards_PG, student_PG)
    assert not teacher_P.requires_grad
    after = trainer.state()
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["updates"]
