"""P prompts, G replies per prompt, B = P*G rows, T reply tokens."""

import math

import pytest
import torch

from gad.objectives import k1, k2, k3, kl_in_reward

ESTIMATORS = [k1, k2, k3]
every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda f: f.__name__)
LN2 = math.log(2)


def of_one_token(estimator, d: float, dtype: torch.dtype = torch.float64) -> tuple[float, float]:
    """Value and derivative with respect to logp at `d = ref_logp - logp`."""
    logp_BT = torch.zeros(1, 1, dtype=dtype, requires_grad=True)
    value_BT = estimator(logp_BT, torch.full((1, 1), d, dtype=dtype), torch.ones(1, 1, dtype=torch.bool))
    value_BT.sum().backward()
    return value_BT.item(), logp_BT.grad.item()


@pytest.mark.parametrize(
    ("estimator", "d", "value", "gradient"),
    [
        (k1, LN2, -LN2, 1.0), (k1, -LN2, LN2, 1.0), (k1, 0.0, 0.0, 1.0), (k1, 25.0, -25.0, 1.0),
        (k2, LN2, LN2**2 / 2, -LN2), (k2, -LN2, LN2**2 / 2, LN2), (k2, 0.0, 0.0, 0.0), (k2, 25.0, 312.5, -25.0),
        (k3, LN2, 1 - LN2, -1.0), (k3, -LN2, LN2 - 0.5, 0.5), (k3, 0.0, 0.0, 0.0),
        (k3, 19.0, math.exp(19) - 20, 1 - math.exp(19)), (k3, -19.0, 18 + math.exp(-19), 1 - math.exp(-19)),
        (k3, 25.0, math.exp(20) - 21, 0.0), (k3, -25.0, 19 + math.exp(-20), 0.0),
    ],
)  # fmt: skip
def test_value_and_gradient_at_a_known_point(estimator, d, value, gradient):
    assert of_one_token(estimator, d) == (
        pytest.approx(value, rel=1e-12, abs=1e-15),
        pytest.approx(gradient, rel=1e-12, abs=1e-15),
    )


def test_k3_of_a_small_difference_keeps_its_digits_in_single_precision():
    value, _ = of_one_token(k3, 1e-4, torch.float32)
    assert value == pytest.approx(5e-9, rel=1e-2)


def test_k3_is_finite_where_the_policy_calls_its_token_impossible():
    value, gradient = of_one_token(k3, math.inf)
    assert math.isfinite(value)
    assert gradient == 0.0


def expectation_over_the_policy(estimator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Exact mean over a four-token policy of the estimator and of its gradient; logits and reference."""
    logits = torch.tensor([0.5, -0.3, 1.2, 0.0], dtype=torch.float64, requires_grad=True)
    ref_logps = torch.tensor([0.1, 0.4, -0.2, 0.9], dtype=torch.float64).log_softmax(0)
    logps = logits.log_softmax(0)
    values = estimator(logps[:, None], ref_logps[:, None], torch.ones(4, 1, dtype=torch.bool))[:, 0]
    mean = (logps.detach().exp() * values).sum()
    (gradient,) = torch.autograd.grad(mean, logits)
    return mean.detach(), gradient, logits, ref_logps


def divergence(p_logs: torch.Tensor, q_logs: torch.Tensor) -> torch.Tensor:
    return (p_logs.exp() * (p_logs - q_logs)).sum()


@pytest.mark.parametrize("estimator", [k1, k3])
def test_k1_and_k3_are_unbiased(estimator):
    mean, _, logits, ref_logps = expectation_over_the_policy(estimator)
    torch.testing.assert_close(mean, divergence(logits.log_softmax(0), ref_logps).detach())


def test_k2_is_close_but_biased():
    mean, _, logits, ref_logps = expectation_over_the_policy(k2)
    exact = divergence(logits.log_softmax(0), ref_logps).item()
    assert mean.item() == pytest.approx(exact, rel=0.2)
    assert mean.item() != pytest.approx(exact, rel=0.01)


def test_k1_in_the_loss_has_no_gradient_in_expectation():
    _, gradient, _, _ = expectation_over_the_policy(k1)
    torch.testing.assert_close(gradient, torch.zeros(4, dtype=torch.float64))


def test_k2_in_the_loss_has_the_gradient_of_the_kl_to_the_reference():
    _, gradient, logits, ref_logps = expectation_over_the_policy(k2)
    (exact,) = torch.autograd.grad(divergence(logits.log_softmax(0), ref_logps), logits)
    torch.testing.assert_close(gradient, exact)


def test_k3_in_the_loss_has_the_gradient_of_the_kl_from_the_reference():
    _, gradient, logits, ref_logps = expectation_over_the_policy(k3)
    (exact,) = torch.autograd.grad(divergence(ref_logps, logits.log_softmax(0)), logits)
    torch.testing.assert_close(gradient, exact)


def batch():
    g = torch.Generator().manual_seed(0)
    logps_BT, ref_BT = torch.randn(2, 3, 4, generator=g, dtype=torch.float64)
    return logps_BT, ref_BT, torch.arange(4) < torch.tensor([[3], [0], [4]])


@every_estimator
def test_agrees_with_the_definition(estimator):
    formula = {k1: lambda d: -d, k2: lambda d: d * d / 2, k3: lambda d: math.exp(d) - d - 1}[estimator]
    logps_BT, ref_BT, mask_BT = batch()
    rows = zip(logps_BT.tolist(), ref_BT.tolist(), mask_BT.tolist(), strict=True)
    expected = [[formula(r - p) if on else 0.0 for p, r, on in zip(*row, strict=True)] for row in rows]
    torch.testing.assert_close(
        estimator(logps_BT, ref_BT, mask_BT),
        torch.tensor(expected, dtype=torch.float64),
        rtol=1e-12,
        atol=1e-15,
    )


@pytest.mark.parametrize("estimator", [k2, k3])
def test_k2_and_k3_are_never_negative(estimator):
    g = torch.Generator().manual_seed(1)
    d_BT = torch.randn(50, 40, generator=g) * torch.logspace(-5, 1, 50)[:, None]
    assert (estimator(torch.zeros(50, 40), d_BT, torch.ones(50, 40, dtype=torch.bool)) >= 0).all()


@every_estimator
def test_gradcheck(estimator):
    logps_BT, ref_BT, mask_BT = batch()
    assert torch.autograd.gradcheck(lambda x: estimator(x, ref_BT, mask_BT), logps_BT.requires_grad_())


@every_estimator
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf])
def test_padding_reaches_neither_value_nor_gradient(estimator, garbage):
    logps_BT, ref_BT, mask_BT = batch()
    dirty_BT = torch.where(mask_BT, logps_BT, garbage).requires_grad_()
    value_BT = estimator(dirty_BT, torch.where(mask_BT, ref_BT, garbage), mask_BT)
    value_BT.sum().backward()
    assert torch.equal(value_BT.detach(), estimator(logps_BT, ref_BT, mask_BT))
    assert value_BT[~mask_BT].tolist() == dirty_BT.grad[~mask_BT].tolist() == [0.0] * 5


@every_estimator
def test_no_gradient_reaches_the_reference(estimator):
    logps_BT, ref_BT, mask_BT = batch()
    value_BT = estimator(logps_BT.requires_grad_(), ref_BT.requires_grad_(), mask_BT)
    _, reference = torch.autograd.grad(value_BT.sum(), (logps_BT, ref_BT), allow_unused=True)
    assert reference is None


def test_kl_in_reward_takes_the_weighted_kl_off():
    rewards_PG, kl_sum_PG = torch.tensor([[1.0, 2.0]]), torch.tensor([[10.0, -4.0]])
    assert kl_in_reward(rewards_PG, kl_sum_PG, 0.25).tolist() == [[-1.5, 3.0]]
    assert kl_in_reward(rewards_PG, kl_sum_PG, 0.0).tolist() == [[1.0, 2.0]]


def test_kl_in_reward_lets_no_gradient_through():
    rewards_PG, kl_sum_PG = torch.zeros(1, 2, requires_grad=True), torch.zeros(1, 2, requires_grad=True)
    assert not kl_in_reward(rewards_PG, torch.zeros(1, 2), 0.1).requires_grad
    assert not kl_in_reward(torch.zeros(1, 2), kl_sum_PG, 0.1).requires_grad


def test_kl_in_reward_widens_half_precision():
    rewards_PG, kl_sum_PG = torch.tensor([[256.0]]).bfloat16(), torch.tensor([[1.0]]).bfloat16()
    assert kl_in_reward(rewards_PG, kl_sum_PG, 0.5).tolist() == [[255.5]]
    assert kl_in_reward(rewards_PG - 256, kl_sum_PG, 0.001).item() == pytest.approx(-0.001, rel=1e-6)


@pytest.mark.parametrize("weight", [-0.001, math.inf, math.nan])
def test_kl_in_reward_refuses_a_weight(weight):
    with pytest.raises(ValueError, match=rf"^weight = {weight}: a KL penalty needs a finite weight of 0 or more$"):
        kl_in_reward(torch.zeros(1, 2), torch.zeros(1, 2), weight)


@pytest.mark.parametrize("shapes", [((2, 2), (2,)), ((2,), (2, 2))])
def test_a_kl_of_another_shape_is_a_bug(shapes):
    with pytest.raises(AssertionError):
        kl_in_reward(torch.zeros(shapes[0]), torch.zeros(shapes[1]), 0.1)


def test_kl_in_reward_is_the_policy_gradient_of_the_kl():
    """REINFORCE on a zero reward less the k1 of each token: exactly the gradient of KL(policy || reference)."""
    logits = torch.tensor([0.5, -0.3, 1.2], dtype=torch.float64, requires_grad=True)
    ref_logps = torch.tensor([0.1, 0.4, -0.2], dtype=torch.float64).log_softmax(0)
    logps, mask_BT = logits.log_softmax(0), torch.ones(3, 1, dtype=torch.bool)
    rewards_PG = kl_in_reward(torch.zeros(1, 3), k1(logps[:, None], ref_logps[:, None], mask_BT).T, 1.0)
    surrogate = -(logps.detach().exp() * rewards_PG[0] * logps).sum()
    (estimated,) = torch.autograd.grad(surrogate, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(divergence(logps, ref_logps), logits)
    torch.testing.assert_close(estimated, exact)
