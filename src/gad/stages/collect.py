"""Recorded teacher texts into the run folder: what is trained on, what is measured on, and what was left out."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gad.config.data import DataConfig
from gad.config.run import RunConfig
from gad.data import LoadedSet, load_data
from gad.errors import RunFolderError
from gad.progress import Progress
from gad.records import Example, Message, Prompt, TeacherReply
from gad.storage import read_jsonl, write_json, write_jsonl

TEACHER = "teacher.jsonl"
ORIGINS = "data.json"
SETS = "sets"


def import_texts(config: DataConfig, folder: Path, *, seed: int) -> dict[str, Any]:
    """Write `teacher.jsonl` (training), `sets/<set>.jsonl` (measuring) and `data.json` (where from, what was dropped).

    Returns what `data.json` holds. Raises DataError for data that cannot be used.
    """
    sets = load_data(config, seed=seed)
    measured = {"held_out": sets.held_out}
    if sets.out_of_distribution is not None:
        measured["out_of_distribution"] = sets.out_of_distribution
    for name, loaded in measured.items():
        write_jsonl(folder / SETS / f"{name}.jsonl", _rows(loaded.examples))
    write_jsonl(folder / TEACHER, _rows(sets.train.examples))
    origins = {
        "sets": {"train": _origin(sets.train), **{name: _origin(loaded) for name, loaded in measured.items()}},
        "leaks": [asdict(leak) for leak in sets.leaks],
        "teachers": sorted({reply.model for example in sets.train.examples for reply in example.replies}),
    }
    write_json(folder / ORIGINS, origins)
    return origins


def collect(config: RunConfig, folder: Path, progress: Progress) -> None:
    """Import the run's texts, once, and say what was left out."""
    if (folder / ORIGINS).exists():
        return
    origins = import_texts(config.data, folder, seed=config.seed)
    for name, origin in origins["sets"].items():
        left_out = sum(reason["count"] for reason in origin["dropped"])
        progress.say(f"{name}: {origin['prompts']} prompts, {left_out} rows left out")
    if origins["leaks"]:
        progress.say(f"near-duplicates across sets: {len(origins['leaks'])}, listed in the report")


def read_examples(path: Path) -> list[Example]:
    """Examples that `import_texts` (or a collection from an API) wrote; replies of one prompt are put together.

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


def _origin(loaded: LoadedSet) -> dict[str, Any]:
    return {"prompts": len(loaded.examples), **loaded.origin.as_dict()}
