"""A new run that takes over what another run has done with the same settings: try another rate, keep the warm-up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gad.config.run import RunConfig
from gad.errors import RunFolderError
from gad.folder import CHECKPOINTS, CONFIG, FREE, METRICS, differences
from gad.storage import atomic_directory, read_jsonl, write_json, write_jsonl

DATA = ("seed", "data", "teacher")
TEXT = (*DATA, "prompt", "student")
WARMUP = (*TEXT, "discriminator", "warmup", "adversarial.sampling", "adversarial.discriminator_loss")
STAGES = {
    "seqkd": (*TEXT, "seqkd"),
    "warmup": WARMUP,
    "adversarial": (*WARMUP, "adversarial"),
    "independent": (*WARMUP, "evaluation.independent", "evaluation.decodings"),
}
"""What the result of each stage follows from, as keys of the run file; SeqKD's on its start too, see `_stages`."""
REPLIES = {
    "base": TEXT,
    "teacher": TEXT,
    "warmup": WARMUP,
    "gad": (*STAGES["independent"], *STAGES["adversarial"], "evaluation.checkpoint"),
}
"""What replies of each arm follow from, beside how they are drawn; SeqKD's as the stage."""
DRAWN = ("evaluation.decodings", "evaluation.max_prompts")
TEXTS = ("teacher.jsonl", "data.json", "sets", "collect.json", "teacher")
"""What was imported, or bought: with the ledger nothing is bought again."""
CHOICE = "choice.json"
NOTED = ("arithmetic.json", "models.json")
"""The number type that finished stages were computed in; what follows them goes on in it."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a new run takes over: finished stages, all that was copied, and the keys that differ."""

    stages: tuple[str, ...]
    paths: tuple[Path, ...]
    changes: tuple[str, ...]


def fork(source: Path, config: RunConfig) -> Taken:
    """Make the folder of `config`, with everything of `source` that the same settings have made.

    The source stays as it is, and may be running: only finished stages are taken. Raises RunFolderError where it is no
    run folder, holds no texts, differs in its data, or the new folder exists.
    """
    target = config.folder
    if target.exists():
        raise RunFolderError(f"{target} exists: give the new run another name (name=...), or delete that folder")
    changes = tuple(differences(_recorded(source), config.model_dump(mode="json")))
    texts = [source / name for name in TEXTS if (source / name).exists()]
    if not {source / name for name in TEXTS[:3]} <= set(texts):
        raise RunFolderError(
            f"{source} holds no teacher's replies yet, so there is nothing to take over: run `gad run` instead"
        )
    if not _same(changes, DATA):
        differing = ", ".join(key for key in changes if not _same([key], DATA))
        raise RunFolderError(
            f"{differing} differ from {source}, so nothing of it can be taken over: undo the change, or run `gad run` "
            "instead"
        )
    with atomic_directory(target) as folder:
        write_json(folder / CONFIG, config.model_dump(mode="json"))
        keys_of = _stages(config)
        stages = tuple(stage for stage, keys in keys_of.items() if _same(changes, keys) and _done(source, stage))
        replies = _replies(source, changes, stages, {**REPLIES, "seqkd": keys_of["seqkd"]})
        taken = [*texts, *_checkpoints(source, stages), *replies]
        if stages:
            taken += [source / name for name in NOTED if (source / name).exists()]
        for path in taken:
            _copy(path, folder / path.relative_to(source))
        if stages:
            write_jsonl(folder / METRICS, (row for row in read_jsonl(source / METRICS) if row["stage"] in stages))
    return Taken(stages, tuple(taken), tuple(key for key in changes if key != "name"))


def _stages(config: RunConfig) -> dict[str, tuple[str, ...]]:
    """`STAGES`, with the warm-up's keys where SeqKD goes on from it."""
    return {**STAGES, "seqkd": (*WARMUP, "seqkd")} if config.seqkd_follows_warmup else STAGES


def _recorded(source: Path) -> Mapping[str, Any]:
    path = source / CONFIG
    if not path.is_file():
        raise RunFolderError(f"{source} is no run folder: it has no {CONFIG}")
    try:
        return RunConfig.model_validate(json.loads(path.read_text(encoding="utf-8"))).model_dump(mode="json")
    except ValueError as error:
        raise RunFolderError(
            f"{path} is not a config that this version of gad reads ({str(error).splitlines()[0]}): take over from "
            "another run, or run `gad run` instead"
        ) from error


def _done(source: Path, stage: str) -> bool:
    """Whether the last checkpoint of a stage says that nothing is left to do; it was written whole."""
    last = max(_of_stage(source, stage), key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    return last is not None and bool(json.loads((last / "state.json").read_text(encoding="utf-8"))["done"])


def _checkpoints(source: Path, stages: Sequence[str]) -> Iterator[Path]:
    return (path for stage in stages for path in _of_stage(source, stage))


def _of_stage(source: Path, stage: str) -> list[Path]:
    paths = sorted((source / CHECKPOINTS).glob(f"{stage}-*"))
    return [path for path in paths if path.name.removeprefix(f"{stage}-").isdigit()]


def _replies(
    source: Path, changes: Sequence[str], stages: Sequence[str], keys_of: Mapping[str, Sequence[str]]
) -> Iterator[Path]:
    """Replies, likelihoods and scores that the new run would write again, letter by letter."""
    for arm, keys in keys_of.items():
        if not _same(changes, (*keys, *DRAWN)):
            continue
        kinds = ("replies", "likelihoods", "scores") if "independent" in stages else ("replies", "likelihoods")
        yield from (source / kind / arm for kind in kinds if (source / kind / arm).is_dir())
        if arm == "gad" and (source / CHOICE).exists():
            yield source / CHOICE


def _same(changes: Sequence[str], keys: Sequence[str]) -> bool:
    return not any(_touches(change, keys) for change in changes if not _is_free(change))


def _is_free(change: str) -> bool:
    """Whether a changed key decides only where, how fast or for how much something is done."""
    return any(f"{change}.".startswith(f"{key}.") for key in FREE)


def _touches(change: str, keys: Sequence[str]) -> bool:
    """Whether a changed key lies under one of `keys` or above it."""
    return any(f"{change}.".startswith(f"{key}.") or f"{key}.".startswith(f"{change}.") for key in keys)


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copy2(path, target)
