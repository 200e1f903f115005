"""Opening a run folder: one owner, one config."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gad.config.run import RunConfig
from gad.errors import RunFolderError
from gad.storage import lock, remove_leftovers, write_json

CONFIG = "config.json"
METRICS = "metrics.jsonl"
CHECKPOINTS = "checkpoints"
FREE = (
    "compute",
    "checkpoints",
    "runs_dir",
    "judging",
    "arena",
    "evaluation.models",
    *(f"{stage}.max_bad_steps" for stage in ("seqkd", "warmup", "adversarial", "evaluation.independent")),
    *(f"teacher.{key}" for key in ("endpoint", "api", "limits", "prices", "max_cost_usd", "batch")),
)
"""What may change while a run goes on: where and in what pieces it is computed, how often it is saved, who judges
what (verdicts and replies carry what they depend on), and where, how fast and for how much a teacher is asked."""
FREE_UNTIL_TRAINED = (
    "data",
    *(f"teacher.{key}" for key in ("replies_per_prompt", "languages", "near_duplicates", "accept_models")),
)
"""What else may change in a run with a teacher to ask, until something is trained: the ledger keeps every reply, and
what is trained on is chosen from it anew. A change of model, sampling or system prompt would buy every reply again."""
FREE_UNTIL_BEGUN = {"seqkd": ("seqkd.epochs",), "adversarial": ("adversarial.epochs", "adversarial.steps")}
"""How long a stage trains, until it has a checkpoint: what is before it does not depend on that."""
_SHOWN_CHANGES = 5


@contextmanager
def opened(config: RunConfig, *, alone: bool = True) -> Iterator[Path]:
    """The run folder, locked, with the resolved config written into it.

    alone: false for a process that works in a part of the folder which it locks by itself, beside others like it.

    Raises RunFolderError where another process has it, where it cannot be written, or where it belongs to another
    config: then the keys that differ are named.
    """
    folder = config.folder
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if alone:
                stack.enter_context(lock(folder))
            _adopt(config, folder / CONFIG)
            for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())) if alone else ():
                remove_leftovers(place)
        except OSError as error:
            raise RunFolderError(_why_not(folder, error)) from error
        yield folder


def _why_not(folder: Path, error: OSError) -> str:
    blocking = next((path for path in (folder, *folder.parents) if path.is_file()), None)
    if blocking is not None:
        return f"{blocking} is a file, not a folder: remove it, or set runs_dir to another folder"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{folder}: the disk is full; free some space, or set runs_dir to another disk"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{error.filename or folder}: not writable ({error.strerror}); set runs_dir to a folder that is"
    return f"{folder} cannot be a run folder ({error.strerror or error}); set runs_dir to a folder that can be written"


def _adopt(config: RunConfig, path: Path) -> None:
    resolved = config.model_dump(mode="json")
    if path.exists():
        before = _with_defaults(path)
        free = (*FREE, *_free_until(path.parent, asked=None not in (before["teacher"], resolved["teacher"])))
        changes = [
            f"{key} changed ({_short(_value(before, key))} there, {_short(_value(resolved, key))} now)"
            for key in sorted(differences(before, resolved))
            if not _within(key, free)
        ]
        if changes:
            more = f" and {len(changes) - _SHOWN_CHANGES} more" if len(changes) > _SHOWN_CHANGES else ""
            raise RunFolderError(
                f"{path.parent} was begun with another config, {', '.join(changes[:_SHOWN_CHANGES])}{more}: undo the "
                "change, or give this run another name (name=...), or delete the folder"
            )
        if before == resolved:
            return
    write_json(path, resolved)


def _free_until(folder: Path, *, asked: bool) -> Iterator[str]:
    """What is free because something was not done yet; asked: there is a teacher to ask."""
    if asked and not has_trained(folder):
        yield from FREE_UNTIL_TRAINED
    for stage, keys in FREE_UNTIL_BEGUN.items():
        if not any((folder / CHECKPOINTS).glob(f"{stage}-*")):
            yield from keys


def _within(key: str, places: Iterable[str]) -> bool:
    return any(key == place or key.startswith(f"{place}.") for place in places)


def has_trained(folder: Path) -> bool:
    """Whether a stage that trains was begun: from then on the texts stay what they are."""
    return (folder / METRICS).exists() or any((folder / CHECKPOINTS).glob("*"))


def _with_defaults(path: Path) -> dict[str, Any]:
    """A recorded config; keys that a later version of gad added have their defaults."""
    try:
        recorded = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(recorded, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise RunFolderError(
            f"{path} is damaged ({error}): delete this one file, and the run goes on with the config of the run file; "
            "make sure that it is the same"
        ) from error
    try:
        return RunConfig.model_validate(recorded).model_dump(mode="json")
    except ValidationError:
        return recorded


def differences(before: Any, after: Any, prefix: str = "") -> list[str]:
    """Keys, joined by dots, whose values differ."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({*before, *after})
        return [
            found
            for key in keys
            for found in differences(before.get(key), after.get(key), f"{prefix}.{key}" if prefix else key)
        ]
    return [] if before == after else [prefix]


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, Mapping) else None
    return values


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
