"""What is said of a game that goes wrong: once, and only when several steps in a row show it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gad.training.signs import STEPS, Signs
from unit.training.test_run import Setup

WELL = {
    "reward/mean": 1.0,
    "reward/group_std": 0.4,
    "reply/truncated": 0.1,
    "reply/length_ratio_to_teacher": 1.1,
}
ILL = [
    ({"reply/truncated": 0.5}, "cut at prompt.max_reply_tokens"),
    ({"reply/length_ratio_to_teacher": 0.5}, "at most half as long"),
    ({"reward/group_std": 0.0}, "the same reward"),
]


def heard(rows: list[dict[str, float]]) -> list[list[str]]:
    """What each row is answered with."""
    signs = Signs()
    return [list(signs.of(step, row)) for step, row in enumerate(rows, start=1)]


@pytest.mark.parametrize(("change", "says"), ILL)
def test_a_sign_is_told_once_after_steps_in_a_row(change: dict[str, float], says: str) -> None:
    ill = {**WELL, **change}
    told = heard([WELL, *[ill] * (STEPS - 1), WELL, *[ill] * (2 * STEPS)])
    (place,) = [step for step, lines in enumerate(told, start=1) if lines]
    assert place == 2 * STEPS + 1
    (line,) = told[place - 1]
    assert says in line
    assert line.startswith(f"in steps {place - STEPS + 1} to {place} ")


@pytest.mark.parametrize(
    "change",
    [
        {"reply/truncated": 0.49},
        {"reply/length_ratio_to_teacher": 0.51},
        {"reward/group_std": 1e-6},
        {"reward/group_std": float("nan"), "reply/truncated": float("nan")},
    ],
)
def test_what_is_just_about_well_is_not_spoken_of(change: dict[str, float]) -> None:
    assert not any(heard([{**WELL, **change}] * (3 * STEPS)))


def test_several_signs_at_once() -> None:
    told = heard([{**WELL, "reply/truncated": 1.0, "reward/group_std": 0.0}] * STEPS)
    assert [len(lines) for lines in told] == [0] * (STEPS - 1) + [2]


def test_a_stage_of_the_game_says_it(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    run = setup.run(stage="adversarial")
    for step, _ in run.batches():
        run.log(step, {**WELL, "reply/truncated": 0.9})
    (line,) = setup.progress.lines
    assert line.startswith(f"adversarial: in steps 1 to {STEPS} half of the replies or more were cut")


def test_a_stage_that_plays_no_game_says_nothing(tmp_path: Path) -> None:
    """In a warm-up all replies may be cut: the student has learned nothing yet."""
    setup = Setup(tmp_path)
    run = setup.run()
    for step, _ in run.batches():
        run.log(step, {"reply/truncated": 1.0})
    assert setup.progress.lines == []
