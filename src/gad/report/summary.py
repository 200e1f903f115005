"""`summary.json`, read and checked. Keys that a later version adds are let pass; what is there must make sense."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from gad.errors import RunFolderError

FORMAT = 1
FEW_PROMPTS = 20
"""Fewer prompts than this, and a figure is shown as a rough one: its interval would be wider than 40 points."""


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]


def _empty_is_none(value: Any) -> Any:
    return None if value == {} else value


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class SetInfo(_Part):
    """A set that was measured on."""

    name: str
    kind: Literal["in_distribution", "out_of_distribution"] = "in_distribution"
    prompts: int = 0
    sha256: str | None = None
    overlaps_training: bool = False


class DecodingInfo(_Part):
    """A way to draw replies."""

    name: str
    temperature: Number = None
    top_p: Number = None


class Figure(_Part):
    """One number about one student's replies to one set; `low` and `high` are the interval, `n` the prompts."""

    student: str
    set: str
    decoding: str | None = None
    name: str
    value: Number = None
    low: Number = None
    high: Number = None
    n: int = 0
    note: str | None = None

    @property
    def few(self) -> bool:
        """Whether it rests on too few prompts to look precise."""
        return self.n < FEW_PROMPTS


class Paired(_Part):
    """`student` minus `against` over the same prompts."""

    student: str
    against: str
    set: str
    decoding: str | None = None
    name: str
    difference: Number = None
    low: Number = None
    high: Number = None
    p_value: Number = None
    p_value_corrected: Number = None
    n: int = 0

    @property
    def few(self) -> bool:
        """Whether it rests on too few prompts to look precise."""
        return self.n < FEW_PROMPTS


class Checkpoint(_Part):
    """Which checkpoint is the student, and why."""

    chosen: str
    last: str | None = None
    metric: str | None = None
    reason: str = ""


class Dropped(_Part):
    """Rows that were left out, by place and reason."""

    where: str
    reason: str
    count: int


class Leak(_Part):
    """A near-duplicate of a training prompt in a set that is measured on."""

    set: str
    id: str
    train_id: str
    similarity: Number = None


class Summary(_Part):
    """The figures of a run."""

    format: int = FORMAT
    name: str = ""
    created: str = ""
    students: tuple[str, ...] = ()
    headline: str = "gad"
    sets: tuple[SetInfo, ...] = ()
    decodings: tuple[DecodingInfo, ...] = ()
    figures: tuple[Figure, ...] = ()
    paired: tuple[Paired, ...] = ()
    checkpoint: Annotated[Checkpoint | None, BeforeValidator(_empty_is_none)] = None
    dropped: tuple[Dropped, ...] = ()
    leaks: tuple[Leak, ...] = ()
    cost: dict[str, Number] = {}
    teacher: dict[str, Any] = {}
    seconds: dict[str, Number] = {}
    tokens: dict[str, Number] = {}
    machine: dict[str, Any] = {}

    def figure(self, student: str, set_name: str, decoding: str | None, name: str) -> Figure | None:
        """The figure, if it was measured. Figures that need no decoding (decoding null) answer for every one."""
        for figure in self.figures:
            if (figure.student, figure.set, figure.name) == (student, set_name, name) and figure.decoding in (
                decoding,
                None,
            ):
                return figure
        return None


def parse_summary(value: Any, source: Path | str = "summary.json") -> Summary:
    """A checked summary. Raises RunFolderError naming the first key that is wrong."""
    try:
        summary = Summary.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise RunFolderError(
            f"{source}: {where}: {first['msg']}; write it again with `gad evaluate`, or move the file away"
        ) from error
    if summary.format != FORMAT:
        raise RunFolderError(
            f"{source}: format {summary.format}, this version of gad reads {FORMAT}: write it again with `gad evaluate`"
        )
    return summary


def read_summary(path: Path) -> Summary | None:
    """The summary of a run; None where there is none yet. Raises RunFolderError where it is damaged."""
    if not path.exists():
        return None
    return parse_summary(read_json(path), path)


def read_json(path: Path) -> Any:
    """A JSON file. Raises RunFolderError where it is not one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunFolderError(f"{path}: not JSON ({error}); move the file away and run the stage again") from error
