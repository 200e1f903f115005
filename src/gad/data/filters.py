"""Which replies are left out, and why."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gad.config.data import Filters
from gad.records import Message

_CANNOT = r"(?:i|we)(?: can't| cannot| can not| won't be able to|(?:'m|'re| am| are) (?:unable|not able) to)"
_THIS = r"(?:that|this|these|such|your)\b"
REFUSALS = (
    rf"(?:(?:i'm|i am|we're|we are) )?(?:\w+ )?sorry,? (?:but )?(?:as an ai[^.!?]{{0,40}}?,? )?{_CANNOT}\b",
    rf"(?:i|we) apologi[sz]e,? (?:but )?{_CANNOT}\b",
    rf"as an ai\b(?!.*\b(?:however|but)\b)[^.!?]{{0,60}}?,? (?:{_CANNOT}|i (?:don't|do not|am not|was not)|i'm not)\b",
    rf"(?:unfortunately,? )?{_CANNOT} (?:assist|help)(?: you)?(?: with| in) {_THIS}",
    rf"(?:unfortunately,? )?{_CANNOT} (?:comply with|fulfil+|answer|support|engage in|participate in) {_THIS}",
    rf"(?:unfortunately,? )?{_CANNOT} (?:provide|create|write) (?:that|such|content|information or|instructions)\b",
    r"(?:i'm|i am) sorry,? (?:but )?(?:i won't|i will not|that's not something i can|that is not something i can)\b",
)
"""Openings of a refusal, in lower case with straight quotes and single spaces. English; short, so that a story that
begins with "I can't believe it" or a letter that begins with "I'm sorry to hear" stays, and so does a reply that
disclaims first and then answers ("As an AI language model, I don't have feelings, but ...")."""

_REFUSAL = re.compile("|".join(f"(?:{pattern})" for pattern in REFUSALS))
_QUOTES = str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{LEFT SINGLE QUOTATION MARK}": "'"})
_OPENING = 300
"""Characters that are looked at."""


def _opening(text: str) -> str:
    return " ".join(text[:_OPENING].translate(_QUOTES).casefold().split()).lstrip("\"'*_># ")


def is_refusal(text: str, further: Iterable[str] = ()) -> bool:
    """Whether a reply opens with a refusal: one of REFUSALS, or one of the texts in `further` (case ignored)."""
    opening = _opening(text)
    return bool(_REFUSAL.match(opening)) or any(opening.startswith(_opening(start)) for start in further)


def why_drop_prompt(messages: Iterable[Message], filters: Filters) -> str | None:
    """The reason to leave out a prompt, or None. All turns count."""
    texts = [message.content for message in messages]
    if filters.max_prompt_characters is not None and sum(map(len, texts)) > filters.max_prompt_characters:
        return f"prompt of more than {filters.max_prompt_characters} characters"
    if filters.max_prompt_words is not None and sum(map(_words, texts)) > filters.max_prompt_words:
        return f"prompt of more than {filters.max_prompt_words} words"
    return None


def why_drop_reply(text: str, finished: bool, filters: Filters) -> str | None:
    """The first reason to leave out a reply, or None. An empty one is left to the caller where `drop_empty` is off."""
    if not text.strip():
        return "empty reply" if filters.drop_empty else None
    if filters.drop_truncated and not finished:
        return "truncated reply"
    if filters.drop_refused and is_refusal(text, filters.refusals):
        return "refused"
    return _why_drop_length(text, filters)


def _why_drop_length(text: str, filters: Filters) -> str | None:
    if filters.max_reply_characters is not None and len(text) > filters.max_reply_characters:
        return f"reply of more than {filters.max_reply_characters} characters"
    if filters.max_reply_words is None and filters.min_reply_words is None:
        return None
    words = _words(text)
    if filters.max_reply_words is not None and words > filters.max_reply_words:
        return f"reply of more than {filters.max_reply_words} words"
    if filters.min_reply_words is not None and words < filters.min_reply_words:
        return f"reply of fewer than {filters.min_reply_words} words"
    return None


def _words(text: str) -> int:
    return len(text.split())
