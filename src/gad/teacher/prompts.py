"""Prompts that are read more than once, in constant memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gad.records import Message, Prompt
from gad.storage import JsonlWriter, read_jsonl


class Rereadable:
    """Prompts that can be read more than once; an iterator is copied to disk first."""

    def __init__(self, prompts: Iterable[Prompt], folder: Path) -> None:
        self._prompts, self._folder = prompts, folder

    def __enter__(self) -> Iterable[Prompt]:
        if iter(self._prompts) is not self._prompts:
            return self._prompts
        self._copy = tempfile.TemporaryDirectory(prefix=".prompts-", dir=self._folder)
        path = Path(self._copy.name) / "prompts.jsonl"
        with JsonlWriter(path) as writer:
            for prompt in self._prompts:
                writer.append({"id": prompt.id, "messages": [message.as_dict() for message in prompt.messages]})
        return _Stored(path)

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_copy"):
            self._copy.cleanup()


@dataclass(frozen=True, slots=True)
class _Stored:
    path: Path

    def __iter__(self) -> Iterator[Prompt]:
        for row in read_jsonl(self.path):
            yield _prompt(row)


def _prompt(row: dict[str, Any]) -> Prompt:
    return Prompt(row["id"], tuple(Message(each["role"], each["content"]) for each in row["messages"]))
