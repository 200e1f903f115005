"""TRL's prompt-completion format, out and in again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gad.config.data import Filters, Source
from gad.data import export_trl, load_examples
from gad.records import Example, Message, Prompt, TeacherReply

EXAMPLES = (
    Example(
        Prompt("1", (Message("system", "Be brief."), Message("user", "Eis\u2028und \U0001f9ca?\r\n"))),
        (TeacherReply("Frozen\nwater.", "gpt", True), TeacherReply(" cut", "gpt", False)),
    ),
    Example(
        Prompt("../../etc", (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))),
        (TeacherReply("d"),),
    ),
)


def test_lines_are_trls_conversational_prompt_completion(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    assert export_trl(EXAMPLES, path) == 3
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert lines[0] == {
        "id": "1",
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Eis\u2028und \U0001f9ca?\r\n"},
        ],
        "completion": [{"role": "assistant", "content": "Frozen\nwater."}],
        "model": "gpt",
        "finish_reason": "stop",
    }
    assert [line["finish_reason"] for line in lines] == ["stop", "length", "stop"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    export_trl(EXAMPLES, path)
    loaded = load_examples(Source(path=str(path)), filters=Filters(drop_truncated=False))
    assert loaded.examples == EXAMPLES
    assert loaded.origin.dropped == ()


text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)
examples = st.lists(
    st.builds(
        lambda turns, replies: ([Message("user", t) for t in turns], [TeacherReply(r) for r in replies]),
        st.lists(text, min_size=1, max_size=3, unique=True),
        st.lists(text, min_size=1, max_size=3, unique=True),
    ),
    min_size=1,
    max_size=5,
    unique_by=lambda pair: tuple(pair[0]),
)


@settings(max_examples=60, deadline=None)
@given(examples)
def test_any_text_comes_back_unchanged(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[list[Message], list[TeacherReply]]]
) -> None:
    made = tuple(Example(Prompt(f"id {i}", tuple(turns)), tuple(replies)) for i, (turns, replies) in enumerate(drawn))
    path = tmp_path_factory.mktemp("trl") / "out.jsonl"
    export_trl(made, path)
    assert load_examples(Source(path=str(path)), filters=Filters(drop_refused=False)).examples == made
