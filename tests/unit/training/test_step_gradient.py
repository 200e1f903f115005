"""One whole step against plain loops: rows alone, tokens one by one, transformers' eager attention, float64.

What is summed, by arXiv 2511.10643: the discriminator's Eq. 8 over all pairs, the policy gradient with centred rewards
(Eq. 2 and 5-7 without the division), `exp(d) - d - 1` to the reference, cross-entropy on the teacher's replies.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from gad.config.models import Full, Tuning
from gad.config.training import (
    Clipped,
    ConstantLength,
    CrossEntropy,
    DiscriminatorLoss,
    Kl,
    LeastSquares,
    MeanOnly,
    PolicyLoss,
    Reinforce,
    SequenceRatio,
)
from gad.models.network import Member
from gad.training import losses
from gad.training.student import PolicyObjective
from unit.models import plain
from unit.training import game

KL_WEIGHT, CE_WEIGHT = 0.3, 0.7
PROMPTS, REPLIES = 4, 3


@dataclass(frozen=True)
class Expected:
    """What the loops give."""

    loss: float
    gradients: dict[str, Tensor]
    rewards: list[list[float]]
    kl: float = 0.0
    cross_entropy: float = 0.0
    entropy: float = 0.0


def prompt_ids(name: str) -> tuple[int, ...]:
    """The chat template by hand."""
    question = next(g.example.prompt.text for g in game.groups() if g.example.prompt.id == name)
    text = f"<|start|>user\n{question}<|end|>\n<|start|>assistant\n"
    return tuple(game.merging_tokenizer()(text, add_special_tokens=False)["input_ids"])


@functools.cache
def discriminator_by_loops(architecture: str, kind: str, tuning: Tuning) -> Expected:
    member = game.players(architecture, tuning)["discriminator"]
    reference = plain.Plain(architecture, member, tuning)
    head = game.scorer(member).head_H.detach().clone().requires_grad_()
    loss = torch.zeros((), dtype=torch.float64)
    rewards = []
    for group in game.groups():
        prompt = prompt_ids(group.example.prompt.id)

        def score(text: str, finished: bool, prompt: tuple[int, ...] = prompt) -> Tensor:
            return (reference.row(prompt, game.canonical(text, finished=finished))[1] * head).sum()

        teacher = score(group.teacher.text, group.teacher.finished)
        student = [score(rollout.text, rollout.finished) for rollout in group.rollouts]
        for value in student:
            if kind == "bradley_terry":
                loss = loss + torch.log(1 + torch.exp(value - teacher)) / (PROMPTS * REPLIES)
            elif kind == "cross_entropy":
                loss = loss + torch.log(1 + torch.exp(value)) / (PROMPTS * REPLIES)
            else:
                loss = loss + (teacher - value - 1) ** 2 / (PROMPTS * REPLIES)
        if kind == "cross_entropy":
            loss = loss + torch.log(1 + torch.exp(-teacher)) / PROMPTS
        rewards.append([value.item() for value in student])
    found = torch.autograd.grad(loss, [*reference.leaves.values(), head], allow_unused=True)
    names = [*reference.leaves, "score_head"]
    zeros = [torch.zeros_like(leaf) for leaf in [*reference.leaves.values(), head]]
    gradients = {n: z if g is None else g for n, z, g in zip(names, zeros, found, strict=True)}
    return Expected(loss.item(), gradients, rewards)


def policy_term(kind: PolicyLoss, advantage: float, logps: Sequence[Tensor], tokens: int) -> Tensor:
    """One reply's share of the policy loss, token by token."""
    total = torch.zeros((), dtype=torch.float64)
    mean_log_ratio = torch.stack([logp - logp.detach() for logp in logps]).mean()
    for logp in logps:
        ratio = torch.exp(mean_log_ratio if isinstance(kind, SequenceRatio) else logp - logp.detach())
        term = -advantage * (logp if isinstance(kind, Reinforce) else ratio)
        if isinstance(kind, ConstantLength):
            total = total + term / (PROMPTS * REPLIES * game.LIMIT)
        elif isinstance(kind, SequenceRatio) or kind.aggregation == "sequence_mean":
            total = total + term / len(logps) / (PROMPTS * REPLIES)
        else:
            total = total + term / tokens
    return total


def student_by_loops(
    architecture: str,
    players: dict[str, Member],
    rewards: list[list[float]],
    kind: PolicyLoss,
    estimator: str,
    tuning: Tuning,
) -> Expected:
    policy = plain.Plain(architecture, players["student"], tuning)
    frozen = plain.Plain(architecture, players["reference"], tuning, seed=2 if isinstance(tuning, Full) else 0)
    sampled = sum(len(rollout.token_ids) for group in game.groups() for rollout in group.rollouts)
    teacher_ids = [game.canonical(g.teacher.text, finished=g.teacher.finished) for g in game.groups()]
    imitated = sum(map(len, teacher_ids))
    policy_loss = kl = cross_entropy = torch.zeros((), dtype=torch.float64)
    entropy = 0.0
    for group, scores, teacher in zip(game.groups(), rewards, teacher_ids, strict=True):
        prompt = prompt_ids(group.example.prompt.id)
        mean = math.fsum(scores) / REPLIES
        for rollout, reward in zip(group.rollouts, scores, strict=True):
            logps = policy.logps(prompt, rollout.token_ids, game.TEMPERATURE)
            policy_loss = policy_loss + policy_term(kind, reward - mean, logps, sampled)
            for logp, ref in zip(logps, frozen.logps(prompt, rollout.token_ids, game.TEMPERATURE), strict=True):
                d = ref.detach() - logp
                kl = kl + (torch.exp(d) - d - 1 if estimator == "k3" else d * d / 2)
            entropy += math.fsum(policy.entropies(prompt, rollout.token_ids, game.TEMPERATURE))
        for logp in policy.logps(prompt, teacher):
            cross_entropy = cross_entropy - logp / imitated
    loss = policy_loss + KL_WEIGHT * kl / sampled + CE_WEIGHT * cross_entropy
    gradients = policy.gradients(loss)
    return Expected(loss.item(), gradients, rewards, kl.item() / sampled, cross_entropy.item(), entropy / sampled)


@functools.cache
def by_loops(
    architecture: str, loss: str, kind: PolicyLoss, estimator: str, tuning: Tuning
) -> tuple[Expected, Expected]:
    """Both updates of a step, on players of their own that are born alike; layouts and budgets do not matter to it."""
    expected = discriminator_by_loops(architecture, loss, tuning)
    players = game.players(architecture, tuning)
    return expected, student_by_loops(architecture, players, expected.rewards, kind, estimator, tuning)


def check_step(
    architecture: str,
    layout: str,
    budget: int,
    *,
    kind: PolicyLoss | None = None,
    estimator: str = "k3",
    loss: DiscriminatorLoss | None = None,
    tuning: Tuning = game.LORA,
    checkpointing: bool = False,
) -> tuple[int, int]:
    """Both updates of a step against the loops; returns how many micro-batches each took."""
    kind = kind or Clipped()
    with plain.wide():
        players = game.players(architecture, tuning, checkpointing=checkpointing)
        batches = [game.SpyBatcher(game.batcher(players["student"].network.config, layout, budget)) for _ in range(2)]
        scorer = game.scorer(players["discriminator"])
        trainer, kept = game.discriminator(scorer, batches[0], loss)
        expected, wanted = by_loops(architecture, loss.kind if loss else "bradley_terry", kind, estimator, tuning)
        rewards_PG, metrics = trainer.update(game.groups())
        torch.testing.assert_close(rewards_PG.tolist(), expected.rewards, rtol=0, atol=1e-12)
        assert metrics["discriminator/loss"] == pytest.approx(expected.loss, rel=1e-12)
        plain.assert_same_gradients(kept.gradients, expected.gradients, 1e-9)

        objective = PolicyObjective(
            kind,
            Kl.model_validate({"weight": KL_WEIGHT, "estimator": estimator}),
            CE_WEIGHT,
            game.TEMPERATURE,
            game.LIMIT,
        )
        policy, kept = game.student(players["student"], batches[1], players["reference"])
        metrics = policy.update(game.groups(), losses.advantages(MeanOnly(), rewards_PG), objective)
    plain.assert_same_gradients(kept.gradients, wanted.gradients, 1e-9)
    assert metrics["student/loss"] == pytest.approx(wanted.loss, rel=1e-11)
    assert metrics["student/kl_to_reference"] == pytest.approx(wanted.kl, rel=1e-11)
    assert metrics["student/cross_entropy"] == pytest.approx(wanted.cross_entropy, rel=1e-11)
    assert metrics["student/entropy"] == pytest.approx(wanted.entropy, rel=1e-11)
    norm = math.sqrt(math.fsum(float(g.square().sum()) for g in wanted.gradients.values()))
    assert metrics["student/grad_norm"] == pytest.approx(norm, rel=1e-9)
    return batches[0].batches, batches[1].batches


@pytest.mark.parametrize("layout", ["padded", "tree", "cache", "auto"])
@pytest.mark.parametrize("budget", [140, 4096])
def test_every_layout_and_budget(layout: str, budget: int) -> None:
    """The budget decides into how many micro-batches a step is cut, and nothing else."""
    counts = check_step("qwen2", layout, budget)
    assert counts == (1, 1) if budget == 4096 else min(counts) >= 2


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3", "llama3", "smollm"])
def test_other_architectures(architecture: str) -> None:
    check_step(architecture, "cache", 140)


@pytest.mark.parametrize(
    "kind",
    [
        Reinforce(),
        Reinforce(aggregation="sequence_mean"),
        Clipped(aggregation="sequence_mean"),
        ConstantLength(),
        SequenceRatio(),
    ],
    ids=lambda kind: f"{kind.kind}-{getattr(kind, 'aggregation', '')}",
)
def test_every_policy_loss(kind: PolicyLoss) -> None:
    check_step("qwen2", "tree", 140, kind=kind)


@pytest.mark.parametrize("loss", [CrossEntropy(), LeastSquares()], ids=lambda loss: loss.kind)
def test_every_discriminator_loss(loss: DiscriminatorLoss) -> None:
    check_step("qwen2", "padded", 300, loss=loss)


def test_another_kl_estimator() -> None:
    check_step("qwen2", "auto", 200, estimator="k2")


@pytest.mark.parametrize("layout", ["padded", "tree", "cache"])
@pytest.mark.parametrize("tuning", [game.LORA, Full()], ids=["lora", "full"])
def test_with_activation_checkpointing(layout: str, tuning: Tuning) -> None:
    check_step("gemma2", layout, 140, tuning=tuning, checkpointing=True)


def test_full_tuning() -> None:
    check_step("smollm", "auto", 140, tuning=Full())
