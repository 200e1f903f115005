"""Records refuse what cannot be, and say which value it was."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest

from gad.records import Example, GeneratedReply, Message, Prompt, Rollout, RolloutGroup, TeacherReply, Verdict

USER, SYSTEM, ASSISTANT = Message("user", "Hi"), Message("system", "Be kind"), Message("assistant", "Hello")
PROMPT = Prompt("p7", (USER,))
TEACHER = TeacherReply("Hello there")
EXAMPLE = Example(PROMPT, (TEACHER,))


def rollout(**changes: Any) -> Rollout:
    return Rollout(**{"prompt_id": "p7", "token_ids": (5, 6), "text": "x", "finished": True, **changes})


REFUSALS: list[tuple[Callable[[], object], str]] = [
    (lambda: Message("tool", "x"), "message role 'tool': use one of system, user, assistant"),  # type: ignore[arg-type]
    (lambda: Message("user", None), "message content must be text, got NoneType"),  # type: ignore[arg-type]
    (lambda: Message("user", 3), "message content must be text, got int"),  # type: ignore[arg-type]
    (lambda: Prompt("", (USER,)), "prompt id is empty"),
    (lambda: Prompt("p7", ()), "prompt p7: no messages"),
    (lambda: Prompt("p7", (USER, ASSISTANT)), "prompt p7: the last message is the assistant's, not the user's"),
    (lambda: Prompt("p7", (SYSTEM,)), "prompt p7: the last message is the system's, not the user's"),
    (lambda: Prompt("p7", (USER, SYSTEM, USER)), "prompt p7: a system message may only come first"),
    (lambda: Prompt("p7", (SYSTEM, SYSTEM, USER)), "prompt p7: a system message may only come first"),
    (lambda: Prompt("p7", (Message("user", " \n"),)), "prompt p7: the user's last message is empty"),
    (lambda: TeacherReply(""), "teacher reply is empty"),
    (lambda: TeacherReply(" \t\n"), "teacher reply is empty"),
    (lambda: Example(PROMPT, ()), "example p7: no teacher reply"),
    (lambda: rollout(token_ids=()), "rollout of prompt p7: no tokens; even an empty reply has end-of-text"),
    (lambda: rollout(logps=(-0.5,)), "rollout of prompt p7: 1 logps, 2 tokens"),
    (lambda: rollout(logps=(-0.5,) * 3), "rollout of prompt p7: 3 logps, 2 tokens"),
    (lambda: RolloutGroup(EXAMPLE, TEACHER, ()), "group of prompt p7: no rollouts"),
    (
        lambda: RolloutGroup(
            EXAMPLE, TEACHER, (rollout(), rollout(prompt_id="q2"), rollout(prompt_id="p8"))
        ),
        "group of prompt p7 holds rollouts of ['p8', 'q2']",
    ),
    (lambda: GeneratedReply("r1", (USER,), "x", -1, True), "reply r1: -1 tokens"),
    (lambda: Verdict("p7", 1.01), "verdict on prompt p7: preference 1.01 is not in [0, 1]"),
    (lambda: Verdict("p7", -0.01), "verdict on prompt p7: preference -0.01 is not in [0, 1]"),
    (lambda: Verdict("p7", float("nan")), "verdict on prompt p7: preference nan is not in [0, 1]"),
    (lambda: Verdict("p7", 0.5, order="last"), "verdict on prompt p7: order 'last'"),  # type: ignore[arg-type]
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSALS, ids=[message for _, message in REFUSALS])
def test_refused_with_the_value(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make()


def test_the_edges_that_are_allowed() -> None:
    assert [Verdict("p7", value).preference for value in (0.0, 1.0)] == [0.0, 1.0]
    assert GeneratedReply("r1", (USER,), "", 0, False).tokens == 0
    assert rollout(logps=(-0.5, -0.1)).logps == (-0.5, -0.1)
    assert Prompt("p7", (SYSTEM, USER, ASSISTANT, USER)).text == "Hi"
    assert Message("user", "").content == ""
    assert RolloutGroup(EXAMPLE, TEACHER, (rollout(), rollout())).rollouts == (rollout(),) * 2


def test_a_prompt_from_text() -> None:
    assert Prompt.from_text("a", "Hi").messages == (USER,)
    assert Prompt.from_text("a", "Hi", system="Be kind").messages == (SYSTEM, USER)
    assert Prompt.from_text("a", "Hi", system="").messages[-1:] == (USER,)


def test_generated_replies_survive_the_disk() -> None:
    reply = GeneratedReply("r1", (SYSTEM, USER), "né 🎈\u2028\n", 4, False)
    row = reply.as_dict()
    assert row == {
        "id": "r1",
        "prompt": [{"role": "system", "content": "Be kind"}, {"role": "user", "content": "Hi"}],
        "completion": "né 🎈\u2028\n",
        "tokens": 4,
        "finished": False,
    }
    assert GeneratedReply.from_dict(row) == reply


@pytest.mark.parametrize("record", [USER, PROMPT, TEACHER, EXAMPLE, rollout(), Verdict("p7", 0.5)])
def test_nothing_can_be_changed(record: Any) -> None:
    name = dataclasses.fields(record)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, name, "other")
