"""Replies that other weights sampled: each token's loss is weighed by p_trained / p_sampled, up to a cap."""

from __future__ import annotations

import math
from dataclasses import replace
from operator import ge, gt

import pytest
import torch

from gad.config.training import Clipped, ConstantLength, Kl, PolicyLoss, Reinforce, SequenceRatio
from gad.records import RolloutGroup
from gad.training import losses
from gad.training.losses import Totals
from gad.training.student import PolicyObjective
from unit.models import plain
from unit.training import game
from unit.training.test_step_gradient import prompt_ids

ADVANTAGES = torch.tensor([[1.0, -2.0, 0.5], [0.25, -0.5, 0.75], [1.5, -1.0, 0.0], [-0.75, 2.0, 1.0]])
SHIFTS = (-1.5, 0.0, 0.2, 0.9, -0.1)
"""log p_sampled - log p_trained of the tokens of a reply, over and over."""


@pytest.mark.parametrize(
    ("kind", "shares"),
    [
        (Reinforce(), [1 / 5] * 5),
        (Clipped(), [1 / 5] * 5),
        (Clipped(aggregation="sequence_mean"), [1 / 6] * 3 + [1 / 4] * 2),
        (ConstantLength(), [1 / 20] * 5),
    ],
    ids=["reinforce", "clipped", "sequence mean", "constant length"],
)
def test_a_tokens_gradient_is_multiplied_by_its_weight(kind: PolicyLoss, shares: list[float]) -> None:
    """Replies of 3 and 2 tokens with advantages 3 and -1, at most 10 tokens."""
    logps = torch.tensor([[-1.0, -2.0, -0.5], [-0.3, -0.7, 0.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[True, True, True], [True, True, False]])
    weights = torch.tensor([[1.0, 0.5, 2.0], [0.0, 1.5, 0.0]], dtype=torch.float64)
    advantages = torch.tensor([3.0, -1.0], dtype=torch.float64)
    totals = Totals(tokens=5, sequences=2, max_reply_tokens=10)
    losses.policy(kind, logps, advantages, mask, totals, weights).backward()
    assert logps.grad is not None
    found = logps.grad[mask].tolist()
    expected = [-a * w * s for a, w, s in zip([3.0] * 3 + [-1.0] * 2, weights[mask].tolist(), shares, strict=True)]
    assert found == pytest.approx(expected)


def test_of_sequence_ratios_too_a_weight_of_two_doubles_the_gradient() -> None:
    logps = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 2, dtype=torch.bool)
    loss = losses.policy(SequenceRatio(), logps, torch.tensor([3.0]), mask, Totals(2, 1, 10), torch.full((1, 2), 2.0))
    loss.backward()
    assert logps.grad is not None
    assert logps.grad[0].tolist() == pytest.approx([-3.0, -3.0])


@pytest.mark.parametrize("layout", ["padded", "tree", "cache"])
@pytest.mark.parametrize("cap", [None, 1.0, 1.3, 100.0])
@plain.wide()
def test_a_step_on_stale_replies_equals_plain_loops(layout: str, cap: float | None) -> None:
    players = game.players("qwen2")
    member = players["student"]
    reference = plain.Plain("qwen2", member, game.LORA)
    groups, advantages, total, count = [], ADVANTAGES.double(), torch.zeros((), dtype=torch.float64), 0
    weights = []
    for group, row in zip(game.groups(), advantages, strict=True):
        stale = []
        for rollout, advantage in zip(group.rollouts, row.tolist(), strict=True):
            now = reference.logps(prompt_ids(group.example.prompt.id), rollout.token_ids, game.TEMPERATURE)
            shifts = [SHIFTS[index % len(SHIFTS)] for index in range(len(now))]
            stale.append(replace(rollout, logps=tuple(n.item() + s for n, s in zip(now, shifts, strict=True))))
            for logp, shift in zip(now, shifts, strict=True):
                weight = 1.0 if cap is None else min(math.exp(-shift), cap)
                total = total - advantage * weight * logp
                weights.append(weight)
                count += 1
        groups.append(RolloutGroup(group.example, group.teacher, tuple(stale)))
    trainer, keeper = game.student(member, game.batcher(member.network.config, layout, budget=130))
    objective = PolicyObjective(Reinforce(), Kl(weight=0.0), 0.0, game.TEMPERATURE, game.LIMIT, cap)
    metrics = trainer.update(groups, advantages, objective)
    plain.assert_same_gradients(keeper.gradients, reference.gradients(total / count), 1e-9)
    shifts = [SHIFTS[index % len(SHIFTS)] for group in groups for r in group.rollouts for index in range(len(r.logps))]
    assert metrics["rollout/logp_gap"] == pytest.approx(math.fsum(map(abs, shifts)) / count)
    if cap is None:
        assert "rollout/importance_mean" not in metrics
    else:
        assert metrics["rollout/importance_mean"] == pytest.approx(math.fsum(weights) / count)
        over, at_least = (sum(above(math.exp(-shift), cap) for shift in shifts) / count for above in (gt, ge))
        assert over <= metrics["rollout/importance_capped"] <= at_least  # a weight of just the cap may be either
        assert (over, at_least) != (0.0, 1.0)


def test_no_gap_is_reported_where_the_sampler_said_nothing() -> None:
    player = game.players("qwen2")["student"]
    trainer, _ = game.student(player, game.batcher(player.network.config))
    objective = PolicyObjective(Reinforce(), Kl(weight=0.0), 0.0, game.TEMPERATURE, game.LIMIT)
    assert "rollout/logp_gap" not in trainer.update(game.groups(), ADVANTAGES, objective)
