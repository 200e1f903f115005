"""Scripted judges give the figures that theory says."""

from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from gad.judging.preference import (
    length_controlled_preference,
    position_bias,
    preferences_by_prompt,
    win_rate,
)
from gad.judging.statistics import agreement
from gad.records import Verdict


def judged(judge, quality, lengths, other_lengths, seed=0):
    """Both orders of every prompt. judge(better, longer, shown_first, random) -> preference of the first reply."""
    g = np.random.default_rng(seed)
    return [
        Verdict(str(i), judge(quality[i], lengths[i] > other_lengths[i], order == "first", g), order)
        for i in range(len(quality))
        for order in ("first", "second")
    ]


def left(better, longer, shown_first, g):
    return float(shown_first)


def longer_wins(better, longer, shown_first, g):
    return float(longer)


def perfect(better, longer, shown_first, g):
    return float(better)


def coin(better, longer, shown_first, g):
    return float(g.random() < 0.5)


@pytest.fixture(scope="module")
def study():
    g = np.random.default_rng(11)
    n = 200
    quality = g.random(n) < 0.7
    lengths = 100 + 30 * g.standard_normal(n) + 25
    return quality, lengths, np.full(n, 100.0)


def controlled(verdicts, lengths, other, seed=0, resamples=500):
    named = {str(i): value for i, value in enumerate(lengths)}
    others = {str(i): value for i, value in enumerate(other)}
    return length_controlled_preference(preferences_by_prompt(verdicts), named, others, seed=seed, resamples=resamples)


def test_left_always_is_all_position_and_no_preference(study):
    verdicts = judged(left, *study)
    rate, bias = win_rate(verdicts, seed=0), position_bias(verdicts, seed=0)
    assert (rate.wins, rate.ties, rate.losses) == (0, 200, 0)
    assert rate.preference.value == 0.5
    assert bias.shown_first.value == 1.0
    assert bias.shown_first.low > 0.95
    assert bias.consistent.value == 0.0


def test_longer_always_looks_like_preference_until_length_is_taken_out(study):
    verdicts = judged(longer_wins, *study)
    found = controlled(verdicts, study[1], study[2])
    share_longer = float(np.mean(study[1] > study[2]))
    assert found.raw.value == share_longer > 0.75
    assert found.raw.low > 0.7
    assert found.controlled.low < 0.5 < found.controlled.high
    assert abs(found.controlled.value - 0.5) < 0.1
    assert found.slope > 5.0
    assert found.longer.value == 1.0
    assert found.shorter.value == 0.0
    assert 0.3 < found.matched.value < 0.8
    bias = position_bias(verdicts, seed=0)
    assert bias.shown_first.value == 0.5
    assert bias.consistent.value == 1.0


def test_perfect_judge_finds_the_quality_and_no_bias(study):
    verdicts = judged(perfect, *study)
    rate, bias = win_rate(verdicts, seed=0), position_bias(verdicts, seed=0)
    truth = float(np.mean(study[0]))
    assert rate.preference.value == truth
    assert rate.wins == int(study[0].sum())
    assert rate.preference.low > 0.55
    assert bias.shown_first.value == 0.5
    found = controlled(verdicts, study[1], study[2])
    assert found.controlled.low < 0.7 < found.controlled.high
    assert abs(found.controlled.value - truth) < 0.06


def test_random_judge_is_50_give_or_take_its_interval_in_500_studies():
    n = 60
    held, unbiased = [], []
    for k in range(500):
        verdicts = judged(coin, [True] * n, np.ones(n), np.ones(n), seed=k)
        preference = win_rate(verdicts, seed=k).preference
        first = position_bias(verdicts, seed=k).shown_first
        held.append(preference.low <= 0.5 <= preference.high)
        unbiased.append(first.low <= 0.5 <= first.high)
    assert 0.93 <= np.mean(held) <= 0.97
    assert 0.93 <= np.mean(unbiased) <= 0.97


@pytest.mark.parametrize(("quality", "slope"), [(0.0, 0.0), (-0.5, 2.0)])
def test_length_controlled_interval_holds_the_truth_in_95_of_100_studies(quality, slope):
    g = np.random.default_rng(9)
    truth = 1 / (1 + math.exp(-quality))
    held = []
    for k in range(300):
        lengths = g.normal(120, 40, 100)
        x = np.tanh((lengths - 100) / 40)
        preferences = (g.random(100) < 1 / (1 + np.exp(-quality - slope * x))).astype(float)
        verdicts = [Verdict(str(i), preference) for i, preference in enumerate(preferences)]
        found = controlled(verdicts, lengths, np.full(100, 100.0), seed=k, resamples=200).controlled
        held.append(found.low <= truth <= found.high)
    assert 0.93 <= np.mean(held) <= 0.975


def test_length_controlled_fit_is_scikit_learns_logistic_regression():
    g = np.random.default_rng(2)
    lengths = g.normal(110, 30, 80)
    differences = lengths - 100
    x = np.tanh(differences / differences.std())
    preferences = np.clip(g.normal(0.6 + 0.2 * x, 0.2), 0, 1)
    found = length_controlled_preference(
        {str(i): p for i, p in enumerate(preferences)},
        {str(i): v for i, v in enumerate(lengths)},
        {str(i): 100.0 for i in range(80)},
        seed=0,
        resamples=10,
    )
    rows = np.append(x, 0.0)[:, None]  # one unseen prompt, a tie
    shares = np.append(preferences, 0.5)
    reference = LogisticRegression(C=1 / 0.0003, tol=1e-10, max_iter=1000).fit(
        np.concatenate([rows, rows]), [1] * 81 + [0] * 81, sample_weight=np.concatenate([shares, 1 - shares])
    )
    assert found.slope == pytest.approx(reference.coef_[0, 0], abs=1e-5)
    assert found.controlled.value == pytest.approx(1 / (1 + math.exp(-reference.intercept_[0])), abs=1e-6)


def test_equal_lengths_leave_the_raw_preference(study):
    n = 200
    verdicts = judged(perfect, study[0], np.full(n, 100.0), np.full(n, 100.0))
    found = controlled(verdicts, np.full(n, 100.0), np.full(n, 100.0))
    assert found.slope == 0.0
    assert found.controlled.value == pytest.approx(found.raw.value, abs=0.002)
    assert found.longer is None
    assert found.shorter is None
    assert found.matched.n == n
    assert found.as_dict()["longer"] is None


def test_where_every_reply_is_longer_by_the_same_nothing_is_known_of_equal_lengths():
    verdicts = [Verdict(str(i), float(i % 5 > 0)) for i in range(100)]
    found = controlled(verdicts, np.full(100, 130.0), np.full(100, 100.0))
    assert found.raw.value == 0.8
    assert found.controlled.low < 0.1
    assert found.controlled.high > 0.9
    assert found.matched is None


def test_swapping_the_replies_mirrors_every_figure(study):
    verdicts = judged(perfect, *study)
    mirror = {"first": "second", "second": "first"}
    swapped = [Verdict(v.prompt_id, 1.0 - v.preference, mirror[v.order]) for v in verdicts]
    assert win_rate(swapped, seed=0).losses == win_rate(verdicts, seed=0).wins
    assert position_bias(swapped, seed=0).shown_first.value == position_bias(verdicts, seed=0).shown_first.value
    forth = controlled(verdicts, study[1], study[2])
    back = controlled(swapped, study[2], study[1])
    assert back.controlled.value == pytest.approx(1 - forth.controlled.value)
    assert back.slope == pytest.approx(forth.slope)


def test_probabilities_and_repeats_are_averaged_within_their_order_first():
    verdicts = [Verdict("a", 0.9, "first"), Verdict("a", 0.7, "first"), Verdict("a", 0.2, "second")]
    assert preferences_by_prompt(verdicts) == {"a": pytest.approx(0.5)}
    assert position_bias(verdicts, seed=0).shown_first.value == pytest.approx(0.8)
    assert position_bias(verdicts, seed=0).consistent.value == 0.0


def test_one_order_alone_says_nothing_of_position():
    assert position_bias([Verdict("a", 1.0, "first"), Verdict("b", 0.0, "second")], seed=0) is None


def test_no_verdicts_are_refused():
    with pytest.raises(ValueError, match="no values"):
        win_rate([], seed=0)


def test_a_missing_length_names_the_prompt():
    with pytest.raises(ValueError, match="'b'"):
        length_controlled_preference({"a": 1.0, "b": 0.0}, {"a": 1, "b": 2}, {"a": 1}, seed=0)


def test_kappa_by_hand():
    # 20 both yes, 15 both no, 5 and 10 apart: raw .7, chance .5, kappa .4
    first = [1.0] * 20 + [1.0] * 5 + [0.0] * 10 + [0.0] * 15
    second = [1.0] * 20 + [0.0] * 5 + [1.0] * 10 + [0.0] * 15
    found = agreement(dict(enumerate(first)), dict(enumerate(second)), seed=0)
    assert found.raw.value == pytest.approx(0.7)
    assert found.kappa.value == pytest.approx(0.4)
    assert 0.1 < found.kappa.low < 0.3 < 0.5 < found.kappa.high < 0.7
    assert found.raw.n == 50


def test_agreement_of_a_judge_with_itself_its_opposite_and_chance():
    g = np.random.default_rng(0)
    one = {i: float(value) for i, value in enumerate(g.random(300) < 0.5)}
    other = {i: float(value) for i, value in enumerate(g.random(300) < 0.5)}
    assert agreement(one, one, seed=0).kappa.value == pytest.approx(1.0)
    assert agreement(one, {i: 1 - value for i, value in one.items()}, seed=0).kappa.value < -0.9
    chance = agreement(one, other, seed=0).kappa
    assert chance.low < 0.0 < chance.high


def test_agreement_needs_something_to_agree_on():
    assert agreement({1: 1.0, 2: 1.0}, {1: 1.0, 2: 1.0}, seed=0).kappa is None
    assert agreement({1: 0.9, 2: 0.2, 3: 0.5}, {2: 0.4, 3: 0.5, 9: 1.0}, seed=0).raw.n == 2
    with pytest.raises(ValueError, match="in common"):
        agreement({1: 1.0}, {2: 1.0}, seed=0)
    with pytest.raises(ValueError, match="not in"):
        agreement({1: 7.0}, {1: 1.0}, seed=0)
