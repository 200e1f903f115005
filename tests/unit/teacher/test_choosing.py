from __future__ import annotations

from typing import Any

import pytest

from gad.config.data import Filters
from gad.config.teacher import TeacherConfig
from gad.teacher.choosing import Chooser, accepted_models, same_model
from gad.teacher.requests import Reply


def config(**more: Any) -> TeacherConfig:
    return TeacherConfig.model_validate({"model": "m", **more})


def reply(text: str, **more: Any) -> Reply:
    return Reply(
        **{
            "key": "k",
            "id": "p",
            "sample": 0,
            "text": text,
            "model": "m",
            "finish_reason": "stop",
            "usage": None,
            "cost_usd": 0.0,
            "created": 0.0,
            **more,
        }
    )


def chooser(
    models: tuple[str, ...] = ("m",),
    texts: dict[int, str] | None = None,
    filters: dict[str, Any] | None = None,
    **more: Any,
) -> Chooser:
    return Chooser(config(**more), Filters.model_validate(filters or {}), models, (texts or {}).__getitem__)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        (reply("A fine answer."), None),
        (reply("I'm sorry, but I can't help with that."), "refused"),
        (reply("", refusal="I will not."), "refused"),
        (reply("A cut answ", finish_reason="length"), "truncated reply"),
        (reply("A", finish_reason="content_filter"), "content filter"),
        (reply(" \n"), "empty reply"),
        (reply("A broken \ud83d emoji."), "half a character"),
        (reply("one two three four"), "reply of more than 3 words"),
        (reply("Fine.", finish_reason=None, model=None), None),
    ],
)
def test_reasons(given: Reply, reason: str | None) -> None:
    limits = {"max_reply_words": 3} if reason is not None and "words" in reason else {}
    assert chooser(filters=limits).why_not(given, "row", 1) == reason


def test_filters_can_be_off_but_nothing_can_be_learnt_from_nothing() -> None:
    off = chooser(filters={"drop_empty": False, "drop_refused": False, "drop_truncated": False})
    assert off.why_not(reply("A cut answ", finish_reason="length"), "row", 1) is None
    assert off.why_not(reply("I'm sorry, but I can't help with that."), "row", 1) is None
    assert off.why_not(reply(""), "row", 1) == "empty reply"


@pytest.mark.parametrize(
    ("asked", "named", "same"),
    [
        ("gpt-4o", "gpt-4o", True),
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4o", "gpt-4o-mini", False),
        ("gpt-4", "gpt-4.1", False),
        ("gpt-4", "gpt-4-0613", True),
        ("gpt-5", "gpt-5-mini-2025-08-07", False),
        ("openai/gpt-4o", "gpt-4o", True),
        ("gpt-5-chat-latest", "gpt-5-chat-2025-08-07", True),
        ("claude-sonnet-4", "claude-sonnet-4-20250514", True),
        ("claude-sonnet-4", "claude-sonnet-4-5", False),
        ("llama3.2", "llama3.2:3b", True),
        ("gpt-4o", "cheap-model", False),
    ],
)
def test_names_of_the_same_model(asked: str, named: str, same: bool) -> None:
    assert same_model(asked, named) is same


def test_replies_of_another_model_are_left_out_unless_the_endpoint_has_names_of_its_own() -> None:
    mixed = chooser(("m", "m-2024-01-01", "cheap"))
    assert mixed.why_not(reply("Fine.", model="m-2024-01-01"), "row", 1) is None
    assert mixed.why_not(reply("Fine.", model="cheap"), "row", 1) == "written by cheap, not by m"
    assert chooser(("/models/file.gguf",)).why_not(reply("Fine.", model="/models/file.gguf"), "row", 1) is None
    assert accepted_models(config(accept_models=["my-*"]), ["my-1", "m"]) == {"my-1"}


def test_languages() -> None:
    pytest.importorskip("py3langid")
    english = chooser(languages=["en"])
    assert english.why_not(reply("The weather is fine today, and we will go for a walk."), "row", 1) is None
    german = "Das Wetter ist heute schön, und wir gehen gleich spazieren."
    assert english.why_not(reply(german), "row", 1) == "in another language (de)"
    assert chooser(languages=["en", "de"]).why_not(reply(german), "row", 1) is None


def test_near_duplicates_only_where_asked_for() -> None:
    rows = {n: f"Why is the sky blue? Question of {name}, who wants to know it at once." for n, name in enumerate("AB")}
    rows[2] = "Something else altogether, about cooking rice in a small pot."
    for settings, expected in (({"threshold": 0.8}, [None, "near-duplicate", None]), (None, [None, None, None])):
        chosen = chooser(texts=rows, near_duplicates=settings)
        assert [chosen.why_not(reply("Fine."), text, number) for number, text in rows.items()] == expected
