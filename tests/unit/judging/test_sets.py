"""Evaluation sets: the forms in which the paper's four are published, hashes, overlap with training."""

from __future__ import annotations

import json

import pytest

from gad.config.data import Source
from gad.config.judging import OwnSet, PublishedSet
from gad.errors import DataError
from gad.judging.sets import PUBLISHED, checked, load_set
from gad.records import Prompt

EDIT = "Make this sentence clearer."
TEXT = "It is what it is."
FORMS = {
    "minillm": {"instruction": EDIT, "input": TEXT, "output": "o", "prompt": "Below is an instruction ..."},
    "databricks": {"instruction": EDIT, "context": TEXT, "response": "o", "category": "closed_qa"},
    "self-instruct": {
        "id": "t0",
        "motivation_app": "G",
        "instruction": EDIT,
        "instances": [{"input": TEXT, "output": ""}],
    },
    "self-instruct on the hub": {"id": "t0", "instruction": EDIT, "instances": {"input": [TEXT], "output": [""]}},
    "plain": {"id": "t0", "prompt": [{"role": "user", "content": f"{EDIT}\n\n{TEXT}"}], "completion": "o"},
    "fastchat": {"question_id": 81, "category": "generic", "turns": [f"{EDIT}\n\n{TEXT}", "And shorter?"]},
    "vicuna's first": {"question_id": 81, "category": "generic", "text": f"{EDIT}\n\n{TEXT}"},
    "lmsys": {"id": "t0", "content": [{"role": "user", "content": f"{EDIT}\n\n{TEXT}"}], "teacher_response": "o"},
}


def written(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(path))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["selfinst", "vicuna", "dolly", "lmsys"])
def test_every_published_form_gives_the_same_prompt(form, name, tmp_path):
    found = load_set(PublishedSet(name=name, source=written(tmp_path / "set.jsonl", FORMS[form])))
    (prompt,) = found.prompts
    assert [m.as_dict() for m in prompt.messages] == [{"role": "user", "content": f"{EDIT}\n\n{TEXT}"}]
    assert prompt.id == {"t0": "t0", 81: "81", None: prompt.id}[FORMS[form].get("id", FORMS[form].get("question_id"))]


def test_an_empty_input_leaves_the_instruction_alone(tmp_path):
    source = written(
        tmp_path / "s.jsonl", {"instruction": "Hi?", "input": " "}, {"instruction": "Ho?", "instances": []}
    )
    assert [p.text for p in load_set(PublishedSet(name="selfinst", source=source)).prompts] == ["Hi?", "Ho?"]


def test_the_four_know_their_size_and_kind():
    assert {name: (form.size, form.kind) for name, form in PUBLISHED.items()} == {
        "lmsys": (500, "in_distribution"),
        "dolly": (500, "out_of_distribution"),
        "selfinst": (252, "out_of_distribution"),
        "vicuna": (80, "out_of_distribution"),
    }


def test_the_hash_is_of_rows_and_their_order(tmp_path):
    one, two = {"question_id": 1, "text": "a"}, {"question_id": 2, "text": "b"}
    hashes = [
        load_set(PublishedSet(name="vicuna", source=written(tmp_path / f"{i}.jsonl", *rows))).sha256
        for i, rows in enumerate([(one, two), (one, two), (two, one), (one,)])
    ]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3


def test_parquet_with_the_columns_of_the_hub(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "validation.parquet"
    pq.write_table(pa.Table.from_pylist([FORMS["minillm"]]), path)
    source = PUBLISHED["selfinst"].home.model_copy(update={"path": str(path), "format": "auto", "split": None})
    assert load_set(PublishedSet(name="selfinst", source=source)).prompts[0].text == f"{EDIT}\n\n{TEXT}"


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"question": "a"}], "not a row of vicuna as published"),
        ([{"text": "  "}], "not a row of vicuna as published"),
        ([{"turns": []}], "not a row of vicuna as published"),
        ([{"question_id": 1, "text": "a"}, {"question_id": 1, "text": "b"}], "with another prompt"),
        ([], "no rows"),
    ],
)
def test_rows_that_cannot_be_used_are_named(rows, words, tmp_path):
    with pytest.raises(DataError, match=words):
        load_set(PublishedSet(name="vicuna", source=written(tmp_path / "s.jsonl", *rows)))


def test_an_own_set_says_where_it_stands(tmp_path):
    source = written(tmp_path / "own.jsonl", {"id": "a", "prompt": "How do I boil an egg?"})
    found = load_set(OwnSet(name="mine", source=source, out_of_distribution=True))
    assert found.as_dict() == {
        "name": "mine",
        "kind": "out_of_distribution",
        "prompts": 1,
        "expected": None,
        "source": str(tmp_path / "own.jsonl"),
        "sha256": found.sha256,
        "overlap": [],
    }
    assert len(found.sha256) == 64


def test_overlap_with_training_is_refused_unless_allowed_and_then_marked(tmp_path):
    rows = [
        {"id": "a", "prompt": "How do I get a red wine stain out of a white shirt?"},
        {"id": "b", "prompt": "Why is the sky blue in the morning?"},
    ]
    found = load_set(OwnSet(name="mine", source=written(tmp_path / "own.jsonl", *rows)))
    train = [Prompt.from_text("t1", "how do i get a red wine stain out of a white shirt")]
    with pytest.raises(DataError, match=r"1 of 2 prompts of the set 'mine'.*a \(1\.00 like t1\).*allow_overlap"):
        checked(found, train, allow_overlap=False)
    assert checked(found, train, allow_overlap=True).overlap == ("a",)
    assert checked(found, [Prompt.from_text("t2", "Name three rivers.")], allow_overlap=False).overlap == ()
