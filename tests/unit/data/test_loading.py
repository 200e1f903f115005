"""Rows of one prompt are put together; the same data give the same fingerprint."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from gad.config.data import Source
from gad.data import Dropped, load_examples, load_prompts
from gad.errors import DataError

Write = Callable[..., str]


def row(id: str | None, prompt: str, completion: str) -> dict[str, str | None]:
    return {"id": id, "prompt": prompt, "completion": completion}


def test_rows_of_one_prompt_become_its_replies(write: Write) -> None:
    path = write(
        "a.jsonl",
        row("1", "a", "x"),
        row("2", "b", "y"),
        row("1", "a", "x2"),
        row(None, "a", "x3"),
        row("other", "a", "x4"),
        row("other", "a", "x2"),
        {"id": "3", "prompt": "c", "completion": ["z1", "z2"]},
    )
    loaded = load_examples(Source(path=path))
    found = {example.prompt.id: [reply.text for reply in example.replies] for example in loaded.examples}
    assert found == {"1": ["x", "x2", "x3", "x4"], "2": ["y"], "3": ["z1", "z2"]}
    assert list(found) == ["1", "2", "3"]
    assert loaded.origin.renamed == 2
    assert loaded.origin.dropped == (Dropped("same reply to the same prompt", 1, (f"{path}:6",)),)


def test_the_same_words_with_another_system_prompt_are_another_prompt(write: Write) -> None:
    rows = [{"prompt": "a", "system": system, "completion": "x"} for system in ("s", "t", None)]
    assert len(load_examples(Source(path=write("a.jsonl", *rows))).examples) == 3


@pytest.mark.parametrize("second", ["1", 1])
def test_one_id_for_two_prompts_names_both_lines(write: Write, second: object) -> None:
    path = write(
        "a.jsonl",
        row("1", "a", "x"),
        row("1", "a", "y"),
        row("2", "b", "y"),
        {"id": second, "prompt": "c", "completion": "z"},
    )
    with pytest.raises(DataError) as caught:
        load_examples(Source(path=path))
    assert f"{path}:4: duplicate id: '1' is the id of another prompt at {path}:1" in str(caught.value)
    skipped = load_examples(Source(path=path), on_bad_rows="skip")
    assert [example.prompt.text for example in skipped.examples] == ["a", "b"]
    assert skipped.origin.dropped[0].reason == "bad row, duplicate id"


def test_an_id_that_was_merged_away_stays_taken(write: Write) -> None:
    path = write("a.jsonl", row("1", "a", "x"), row("2", "a", "y"), row("2", "b", "z"))
    with pytest.raises(DataError, match=r"a.jsonl:3: duplicate id: '2' .* at .*a.jsonl:2"):
        load_examples(Source(path=path))


def test_ids_collide_across_files_too(write: Write) -> None:
    sources = (Source(path=write("a.jsonl", row("1", "a", "x"))), Source(path=write("b.jsonl", row("1", "b", "y"))))
    with pytest.raises(DataError, match=r"b.jsonl:1: duplicate id: .*a.jsonl:1"):
        load_examples(sources)
    again = Source(path=write("b.jsonl", row("1", "a", "y"), row("2", "b", "y")))
    loaded = load_examples((sources[0], again))
    assert [len(example.replies) for example in loaded.examples] == [2, 1]
    assert loaded.origin.source == f"{sources[0].path}, {again.path}"
    assert loaded.origin.rows == 3


def test_prompts_given_twice_are_counted(write: Write) -> None:
    path = write("a.jsonl", {"id": "1", "prompt": "a"}, {"id": "2", "prompt": "a"}, {"prompt": "b"})
    loaded = load_prompts(Source(path=path))
    assert [prompt.id for prompt in loaded.prompts][:1] == ["1"]
    assert len(loaded.prompts) == 2
    assert [(d.reason, d.count, d.first) for d in loaded.origin.dropped] == [
        ("prompt given again", 1, (f"{path}:2: as 1",))
    ]


def test_fingerprint_is_of_the_content_that_is_used(write: Write) -> None:
    rows = [row("1", "a", "x"), row("2", "b", "y")]

    def fingerprint(name: str, *lines: object) -> str:
        return load_examples(Source(path=write(name, *lines))).origin.sha256

    base = fingerprint("a.jsonl", *rows)
    assert fingerprint("b.jsonl", *rows, row("3", "c", "")) == base
    assert fingerprint("c.jsonl", {**rows[0], "score": 3}, rows[1]) == base
    changed = [
        fingerprint("d.jsonl", rows[1], rows[0]),
        fingerprint("e.jsonl", rows[0], row("2", "b", "z")),
        fingerprint("f.jsonl", rows[0], row("3", "b", "y")),
        fingerprint("g.jsonl", rows[0], row("2", "c", "y")),
        fingerprint("h.jsonl", rows[0], {**rows[1], "model": "m"}),
        fingerprint("i.jsonl", rows[0]),
    ]
    assert len({base, *changed}) == 7


def test_origin_for_the_report(write: Write) -> None:
    path = write("a.jsonl", row("1", "a", "x"), row("2", "b", ""))
    origin = load_examples(Source(path=path)).origin.as_dict()
    assert origin["source"] == path
    assert origin["rows"] == 2
    assert origin["dropped"] == [{"reason": "empty reply", "count": 1, "first": [f"{path}:2"]}]
    assert origin["columns"]["completion"] == ["completion"]
    assert len(origin["sha256"]) == 64


def test_a_drop_of_nothing_is_no_record() -> None:
    with pytest.raises(ValueError, match="refused: 0"):
        Dropped("refused", 0, ())


def test_importing_the_package_is_light() -> None:
    heavy = "torch pyarrow rensa datasets sklearn openai plotly numpy"
    code = f"import sys, gad.data; print([m for m in '{heavy}'.split() if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
