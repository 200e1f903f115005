"""Checkpoints: a folder of safetensors and JSON that is complete or absent. Nothing in it is unpickled.

<stage>-<step>/
    <part>.safetensors   weights, optimizer moments and counters of each trained part
    state.json           stage, step, whether the stage is done, versions
    manifest.json        size and SHA-256 of every other file
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from gad.errors import CheckpointError, RunFolderError
from gad.storage import atomic_directory, write_json

FORMAT = 1
MANIFEST = "manifest.json"
STATE = "state.json"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One complete checkpoint on disk."""

    path: Path
    stage: str
    step: int

    def state(self) -> dict[str, Any]:
        """What `save` was given as `state`. Raises CheckpointError for another format."""
        state: dict[str, Any] = json.loads((self.path / STATE).read_text(encoding="utf-8"))
        if state.get("format") != FORMAT:
            raise CheckpointError(
                f"{self.path} has checkpoint format {state.get('format')}, this version reads {FORMAT}: "
                "finish the run with the version that began it, or start the stage anew"
            )
        return state

    def is_due(self) -> bool:
        """Whether it was saved because it was time to, and not because a stop was asked for."""
        try:
            return bool(self.state().get("due", True))
        except (CheckpointError, OSError, ValueError, AttributeError):
            return False  # damaged

    def tensors(self, part: str) -> dict[str, Tensor]:
        """The tensors of one part, on the CPU. Raises CheckpointError where it is absent."""
        file = self.path / f"{part}.safetensors"
        if not file.exists():
            raise CheckpointError(f"{self.path} holds no {part}")
        try:
            tensors: dict[str, Tensor] = load_file(file)
        except SafetensorError as error:
            raise CheckpointError(f"{file} cannot be read: {error}") from error
        return tensors

    def damage(self) -> str | None:
        """What differs from the manifest, or None where all is well."""
        try:
            manifest: dict[str, dict[str, Any]] = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            if STATE not in manifest:
                return f"{MANIFEST}: does not list {STATE}"
            for name, expected in manifest.items():
                found = _fingerprint(self.path / name)
                if found != expected:
                    return f"{name}: {_difference(expected, found)}"
        except (OSError, ValueError) as error:
            return str(error)
        except (AttributeError, KeyError, TypeError):
            return f"{MANIFEST}: not a list of files with sizes and checksums"
        return None


def save(
    folder: Path, stage: str, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Checkpoint:
    """Write a checkpoint. Raises RunFolderError where the disk is full; then nothing of it is left."""
    path = folder / f"{stage}-{step}"
    try:
        with atomic_directory(path) as temporary:
            for name, tensors in parts.items():
                contiguous = {key: value.detach().contiguous().cpu() for key, value in tensors.items()}
                save_file(contiguous, temporary / f"{name}.safetensors")
            write_json(temporary / STATE, {"format": FORMAT, "stage": stage, "step": step, **state})
            files = sorted(file for file in temporary.iterdir() if file.name != MANIFEST)
            write_json(temporary / MANIFEST, {file.name: _fingerprint(file) for file in files})
    except (OSError, SafetensorError) as error:
        if getattr(error, "errno", None) not in (None, errno.ENOSPC, errno.EDQUOT) or not _is_full(error):
            raise
        raise RunFolderError(
            f"the disk is full: {path} was not saved, earlier checkpoints are whole. Free some space, "
            "or lower checkpoints.keep_last, and run the same command again"
        ) from error
    return Checkpoint(path, stage, step)


def find(folder: Path, stage: str) -> list[Checkpoint]:
    """Checkpoints of a stage, the latest first."""
    pattern = re.compile(rf"{re.escape(stage)}-(\d+)")
    matches = ((path, pattern.fullmatch(path.name)) for path in folder.glob(f"{stage}-*"))
    found = [Checkpoint(path, stage, int(match[1])) for path, match in matches if match]
    return sorted(found, key=lambda checkpoint: -checkpoint.step)


def latest(folder: Path, stage: str) -> tuple[Checkpoint | None, list[str]]:
    """The latest undamaged checkpoint of a stage, and a line for each one that was passed over.

    Raises CheckpointError where only checkpoints of another format are left: to begin anew would not be asked for.
    """
    passed: list[str] = []
    foreign: CheckpointError | None = None
    for checkpoint in find(folder, stage):
        damage = checkpoint.damage()
        if damage is not None:
            passed.append(f"checkpoint {checkpoint.path.name} is damaged ({damage}): using the one before it")
            continue
        try:
            checkpoint.state()
        except CheckpointError as error:
            passed.append(f"{error}; using the one before it")
            foreign = foreign or error
            continue
        return checkpoint, passed
    if foreign is not None:
        raise foreign
    return None, passed


def prune(folder: Path, stage: str, step: int, choose: Callable[[Sequence[Checkpoint]], Collection[int]]) -> None:
    """Delete the checkpoints of a stage up to `step` but for those whose steps `choose` picks.

    Later ones were passed over as damaged when the run was taken up: they must not push out what was saved since.
    """
    found = [checkpoint for checkpoint in find(folder, stage) if checkpoint.step <= step]
    stay = choose(found)
    for checkpoint in found:
        if checkpoint.step in stay:
            continue
        doomed = checkpoint.path.with_name(f".{checkpoint.path.name}.tmp-pruned")
        checkpoint.path.rename(doomed)
        shutil.rmtree(doomed)


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    if expected["bytes"] != found["bytes"]:
        return f"{found['bytes']} bytes instead of {expected['bytes']}"
    return "its checksum differs"


def _is_full(error: Exception) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
