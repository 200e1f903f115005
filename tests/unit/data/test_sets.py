"""Train, held-out and out-of-distribution sets from their config."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from gad.config.data import Columns, DataConfig, Filters, HeldOutShare, LeakCheck, Source
from gad.data import DataSets, held_out_ids, load_data, load_examples, split_held_out
from gad.errors import DataError

Write = Callable[..., str]


def rows(count: int, start: int = 0, words: str = "plain") -> list[dict[str, str]]:
    numbers = range(start, start + count)
    texts = [hashlib.sha256(f"{words}{i}".encode()).hexdigest() for i in numbers]
    return [
        {"id": f"{words}{i}", "prompt": f"{words} {text}", "completion": f"answer {i}"}
        for i, text in zip(numbers, texts, strict=True)
    ]


def load(seed: int = 0, **config: Any) -> DataSets:
    return load_data(DataConfig.model_validate(config), seed)


def test_plain_text_a_mapping_and_a_list_are_sources() -> None:
    config = DataConfig.model_validate({"train": "a.jsonl", "held_out": "b.jsonl", "out_of_distribution": "c/d"})
    assert config.train == (Source(path="a.jsonl"),)
    assert config.held_out == Source(path="b.jsonl")
    assert config.out_of_distribution == Source(path="c/d")
    columns = {"prompt": "content", "completion": "teacher_response"}
    several = DataConfig.model_validate({"train": ["a.jsonl", {"path": "b", "columns": columns}]})
    assert several.train == (
        Source(path="a.jsonl"),
        Source(path="b", columns=Columns(prompt="content", completion="teacher_response")),
    )
    assert DataConfig.model_validate(several.model_dump(mode="json")) == several


@pytest.mark.parametrize(
    ("config", "where", "words"),
    [
        ({}, ("train",), "Field required"),
        ({"train": []}, ("train",), "at least 1"),
        ({"train": 3}, ("train", 0), "Source"),
        ({"train": ""}, ("train", 0, "path"), "at least 1 character"),
        ({"train": "a", "held_out": {"fraction": 1.0}}, ("held_out", "share", "fraction"), "less than 1"),
        ({"train": "a", "held_out": {"count": 0}}, ("held_out", "share", "count"), "greater than 0"),
        ({"train": "a", "held_out": {"fraction": 0.1, "count": 3}}, ("held_out", "share"), "either"),
        ({"train": "a", "held_out": {"pth": "b"}}, ("held_out", "source", "path"), "Field required"),
        ({"train": {"path": "a", "colums": {}}}, ("train", 0, "colums"), "not permitted"),
        ({"train": {"path": "a", "limit": 0}}, ("train", 0, "limit"), "greater than 0"),
        ({"train": "a", "leak_check": {"threshold": float("nan")}}, ("leak_check", "threshold"), ""),
        ({"train": "a", "on_bad_rows": "ignore"}, ("on_bad_rows",), "'stop' or 'skip'"),
    ],
)
def test_config_errors_name_their_key(config: dict[str, Any], where: tuple[str | int, ...], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        DataConfig.model_validate(config)
    found = {error["loc"]: error["msg"] for error in caught.value.errors()}
    assert where in found
    assert words in found[where]


def test_sections_stay_small() -> None:
    for section in (Columns, Source, HeldOutShare, Filters, LeakCheck, DataConfig):
        assert 2 <= len(section.model_fields) <= 15


def test_a_share_is_split_off_by_id_and_seed(write: Write) -> None:
    loaded = load_examples(Source(path=write("a.jsonl", *rows(400))))
    train, held = split_held_out(loaded, HeldOutShare(fraction=0.25), seed=3)
    assert 75 <= len(held.examples) <= 125
    apart = {example.prompt.id for example in held.examples}
    assert [e for e in loaded.examples if e.prompt.id in apart] == list(held.examples)
    assert [e for e in loaded.examples if e.prompt.id not in apart] == list(train.examples)
    assert train.origin.split_off == len(apart)
    assert held.origin.rows == len(apart)
    assert "held-out share" in held.origin.source
    assert len({train.origin.sha256, held.origin.sha256, loaded.origin.sha256}) == 3
    other = split_held_out(loaded, HeldOutShare(fraction=0.25), seed=4)[1]
    assert {example.prompt.id for example in other.examples} != apart


def test_the_share_is_the_same_everywhere_and_for_good() -> None:
    ids = [str(i) for i in range(20)]

    def place(id_: str) -> float:
        return int(hashlib.sha256(f"held out\0{7}\0{id_}".encode()).hexdigest()[:14], 16) / 16**14

    expected = {id_ for id_ in ids if place(id_) < 0.3}
    assert held_out_ids(ids, HeldOutShare(fraction=0.3), seed=7) == expected
    assert held_out_ids(ids[::-1], HeldOutShare(count=4), seed=7) == set(sorted(ids, key=place)[:4])


def test_rows_that_are_added_move_no_prompt_to_the_other_side() -> None:
    few, many = [str(i) for i in range(200)], [str(i) for i in range(2000)]
    share = HeldOutShare(fraction=0.1)
    assert held_out_ids(many, share, 0) & set(few) == held_out_ids(few, share, 0)


@pytest.mark.parametrize("share", [{"count": 5}, {"count": 9}, {"fraction": 1e-9}])
def test_a_share_that_leaves_a_set_empty_is_refused(write: Write, share: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"a.jsonl: a held-out share of .* of 5 prompts"):
        load(train=write("a.jsonl", *rows(5)), held_out=share)


def test_sets_from_files_with_filters_and_bad_rows(write: Write) -> None:
    sets = load(
        train=[write("a.jsonl", *rows(5), "torn\n"), write("b.jsonl", *rows(5, 5))],
        held_out=write("c.jsonl", *rows(3, 20), "torn\n"),
        out_of_distribution=write("d.jsonl", *rows(2, 30), {"prompt": "x", "completion": ""}),
        on_bad_rows="skip",
    )
    assert [len(s.examples) for s in (sets.train, sets.held_out) if s] == [10, 3]
    assert sets.out_of_distribution is not None
    assert len(sets.out_of_distribution.examples) == 2
    assert [d.reason for d in sets.held_out.origin.dropped] == ["bad row, not JSON"]
    assert [d.reason for d in sets.out_of_distribution.origin.dropped] == ["empty reply"]
    assert sets.leaks == ()


def leaky(write: Write, action: str) -> dict[str, Any]:
    """One training prompt is in the held-out set, one in both others; one is in the two others."""
    train, held, far = rows(6), rows(3, 20, "held"), rows(4, 40, "far")
    held[0]["prompt"] = train[0]["prompt"].upper()
    held[1]["prompt"] = train[1]["prompt"] + " now"
    far[0]["prompt"] = train[1]["prompt"]
    far[1]["prompt"] = held[2]["prompt"]
    return {
        "train": write("train.jsonl", *train),
        "held_out": write("held.jsonl", *held),
        "out_of_distribution": write("far.jsonl", *far),
        "leak_check": {"action": action},
    }


PAIRS = {
    ("train", "plain0", "held_out", "held20", True),
    ("train", "plain1", "held_out", "held21", False),
    ("train", "plain1", "out_of_distribution", "far40", True),
    ("out_of_distribution", "far40", "held_out", "held21", False),
    ("out_of_distribution", "far41", "held_out", "held22", True),
}


def test_leaks_are_reported_and_change_nothing(write: Write) -> None:
    sets = load(**leaky(write, "report"))
    assert {(leak.set, leak.id, leak.other_set, leak.other_id, leak.same) for leak in sets.leaks} == PAIRS
    assert len(sets.train.examples) == 6
    assert sets.train.origin == load_examples(Source(path=sets.train.origin.source)).origin


def test_leaks_are_dropped_from_train_and_counted(write: Write) -> None:
    sets = load(**leaky(write, "drop"))
    assert len(sets.leaks) == len(PAIRS)
    assert [prompt.id for prompt in sets.train.prompts] == ["plain2", "plain3", "plain4", "plain5"]
    assert [prompt.id for prompt in sets.held_out.prompts] == ["held20", "held21", "held22"]
    assert sets.out_of_distribution is not None
    assert [prompt.id for prompt in sets.out_of_distribution.prompts] == ["far42", "far43"]
    (dropped,) = sets.train.origin.dropped
    assert (dropped.reason, dropped.count) == ("prompt nearly in held_out", 2)
    assert dropped.first[0] == "train plain0 ~ held_out held20 (1.00)"
    assert sets.train.origin.sha256 != load(**leaky(write, "report")).train.origin.sha256


def test_leaks_can_stop_the_run_or_be_left_alone(write: Write) -> None:
    with pytest.raises(DataError, match=r"5 prompts are in two sets.*train plain0 ~ held_out held20 \(1.00\)"):
        load(**leaky(write, "stop"))
    assert load(**{**leaky(write, "stop"), "leak_check": None}).leaks == ()
    clean = load(train=write("a.jsonl", *rows(5)), held_out={"count": 2}, leak_check={"action": "stop"})
    assert (len(clean.train.examples), len(clean.held_out.examples)) == (3, 2)


def test_a_training_set_that_is_all_leaks_is_refused(write: Write) -> None:
    path = write("a.jsonl", *rows(3))
    with pytest.raises(DataError, match="every prompt is nearly one of another set"):
        load(train=path, held_out=path, leak_check={"action": "drop"})
