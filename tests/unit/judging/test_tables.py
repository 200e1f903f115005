from __future__ import annotations

import numpy as np
import pytest

from gad.judging.tables import Cell, agreement_table, paired_table


def by_prompt(values):
    return {str(i): float(value) for i, value in enumerate(values)}


@pytest.fixture
def scores():
    g = np.random.default_rng(0)
    base = g.uniform(0.4, 0.55, 80)
    return {
        Cell("paper", "held_out", "gad", "reference"): by_prompt(base + 0.05 + g.normal(0, 0.02, 80)),
        Cell("paper", "held_out", "seqkd", "reference"): by_prompt(base),
        Cell("paper", "held_out", "base", "reference"): by_prompt(base + g.normal(0, 0.02, 80)),
        Cell("paper", "vicuna", "gad", "reference"): by_prompt(base),
    }


def test_arms_are_compared_prompt_by_prompt_within_a_set(scores):
    rows = paired_table(scores, seed=0)
    assert [(row["model"], row["against"]) for row in rows] == [("gad", "seqkd"), ("gad", "base"), ("seqkd", "base")]
    assert 0.045 < rows[0]["low"] < rows[0]["value"] < rows[0]["high"] < 0.055
    assert rows[0]["p_value"] == 1e-4
    assert rows[0]["p_value_corrected"] == pytest.approx(3e-4)
    assert rows[2]["p_value_corrected"] == rows[2]["p_value"] > 0.05
    assert {row["both_to"] for row in rows} == {"reference"}


def test_only_prompts_that_both_have_count(scores):
    del scores[Cell("paper", "held_out", "seqkd", "reference")]["3"]
    assert [row["n"] for row in paired_table(scores, seed=0)] == [79, 80, 79]


def test_two_judges_of_one_pair_agree_or_not():
    truth = by_prompt([1, 0] * 30)
    table = agreement_table(
        {
            Cell("one", "held_out", "gad", "teacher"): truth,
            Cell("two", "held_out", "gad", "teacher"): truth,
            Cell("people", "held_out", "gad", "teacher"): {key: 1 - value for key, value in truth.items()},
            Cell("two", "vicuna", "gad", "teacher"): truth,
        },
        seed=0,
    )
    assert {tuple(row["judges"]): row["raw"]["value"] for row in table} == {
        ("one", "two"): 1.0,
        ("one", "people"): 0.0,
        ("two", "people"): 0.0,
    }
    assert table[0]["kappa"]["value"] == pytest.approx(1.0)
