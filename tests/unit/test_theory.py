"""The statements of docs/theory.md on a vocabulary so small that every group of replies can be written down.

K groups, G replies per group, V replies in all, T = 2 tokens at most. Expectations are sums over all V^G groups,
weighted by their probability; float64 throughout, so "equal" means equal to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import pytest
import torch
from torch import Tensor

from gad.objectives import (
    bradley_terry,
    centered,
    constant_length,
    k1,
    kl_in_reward,
    leave_one_out,
    reinforce,
    sequence_mean,
    sequence_sum,
    standardized,
)

A, B, END = 0, 1, 2
REPLIES = ((END,), (A, A), (A, B), (A, END), (B, A), (B, B), (B, END))
TOKENS_VT = torch.tensor([[reply[0], reply[1] if len(reply) > 1 else 0] for reply in REPLIES])
MASK_VT = torch.tensor([[True, len(reply) > 1] for reply in REPLIES])
V = len(REPLIES)

Aggregation = Callable[[Tensor, Tensor, int], Tensor]


def random_numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def token_logps(weights: Tensor) -> Tensor:
    """log-probabilities (V, T) of a student that reads its last token; weights (3, 3): the start's row is the last."""
    table = torch.log_softmax(weights, dim=1)
    first_V = table[2][TOKENS_VT[:, 0]]
    second_V = table[TOKENS_VT[:, 0], TOKENS_VT[:, 1]]
    return torch.stack([first_V, second_V], dim=1)


def reply_logps(weights: Tensor) -> Tensor:
    return sequence_sum(token_logps(weights), MASK_VT)


def reverse_kl_gradient(weights: Tensor, target_V: Tensor) -> Tensor:
    """Of KL(student || target) over whole replies, by automatic differentiation of the full sum."""
    weights = weights.clone().requires_grad_()
    logps_V = reply_logps(weights)
    (gradient,) = torch.autograd.grad((logps_V.exp() * (logps_V - target_V)).sum(), weights)
    return gradient


def expected_gradient(
    weights: Tensor,
    rewards_V: Tensor,
    advantages: Callable[[Tensor], Tensor],
    G: int,
    aggregate: Aggregation = lambda losses, mask, sequences: constant_length(losses, mask, sequences, 1),
) -> Tensor:
    """Of the policy loss over groups of G replies that the student samples, every group weighted by its probability."""
    weights = weights.clone().requires_grad_()
    logps_VT = token_logps(weights)
    groups_KG = torch.tensor(list(product(range(V), repeat=G)))
    chances_K = reply_logps(weights).detach()[groups_KG].sum(dim=1).exp()
    assert chances_K.sum().item() == pytest.approx(1.0, abs=1e-12)
    rows_B = groups_KG.flatten()
    mask_BT = MASK_VT[rows_B]
    losses_BT = reinforce(logps_VT[rows_B], advantages(rewards_V[groups_KG]).flatten(), mask_BT)
    loss = aggregate(losses_BT * chances_K.repeat_interleave(G)[:, None], mask_BT, G)
    (gradient,) = torch.autograd.grad(loss, weights)
    return gradient


def optimal_scores(target_V: Tensor, logps_V: Tensor, prompt_constant: float = 0.0) -> Tensor:
    return (target_V - logps_V.detach()) + prompt_constant


TARGET_V = torch.log_softmax(random_numbers(1, V), dim=0)
WEIGHTS = random_numbers(2, 3, 3)
START = random_numbers(3, 3, 3)


def cosine(a: Tensor, b: Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0))


def close(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, rtol=0.0, atol=1e-12)


# 1. The best discriminator


TEACHER_COUNTS, STUDENT_COUNTS = torch.tensor([5, 1, 2, 4]), torch.tensor([1, 6, 2, 3])
BEST_SCORES = TEACHER_COUNTS.double().log() - STUDENT_COUNTS.double().log()


def game(scores_4: Tensor) -> Tensor:
    """Eq. 3 over 12 teacher replies that each meet the same 12 student replies: the expectation itself."""
    teacher_P = scores_4[torch.arange(4).repeat_interleave(TEACHER_COUNTS)]
    student_G = scores_4[torch.arange(4).repeat_interleave(STUDENT_COUNTS)]
    return bradley_terry(teacher_P, student_G.expand(len(teacher_P), -1))


@pytest.mark.parametrize("constant", [0.0, -3.5])
def test_the_best_bradley_terry_discriminator_is_the_log_ratio_up_to_a_constant(constant: float) -> None:
    scores = (BEST_SCORES + constant).requires_grad_()
    (gradient,) = torch.autograd.grad(game(scores), scores)
    assert close(gradient, torch.zeros(4, dtype=torch.float64))


def test_there_is_no_other_best_discriminator() -> None:
    """The loss is convex, and flat along nothing but a common constant."""
    hessian = torch.autograd.functional.hessian(game, random_numbers(4, 4))
    curvatures = torch.linalg.eigvalsh(hessian)
    assert abs(float(curvatures[0])) < 1e-12
    assert float(curvatures[1]) > 1e-3
    assert close(hessian @ torch.ones(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64))


def test_training_a_discriminator_finds_the_log_ratio() -> None:
    scores = random_numbers(5, 4).requires_grad_()
    optimizer = torch.optim.LBFGS([scores], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = game(scores)
        loss.backward()
        return loss

    optimizer.step(closure)
    found = scores.detach()
    assert torch.allclose(found - found.mean(), BEST_SCORES - BEST_SCORES.mean(), atol=1e-6)


# 2. On-policy: the policy gradient of the reverse KL


@pytest.mark.parametrize("prompt_constant", [0.0, 7.0])
@pytest.mark.parametrize("G", [2, 3])
def test_mean_only_gad_is_the_policy_gradient_of_the_reverse_kl(G: int, prompt_constant: float) -> None:
    """The reply's own share in the group mean shortens it by (G - 1) / G and turns it nowhere; c(x) does nothing."""
    rewards_V = optimal_scores(TARGET_V, reply_logps(WEIGHTS), prompt_constant)
    wanted = reverse_kl_gradient(WEIGHTS, TARGET_V)
    assert wanted.norm() > 0.1
    assert close(expected_gradient(WEIGHTS, rewards_V, centered, G), wanted * (G - 1) / G)
    assert close(expected_gradient(WEIGHTS, rewards_V, leave_one_out, G), wanted)


def test_a_mean_over_each_reply_s_own_tokens_is_another_gradient() -> None:
    rewards_V = optimal_scores(TARGET_V, reply_logps(WEIGHTS))
    wanted = reverse_kl_gradient(WEIGHTS, TARGET_V)
    assert cosine(expected_gradient(WEIGHTS, rewards_V, centered, 2, sequence_mean), wanted) < 0.99


def test_dividing_by_the_spread_is_another_gradient_and_in_pairs_sees_the_order_only() -> None:
    target_V = torch.log_softmax(TARGET_V + torch.tensor([0, 0, -12, 0, 0, 0, 0]), dim=0)
    rewards_V = optimal_scores(target_V, reply_logps(WEIGHTS))
    stretched_V = rewards_V.exp()
    scaled = expected_gradient(WEIGHTS, rewards_V, standardized, 2)
    assert cosine(scaled, reverse_kl_gradient(WEIGHTS, target_V)) < 0.9
    assert torch.allclose(scaled, expected_gradient(WEIGHTS, stretched_V, standardized, 2), atol=1e-4)
    assert not torch.allclose(
        expected_gradient(WEIGHTS, rewards_V, centered, 2),
        expected_gradient(WEIGHTS, stretched_V, centered, 2),
        atol=1e-2,
    )


def test_the_gradient_vanishes_where_the_student_is_the_teacher() -> None:
    target_V = reply_logps(START)
    assert close(reverse_kl_gradient(START, target_V), torch.zeros(3, 3, dtype=torch.float64))
    moved = expected_gradient(START, optimal_scores(target_V, reply_logps(START)), centered, 2)
    assert close(moved, torch.zeros(3, 3, dtype=torch.float64))


# 3. Frozen: hacked, and mended by a KL of weight 1


def test_a_frozen_discriminator_is_maximised_by_a_single_reply() -> None:
    """The student ends on argmax p / q_0, a reply that the teacher hardly ever gives: worse than where it began."""
    target_V = torch.tensor([0.02, 0.08, 0.1, 0.3, 0.3, 0.1, 0.1], dtype=torch.float64).log()
    start = torch.zeros(3, 3, dtype=torch.float64)
    start[2, END] = -6.0
    frozen_V = optimal_scores(target_V, reply_logps(start))
    hacked = int(frozen_V.argmax())
    assert REPLIES[hacked] == (END,)
    weights = start.clone()
    for _ in range(1000):
        weights -= 2.0 * expected_gradient(weights, frozen_V, centered, 2)
    logps_V = reply_logps(weights)
    assert logps_V.exp()[hacked] > 0.99
    ends = float((logps_V.exp() * (logps_V - target_V)).sum())
    assert ends == pytest.approx(-math.log(0.02), abs=0.1)
    begins = float((reply_logps(start).exp() * frozen_V).sum().neg())
    assert ends > 3 * begins


def penalised(weights: Tensor, frozen_V: Tensor, weight: float) -> Tensor:
    """Rewards (V) less `weight` times the log-ratio to the start, summed over each reply's tokens."""
    log_ratio_V = sequence_sum(k1(token_logps(weights), token_logps(START), MASK_VT), MASK_VT)
    return kl_in_reward(frozen_V[None], log_ratio_V[None], weight)[0]


@pytest.mark.parametrize("G", [2, 3])
def test_a_kl_of_weight_1_in_the_reward_restores_the_reverse_kl(G: int) -> None:
    """Exactly, and wherever the student has got to since the discriminator was frozen."""
    frozen_V = optimal_scores(TARGET_V, reply_logps(START), 2.0)
    rewards_V = penalised(WEIGHTS, frozen_V, 1.0)
    wanted = reverse_kl_gradient(WEIGHTS, TARGET_V)
    assert close(expected_gradient(WEIGHTS, rewards_V, centered, G), wanted * (G - 1) / G)
    assert cosine(expected_gradient(WEIGHTS, frozen_V, centered, G), wanted) < 0.99


@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_another_weight_has_another_target(weight: float) -> None:
    """q_0 (p / q_0)^(1/weight): sharper than the teacher below 1, between start and teacher above."""
    start_V = reply_logps(START)
    tilted_V = torch.log_softmax(start_V + (TARGET_V - start_V) / weight, dim=0)
    rewards_V = penalised(WEIGHTS, optimal_scores(TARGET_V, start_V), weight)
    got = expected_gradient(WEIGHTS, rewards_V, leave_one_out, 2)
    assert close(got, weight * reverse_kl_gradient(WEIGHTS, tilted_V))
    assert cosine(got, reverse_kl_gradient(WEIGHTS, TARGET_V)) < 0.999
