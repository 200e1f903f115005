"""Figures from what is on disk: replies, scores and likelihoods to `summary.json`."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from gad.config.run import RunConfig
from gad.judging import overlap, statistics, twosample
from gad.judging.statistics import Estimate
from gad.judging.style import HouseStyle
from gad.records import Example, GeneratedReply
from gad.seeds import stable_seed
from gad.stages.collect import ORIGINS
from gad.stages.collect_api import SUMMARY as COLLECTED
from gad.stages.judged_figures import with_judges
from gad.stages.measure import likelihood_path, read_column, scores_path
from gad.stages.replies import read_replies, replies_path
from gad.storage import read_jsonl, write_json

SUMMARY = "summary.json"
FORMAT = 1
OUT_OF_DISTRIBUTION = "out_of_distribution"
"""The set of this name is marked as such; every other set is taken for in-distribution."""
PAIRED = ("preference", "style", "teacher_nll", "overlap_f1_1")
"""Figures that are compared between students prompt by prompt; C2ST has no value for a prompt."""
FEWEST_PROMPTS_FOR_C2ST = 4

PerPrompt = dict[str, float]


@dataclass(frozen=True, slots=True)
class Cell:
    """One student on one set by one decoding: replies by prompt id, and values by figure and prompt id."""

    student: str
    set_name: str
    decoding: str
    replies: Mapping[str, GeneratedReply]
    values: Mapping[str, PerPrompt]


def summarize(
    config: RunConfig, folder: Path, students: Sequence[str], sets: Mapping[str, Sequence[Example]]
) -> dict[str, Any]:
    """Write `summary.json` and return it. `sets`: what was measured on, by name."""
    decodings = config.evaluation.decodings
    teachers = {name: _teacher(config, folder, name) for name in sets}
    cells = [
        _cell(config, folder, student, name, decoding.name, teachers[name])
        for student in students
        for name in sets
        for decoding in config.decodings_of(student)
    ]
    leaks = _leaks(config, folder)
    summary = {
        "format": FORMAT,
        "name": config.name,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "students": list(students),
        "headline": students[-1],
        "sets": [_set(name, examples, folder, leaks) for name, examples in sets.items()],
        "decodings": [{"name": decoding.name, **decoding.sampling.model_dump()} for decoding in decodings],
        "figures": [row for cell in cells for row in _figures(config, cell, teachers[cell.set_name])],
        "paired": list(_paired(config, cells, students)),
        "checkpoint": _read(folder / "choice.json"),
        "dropped": list(_dropped(folder)),
        "leaks": leaks,
        "cost": {**_teacher_cost(folder), "judge_usd": 0.0, **_endpoints_cost(folder)},
        "teacher": _teacher_in_short(folder),
        **_totals(folder),
        "machine": {
            "cpu": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "arithmetic": _arithmetic(config, folder),
        },
    }
    summary = with_judges(summary, folder)
    write_json(folder / SUMMARY, summary)
    return summary


def choose_figures(
    config: RunConfig, folder: Path, candidates: Sequence[str], set_name: str
) -> dict[str, tuple[float, float]]:
    """For each candidate the figure of `evaluation.checkpoint.metric` on a set, and its length ratio."""
    teacher, decoding = _teacher(config, folder, set_name), config.evaluation.decodings[0].name
    figures = {}
    for name in candidates:
        cell = _cell(config, folder, name, set_name, decoding, teacher)
        rows = {row["name"]: row["value"] for row in _figures(config, cell, teacher)}
        figures[name] = (rows[config.evaluation.checkpoint.metric], rows["length_ratio"])
    return figures


def _teacher(config: RunConfig, folder: Path, set_name: str) -> dict[str, GeneratedReply]:
    headline = config.evaluation.decodings[0].name
    return read_replies(replies_path(folder, "teacher", set_name, headline, headline))


def _cell(
    config: RunConfig,
    folder: Path,
    student: str,
    set_name: str,
    decoding: str,
    teacher: Mapping[str, GeneratedReply],
) -> Cell:
    headline = config.evaluation.decodings[0].name
    replies = read_replies(replies_path(folder, student, set_name, decoding, headline))
    replies = {identity: replies[identity] for identity in teacher}
    scores = scores_path(folder, student, set_name, decoding)
    above = read_column(scores, "student"), read_column(scores, "teacher")
    values: dict[str, PerPrompt] = {
        "preference": {key: _outcome(above[0][key], above[1][key]) for key in replies},
        "finished": {key: float(reply.finished) for key, reply in replies.items()},
        "repetition": {key: overlap.repetition(reply.completion) for key, reply in replies.items()},
        "length": {key: float(reply.tokens) for key, reply in replies.items()},
    }
    likelihoods = likelihood_path(folder, student, set_name)
    if decoding == headline and likelihoods.exists():
        values["teacher_nll"] = read_column(likelihoods, "nll")
    if config.evaluation.style is not None:
        style = HouseStyle(config.evaluation.style)
        values["style"] = {key: float(style.keeps(reply.completion)) for key, reply in replies.items()}
    values["rouge_l"] = {key: overlap.rouge_l(replies[key].completion, teacher[key].completion) for key in replies}
    for n in range(1, 7):
        shared = {key: overlap.ngram_f1(replies[key].completion, teacher[key].completion, n) for key in replies}
        values[f"overlap_f1_{n}"] = {key: value for key, value in shared.items() if value is not None}
    return Cell(student, set_name, decoding, replies, values)


def _outcome(student: float, teacher: float) -> float:
    return 0.5 if student == teacher else float(student > teacher)


def _figures(config: RunConfig, cell: Cell, teacher: Mapping[str, GeneratedReply]) -> Iterator[dict[str, Any]]:
    level = config.evaluation.confidence
    for name, values in cell.values.items():
        if values:
            seed = stable_seed(config.seed, "bootstrap", cell.student, cell.set_name, cell.decoding, name)
            yield _row(cell, name, statistics.bootstrap_mean(list(values.values()), seed=seed, level=level))
    yield _row(cell, "length_ratio", _length_ratio(cell, teacher, level=level))
    if len(cell.replies) >= FEWEST_PROMPTS_FOR_C2ST:
        ours = {key: reply.completion for key, reply in cell.replies.items()}
        theirs = {key: teacher[key].completion for key in ours}
        auc = twosample.c2st(theirs, ours, seed=stable_seed(config.seed, "c2st", cell.set_name), level=level)
        yield _row(cell, "c2st_auc", auc)
    texts = [reply.completion for reply in cell.replies.values()]
    count = len(texts)
    alike = overlap.self_bleu(texts)
    if alike is not None:
        yield _bare(cell, "self_bleu", alike, count)
    yield _bare(cell, "distinct_2", overlap.distinct_n(texts, 2), count)
    yield _bare(cell, "compression_ratio", overlap.compression_ratio(texts), count)


def _length_ratio(cell: Cell, teacher: Mapping[str, GeneratedReply], *, level: float) -> Estimate:
    """Mean tokens of the student's replies over the teacher's, not the mean of ratios: as the paper's tables."""
    ours = [float(reply.tokens) for reply in cell.replies.values()]
    theirs = [float(teacher[key].tokens) for key in cell.replies]
    return statistics.ratio_of_means(ours, theirs, level=level)


def _row(cell: Cell, name: str, estimate: Estimate) -> dict[str, Any]:
    note = "too few prompts to be precise" if estimate.too_few else None
    return {**_key(cell), "name": name, **estimate.as_dict(), "note": note}


def _bare(cell: Cell, name: str, value: float, n: int) -> dict[str, Any]:
    """A figure of all replies together, which has no interval by prompt."""
    return {**_key(cell), "name": name, "value": value, "low": None, "high": None, "n": n, "note": "diagnostic"}


def _key(cell: Cell) -> dict[str, str]:
    return {"student": cell.student, "set": cell.set_name, "decoding": cell.decoding}


def _paired(config: RunConfig, cells: Sequence[Cell], students: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Differences between students over the same prompts, p-values corrected within each figure (Holm)."""
    by_key = {(cell.student, cell.set_name, cell.decoding): cell for cell in cells}
    places = list(dict.fromkeys((cell.set_name, cell.decoding) for cell in cells))
    for name in PAIRED:
        rows = []
        for set_name, decoding in places:
            for before, after in combinations(students, 2):
                if not {(before, set_name, decoding), (after, set_name, decoding)} <= by_key.keys():
                    continue  # an endpoint is not drawn by every decoding
                one, two = by_key[after, set_name, decoding], by_key[before, set_name, decoding]
                keys = sorted(one.values.get(name, {}).keys() & two.values.get(name, {}).keys())
                if len(keys) > 1:
                    ours, theirs = ([cell.values[name][key] for key in keys] for cell in (one, two))
                    found = statistics.paired_difference(
                        ours,
                        theirs,
                        seed=stable_seed(config.seed, "paired", name, set_name, decoding, before, after),
                        level=config.evaluation.confidence,
                    )
                    rows.append({**_key(one), "against": before, "name": name, **_difference(found.as_dict())})
        for row, corrected in zip(rows, statistics.holm([row["p_value"] for row in rows]), strict=True):
            yield {**row, "p_value_corrected": corrected}


def _difference(found: dict[str, Any]) -> dict[str, Any]:
    return {"difference": found["value"], **{key: found[key] for key in ("low", "high", "n", "p_value")}}


def _leaks(config: RunConfig, folder: Path) -> list[dict[str, Any]]:
    """Prompts of the sets that are (nearly) in the training set, and were left there."""
    if config.data.leak_check is None or config.data.leak_check.action == "drop":
        return []
    return [
        {"set": leak["other_set"], "id": leak["other_id"], "train_id": leak["id"], "similarity": leak["similarity"]}
        for leak in _read(folder / ORIGINS).get("leaks", [])
        if leak["set"] == "train"
    ]


def _set(name: str, examples: Sequence[Example], folder: Path, leaks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    origin = _read(folder / ORIGINS).get("sets", {}).get(name, {})
    kind = "out_of_distribution" if name == OUT_OF_DISTRIBUTION else "in_distribution"
    overlaps = any(leak["set"] == name for leak in leaks)
    return {
        "name": name,
        "kind": kind,
        "prompts": len(examples),
        "sha256": origin.get("sha256"),
        "overlaps_training": overlaps,
    }


def _dropped(folder: Path) -> Iterator[dict[str, Any]]:
    for name, origin in _read(folder / ORIGINS).get("sets", {}).items():
        for reason in origin["dropped"]:
            yield {"where": name, "reason": reason["reason"], "count": reason["count"]}
    for name, reasons in _read(folder / "tokens.json").items():
        for reason, count in reasons.items():
            if count:
                yield {"where": name, "reason": reason, "count": count}


def _teacher_cost(folder: Path) -> dict[str, float]:
    """USD for all replies that were bought, used or not; "possibly": for replies that never came."""
    bought = _read(folder / COLLECTED)
    if not bought:
        return {"teacher_usd": 0.0}
    possibly = {"teacher_possibly_usd": bought["maybe_usd"]} if bought["maybe_usd"] else {}
    return {"teacher_usd": bought["spent_usd"], **possibly}


def _teacher_in_short(folder: Path) -> dict[str, Any]:
    """Where bought replies are from; empty where replies were imported."""
    bought = _read(folder / COLLECTED)
    names = ("model", "endpoint", "models", "bought", "tokens", "first_reply", "last_reply", "prices_from")
    return {name: bought[name] for name in names} if bought else {}


def _endpoints_cost(folder: Path) -> dict[str, float]:
    """What replies of models behind an API have cost, where there are any."""
    bills = [_read(path) for path in sorted(folder.glob("endpoints/*/bill.json"))]
    return {"endpoints_usd": sum(bill["spent_usd"] for bill in bills)} if bills else {}


def _totals(folder: Path) -> dict[str, Any]:
    """Seconds by stage and tokens by kind, from the training log."""
    seconds: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for row in read_jsonl(folder / "metrics.jsonl"):
        seconds[row["stage"]] = seconds.get(row["stage"], 0.0) + (row.get("time/step") or 0.0)
        for name, value in row.items():
            if name.startswith("tokens/"):
                key = name.removeprefix("tokens/")
                tokens[key] = tokens.get(key, 0.0) + value
    return {"seconds": seconds, "tokens": tokens}


def _arithmetic(config: RunConfig, folder: Path) -> str:
    """The number type of the student's base, whoever chose it."""
    chosen = config.student.dtype
    return chosen if chosen != "auto" else str(_read(folder / "arithmetic.json").get("auto", chosen))


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
