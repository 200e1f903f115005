"""Rows of any of the usual forms to prompts and replies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from gad.config.data import Columns, Filters, Source
from gad.data import LoadedSet, load_examples, load_prompts
from gad.data.columns import id_of
from gad.errors import DataError
from gad.records import Message, Prompt, TeacherReply

Write = Callable[..., str]
USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "yo"}


def load(write: Write, *rows: Any, **columns: Any) -> LoadedSet:
    return load_examples(Source(path=write("a.jsonl", *rows), columns=Columns(**columns)))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "hi", "completion": "yo"},
        {"prompt": [USER], "completion": "yo"},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"prompt": "hi", "completion": ["yo"]},
        {"messages": [USER, ASSISTANT]},
        {"prompt": [USER, ASSISTANT], "completion": None},
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}], "completion": "yo"},
        {"content": [USER], "teacher_response": "yo", "language": "English", "score": 1.5},
        {"prompt": [{**USER, "tool_calls": None, "name": None}], "completion": "yo", "system": None},
        {"prompt": "hi", "response": "yo", "system": ""},
    ],
)
def test_forms_that_mean_the_same_give_the_same(write: Write, row: dict[str, Any]) -> None:
    (example,) = load(write, row).examples
    assert example.prompt == Prompt(id_of([Message("user", "hi")]), (Message("user", "hi"),))
    assert example.replies == (TeacherReply("yo"),)


def test_the_authors_columns_by_name_and_by_themselves(write: Write) -> None:
    turns = [USER, ASSISTANT, {"role": "user", "content": "and?"}]
    row = {"id": 7, "content": turns, "teacher_response": "so"}
    mapped = load(write, row, prompt="content", completion="teacher_response")
    assert mapped.examples == load(write, row).examples
    (example,) = mapped.examples
    assert example.prompt.id == "7"
    assert [message.content for message in example.prompt.messages] == ["hi", "yo", "and?"]
    assert mapped.origin.columns == {"id": ("id",), "prompt": ("content",), "completion": ("teacher_response",)}


def test_system_prompt_from_the_messages_or_a_column(write: Write) -> None:
    system = {"role": "system", "content": "Be brief."}
    inside = load(write, {"prompt": [system, USER], "completion": "yo"})
    beside = load(write, {"prompt": "hi", "system_prompt": "Be brief.", "completion": "yo"})
    both = load(write, {"prompt": [system, USER], "system": "Be brief.", "completion": "yo"})
    assert inside.examples == beside.examples == both.examples
    assert inside.examples[0].prompt.messages[0] == Message("system", "Be brief.")
    with pytest.raises(DataError, match=r"two system prompts"):
        load(write, {"prompt": [system, USER], "system": "Be long.", "completion": "yo"})


def test_text_parts_are_joined_by_line_ends(write: Write) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two", "image_url": None}]
    (example,) = load(write, {"prompt": [{"role": "user", "content": parts}], "completion": "yo"}).examples
    assert example.prompt.text == "one\ntwo"


def test_null_switches_a_column_off(write: Write) -> None:
    row = {"id": "x", "prompt": "hi", "completion": "yo", "finish_reason": "odd"}
    with pytest.raises(DataError, match="finish_reason is 'odd'"):
        load(write, row)
    (example,) = load(write, row, id=None, finish_reason=None).examples
    assert example.prompt.id == id_of([Message("user", "hi")])


def test_ids_without_an_id_column_are_known_for_good() -> None:
    turns = [Message("system", "s"), Message("user", "\u00fc")]
    assert id_of(turns) == "prompt-fd666375cd7c3468b764"
    assert id_of(turns[1:]) != id_of(turns)
    assert id_of([Message("user", "a"), Message("user", "b")]) != id_of([Message("user", "ab")])


@pytest.mark.parametrize(
    ("reason", "finished"),
    [
        *((reason, True) for reason in ("stop", "STOP", "end_turn", "true", True, None)),
        *((reason, False) for reason in ("length", "max_tokens", "MAX_TOKENS", "content_filter", "false", False)),
    ],
)
def test_finish_reasons(write: Write, reason: object, finished: bool) -> None:
    path = write("a.jsonl", {"prompt": "hi", "completion": "yo", "finish_reason": reason})
    loaded = load_examples(Source(path=path), filters=Filters(drop_truncated=False))
    assert loaded.examples[0].replies == (TeacherReply("yo", finished=finished),)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": None, "completion": "x"}, ["prompt is null"]),
        ({"prompt": 3.5, "completion": "x"}, ["prompt is a number (3.5)"]),
        ({"prompt": {"role": "user"}, "completion": "x"}, ["prompt is an object"]),
        ({"prompt": [], "completion": "x"}, ["prompt is an empty list"]),
        ({"prompt": ["hi"], "completion": "x"}, ["prompt[0] is text", "role and content"]),
        ({"prompt": " \n", "completion": "x"}, ["last message is empty"]),
        ({"prompt": [{"role": "user"}], "completion": "x"}, ["prompt[0] has no content", "role"]),
        ({"prompt": [{"role": "user", "content": None}], "completion": "x"}, ["prompt[0].content is null"]),
        ({"prompt": [{"role": "human", "content": "x"}], "completion": "x"}, ["'human'", "system, user, assistant"]),
        ({"prompt": [{"role": ["user"], "content": "x"}], "completion": "x"}, ["prompt[0]"]),
        ({"prompt": [{**USER, "tool_calls": [{"id": 1}]}], "completion": "x"}, ["tool_calls", "only text"]),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}], "completion": "x"},
            ["prompt[0].content[0]", "'image_url'", "only text"],
        ),
        ({"prompt": [{"role": "system", "content": "s"}], "completion": "x"}, ["system's, not the user's"]),
        ({"messages": [ASSISTANT]}, ["the assistant's turn only"]),
        ({"prompt": [USER, {"role": "system", "content": "s"}, USER], "completion": "x"}, ["may only come first"]),
        ({"prompt": [USER, ASSISTANT], "completion": "x"}, ["two replies"]),
        ({"prompt": "hi"}, ["no reply", "columns.completion"]),
        ({"prompt": "hi", "completion": None}, ["no reply"]),
        ({"prompt": "hi", "completion": 4}, ["completion is a number (4)"]),
        ({"prompt": "hi", "completion": True}, ["completion is a truth value"]),
        ({"prompt": "hi", "completion": [USER]}, ["completion[0] is the user's turn"]),
        ({"prompt": "hi", "completion": [ASSISTANT, USER, ASSISTANT]}, ["3 messages"]),
        ({"prompt": "hi", "completion": "x", "id": 1.5}, ["id is a number (1.5)"]),
        ({"prompt": "hi", "completion": "x", "id": True}, ["id is a truth value"]),
        ({"prompt": "hi", "completion": "x", "id": ""}, ["id has 0 characters"]),
        ({"prompt": "hi", "completion": "x", "id": "i" * 600}, ["id has 600 characters"]),
        ({"prompt": "hi", "completion": "x", "model": 3}, ["model is a number"]),
        ({"prompt": "hi", "completion": "x", "system": 3}, ["system is a number"]),
        ({"text": "hi", "b": 1}, ["no prompt, messages, conversation, content among text, b", "columns.prompt"]),
        ({}, ["no columns"]),
    ],
)
def test_a_row_that_cannot_be_used_is_named(write: Write, row: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        load(write, {"prompt": "good", "completion": "row"}, row)
    text = str(caught.value)
    assert "a.jsonl:2: " in text
    assert all(word in text for word in words), text


def test_a_wrong_column_shows_those_there_are_and_the_nearest(write: Write) -> None:
    row = {"id": "1", "content": "hi", "teacher_response": "yo"}
    with pytest.raises(DataError) as caught:
        load(write, row, prompt="content", completion="teacher_reponse")
    expected = (
        "no column 'teacher_reponse' (completion) among id, content, teacher_response; did you mean 'teacher_response'?"
    )
    assert expected in str(caught.value)
    with pytest.raises(DataError, match=r"set `columns.completion`"):
        load(write, row, prompt="content", completion="xyz")


def test_text_of_the_data_cannot_take_over_the_terminal(write: Write) -> None:
    with pytest.raises(DataError) as caught:
        load(write, {"id": "\x1b[31m\n\u202e" + "y" * 400, "prompt": " ", "completion": "x"})
    text = str(caught.value)
    assert text.isprintable()
    assert r"\x1b[31m\n\u202e" in text
    assert len(text) < 600


def test_a_huge_value_is_not_printed(write: Write) -> None:
    with pytest.raises(DataError) as caught:
        load(write, {"prompt": [{"role": "x" * 100_000, "content": "y"}], "completion": "x"})
    assert len(str(caught.value)) < 600


def test_prompts_are_read_without_looking_at_replies(write: Write) -> None:
    path = write(
        "a.jsonl",
        {"id": "1", "prompt": "a", "completion": 7, "finish_reason": "odd", "model": 3},
        {"id": "2", "messages": [USER, ASSISTANT]},
        {"id": "3", "prompt": "c"},
    )
    loaded = load_prompts(Source(path=path))
    assert [(prompt.id, prompt.text) for prompt in loaded.prompts] == [("1", "a"), ("2", "hi"), ("3", "c")]
    assert loaded.origin.dropped == ()
