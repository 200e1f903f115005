"""A row of any of the usual forms to messages and replies.

prompt-completion   {"prompt": text or messages, "completion": text, [one assistant message] or [texts]}
messages            {"messages": [..., {"role": "assistant", ...}]}: the last turn is the reply
any names           mapped by `gad.config.data.Columns`
Both are TRL's forms as well (standard and conversational).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gad.config.data import Columns
from gad.data.rows import RowError, tidy
from gad.records import Message

AUTOMATIC: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "prompt_id"),
    "prompt": ("prompt", "messages", "conversation", "content"),
    "completion": ("completion", "teacher_response", "response"),
    "system": ("system", "system_prompt"),
    "finish_reason": ("finish_reason", "finished"),
    "model": ("model",),
}
"""Names that `auto` looks for, the first one that a row has."""

_FINISHED = frozenset({"stop", "end_turn", "stop_sequence", "eos", "eos_token", "completed", "true"})
_CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "content_filter", "incomplete", "false"})
_NO_TEXT = frozenset({"tool_calls", "function_call"})
_LONGEST_ID = 512


@dataclass(frozen=True, slots=True)
class ParsedRow:
    """A row with its text checked. `completions` is empty where the row has no reply."""

    id: str | None
    messages: tuple[Message, ...]
    completions: tuple[str, ...]
    model: str
    finished: bool


def column_names(columns: Columns, present: Iterable[str]) -> dict[str, str]:
    """Which column plays which part (keys: the fields of Columns).

    Raises RowError for a column that was asked for by name and is not there, or where no prompt can be found.
    """
    there = list(present)
    names: dict[str, str] = {}
    for part, choices in AUTOMATIC.items():
        wanted: str | None = getattr(columns, part)
        if wanted == "auto":
            found = next((name for name in choices if name in there), None)
        elif wanted is None or wanted in there:
            found = wanted
        else:
            near = difflib.get_close_matches(wanted, there, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; set `columns.{part}`"
            raise RowError("missing column", f"no column {wanted!r} ({part}) among {_listed(there)}{hint}")
        if found is not None:
            names[part] = found
    if "prompt" not in names:
        looked_for = ", ".join(AUTOMATIC["prompt"])
        raise RowError("missing column", f"no {looked_for} among {_listed(there)}; set `columns.prompt` to one of them")
    return names


def parse_row(values: Mapping[str, object], names: Mapping[str, str], *, with_reply: bool) -> ParsedRow:
    """Text of the row's columns `names` (see column_names); without `with_reply` the reply is left aside.

    Raises RowError, with column and value, for what is not text, not a conversation or not there.
    """
    messages = _prompt(values[names["prompt"]], names["prompt"])
    reply_is_a_turn = messages[-1].role == "assistant"
    if reply_is_a_turn and len(messages) == 1:
        raise RowError("no usable prompt", f"{names['prompt']} has the assistant's turn only")
    completions: tuple[str, ...] = ()
    if with_reply and "completion" in names:
        completions = _completions(values[names["completion"]], names["completion"])
        if reply_is_a_turn and completions:
            detail = f"{names['prompt']} ends with the assistant's turn, and {names['completion']} is there as well"
            raise RowError("two replies", detail)
    if reply_is_a_turn:
        completions = completions or ((messages[-1].content,) if with_reply else ())
        messages = messages[:-1]
    if "system" in names:
        messages = _with_system(messages, values[names["system"]], names["system"])
    model, finished = "unknown", True
    if with_reply:
        if "finish_reason" in names:
            finished = _finished(values[names["finish_reason"]], names["finish_reason"])
        if "model" in names and values[names["model"]] is not None:
            model = _text(values[names["model"]], names["model"])
    id_ = _id(values[names["id"]], names["id"]) if "id" in names else None
    return ParsedRow(id_, messages, completions, model, finished)


def id_of(messages: Iterable[Message]) -> str:
    """The id of a prompt that came without one: the same for the same messages, everywhere and always."""
    canonical = json.dumps([[message.role, message.content] for message in messages], ensure_ascii=False)
    return "prompt-" + hashlib.sha256(canonical.encode()).hexdigest()[:20]


def _listed(names: list[str]) -> str:
    return (
        ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "") if names else "no columns"
    )


def _shown(value: object) -> str:
    """A value of a row for a message, with its type in words."""
    kinds = {
        str: "text",
        bool: "a truth value",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
        bytes: "bytes",
    }
    if value is None:
        return "null"
    return f"{kinds.get(type(value), type(value).__name__)} ({tidy(repr(value)[:80])})"


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RowError("wrong type", f"{where} is {_shown(value)}, not text")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise RowError("broken text", f"{where} has half a surrogate pair at character {error.start}") from error
    return value


def _prompt(value: object, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", _text(value, where)),)
    if not isinstance(value, list):
        raise RowError("wrong type", f"{where} is {_shown(value)}, not text or a list of messages")
    if not value:
        raise RowError("no messages", f"{where} is an empty list")
    return tuple(_message(turn, f"{where}[{index}]") for index, turn in enumerate(value))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, dict):
        raise RowError("wrong type", f"{where} is {_shown(value)}, not an object with role and content")
    for key in ("role", "content"):
        if key not in value:
            raise RowError("wrong type", f"{where} has no {key}: its keys are {_listed([str(k) for k in value])}")
    for key in _NO_TEXT:
        if value.get(key):
            raise RowError("not text", f"{where} has {key}; only text can be distilled")
    try:
        return Message(value["role"], _content(value["content"], f"{where}.content"))
    except RowError:
        raise
    except (ValueError, TypeError) as error:
        raise RowError("unknown role", f"{where}: {error}") from error


def _content(value: object, where: str) -> str:
    """Text, or the text parts of the OpenAI form joined by line ends."""
    if not isinstance(value, list):
        return _text(value, where)
    parts = []
    for index, part in enumerate(value):
        if not isinstance(part, dict) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, dict) else _shown(part)
            raise RowError("not text", f"{where}[{index}] is a part of type {kind!r}; only text can be distilled")
        parts.append(_text(part.get("text"), f"{where}[{index}].text"))
    return "\n".join(parts)


def _completions(value: object, where: str) -> tuple[str, ...]:
    if value is None or value == []:
        return ()
    if isinstance(value, str):
        return (_text(value, where),)
    if not isinstance(value, list):
        raise RowError("wrong type", f"{where} is {_shown(value)}, not text or a list")
    if all(isinstance(item, str) for item in value):
        return tuple(_text(item, f"{where}[{index}]") for index, item in enumerate(value))
    if len(value) > 1:
        raise RowError("not one reply", f"{where} has {len(value)} messages; put all turns but the last in the prompt")
    message = _message(value[0], f"{where}[0]")
    if message.role != "assistant":
        raise RowError("not one reply", f"{where}[0] is the {message.role}'s turn, not the assistant's")
    return (message.content,)


def _with_system(messages: tuple[Message, ...], value: object, where: str) -> tuple[Message, ...]:
    if value is None or value == "":
        return messages
    system = Message("system", _text(value, where))
    if messages[0].role != "system":
        return (system, *messages)
    if messages[0] != system:
        raise RowError("two system prompts", f"one in {where}, another in the messages")
    return messages


def _finished(value: object, where: str) -> bool:
    if value is None or isinstance(value, bool):
        return value is not False
    reason = _text(value, where).lower()
    if reason in _FINISHED:
        return True
    if reason in _CUT:
        return False
    known = ", ".join(sorted(_FINISHED | _CUT))
    detail = f"{where} is {value!r}; known: {known}; `columns.finish_reason: null` ignores the column"
    raise RowError("unknown finish reason", detail)


def _id(value: object, where: str) -> str | None:
    """Ids are untrusted: a key and a label, never a path."""
    if value is None:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    text = _text(value, where)
    if not text or len(text) > _LONGEST_ID:
        raise RowError("unusable id", f"{where} has {len(text)} characters; use 1 to {_LONGEST_ID}, or null for none")
    return text
