"""Recorded teacher texts into the run folder: what is trained on, what is measured on, and what was left out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gad.config.run import RunConfig
from gad.data import Leak, LoadedSet, Origin, load_data
from gad.errors import RunFolderError
from gad.progress import Progress
from gad.records import Example, Message, Prompt, TeacherReply
from gad.storage import read_jsonl, write_json, write_jsonl
from gad.teacher.files import path_of

ORIGINS = "data.json"
SETS = "sets"


def import_once(config: RunConfig, folder: Path, progress: Progress) -> None:
    """Write `teacher.jsonl` (training), `sets/<set>.jsonl` (measuring) and `data.json`, where they are not there yet.

    Raises DataError for data that cannot be used.
    """
    if (folder / ORIGINS).exists():
        return
    sets = load_data(config.data, seed=config.seed)
    for name, loaded in reversed(sets.named.items()):
        write_set(loaded, name, folder)
    origins = {name: (len(loaded.examples), loaded.origin) for name, loaded in sets.named.items()}
    models = {reply.model for example in sets.train.examples for reply in example.replies}
    write_origins(folder, origins, sets.leaks, models, progress)


def write_set(loaded: LoadedSet, name: str, folder: Path) -> None:
    """A set's rows, as they were recorded."""
    write_jsonl(path_of(name, folder), _rows(loaded.examples))


def write_origins(
    folder: Path,
    sets: Mapping[str, tuple[int, Origin]],
    leaks: Sequence[Leak],
    teachers: Iterable[str],
    progress: Progress,
) -> None:
    """Write `data.json`, the last file of a collection, and say what was left out. sets: prompts and where from."""
    rows = {name: {"prompts": prompts, **origin.as_dict()} for name, (prompts, origin) in sets.items()}
    origins = {"sets": rows, "leaks": [asdict(leak) for leak in leaks], "teachers": sorted(teachers)}
    write_json(folder / ORIGINS, origins)
    for name, (prompts, origin) in sets.items():
        left_out = sum(dropped.count for dropped in origin.dropped)
        progress.say(f"{name}: {prompts} prompts, {left_out} rows left out")
    if leaks:
        progress.say(f"near-duplicates across sets: {len(leaks)}, listed in the report")


def read_examples(path: Path) -> list[Example]:
    """Examples that a collection wrote; replies of one prompt are put together.

    Raises RunFolderError where there are none: the stage before has not run.
    """
    prompts: dict[str, Prompt] = {}
    replies: dict[str, list[TeacherReply]] = {}
    for row in read_jsonl(path):
        messages = tuple(Message(message["role"], message["content"]) for message in row["prompt"])
        prompts.setdefault(row["id"], Prompt(row["id"], messages))
        reply = TeacherReply(row["completion"], row["model"] or "unknown", row["finish_reason"] != "length")
        replies.setdefault(row["id"], []).append(reply)
    if not prompts:
        raise RunFolderError(f"{path} holds no replies: run `gad collect` first")
    return [Example(prompt, tuple(replies[identity])) for identity, prompt in prompts.items()]


def set_paths(folder: Path) -> dict[str, Path]:
    """The sets to measure on, by name."""
    return {path.stem: path for path in sorted((folder / SETS).glob("*.jsonl"))}


def _rows(examples: Sequence[Example]) -> Iterable[dict[str, Any]]:
    created = time.time()
    for example in examples:
        for reply in example.replies:
            yield {
                "id": example.prompt.id,
                "prompt": [message.as_dict() for message in example.prompt.messages],
                "completion": reply.text,
                "model": reply.model,
                "finish_reason": "stop" if reply.finished else "length",
                "usage": None,
                "cost_usd": 0.0,
                "created": created,
                "request_hash": None,
            }
