"""What judges found, put into the summary: their figures beside the others, differences, sets and money."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gad.config.compared import REFERENCE, TEACHER
from gad.judging.statistics import FEW_PROMPTS
from gad.stages.judge_api import FIGURES
from gad.storage import write_json

PREFIX = "judge_"
FEW = "too few prompts to be precise"


def refresh(summary_path: Path) -> None:
    """Put the judges' figures into a summary that is there; without one they wait for `gad evaluate`."""
    if summary_path.exists():
        summary = json.loads(summary_path.read_text(encoding="utf-8"))
        write_json(summary_path, with_judges(summary, summary_path.parent))


def with_judges(summary: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The summary with what `judging.json` holds, in place of what it held of judges before."""
    path = folder / FIGURES
    judged: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    decoding = summary["decodings"][0]["name"]
    own_sets = [info for info in summary["sets"] if not info.get("judged")]
    return {
        **summary,
        "sets": [*own_sets, *judged.get("sets", ())],
        "figures": [*_others(summary["figures"]), *_figures(judged, decoding)],
        "paired": [*_others(summary["paired"]), *_paired(judged, decoding)],
        "cost": {**summary["cost"], "judge_usd": judged.get("cost_usd", 0.0)},
    }


def _others(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [row for row in rows if not row["name"].startswith(PREFIX)]


def _figures(judged: Mapping[str, Any], decoding: str) -> Iterator[dict[str, Any]]:
    """Of every student against the teacher, and of every student's score against a judge's own reference."""
    for row in judged.get("figures", ()):
        key = {"student": row["first"], "set": row["set"], "decoding": decoding}
        named = f"{PREFIX}{row['judge']}_"
        if row["second"] == REFERENCE and row["score"]:
            yield {**key, "name": f"{named}score", **_estimate(row["score"])}
        against_teacher = row["second"] == TEACHER
        if not against_teacher and row["first"] != TEACHER:
            continue
        key["student"] = row["first"] if against_teacher else row["second"]
        for name, found in (("win_rate", row["win_rate"]), ("length_controlled", row["length_controlled"])):
            if found and row["second"] != REFERENCE:
                estimate = _estimate(found["controlled"] if name == "length_controlled" else found)
                yield {**key, "name": f"{named}{name}", **(estimate if against_teacher else _turned(estimate))}


def _estimate(found: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{key: found[key] for key in ("value", "low", "high", "n")},
        "note": FEW if found["n"] < FEW_PROMPTS else None,
    }


def _turned(found: dict[str, Any]) -> dict[str, Any]:
    """The same of the other model of the pair."""
    low, high = (None if found[bound] is None else 1.0 - found[bound] for bound in ("high", "low"))
    return {**found, "value": 1.0 - found["value"], "low": low, "high": high}


def _paired(judged: Mapping[str, Any], decoding: str) -> Iterator[dict[str, Any]]:
    """Differences of students that a judge compared with the teacher, or scored against its own reference."""
    for row in judged.get("paired", ()):
        if row["both_to"] not in (TEACHER, REFERENCE) or TEACHER in (row["model"], row["against"]):
            continue
        score = row["both_to"] == REFERENCE
        factor, name = (100.0, "score") if score else (1.0, "win_rate")
        yield {
            "student": row["model"],
            "against": row["against"],
            "set": row["set"],
            "decoding": decoding,
            "name": f"{PREFIX}{row['judge']}_{name}",
            "difference": factor * row["value"],
            **{bound: None if row[bound] is None else factor * row[bound] for bound in ("low", "high")},
            **{key: row[key] for key in ("n", "p_value", "p_value_corrected")},
        }
