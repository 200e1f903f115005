"""The sets of `judging.sets` in the run folder: read once, recorded by hash, looked through for training prompts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from gad.config.judging import EvaluationSetConfig
from gad.config.run import RunConfig
from gad.errors import RunFolderError
from gad.judging.sets import EvaluationSet, checked, load_set
from gad.progress import Progress
from gad.records import Message, Prompt
from gad.stages.collect import ORIGINS, SETS, read_examples
from gad.storage import read_jsonl, write_json, write_jsonl
from gad.teacher.files import TEACHER

FOLDER = "judged"
"""Inside of `sets/`: `<name>.jsonl` holds the prompts, `<name>.json` where they are from and their hash."""


@dataclass(frozen=True, slots=True)
class JudgedSet:
    """A recorded set; `info` is what summary and report show of it."""

    name: str
    prompts: tuple[Prompt, ...]
    info: dict[str, Any]


def record(config: RunConfig, folder: Path, progress: Progress) -> None:
    """Read the sets that are not in the run folder yet. A set's name stands for the same rows for good.

    Raises DataError for rows that cannot be used and for prompts that are (nearly) in the training set, unless that is
    allowed; RunFolderError for a name that stood for other rows before.
    """
    settings = config.judging

    @cache
    def train() -> tuple[Prompt, ...]:
        return tuple(example.prompt for example in read_examples(folder / TEACHER))

    for wanted in () if settings is None else settings.sets:
        assert settings is not None
        known = _info(folder, wanted.name)
        asked = {**wanted.model_dump(mode="json"), "train": _train_sha256(folder)}
        if known.get("config") == asked and (settings.allow_overlap or not known["overlap"]):
            continue
        found = checked(load_set(wanted), train(), allow_overlap=settings.allow_overlap)
        if known and known["sha256"] != found.sha256:
            raise RunFolderError(
                f"judging.sets: {wanted.name!r} was another set of rows in this run ({known['source']}), and there may "
                "be replies to it: give the new one another name"
            )
        _write(folder, found, asked)
        progress.say(_said(found))


def recorded(config: RunConfig, folder: Path) -> list[JudgedSet]:
    """The sets of the config as they were recorded. Raises RunFolderError for one that was not."""
    return [_read(folder, wanted) for wanted in (() if config.judging is None else config.judging.sets)]


def path_of(folder: Path, name: str) -> Path:
    """The file of a set's prompts."""
    return folder / SETS / FOLDER / f"{name}.jsonl"


def _said(found: EvaluationSet) -> str:
    of = "" if found.expected in (None, len(found.prompts)) else f" (the paper has {found.expected})"
    overlap = f", {len(found.overlap)} of them (nearly) in the training set" if found.overlap else ""
    return f"{found.name}: {len(found.prompts)} prompts{of}, {found.kind.replace('_', ' ')}{overlap}"


def _write(folder: Path, found: EvaluationSet, asked: dict[str, Any]) -> None:
    path = path_of(folder, found.name)
    write_jsonl(path, _rows(found.prompts))
    write_json(path.with_suffix(".json"), {**found.as_dict(), "config": asked})


def _rows(prompts: tuple[Prompt, ...]) -> Iterator[dict[str, Any]]:
    for prompt in prompts:
        yield {"id": prompt.id, "prompt": [message.as_dict() for message in prompt.messages]}


def _read(folder: Path, wanted: EvaluationSetConfig) -> JudgedSet:
    info = _info(folder, wanted.name)
    if info.get("config") != {**wanted.model_dump(mode="json"), "train": _train_sha256(folder)}:
        raise RunFolderError(
            f"judging.sets: {wanted.name!r} as the run file has it is not in {folder} yet: run `gad generate` to read "
            "it and have replies written"
        )
    prompts = tuple(
        Prompt(row["id"], tuple(Message(turn["role"], turn["content"]) for turn in row["prompt"]))
        for row in read_jsonl(path_of(folder, wanted.name))
    )
    return JudgedSet(wanted.name, prompts, {key: value for key, value in info.items() if key != "config"})


def _train_sha256(folder: Path) -> str | None:
    """Of the training set that a set was looked through for."""
    path = folder / ORIGINS
    origins: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    found: str | None = origins.get("sets", {}).get("train", {}).get("sha256")
    return found


def _info(folder: Path, name: str) -> dict[str, Any]:
    path = path_of(folder, name).with_suffix(".json")
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return found
