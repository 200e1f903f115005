"""Evaluation sets: the paper's four as published, and your own; which rows, whether they leak, as records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, assert_never

from gad.config.data import Columns, LeakCheck, Source
from gad.config.judging import EvaluationSetConfig, OwnSet, Published, PublishedSet
from gad.data.columns import id_of
from gad.data.leaks import find_leaks
from gad.data.loading import fingerprint, load_prompts
from gad.data.rows import BadRow, RawRow
from gad.data.sources import label_of, read_rows
from gad.errors import DataError
from gad.records import Message, Prompt

Kind = Literal["in_distribution", "out_of_distribution"]


@dataclass(frozen=True, slots=True)
class PublishedForm:
    """How a test set of the paper is published.

    size: prompts in the paper. home: its place on the hub, and columns as there. In-distribution is what the paper
        trains on, LMSYS; with another training set, your own held-out prompts are.
    """

    size: int
    kind: Kind
    home: Source


_MINILLM = Columns(id=None, prompt="instruction", system="input", completion="output", finish_reason=None, model=None)
PUBLISHED: Mapping[Published, PublishedForm] = {
    "lmsys": PublishedForm(
        500,
        "in_distribution",
        Source(
            path="ytz20/LMSYS-Chat-GPT-5-Chat-Response",
            format="hub",
            split="test",
            columns=Columns(id="id", prompt="content", completion="teacher_response"),
        ),
    ),
    "dolly": PublishedForm(
        500,
        "out_of_distribution",
        Source(path="MiniLLM/dolly", format="hub", split="validation", limit=500, columns=_MINILLM),
    ),
    "selfinst": PublishedForm(
        252,
        "out_of_distribution",
        Source(path="MiniLLM/self-inst", format="hub", split="validation", columns=_MINILLM),
    ),
    "vicuna": PublishedForm(
        80,
        "out_of_distribution",
        Source(path="MiniLLM/Vicuna", format="hub", split="validation", columns=_MINILLM),
    ),
}
"""The released LMSYS test set has 479 rows of the paper's 500. The other three are read from the copies that MiniLLM's
authors (arXiv 2306.08543) published, or from a local file in that form, in Databricks' (instruction, context), in
Self-Instruct's (instruction, instances) or in FastChat's (question_id, turns or text)."""


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Prompts to judge on.

    sha256: of ids and messages, in order. expected: prompts of the paper's set, None for an own one.
    overlap: ids of prompts that are (nearly) in the training set; not empty only where that was allowed.
    """

    name: str
    kind: Kind
    prompts: tuple[Prompt, ...]
    source: str
    sha256: str
    expected: int | None = None
    overlap: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For summary and report: everything but the prompts."""
        return {
            "name": self.name,
            "kind": self.kind,
            "prompts": len(self.prompts),
            "expected": self.expected,
            "source": self.source,
            "sha256": self.sha256,
            "overlap": list(self.overlap),
        }


def load_set(config: EvaluationSetConfig) -> EvaluationSet:
    """A set by its config. Raises DataError for a row that cannot be used, or no rows; MissingExtra as load_prompts."""
    match config:
        case OwnSet():
            kind: Kind = "out_of_distribution" if config.out_of_distribution else "in_distribution"
            loaded = load_prompts(config.source)
            return EvaluationSet(config.name, kind, loaded.prompts, label_of(config.source), loaded.origin.sha256)
        case PublishedSet():
            form = PUBLISHED[config.name]
            source = config.source or form.home
            prompts = _published_prompts(config.name, source)
            return EvaluationSet(
                config.name, form.kind, prompts, label_of(source), fingerprint(prompts), expected=form.size
            )
        case _:
            assert_never(config)


def checked(found: EvaluationSet, train: Sequence[Prompt], *, allow_overlap: bool) -> EvaluationSet:
    """The set with its overlap with the training prompts noted. Raises DataError for any unless allowed."""
    settings = LeakCheck()
    leaks = find_leaks(
        found.prompts, train, threshold=settings.threshold, ngram=settings.ngram, sets=(found.name, "train")
    )
    if leaks and not allow_overlap:
        shown = ", ".join(f"{leak.id} ({leak.similarity:.2f} like {leak.other_id})" for leak in leaks[:3])
        raise DataError(
            f"{len(leaks)} of {len(found.prompts)} prompts of the set {found.name!r} are (nearly) in the training set: "
            f"{shown}. Take them out, or set judging.allow_overlap to true and have the set marked"
        )
    return replace(found, overlap=tuple(leak.id for leak in leaks))


def _published_prompts(name: Published, source: Source) -> tuple[Prompt, ...]:
    prompts: dict[str, Prompt] = {}
    for row in read_rows(source):
        if isinstance(row, BadRow):
            raise DataError(f"{row.place}: {row.reason} ({row.detail})")
        try:
            prompt = _prompt(row, source.columns)
        except (ValueError, TypeError) as error:
            raise DataError(f"{row.place}: not a row of {name} as published ({error})") from error
        if prompts.setdefault(prompt.id, prompt) != prompt:
            raise DataError(f"{row.place}: the id {prompt.id!r} was there before with another prompt")
    if not prompts:
        raise DataError(f"{label_of(source)}: no rows")
    return tuple(prompts.values())


def _prompt(row: RawRow, columns: Columns) -> Prompt:
    values = row.values
    messages = _messages(values, columns)
    given = next((values[key] for key in ("id", "question_id", "prompt_id") if values.get(key) is not None), None)
    return Prompt(id_of(messages) if given is None else str(given), messages)


def _messages(values: Mapping[str, object], columns: Columns) -> tuple[Message, ...]:
    if isinstance(values.get("instruction"), str):
        further = _text(values.get("input")) or _text(values.get("context")) or _instance(values.get("instances"))
        text = str(values["instruction"]).strip()
        return (Message("user", f"{text}\n\n{further}" if further else text),)
    for key in (columns.prompt, "content", "turns", "text", "prompt", "messages"):
        value = values.get(key)
        if isinstance(value, str) and value.strip():
            return (Message("user", value.strip()),)
        if isinstance(value, Sequence) and value and isinstance(value[0], str):
            return (Message("user", value[0].strip()),)
        if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
            turns = tuple(Message(turn["role"], turn["content"]) for turn in value)
            return turns[:-1] if turns[-1].role == "assistant" else turns
    raise ValueError(f"it has none of the columns instruction, content, turns, text; but {', '.join(map(str, values))}")


def _instance(value: object) -> str:
    """The input of Self-Instruct's `instances`: a list of {input, output}, or the columns of one."""
    if isinstance(value, Sequence) and value and isinstance(value[0], Mapping):
        return _text(value[0].get("input"))
    if isinstance(value, Mapping):
        inputs = value.get("input")
        return _text(inputs[0] if isinstance(inputs, Sequence) and not isinstance(inputs, str) and inputs else inputs)
    return ""


def _text(value: object) -> str:
    return value.strip() if isinstance(value, str) else ""
