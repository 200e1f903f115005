"""Which files of a folder make up a split: folders of `save_to_disk`, and folders of plain files.

Plain files follow the hub's rules: `train-00000-of-00002.parquet`, `test.jsonl` or `validation/part.csv` name their
split; where no file does, all of them are `train`. Beside files that do, another file is a split of its own name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gad.errors import DataError

FileFormat = Literal["jsonl", "parquet", "arrow", "csv"]
FORMAT_OF: dict[str, FileFormat] = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".csv": "csv",
    ".tsv": "csv",
}
_KEYWORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "dev", "val"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}
_SHARD = re.compile(r"(.+?)-\d{5}-of-\d{5}")
_NEUTRAL_FOLDERS = {"data", "default"}


@dataclass(frozen=True, slots=True)
class SplitFiles:
    """The files of one split, in reading order."""

    split: str
    format: FileFormat
    files: tuple[Path, ...]


def files_of_folder(folder: Path, split: str | None) -> SplitFiles:
    """The files to read for `split`; without one, of `train` or of the only split.

    Raises DataError for a folder without data, an unknown split, or files that do not belong together.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _read_state(folder / "dataset_dict.json", "splits")
        chosen = choose_split([str(name) for name in splits], split, str(folder))
        return _saved(folder / Path(chosen).name, chosen)
    if (folder / "state.json").is_file():
        if split is not None:
            raise DataError(f"{folder} is a single saved set without splits: leave out `split: {split}`")
        return _saved(folder, folder.name)
    by_split = _plain_splits(folder)
    chosen = choose_split(list(by_split), split, str(folder))
    return _together(folder, chosen, by_split[chosen])


def choose_split(splits: list[str], wanted: str | None, source: str) -> str:
    """The split to read. Raises DataError with the splits there are."""
    listed = ", ".join(splits)
    if wanted is None:
        if "train" in splits or len(splits) == 1:
            return "train" if "train" in splits else splits[0]
        raise DataError(f"{source} has the splits {listed}: choose one with `split`")
    if wanted not in splits:
        near = difflib.get_close_matches(wanted, splits, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{source} has no split {wanted!r}, only {listed}{hint}")
    return wanted


def _saved(folder: Path, split: str) -> SplitFiles:
    entries = _read_state(folder / "state.json", "_data_files")
    try:
        files = tuple(folder / Path(entry["filename"]).name for entry in entries)
    except (TypeError, KeyError) as error:
        raise DataError(f"{folder / 'state.json'} is damaged: _data_files has no file names") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise DataError(f"{folder} is incomplete: {', '.join(missing) or 'no data files'} missing; save the set again")
    return SplitFiles(split, "arrow", files)


def _read_state(path: Path, key: str) -> list[Any]:
    try:
        value = json.loads(path.read_bytes())[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is missing or damaged ({error}): save the set again") from error
    if not isinstance(value, list):
        raise DataError(f"{path} is damaged: {key} is no list")
    return value


def _plain_splits(folder: Path) -> dict[str, list[Path]]:
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in FORMAT_OF
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not files:
        there = sorted(path.name for path in folder.iterdir())[:8]
        endings = ", ".join(FORMAT_OF)
        raise DataError(
            f"{folder} has no data files ({endings}); it holds {', '.join(there) or 'nothing'}."
            " A file of another name can be given by its own path and `format`"
        )
    named = {file: _split_name(file.relative_to(folder)) for file in files}
    by_split: dict[str, list[Path]] = defaultdict(list)
    for file, name in named.items():
        by_split[name or (file.stem if any(named.values()) else "train")].append(file)
    return dict(by_split)


def _split_name(path: Path) -> str | None:
    shard = _SHARD.match(path.stem)
    if shard:
        return _KEYWORDS.get(shard[1], shard[1])
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in re.split(r"[-._ \d]+", part.lower()):
            if word in _KEYWORDS:
                return _KEYWORDS[word]
    return None


def _together(folder: Path, split: str, files: list[Path]) -> SplitFiles:
    formats = {FORMAT_OF[file.suffix.lower()] for file in files}
    homes = {_home(file.relative_to(folder).parent) for file in files}
    if len(formats) > 1 or len(homes) > 1:
        names = ", ".join(str(file.relative_to(folder)) for file in files[:6])
        raise DataError(
            f"{folder}: the {split} files differ in format or lie in different folders ({names});"
            " give the folder or the file that is meant as `path`"
        )
    return SplitFiles(split, formats.pop(), tuple(files))


def _home(folder: Path) -> str:
    """Where a file lies, without folders that only name its split: more than one are several datasets."""
    return "/".join(part for part in folder.parts if part not in _NEUTRAL_FOLDERS and _split_name(Path(part)) is None)
