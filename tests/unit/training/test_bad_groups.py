"""Memory that runs out is named with the way out; groups that hold nothing to learn from do no harm."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from gad.config.models import Lora
from gad.config.training import Clipped, Kl, Sampling
from gad.errors import RolloutError, TrainingStopped
from gad.models.network import Network
from gad.records import RolloutGroup, TeacherReply
from gad.rollout.engine import Request
from gad.rollout.local import LocalEngine
from gad.training.student import PolicyObjective
from support import tiny
from unit.training import game

OBJECTIVE = PolicyObjective(Clipped(), Kl(weight=0.1), 0.0, game.TEMPERATURE, game.LIMIT)


def exhaust(network: Network, message: str = "DefaultCPUAllocator: can't allocate memory: you tried ...") -> None:
    """As if the machine had no memory left for a forward pass."""

    def fail(*_: Any) -> None:
        raise RuntimeError(message)

    layers: Any = network.backbone()
    layers.embed_tokens.register_forward_hook(fail)


@pytest.mark.parametrize(
    ("budget", "way_out"),
    [
        (4096, r"lower compute\.tokens_per_micro_batch from 4096 to \d+ \(it may change within a run\)$"),
        (100, r"one prompt with its replies, which is never split: lower replies_per_prompt"),
    ],
)
def test_out_of_memory_names_phase_tokens_and_setting(budget: int, way_out: str) -> None:
    players, groups = game.players("qwen2"), game.groups()
    network = players["student"].network
    batches = game.batcher(network.config, "packed", budget)
    student, _ = game.student(players["student"], batches, players["reference"])
    discriminator, _ = game.discriminator(game.scorer(players["discriminator"]), batches)
    exhaust(network)
    tokens = r": out of memory at \d+ tokens in one pass; .*"
    with pytest.raises(TrainingStopped, match="^the discriminator's pass" + tokens + way_out) as stopped:
        discriminator.update(groups)
    with pytest.raises(TrainingStopped, match="^the student's update" + tokens + way_out):
        student.update(groups, torch.ones(4, 3).double(), OBJECTIVE)
    found = re.search(r"at (\d+) tokens in one pass; .* to (\d+) \(", str(stopped.value))
    assert (found is None) == (budget == 100)
    assert found is None or int(found[2]) == int(found[1]) // 2
    with pytest.raises(TrainingStopped, match="^imitating the teacher" + tokens):
        student.imitate([(group.example, group.teacher) for group in groups])


def test_other_failures_are_not_called_out_of_memory() -> None:
    players = game.players("qwen2")
    network = players["student"].network
    discriminator, _ = game.discriminator(game.scorer(players["discriminator"]), game.batcher(network.config))
    exhaust(network, "mat1 and mat2 shapes cannot be multiplied")
    with pytest.raises(RuntimeError, match="^mat1 and mat2"):
        discriminator.update(game.groups())


def test_out_of_memory_while_sampling() -> None:
    network = Network(tiny.model(), Lora(rank=2))
    engine = LocalEngine(network, tiny.codec(), max_reply_tokens=7, rows_per_batch=64, plain=None)
    engine.load_weights(network.member("student"), version=0)
    exhaust(network)
    prompt = game.groups()[0].example.prompt
    request = Request(prompt, tiny.codec().prompt_ids(prompt), tuple(range(6)))
    with pytest.raises(RolloutError, match=r"6 replies of at most 7 tokens .*rows_per_sampling_batch to 3 \("):
        engine.generate([request], Sampling())


def empty() -> RolloutGroup:
    return game.group("a", "Hi", TeacherReply("the inn"), *[(game.END,)] * 3)


def alike() -> RolloutGroup:
    return game.group("b", "Why?", TeacherReply("Rayleigh"), *[game.spelled("no", finished=True)] * 3)


def cut() -> RolloutGroup:
    texts = ("aaaa", "bbbbbb", "cc")
    return game.group("c", "Go", TeacherReply("z"), *[game.spelled(text, finished=False) for text in texts])


@pytest.mark.parametrize("layout", ["padded", "tree", "cache", "packed"])
def test_groups_of_empty_alike_or_cut_replies(layout: str) -> None:
    """Replies that are alike score alike and pull the student nowhere; the discriminator still learns from them."""
    groups = [empty(), alike(), cut()]
    players = game.players("qwen2")
    config = players["student"].network.config
    student, kept = game.student(players["student"], game.batcher(config, layout))
    discriminator, learnt = game.discriminator(game.scorer(players["discriminator"]), game.batcher(config, layout))
    rewards_PG, metrics = discriminator.update(groups)
    assert rewards_PG[0].unique().numel() == rewards_PG[1].unique().numel() == 1
    assert rewards_PG[2].unique().numel() == 3
    assert math.isfinite(metrics["discriminator/loss"])
    assert float(learnt.gradients["score_head"].norm()) > 0
    advantages_PG = rewards_PG - rewards_PG.mean(-1, keepdim=True)
    without_kl = PolicyObjective(Clipped(), Kl(weight=0.0), 0.0, game.TEMPERATURE, game.LIMIT)
    student.update(groups[:2], advantages_PG[:2], without_kl)
    assert all(float(gradient.abs().max()) < 1e-12 for gradient in kept.gradients.values())
    student.update(groups[2:], advantages_PG[2:], without_kl)
    assert sum(float(gradient.norm()) for gradient in kept.gradients.values()) > 0
