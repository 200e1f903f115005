"""What counts as a refusal, and the bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from gad.config.data import Filters, Source
from gad.data import load_examples, load_prompts
from gad.data.filters import is_refusal, why_drop_prompt, why_drop_reply
from gad.errors import DataError
from gad.records import Message

Write = Callable[..., str]


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't assist with that request.",
        "I\u2019m sorry, but I can\u2019t help with that.",
        "I'm sorry, I can't do that.",
        "I am very sorry, but I cannot provide that.",
        "Sorry, but I am unable to do this.",
        "  I'm  sorry,\nbut I cannot help.",
        "\"I'm sorry, but I can't assist with that.\"",
        "I'm sorry, but as an AI language model, I cannot do that.",
        "I apologize, but I cannot fulfill this request.",
        "I apologise, but I'm not able to share that.",
        "As an AI language model, I cannot help with that.",
        "As an AI language model, I don't have access to real-time data.",
        "As an AI assistant developed by a company, I can't engage in that.",
        "I can't assist with that.",
        "I cannot help you with this request.",
        "I'm unable to assist with your question.",
        "Unfortunately, I can't comply with that request.",
        "I cannot fulfill your request.",
        "I can't provide information or guidance on illegal activities.",
        "I'm sorry, but that's not something I can do.",
        "We're sorry, but we can't help with this.",
    ],
)
def test_refusals(text: str) -> None:
    assert is_refusal(text)
    assert why_drop_reply(text, True, Filters()) == "refused"
    assert why_drop_reply(text, True, Filters(drop_refused=False)) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I can't believe it; against all odds, I've found water on Mars!",
        "I cannot emphasize enough the importance of strong passwords.",
        "I can't wait to see you on Friday.",
        "I can't help but smile when I think of it.",
        "I'm sorry to hear that you're feeling lonely.",
        "I'm sorry for your loss.",
        "Sorry seems to be the hardest word.",
        "I apologize for the delay of your order.",
        "Dear Ms. Lee, I'm sorry, but I can't come on Monday.",
        "As an AI language model would put it, the answer is 4.",
        "As an AI language model, I don't have feelings, but here are five ways to relax: ...",
        "As an AI language model, I do not have opinions. However, the usual arguments are these.",
        "As an airline captain, I do not fly over storms.",
        "Sure! You could write: \"I'm sorry, but I can't make it.\"",
        "The model said: I'm sorry, but I can't assist with that.",
    ],
)
def test_replies_that_only_look_like_refusals(text: str) -> None:
    assert not is_refusal(text)


def test_further_openings() -> None:
    german = Filters(refusals=("Es tut mir leid, aber ich kann",))
    assert why_drop_reply("ES TUT MIR LEID, aber ich  kann das nicht.", True, german) == "refused"
    assert why_drop_reply("Es tut mir leid, das zu h\u00f6ren.", True, german) is None


@pytest.mark.parametrize(
    ("filters", "text", "reason"),
    [
        (Filters(max_reply_words=3), "one two three", None),
        (Filters(max_reply_words=3), "one two three four", "reply of more than 3 words"),
        (Filters(min_reply_words=3), "one two three", None),
        (Filters(min_reply_words=3), "one two", "reply of fewer than 3 words"),
        (Filters(max_reply_characters=4), "abcd", None),
        (Filters(max_reply_characters=4), "abcde", "reply of more than 4 characters"),
        (Filters(), " \t\n", "empty reply"),
        (Filters(drop_empty=False), "", None),
        (Filters(), "word " * 100_000, None),
    ],
)
def test_bounds_of_replies(filters: Filters, text: str, reason: str | None) -> None:
    assert why_drop_reply(text, True, filters) == reason


def test_truncated_replies() -> None:
    assert why_drop_reply("cut", False, Filters()) == "truncated reply"
    assert why_drop_reply("cut", False, Filters(drop_truncated=False)) is None


def test_bounds_of_prompts_count_all_turns() -> None:
    turns = (Message("system", "be brief"), Message("user", "one two three"))
    assert why_drop_prompt(turns, Filters(max_prompt_words=5)) is None
    assert why_drop_prompt(turns, Filters(max_prompt_words=4)) == "prompt of more than 4 words"
    assert why_drop_prompt(turns, Filters(max_prompt_characters=21)) is None
    assert why_drop_prompt(turns, Filters(max_prompt_characters=20)) == "prompt of more than 20 characters"


def test_bounds_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="min_reply_words=5 is above max_reply_words=4"):
        Filters(min_reply_words=5, max_reply_words=4)


ROWS: list[dict[str, Any]] = [
    {"id": "1", "prompt": "a", "completion": "fine"},
    {"id": "2", "prompt": "b", "completion": ""},
    {"id": "3", "prompt": "c", "completion": "I'm sorry, but I can't help with that."},
    {"id": "4", "prompt": "d", "completion": "cut of", "finish_reason": "length"},
    {"id": "5", "prompt": "e", "completion": "far too many words here"},
    {"id": "6", "prompt": "f", "completion": " "},
    {"id": "7", "prompt": "much too long a prompt", "completion": "x"},
]


def test_everything_left_out_is_counted_with_its_reason_and_place(write: Write) -> None:
    path = write("a.jsonl", *ROWS)
    loaded = load_examples(Source(path=path), filters=Filters(max_reply_words=3, max_prompt_words=3))
    assert [example.prompt.id for example in loaded.examples] == ["1"]
    assert [(d.reason, d.count, d.first) for d in loaded.origin.dropped] == [
        ("empty reply", 2, (f"{path}:2", f"{path}:6")),
        ("refused", 1, (f"{path}:3",)),
        ("truncated reply", 1, (f"{path}:4",)),
        ("reply of more than 3 words", 1, (f"{path}:5",)),
        ("prompt of more than 3 words", 1, (f"{path}:7",)),
    ]
    assert loaded.origin.rows == len(loaded.examples) + sum(d.count for d in loaded.origin.dropped)
    assert len(load_prompts(Source(path=path), filters=Filters(max_prompt_words=3)).prompts) == 6


def test_an_empty_reply_is_a_bad_row_where_it_is_not_filtered(write: Write) -> None:
    path = write("a.jsonl", *ROWS)
    with pytest.raises(DataError, match=r"a.jsonl:2: empty reply"):
        load_examples(Source(path=path), filters=Filters(drop_empty=False))


def test_a_set_of_which_nothing_is_left_says_why(write: Write) -> None:
    path = write("a.jsonl", *ROWS[1:4])
    with pytest.raises(DataError) as caught:
        load_examples(Source(path=path))
    text = str(caught.value)
    assert "nothing is left of 3 rows" in text
    assert f"1 empty reply ({path}:1); 1 refused ({path}:2); 1 truncated reply ({path}:3)" in text


def test_places_are_shown_for_the_first_few_only(write: Write) -> None:
    rows = [{"prompt": f"p{i}", "completion": ""} for i in range(50)]
    loaded = load_examples(Source(path=write("a.jsonl", *rows, ROWS[0])))
    (dropped,) = loaded.origin.dropped
    assert dropped.count == 50
    assert len(dropped.first) == 5
