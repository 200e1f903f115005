"""What a run folder holds, read once. Every part may be missing; what is missing is named, not passed over."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gad.errors import RunFolderError
from gad.records import GeneratedReply
from gad.report.summary import DecodingInfo, SetInfo, Summary, read_json, read_summary
from gad.report.wording import set_title
from gad.storage import read_jsonl

TEACHER = "teacher"
KNOWN_ORDER = ("base", "seqkd", "seqkd_equal_time", "warmup", "gad_cross_entropy", "gad")
Replies = Mapping[str, GeneratedReply]


@dataclass(frozen=True, slots=True)
class ReplyKey:
    """Whose replies, to which set, drawn how (None: the teacher's, which were not drawn here)."""

    student: str
    set: str
    decoding: str | None


@dataclass(frozen=True, slots=True)
class Judgement:
    """One judge's word on one pair of replies; `preference` is for `first`, in [0, 1]."""

    judge: str
    first: str
    second: str
    set: str | None
    prompt_id: str
    preference: float | None
    words: str
    order: str


@dataclass(frozen=True, slots=True)
class Gathered:
    """A run folder in memory.

    margins: by student's replies, prompt id -> the independent discriminator's score of the reply minus the
        teacher's; above 0 the student's reply is preferred.
    judging: what `judging.json` holds, empty where there is none.
    duplicates: rows that repeat an id, by file; the first one counts.
    """

    folder: Path
    summary: Summary | None
    config: Mapping[str, Any] | None
    metrics: tuple[Mapping[str, Any], ...]
    replies: Mapping[ReplyKey, Replies]
    margins: Mapping[ReplyKey, Mapping[str, float]]
    judgements: tuple[Judgement, ...] = ()
    judging: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    duplicates: Mapping[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The run's name."""
        if self.summary is not None and self.summary.name:
            return self.summary.name
        return str((self.config or {}).get("name") or self.folder.name)

    @property
    def headline(self) -> str:
        """The arm that the report is about."""
        return self.summary.headline if self.summary is not None else "gad"

    @property
    def judges_usd(self) -> float | None:
        """What the judges have cost."""
        cost = self.judging.get("cost_usd")
        return float(cost) if isinstance(cost, int | float) else None

    def title(self, set_name: str) -> str:
        """A set's name for people, with a mark where some of its prompts are in the training set."""
        marked = any(info.overlaps_training for info in self.sets if info.name == set_name)
        return set_title(set_name) + (" (overlaps training)" if marked else "")

    @property
    def students(self) -> list[str]:
        """The arms, the teacher not among them, in the order in which they are shown."""
        listed = list(self.summary.students) if self.summary is not None else []
        found = {key.student for key in self.replies} - set(self.passed_over)
        found |= {figure.student for figure in (self.summary.figures if self.summary is not None else ())}
        rest = sorted(found - set(listed) - {TEACHER}, key=_known_first)
        return [name for name in listed if name != TEACHER] + rest

    @property
    def passed_over(self) -> list[str]:
        """Checkpoints that have replies only because one of them had to be chosen: `gad-10` beside `gad`."""
        candidate = re.compile(rf"{re.escape(self.headline)}-\d+")
        asked_for = set(self.summary.students) if self.summary is not None else set()
        return sorted({key.student for key in self.replies if candidate.fullmatch(key.student)} - asked_for)

    @property
    def sets(self) -> list[SetInfo]:
        """The sets, in-distribution ones first."""
        listed = list(self.summary.sets) if self.summary is not None else []
        known = {info.name for info in listed}
        counts: dict[str, int] = {}
        for key, replies in self.replies.items():
            counts[key.set] = max(counts.get(key.set, 0), len(replies))
        rest = [
            SetInfo(name=name, kind=_guessed_kind(name), prompts=count)
            for name, count in sorted(counts.items())
            if name not in known
        ]
        return sorted([*listed, *rest], key=lambda info: info.kind != "in_distribution")

    @property
    def decodings(self) -> list[DecodingInfo]:
        """The ways to draw, the headline's first."""
        listed = list(self.summary.decodings) if self.summary is not None else _configured(self.config)
        known = {info.name for info in listed}
        found = {key.decoding for key in self.replies if key.decoding is not None} - known
        return listed + [DecodingInfo(name=name) for name in sorted(found)]

    def reply(self, student: str, set_name: str, decoding: str | None) -> Replies:
        """Replies by prompt id, empty where there are none; the teacher's whatever the decoding."""
        key = ReplyKey(student, set_name, None if student == TEACHER else decoding)
        return self.replies.get(key, {})


def gather(folder: Path) -> Gathered:
    """Read a run folder.

    Raises RunFolderError where it is no run folder, or where a file in it is damaged: file and line are named.
    """
    if not folder.is_dir():
        raise RunFolderError(f"{folder}: no such run folder; start one with `gad run RUN.yaml`")
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else None
    summary = read_summary(folder / "summary.json")
    metrics = tuple(read_jsonl(folder / "metrics.jsonl"))
    judging = _judging(folder / "judging.json")
    duplicates: dict[str, int] = {}
    headline = _headline_decoding(summary, config)
    replies = {key: _replies(path, duplicates) for key, path in _reply_files(folder, headline)}
    if config is None and summary is None and not metrics and not replies:
        raise RunFolderError(
            f"{folder} holds neither config.json nor metrics.jsonl, replies or summary.json: give a run folder"
        )
    return Gathered(
        folder=folder,
        summary=summary,
        config=config if isinstance(config, Mapping) else None,
        metrics=metrics,
        replies=replies,
        margins={key: _margins(path) for key, path in _files(folder / "scores", headline)},
        judgements=tuple(_in_force(_judgements(folder / "verdicts"), judging)),
        judging=judging,
        left_out=_left_out(folder),
        duplicates=duplicates,
    )


def _configured(config: Mapping[str, Any] | None) -> list[DecodingInfo]:
    evaluation = (config or {}).get("evaluation")
    decodings = evaluation.get("decodings") if isinstance(evaluation, Mapping) else None
    found = []
    for entry in decodings if isinstance(decodings, list) else ():
        if isinstance(entry, Mapping) and isinstance(entry.get("name"), str):
            sampling = entry.get("sampling")
            sampling = sampling if isinstance(sampling, Mapping) else {}
            found.append(
                DecodingInfo(name=entry["name"], temperature=sampling.get("temperature"), top_p=sampling.get("top_p"))
            )
    return found


def _headline_decoding(summary: Summary | None, config: Mapping[str, Any] | None) -> str:
    listed = list(summary.decodings) if summary is not None else []
    listed = listed or _configured(config)
    return listed[0].name if listed else "t1"


def _reply_files(folder: Path, headline: str) -> Iterable[tuple[ReplyKey, Path]]:
    for key, path in _files(folder / "replies", headline):
        yield (ReplyKey(TEACHER, key.set, None) if key.student == TEACHER else key), path


def _files(root: Path, headline: str) -> Iterable[tuple[ReplyKey, Path]]:
    """`<student>/<set>.jsonl` holds the headline's decoding, `<set>@<decoding>.jsonl` any other."""
    for path in sorted(root.glob("*/*.jsonl")):
        name, _, decoding = path.stem.partition("@")
        yield ReplyKey(path.parent.name, name, decoding or headline), path


def _replies(path: Path, duplicates: dict[str, int]) -> dict[str, GeneratedReply]:
    found: dict[str, GeneratedReply] = {}
    for number, row in enumerate(read_jsonl(path), start=1):
        try:
            reply = GeneratedReply.from_dict(row)
        except (KeyError, TypeError, ValueError) as error:
            raise RunFolderError(
                f"{path}:{number}: not a reply ({error!r}); remove the line and run `gad generate` again"
            ) from error
        if reply.id in found:
            duplicates[f"{path.parent.name}/{path.name}"] = duplicates.get(f"{path.parent.name}/{path.name}", 0) + 1
        else:
            found[reply.id] = reply
    return found


def _margins(path: Path) -> dict[str, float]:
    try:
        return {row["id"]: float(row["student"]) - float(row["teacher"]) for row in read_jsonl(path)}
    except (KeyError, TypeError) as error:
        raise RunFolderError(f"{path}: not scores ({error!r}); delete it and run `gad evaluate` again") from error


def _judgements(root: Path) -> Iterable[Judgement]:
    for path in sorted(root.glob("*/*.jsonl")):
        for number, row in enumerate(read_jsonl(path), start=1):
            if not isinstance(row, Mapping) or not (row.get("prompt_id") or row.get("id")):
                raise RunFolderError(f"{path}:{number}: not a verdict; remove the line and run `gad judge` again")
            yield _judgement(path, row)


def _judgement(path: Path, row: Mapping[str, Any]) -> Judgement:
    stem, _, decoding_or_set = path.stem.partition("@")
    first, second = _pair(stem)
    preference = row.get("preference")
    return Judgement(
        judge=path.parent.name,
        first=str(row.get("first") or first),
        second=str(row.get("second") or second),
        set=str(row["set"]) if row.get("set") else (decoding_or_set or None),
        prompt_id=str(row.get("prompt_id") or row.get("id")),
        preference=float(preference) if isinstance(preference, int | float) else None,
        words=str(row.get("raw") or ""),
        order=str(row.get("order") or "both"),
    )


def _pair(stem: str) -> tuple[str, str]:
    for separator in ("--vs--", "__vs__", "-vs-", "_vs_", "~"):
        first, found, second = stem.partition(separator)
        if found:
            return first, second
    return stem, TEACHER


def _judging(path: Path) -> Mapping[str, Any]:
    found = read_json(path) if path.exists() else {}
    if not isinstance(found, Mapping):
        raise RunFolderError(f"{path}: not the figures of judges; delete it and run `gad judge` again")
    return found


def _in_force(judgements: Iterable[Judgement], judging: Mapping[str, Any]) -> Iterable[Judgement]:
    """Without those of judges and pairs that the run file no longer has; all of them where there are no figures yet."""
    if "figures" not in judging:
        return judgements
    known = {(row["judge"], row["first"], row["second"], row["set"]) for row in judging["figures"]}
    return (j for j in judgements if (j.judge, j.first, j.second, j.set) in known)


def _left_out(folder: Path) -> dict[str, dict[str, int]]:
    """Rows that the data stage and the token limits left out, by set and reason."""
    found: dict[str, dict[str, int]] = {}
    data = read_json(folder / "data.json") if (folder / "data.json").exists() else {}
    sets = data.get("sets") if isinstance(data, Mapping) else None
    for name, origin in sets.items() if isinstance(sets, Mapping) else ():
        for entry in origin.get("dropped", ()):
            _count(found, name, entry["reason"], entry["count"])
    tokens = read_json(folder / "tokens.json") if (folder / "tokens.json").exists() else {}
    for name, reasons in tokens.items() if isinstance(tokens, Mapping) else ():
        for reason, count in reasons.items():
            _count(found, name, reason, count)
    return found


def _count(found: dict[str, dict[str, int]], where: str, reason: str, count: int) -> None:
    if count:
        found.setdefault(where, {})[reason] = found.get(where, {}).get(reason, 0) + count


def _guessed_kind(name: str) -> Any:
    return "out_of_distribution" if name.startswith(("out_of_distribution", "ood")) else "in_distribution"


def _known_first(name: str) -> tuple[int, str]:
    return (KNOWN_ORDER.index(name) if name in KNOWN_ORDER else len(KNOWN_ORDER), name)
