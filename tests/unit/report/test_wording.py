from __future__ import annotations

from typing import Any

import pytest

from gad.report.summary import Figure, Paired
from gad.report.wording import arm, comparison, figure_sentence, interval, meaning, p_written, rough, verdict, written


def paired(**changed: Any) -> Paired:
    entry = {"student": "gad", "against": "seqkd", "set": "held_out", "name": "preference", "n": 60}
    return Paired.model_validate(entry | {"difference": 0.22, "low": 0.11, "high": 0.33, "p_value": 0.001} | changed)


def figure(**changed: Any) -> Figure:
    entry = {"student": "gad", "set": "held_out", "name": "preference", "value": 0.54, "low": 0.47, "high": 0.59}
    return Figure.model_validate(entry | {"n": 60} | changed)


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (0.54, "share", "54%"),
        (0.786, "plain", "0.79"),
        (1.07, "ratio", "1.07×"),
        (2.66, "nats", "2.66"),
        (48.93, "score", "48.9"),
        (-0.5, "plain", "−0.50"),
        (None, "share", "–"),
        (float("nan"), "share", "–"),
        (float("inf"), "ratio", "–"),
    ],
)
def test_values(value: float | None, form: Any, text: str) -> None:
    assert written(value, form) == text


def test_differences_carry_their_sign() -> None:
    assert written(0.22, "share", signed=True) == "+22 points"
    assert written(-0.03, "plain", signed=True) == "−0.03"


def test_intervals() -> None:
    assert interval(0.47, 0.59, "share") == "47–59"
    assert interval(-0.06, 0.16, "share") == "−6 to 16"
    assert interval(0.5, 0.75, "plain") == "0.50–0.75"
    assert interval(None, 0.75, "plain") == ""
    assert interval(float("-inf"), 0.75, "plain") == ""


def test_few_prompts_lose_their_digits() -> None:
    assert rough(0.54, "share") == "≈ 50%"
    assert rough(0.786, "plain") == "≈ 0.8"
    assert rough(47.0, "score") == "≈ 50"


def test_p_values() -> None:
    assert [p_written(p) for p in (0.0001, 0.0204, 1.0, None)] == ["< .001", ".020", "1", "–"]


def test_a_difference_is_claimed_only_where_it_is_clear() -> None:
    assert verdict(paired()) == "better"
    assert verdict(paired(difference=-0.22, low=-0.33, high=-0.11)) == "worse"
    assert verdict(paired(p_value=0.2)) == "no clear difference by the corrected p-value"
    assert verdict(paired(p_value=0.2, low=-0.01)) == "no clear difference"
    assert verdict(paired(p_value=None)) == "better"
    assert verdict(paired(p_value=None, low=-0.01)) == "no clear difference"
    assert verdict(paired(n=19)) == "no clear difference"
    assert verdict(paired(n=20)) == "better"
    assert verdict(paired(difference=None)) == "no clear difference"


def test_lower_is_better_where_it_is_and_a_diagnostic_is_neither() -> None:
    assert verdict(paired(name="repetition", difference=-0.2)) == "better"
    assert verdict(paired(name="c2st_auc", difference=0.2)) == "easier to tell apart"
    assert verdict(paired(name="c2st_auc", difference=-0.2)) == "harder to tell apart"
    assert verdict(paired(name="overlap_f1_3", difference=0.2)) == "higher"


def test_comparisons_in_words() -> None:
    assert comparison(paired()) == "held-out +22 points (11 to 33), better"
    assert comparison(paired(n=12)) == "held-out only 12 prompts, too few to say"
    assert comparison(paired(difference=None)) == "held-out not measured"


@pytest.mark.parametrize(
    ("changed", "ending"),
    [
        ({}, "54% of 60 prompts (95% interval 47 to 59): not clearly above or below the teacher"),
        ({"low": 0.51}, "54% of 60 prompts (95% interval 51 to 59): above the teacher"),
        ({"value": 0.3, "low": 0.2, "high": 0.4}, "30% of 60 prompts (95% interval 20 to 40): below the teacher"),
        ({"n": 7}, "≈ 50% of only 7 prompts: too few to say"),
        ({"low": None}, "54% of 60 prompts, without an interval"),
    ],
)
def test_a_preference_in_words(changed: dict[str, Any], ending: str) -> None:
    assert figure_sentence(figure(**changed)) == ending


def test_judges_and_overlap_explain_themselves() -> None:
    assert meaning("judge_gpt_win_rate").title == "gpt: win rate"
    assert meaning("judge_gpt_length_controlled").title == "gpt: win rate at equal length"
    assert meaning("judge_gpt_score").level == 50.0
    assert meaning("overlap_f1_4").title == "4-gram overlap"
    assert meaning("something_new").title == "something new"


def test_arms_keep_the_users_names_but_no_tricks() -> None:
    assert arm("seqkd") == "SeqKD"
    assert arm("my\u202estudent") == "my⟨U+202E⟩student"
