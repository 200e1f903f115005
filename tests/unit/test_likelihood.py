"""A student whose likelihoods are not finite is named, and nothing is written of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from gad.errors import TrainingStopped
from gad.records import Example, Prompt, TeacherReply
from gad.stages import measure

EXAMPLES = [Example(Prompt.from_text(name, "Why?"), (TeacherReply("So."),)) for name in ("a", "b", "c")]


class Student:
    def __init__(self, values: Sequence[float]) -> None:
        self.values = list(values)

    def teacher_nll(self, prompts: Sequence[Prompt], replies: Sequence[TeacherReply]) -> list[float]:
        assert len(prompts) == len(replies) == len(self.values)
        return self.values


def measured(path: Path, *values: float) -> None:
    measure.likelihood(path, EXAMPLES, cast(Any, Student(values)))


def test_one_value_a_prompt(tmp_path: Path) -> None:
    measured(tmp_path / "seqkd" / "held_out.jsonl", 1.0, 0.5, 2.0)
    found = measure.read_column(tmp_path / "seqkd" / "held_out.jsonl", "nll")
    assert found == {"a": 1.0, "b": 0.5, "c": 2.0}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_student_that_diverged_is_named(bad: float, tmp_path: Path) -> None:
    path = tmp_path / "seqkd" / "held_out.jsonl"
    with pytest.raises(TrainingStopped, match=r"student seqkd has diverged.* 2 of 3 prompts, b first.*lower learning"):
        measured(path, 1.0, bad, bad)
    assert not path.exists()
