"""Estimates: coverage in simulated studies, closed forms, invariances."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from gad.judging.statistics import (
    Estimate,
    bootstrap_mean,
    detectable_points,
    holm,
    paired_difference,
    prompts_needed,
    ratio_of_means,
)


def proportion(p):
    return p, lambda g, n: (g.random(n) < p).astype(float).tolist()


def two_orders(g, n):
    return (g.random((n, 2)) < 0.5).mean(axis=1).tolist()


def four_uneven_replies(g, n):
    chance = g.beta(1.8, 0.2, n)[:, None]
    return (g.random((n, 4)) < chance).astype(float).tolist()


STUDIES = {
    "random judge": proportion(0.5),
    "one in ten": proportion(0.1),
    "nine in ten": proportion(0.9),
    "random judge in two orders": (0.5, two_orders),
    "ties": (0.55, lambda g, n: g.choice([0.0, 0.5, 1.0], n, p=[0.2, 0.5, 0.3]).tolist()),
    "four replies a prompt, easy and hard prompts": (0.9, four_uneven_replies),
    "scores around 50": (50.0, lambda g, n: g.normal(50, 5, n).tolist()),
    "skewed lengths": (30.0, lambda g, n: g.exponential(30, n).tolist()),
}


@pytest.mark.parametrize("study", STUDIES)
def test_interval_holds_the_truth_in_95_of_100_studies(study):
    truth, draw = STUDIES[study]
    g = np.random.default_rng(7)
    estimates = [bootstrap_mean(draw(g, 60), seed=k, resamples=500) for k in range(500)]
    held = np.mean([e.low <= truth <= e.high for e in estimates])
    assert 0.93 <= held <= 0.97 + 0.004


@pytest.mark.parametrize("chance", [0.5, 0.7])
def test_paired_interval_and_p_value_over_simulated_studies(chance):
    g = np.random.default_rng(1)
    held, rejected, agree = [], [], []
    for k in range(500):
        a, b = (g.random((2, 60)) < chance).astype(float)
        found = paired_difference(a.tolist(), b.tolist(), seed=k)
        inside = found.difference.low <= 0.0 <= found.difference.high
        held.append(inside)
        rejected.append(found.p_value < 0.05)
        agree.append(inside == (found.p_value >= 0.05))
    assert 0.93 <= np.mean(held) <= 0.97
    assert np.mean(rejected) <= 0.06
    assert np.mean(agree) > 0.97


def test_share_interval_is_wilsons_at_a_point_worked_by_hand():
    estimate = bootstrap_mean([1.0] * 45 + [0.0] * 15, seed=0)
    t = 2.000995378088268  # Student's .975 quantile with 59 degrees of freedom
    k = t * t / 60 * 61 / 60  # one unseen prompt
    half = math.sqrt(k * 0.1875 + k * k / 4)
    assert estimate.value == 0.75
    assert estimate.low == pytest.approx((0.75 + k / 2 - half) / (1 + k), abs=1e-8)
    assert estimate.high == pytest.approx((0.75 + k / 2 + half) / (1 + k), abs=1e-8)


def test_a_perfect_share_is_not_certain():
    estimate = bootstrap_mean([1.0] * 60, seed=0)
    assert estimate.high == pytest.approx(1.0)
    assert 0.92 < estimate.low < 0.96
    assert bootstrap_mean([0.0] * 60, seed=0).high == pytest.approx(1.0 - estimate.low)


def test_a_judge_that_ties_always_is_not_certain_either():
    estimate = bootstrap_mean([0.5] * 60, seed=0)
    assert estimate.low < 0.5 < estimate.high
    assert estimate.high - estimate.low < 0.05


def test_a_prompt_counts_once_however_many_replies_it_has():
    assert bootstrap_mean([[1.0] * 9, [0.0]], seed=0).value == 0.5
    many = [[value] * 8 for value in (0.0, 1.0, 1.0, 0.0, 1.0, 0.0)]
    once = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0]
    assert bootstrap_mean(many, seed=0) == bootstrap_mean(once, seed=0)


def test_intervals_move_and_scale_with_the_values():
    g = np.random.default_rng(0)
    values = g.normal(3.0, 1.0, 80).tolist()
    plain = bootstrap_mean(values, seed=5)
    moved = bootstrap_mean([10.0 * value - 7.0 for value in values], seed=5)
    assert moved.low == pytest.approx(10.0 * plain.low - 7.0)
    assert moved.high == pytest.approx(10.0 * plain.high - 7.0)
    assert plain == bootstrap_mean(values, seed=5)
    wide = bootstrap_mean(values, seed=5, level=0.99)
    assert wide.low < plain.low < plain.high < wide.high


def test_numpy_values_are_taken_as_lists_are():
    values = np.array([[1.0, 2.0], [3.0, 5.0], [0.0, 4.0]])
    assert bootstrap_mean(values, seed=0) == bootstrap_mean(values.tolist(), seed=0)
    assert bootstrap_mean(values[:, 0], seed=0) == bootstrap_mean([1.0, 3.0, 0.0], seed=0)


def test_one_prompt_gives_a_value_and_no_interval():
    estimate = bootstrap_mean([0.7], seed=0)
    assert estimate.as_dict() == {"value": 0.7, "low": None, "high": None, "n": 1}
    assert estimate.too_few
    assert paired_difference([0.7], [0.2], seed=0).p_value == 1.0


@pytest.mark.parametrize(
    ("values", "words"), [([], "no values"), ([[1.0], []], "number 1"), ([0.0, float("nan")], "number 1")]
)
def test_values_that_mean_nothing_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        bootstrap_mean(values, seed=0)


@pytest.mark.parametrize(
    "fields", [(0.5, 0.6, 0.7, 3), (0.5, 0.4, 0.6, 0), (math.nan, 0.0, 1.0, 3), (0.5, math.nan, 1.0, 3)]
)
def test_an_estimate_outside_of_its_interval_is_refused(fields):
    with pytest.raises(ValueError, match="estimate"):
        Estimate(*fields)


def test_sign_flip_test_is_exact_for_few_prompts():
    found = paired_difference([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], seed=0)
    assert found.p_value == 2 / 16
    assert found.difference.value == 2.5
    assert paired_difference([1.0, 0.0], [0.0, 1.0], seed=0).p_value == 1.0


def test_paired_difference_has_a_sign_and_a_small_p_value():
    g = np.random.default_rng(1)
    b = g.normal(50.0, 5.0, 100)
    a = b + g.normal(3.0, 4.0, 100)
    forth, back = paired_difference(a, b, seed=0), paired_difference(b, a, seed=0)
    assert forth.p_value == 1 / 10_000
    assert forth.difference.low < 3.0 < forth.difference.high
    assert forth.difference.high - forth.difference.low == pytest.approx(
        2 * 1.98422 * np.std(a - b, ddof=1) / 10, rel=1e-5
    )
    assert back.difference.low == pytest.approx(-forth.difference.high)


def test_equal_arms_differ_by_zero_but_not_for_certain():
    found = paired_difference([1.0] * 60, [1.0] * 60, seed=0)
    assert found.p_value == 1.0
    assert found.difference.low < -0.03
    assert found.difference.high > 0.03


def test_unequal_numbers_of_prompts_are_refused():
    with pytest.raises(ValueError, match="2 and 3 prompts"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0], seed=0)
    with pytest.raises(ValueError, match="2 and 3 prompts"):
        ratio_of_means([1.0, 2.0], [1.0, 2.0, 3.0])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    with pytest.raises(ValueError, match="p-values"):
        holm([1.5])


def test_power_by_hand_and_back():
    # (1.959964 + 0.841621)^2 * 50^2 / 10^2
    assert prompts_needed(10.0) == 197
    assert prompts_needed(5.0) == 785
    assert detectable_points(785) == pytest.approx(5.0, abs=0.01)
    assert all(a > b for a, b in pairwise(prompts_needed(points) for points in (1, 2, 5, 10, 20)))
    with pytest.raises(ValueError, match="points=0"):
        prompts_needed(0)
    with pytest.raises(ValueError, match="prompts=0"):
        detectable_points(0)


def test_promised_power_is_the_power_of_the_test():
    g = np.random.default_rng(5)
    n = prompts_needed(20.0, sd_points=50.0)
    found = [paired_difference(g.normal(20, 50, n), [0.0] * n, seed=k).p_value < 0.05 for k in range(200)]
    assert 0.72 < np.mean(found) < 0.88


def test_ratio_of_means_and_its_coverage():
    assert ratio_of_means([2.0, 4.0], [1.0, 2.0]).as_dict() == {"value": 2.0, "low": 2.0, "high": 2.0, "n": 2}
    g = np.random.default_rng(2)
    held = []
    for _ in range(500):
        teacher = g.gamma(4.0, 10.0, 60)
        student = 1.2 * g.gamma(4.0, 10.0, 60) * 0.5 + 0.6 * teacher
        estimate = ratio_of_means(student.tolist(), teacher.tolist())
        held.append(estimate.low <= 1.2 <= estimate.high)
    assert 0.93 <= np.mean(held) <= 0.97
    with pytest.raises(ValueError, match="not all zero"):
        ratio_of_means([0.0], [1.0])
