"""Replies on disk: where they lie and how they are read. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gad.records import GeneratedReply, Prompt
from gad.storage import read_jsonl

REPLIES = "replies"


def replies_path(folder: Path, student: str, set_name: str, decoding: str, headline: str) -> Path:
    """`replies/<student>/<set>.jsonl` for the headline's decoding, `<set>@<decoding>.jsonl` for the others."""
    name = set_name if decoding == headline else f"{set_name}@{decoding}"
    return folder / REPLIES / student / f"{name}.jsonl"


def read_replies(path: Path) -> dict[str, GeneratedReply]:
    """Replies by prompt id."""
    return {row["id"]: GeneratedReply.from_dict(row) for row in read_jsonl(path)}


def missing(path: Path, prompts: Sequence[Prompt]) -> int:
    """How many prompts have no reply yet."""
    have = read_replies(path).keys()
    return sum(prompt.id not in have for prompt in prompts)
