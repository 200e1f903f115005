from __future__ import annotations

import math

import pytest

from gad.config.run import CheckpointChoice
from gad.judging.selection import best_checkpoint

PREFERENCE = CheckpointChoice(metric="preference", min_length_ratio=0.67, max_length_ratio=1.5)
AUC = CheckpointChoice(metric="c2st_auc", min_length_ratio=0.67, max_length_ratio=1.5)
CANDIDATES = {"gad-30": (0.61, 1.9), "gad-20": (0.55, 1.2), "gad-10": (0.42, 1.0)}


def test_highest_preference_inside_the_window_and_the_reason_says_so():
    chosen, reason = best_checkpoint(CANDIDATES, PREFERENCE)
    assert chosen == "gad-20"
    assert reason == (
        "the highest preference, 0.550, of 2 checkpoints that write 0.67 to 1.5 times the teacher's length "
        "(it writes 1.20 times); 1 outside of that window was not considered"
    )


def test_auc_is_best_near_one_half_from_either_side():
    assert best_checkpoint({"c": (0.7, 1.0), "b": (0.46, 1.0), "a": (0.58, 1.0)}, AUC)[0] == "b"


def test_the_latest_wins_a_tie():
    assert best_checkpoint({"c": (0.5, 1.0), "b": (0.5, 1.0)}, PREFERENCE)[0] == "c"


def test_the_bounds_belong_to_the_window():
    assert best_checkpoint({"c": (0.2, 1.0), "b": (0.9, 1.5), "a": (0.8, 0.67)}, PREFERENCE)[0] == "b"


def test_where_none_is_inside_the_nearest_is_taken_and_the_reason_says_so():
    chosen, reason = best_checkpoint({"c": (0.9, 4.0), "b": (0.1, 0.5), "a": (0.5, 2.2)}, PREFERENCE)
    assert chosen == "b"  # .67 / .5 = 1.34, 2.2 / 1.5 = 1.47
    assert reason.startswith("none of 3 checkpoints writes")


def test_last_chooses_nothing():
    chosen, reason = best_checkpoint(CANDIDATES, CheckpointChoice(metric="last"))
    assert chosen == "gad-30"
    assert "nothing was selected" in reason


@pytest.mark.parametrize("figures", [(math.nan, 1.0), (0.5, math.nan), (0.5, 0.0)])
def test_what_cannot_be_compared_is_refused(figures):
    with pytest.raises(ValueError, match="checkpoint x"):
        best_checkpoint({"x": figures}, PREFERENCE)


def test_nothing_to_choose_from():
    with pytest.raises(ValueError, match="no checkpoint"):
        best_checkpoint({}, PREFERENCE)
