"""Opening a run folder: one owner, one config."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gad.config.run import RunConfig
from gad.errors import RunFolderError
from gad.storage import lock, remove_leftovers, write_json

CONFIG = "config.json"
FREE_SECTIONS = ("compute", "checkpoints", "runs_dir")
"""What may change while a run goes on: where and in what pieces it is computed, and how often it is saved."""


@contextmanager
def opened(config: RunConfig) -> Iterator[Path]:
    """The run folder, locked, with the resolved config written into it.

    Raises RunFolderError where another process has it, where it cannot be written, or where it belongs to another
    config: then the keys that differ are named.
    """
    folder = config.folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with lock(folder):
            _adopt(config, folder / CONFIG)
            remove_leftovers(folder)
            remove_leftovers(folder / "checkpoints")
            yield folder
    except PermissionError as error:
        raise RunFolderError(f"{error.filename}: not writable; set runs_dir to a folder that is") from error
    except NotADirectoryError as error:
        raise RunFolderError(f"{folder} is not a folder: remove the file, or set runs_dir") from error


def _adopt(config: RunConfig, path: Path) -> None:
    resolved = config.model_dump(mode="json")
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changes = sorted(key for key in differences(before, resolved) if key.split(".")[0] not in FREE_SECTIONS)
        if changes:
            shown = ", ".join(changes[:5]) + (f" and {len(changes) - 5} more" if len(changes) > 5 else "")
            raise RunFolderError(
                f"{path.parent} was begun with another config, {shown} changed: undo the change, or give this run "
                f"another name (name=...), or delete the folder"
            )
    write_json(path, resolved)


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
