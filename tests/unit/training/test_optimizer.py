"""AdamW against its formula, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gad.config.training import Optimizer
from gad.errors import CheckpointError
from gad.training.optimizer import Updater, entries, learning_rate


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [3.0, 3.0, 3.0, 3.0, 3.0, 3.0]),
        ({"schedule": "linear"}, [3.0, 2.5, 2.0, 1.5, 1.0, 0.5]),
        ({"warmup_steps": 3}, [1.0, 2.0, 3.0, 3.0, 3.0, 3.0]),
        ({"warmup_steps": 2, "schedule": "linear"}, [1.5, 3.0, 3.0, 2.25, 1.5, 0.75]),
        ({"warmup_steps": 6, "schedule": "linear"}, [0.5, 1.0, 1.5, 2.0, 2.5, 3.0]),
        ({"warmup_steps": 12, "schedule": "linear"}, [0.25, 0.5, 0.75, 1.0, 1.25, 1.5]),
    ],
)
def test_the_rate_at_each_of_six_steps(settings: dict[str, object], expected: list[float]) -> None:
    config = Optimizer.model_validate({"learning_rate": 3.0, **settings})
    assert [learning_rate(config, step, 6) for step in range(1, 7)] == pytest.approx(expected, rel=1e-12)


def test_beyond_the_last_step_the_linear_rate_is_zero_not_negative() -> None:
    config = Optimizer(learning_rate=3.0, schedule="linear")
    assert [learning_rate(config, step, 6) for step in (7, 8, 100)] == [0.0, 0.0, 0.0]


def weights(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (4,)]
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)) for shape in shapes]


def give_gradients(parameters: list[nn.Parameter], seed: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters:
        parameter.grad = (torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * scale).to(
            parameter.dtype
        )


def test_steps_follow_the_formula() -> None:
    """arXiv 1711.05101 by hand: clipped gradient, moments with bias correction, decay apart from the gradient."""
    config = Optimizer(learning_rate=0.1, schedule="linear", weight_decay=0.05, betas=(0.8, 0.95), max_grad_norm=0.5)
    parameters = weights()
    updater = Updater(parameters, config, total_steps=4)
    expected = [parameter.detach().flatten().tolist() for parameter in parameters]
    first = [[0.0] * len(row) for row in expected]
    second = [[0.0] * len(row) for row in expected]
    for step in (1, 2, 3):
        scale = 0.01 if step == 2 else 1.0  # the second one is below the bound and stays as it is
        give_gradients(parameters, step, scale)
        gradients = [parameter.grad.flatten().tolist() for parameter in parameters]  # type: ignore[union-attr]
        norm = math.sqrt(sum(g * g for row in gradients for g in row))
        assert updater.step(step) == pytest.approx(norm, rel=1e-12)
        assert (norm > 0.5) == (step != 2)
        clip = min(1.0, 0.5 / (norm + 1e-6))
        rate = 0.1 * (1 - (step - 1) / 4)
        for p, row in enumerate(gradients):
            for i, raw in enumerate(row):
                g = raw * clip
                first[p][i] = 0.8 * first[p][i] + 0.2 * g
                second[p][i] = 0.95 * second[p][i] + 0.05 * g * g
                m, v = first[p][i] / (1 - 0.8**step), second[p][i] / (1 - 0.95**step)
                expected[p][i] = expected[p][i] * (1 - rate * 0.05) - rate * m / (math.sqrt(v) + 1e-8)
        found = [parameter.detach().flatten().tolist() for parameter in parameters]
        assert [x for row in found for x in row] == pytest.approx([x for row in expected for x in row], rel=1e-10)
        assert all(parameter.grad is None for parameter in parameters)


def test_a_rate_of_its_own_multiplies_every_step() -> None:
    """Adam's step does not depend on the gradient's size, so ten times the rate is ten times the way."""
    config = Optimizer(learning_rate=1e-3, schedule="linear", weight_decay=0.0, max_grad_norm=100.0)
    plain, mixed = weights(), weights()
    before = [parameter.detach().clone() for parameter in plain]
    updaters = [Updater(plain, config, 4), Updater(mixed, config, 4, rates=[1.0, 10.0])]
    for step in (1, 2, 3):
        for parameters, updater in zip((plain, mixed), updaters, strict=True):
            give_gradients(parameters, step)
            updater.step(step)
    assert torch.equal(plain[0], mixed[0])
    torch.testing.assert_close(mixed[1] - before[1], 10.0 * (plain[1] - before[1]), rtol=1e-9, atol=0.0)
    with pytest.raises(ValueError, match="shorter"):
        Updater(plain, config, 4, rates=[1.0])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_changes_nothing(bad: float) -> None:
    parameters = weights()
    updater = Updater(parameters, Optimizer(learning_rate=0.1), total_steps=4)
    give_gradients(parameters, 1)
    updater.step(1)
    before = [parameter.detach().clone() for parameter in parameters]
    moments = {name: tensor.clone() for name, tensor in updater.state().items()}
    give_gradients(parameters, 2)
    assert parameters[1].grad is not None
    parameters[1].grad[2] = bad
    assert updater.step(2) is None
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
    assert all(torch.equal(moments[name], tensor) for name, tensor in updater.state().items())
    assert all(parameter.grad is None for parameter in parameters)
    give_gradients(parameters, 3)
    assert updater.step(3) is not None
    assert not torch.equal(before[0], parameters[0])


def test_a_norm_that_overflows_is_not_finite() -> None:
    parameters = weights(torch.float32)
    updater = Updater(parameters, Optimizer(learning_rate=0.1), total_steps=4)
    before = [parameter.detach().clone() for parameter in parameters]
    give_gradients(parameters, 1, scale=1e30)
    assert updater.step(1) is None
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True))


def test_weights_without_a_gradient_stay() -> None:
    """As the adapters above the layer that a discriminator reads."""
    parameters = weights()
    updater = Updater(parameters, Optimizer(learning_rate=0.1, weight_decay=0.5), total_steps=4)
    give_gradients(parameters[:1], 1)
    before = [parameter.detach().clone() for parameter in parameters]
    updater.step(1)
    assert not torch.equal(parameters[0], before[0])
    assert torch.equal(parameters[1], before[1])
    assert {name.split(".")[0] for name in updater.state()} == {"0"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("first", [0, 1, 3])
def test_taking_up_the_state_equals_never_having_stopped(dtype: torch.dtype, first: int) -> None:
    """Bit for bit, three steps on; also where nothing was done yet."""
    config = Optimizer(learning_rate=0.1, schedule="linear", warmup_steps=2)
    parameters = weights(dtype)
    updater = Updater(parameters, config, total_steps=8)
    for step in range(1, first + 1):
        give_gradients(parameters, step)
        updater.step(step)
    others = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    resumed = Updater(others, config, total_steps=8)
    resumed.load({name: tensor.clone() for name, tensor in updater.state().items()})
    for step in range(first + 1, first + 4):
        for set_of in (parameters, others):
            give_gradients(set_of, step)
        assert updater.step(step) == resumed.step(step)
        assert all(torch.equal(a, b) for a, b in zip(parameters, others, strict=True))
    assert all(torch.equal(tensor, resumed.state()[name]) for name, tensor in updater.state().items())


def test_without_the_state_it_would_differ() -> None:
    """So the test above tests something."""
    parameters = weights()
    updater = Updater(parameters, Optimizer(learning_rate=0.1), total_steps=8)
    give_gradients(parameters, 1)
    updater.step(1)
    others = [nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    fresh = Updater(others, Optimizer(learning_rate=0.1), total_steps=8)
    for set_of, one in ((parameters, updater), (others, fresh)):
        give_gradients(set_of, 2)
        one.step(2)
    assert not torch.equal(parameters[0], others[0])


def test_the_state_of_another_model_is_refused() -> None:
    parameters = weights()
    updater = Updater(parameters, Optimizer(learning_rate=0.1), total_steps=8)
    give_gradients(parameters, 1)
    updater.step(1)
    for others in (weights()[:1], [*weights()[:1], nn.Parameter(torch.zeros(5))], weights()[::-1]):
        stranger = Updater(others, Optimizer(learning_rate=0.1), total_steps=8)
        with pytest.raises(CheckpointError, match="the optimizer's state belongs to another model; start the stage"):
            stranger.load(updater.state())
        assert stranger.state() == {}


def test_entries_under_a_prefix() -> None:
    state = {"weights.a.b": torch.ones(1), "optimizer.0.step": torch.zeros(1), "weightsx": torch.zeros(2)}
    assert list(entries(state, "weights.")) == ["a.b"]
    assert list(entries(state, "optimizer.")) == ["0.step"]
