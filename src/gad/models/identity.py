"""Whether models are those that a run was begun with: an adapter would be loaded beside any base of its shapes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from gad.errors import ModelError, RunFolderError
from gad.folder import has_trained
from gad.models.loading import resolve
from gad.storage import write_json

FILE = "models.json"
_PIECES = 64
_PIECE_BYTES = 4096
"""So much is read of a large file, here and there: a model that was trained further differs nearly everywhere."""
_NAMES = ("config.json", "tokenizer.json", "*.safetensors")


def settled(folder: Path, references: Iterable[str]) -> None:
    """Note which models these are; once something is trained, they have to be the ones that were noted.

    Raises RunFolderError where one of them is another, or where what was noted cannot be read.
    """
    path = folder / FILE
    known = _known(path) if path.exists() and has_trained(folder) else {}
    found = {reference: digest for reference in references if (digest := _digest(reference)) is not None}
    for reference, digest in found.items():
        if known.get(reference, digest) != digest:
            raise RunFolderError(
                f"{reference} holds another model than when {folder} was begun with it, and what was trained does not "
                f"fit it: put the old one back, or give this run another name (name=...); {FILE} has what was noted"
            )
    if not path.exists() or {**known, **found} != _known(path):
        write_json(path, {**known, **found})


def _known(path: Path) -> dict[str, str]:
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(known, dict):
            raise ValueError("not an object")
    except ValueError as error:
        raise RunFolderError(
            f"{path} is damaged ({error}): delete this one file where the models are those that the run was begun with"
        ) from error
    return known


def _digest(reference: str) -> str | None:
    """Of the files that a model is loaded from; None where there are none yet: to load it says why, or fetches it."""
    try:
        place = Path(resolve(reference))
        if not place.is_dir():
            cached = try_to_load_from_cache(reference, "config.json")
            place = Path(cached).parent if isinstance(cached, str) else place
    except (ModelError, ValueError):
        return None
    files = sorted(file for name in _NAMES for file in place.glob(name))
    total = hashlib.sha256()
    for file in files:
        total.update(f"{file.name} {file.stat().st_size} ".encode())
        total.update(_pieces(file))
    return total.hexdigest() if files else None


def _pieces(file: Path) -> bytes:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= _PIECES * _PIECE_BYTES:
            return stream.read()
        pieces = []
        for number in range(_PIECES):
            stream.seek(number * (size - _PIECE_BYTES) // (_PIECES - 1))
            pieces.append(stream.read(_PIECE_BYTES))
        return b"".join(pieces)
