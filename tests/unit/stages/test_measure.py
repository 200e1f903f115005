"""Students that are scored in one pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from gad.records import GeneratedReply
from gad.stages import measure
from gad.storage import read_jsonl
from unit.training import game


def test_students_scored_together_have_the_scores_that_they_have_alone(tmp_path: Path) -> None:
    """What stands in a file already stays there, whatever is scored beside it."""
    member = game.players("qwen2")["discriminator"]
    judge, _ = game.discriminator(game.scorer(member), game.batcher(member.network.config))
    examples = [group.example for group in game.groups()]
    students = {
        name: {e.prompt.id: GeneratedReply(e.prompt.id, e.prompt.messages, text, 3, finished=True) for e in examples}
        for name, text in (("one", "Yes."), ("two", "No, not at all."), ("three", ""))
    }

    def scored(folder: str, *names: str) -> dict[str, list[dict[str, float]]]:
        paths = {tmp_path / folder / f"{name}.jsonl": students[name] for name in names}
        measure.score(paths, examples, judge, game.codec())
        return {path.stem: list(read_jsonl(path)) for path in paths}

    together = scored("together", *students)
    for name, rows in together.items():
        alone = scored("alone", name)[name]
        assert [row["id"] for row in rows] == [example.prompt.id for example in examples]
        for row, other in zip(rows, alone, strict=True):
            assert row["student"] == pytest.approx(other["student"], rel=1e-9)
            assert row["teacher"] == pytest.approx(other["teacher"], rel=1e-9)
    assert together["one"] != together["two"]
    before = (tmp_path / "together" / "one.jsonl").read_bytes()
    (tmp_path / "together" / "two.jsonl").unlink()
    (tmp_path / "together" / "one.jsonl").write_bytes(before + b'{"id": "mark"}\n')
    assert scored("together", *students)["one"][-1] == {"id": "mark"}
    assert list(read_jsonl(tmp_path / "together" / "two.jsonl")) == together["two"]
