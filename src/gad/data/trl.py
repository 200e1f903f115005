"""TRL's conversational prompt-completion format, out. The way in is `load_examples`, which knows its columns."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gad.records import Example
from gad.storage import Row, write_jsonl


def export_trl(examples: Iterable[Example], path: Path) -> int:
    """Write one line per teacher reply, atomically; returns the number of lines.

    The columns `id`, `model` and `finish_reason` come along, so that loading the file gives the same examples.
    """
    lines = 0

    def rows() -> Iterable[Row]:
        nonlocal lines
        for example in examples:
            prompt = [message.as_dict() for message in example.prompt.messages]
            for reply in example.replies:
                lines += 1
                yield {
                    "id": example.prompt.id,
                    "prompt": prompt,
                    "completion": [{"role": "assistant", "content": reply.text}],
                    "model": reply.model,
                    "finish_reason": "stop" if reply.finished else "length",
                }

    write_jsonl(path, rows())
    return lines
