"""A prompt set split over machines by the keys of its requests, and the ledgers of all of them brought together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from gad.errors import ConfigError
from gad.teacher.ledger import LEDGER

_FOLDER = re.compile(r"shard-(\d+)-of-(\d+)")


@dataclass(frozen=True, slots=True)
class Shard:
    """Part `number` of `count`, from 1."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise ConfigError(f"--shard {self.number}/{self.count}: the first number goes from 1 to the second")

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `i/n`."""
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if found is None:
            raise ConfigError(f"--shard {text!r}: give it as i/n, e.g. 2/8 for the second of eight parts")
        return cls(int(found.group(1)), int(found.group(2)))

    @property
    def name(self) -> str:
        return f"shard-{self.number}-of-{self.count}"

    def has(self, key: str) -> bool:
        """Whether a request belongs to this part."""
        return int(key[:12], 16) % self.count == self.number - 1


def shard_folders(folder: Path) -> list[Path]:
    """Folders of parts that hold a ledger, in order."""
    found = [path for path in folder.glob("shard-*-of-*") if _FOLDER.fullmatch(path.name) and (path / LEDGER).exists()]
    return sorted(found)


def split_differently(folder: Path, shard: Shard) -> list[Path]:
    """Folders of parts of another split: the same request could be in one of them and in `shard`."""
    parts = ((path, _FOLDER.fullmatch(path.name)) for path in shard_folders(folder))
    return [path for path, found in parts if found is not None and int(found.group(2)) != shard.count]
