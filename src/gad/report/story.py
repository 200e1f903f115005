"""The report's sentences: what came out, in words that claim no more than the intervals carry; and what is missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from gad.report.curves import stage_title
from gad.report.figures import confidence, headline_pairs
from gad.report.gather import TEACHER, Gathered
from gad.report.summary import Figure, Paired
from gad.report.text import one_line
from gad.report.wording import arm, comparison, figure_sentence, interval, set_title, written

SKIPPED = "skipped"


def findings(run: Gathered) -> list[str]:
    """The result in a few sentences: the headline arm on every set, then its paired differences in preference."""
    if run.summary is None or not run.decodings:
        return []
    decoding, level = run.decodings[0].name, confidence(run)
    said = []
    for info in run.sets:
        figure = run.summary.figure(run.headline, info.name, decoding, "preference")
        if figure is not None:
            said.append(
                f"{run.title(info.name)}: {arm(run.headline)}’s replies are put above the teacher’s on "
                f"{figure_sentence(figure, level)}."
            )
        said += [_by_judge(run, found, level) for found in run.summary.figures if _is_win_rate(run, found, info.name)]
    against: dict[str, list[Paired]] = {}
    for _, pair in headline_pairs(run):
        if pair.student == run.headline and pair.name == "preference":
            against.setdefault(pair.against, []).append(pair)
    for name, pairs in against.items():
        said.append(
            f"Against {arm(name)}: "
            + "; ".join(comparison(pair, 1.0 - level, where=run.title(pair.set)) for pair in pairs)
            + "."
        )
    return said


def _is_win_rate(run: Gathered, figure: Figure, set_name: str) -> bool:
    judged = figure.name.startswith("judge_") and figure.name.endswith("_win_rate")
    return judged and (figure.student, figure.set) == (run.headline, set_name)


def _by_judge(run: Gathered, figure: Figure, level: float) -> str:
    """What a judge says of the headline arm and the teacher, raw and at equal length."""
    assert run.summary is not None
    judge = figure.name.removeprefix("judge_").removesuffix("_win_rate")
    name = f"judge_{judge}_length_controlled"
    controlled = run.summary.figure(figure.student, figure.set, figure.decoding, name)
    equal = ""
    if controlled is not None and controlled.value is not None and not controlled.few:
        spread = interval(controlled.low, controlled.high, "share", words=True)
        equal = f"; at equal length {written(controlled.value, 'share')}" + (f" ({spread})" if spread else "")
    return (
        f"{run.title(figure.set)}: {one_line(judge)} prefers {arm(run.headline)}’s replies to the teacher’s on "
        f"{figure_sentence(figure, level)}{equal}."
    )


def when(created: str) -> str:
    """A moment in words; what is no ISO date stays as it is."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    zone = moment.tzname() or ""
    return f"{moment.day} {moment:%B %Y, %H:%M} {zone}".rstrip()


def pull_apart(run: Gathered) -> str:
    """Why preference and C2ST disagree, when they do in this run; else empty."""
    if run.summary is None or not run.decodings:
        return ""
    better, farther = [], []
    for pair, _ in headline_pairs(run):
        if pair.student != run.headline or pair.difference is None or pair.few:
            continue
        if pair.name == "preference" and pair.difference > 0:
            better.append((pair.against, pair.set))
        if pair.name == "c2st_auc" and pair.difference > 0:
            farther.append((pair.against, pair.set))
    both = [item for item in better if item in farther]
    if not both:
        both = [key for key in better if _farther(run, *key)]
    if not both:
        return ""
    where = ", ".join(f"{set_title(name).lower()} against {arm(against)}" for against, name in both)
    return f"In this run they do: {arm(run.headline)} is preferred more and told apart more easily ({where})."


def missing(run: Gathered) -> list[str]:
    """What a finished run would have and this one has not yet, with the command that makes it."""
    said = []
    if run.config is None:
        said.append("config.json: the settings of this run are not known.")
    stages = {str(row.get("stage")) for row in run.metrics}
    if not run.metrics:
        said.append("Training curves: no step has been made yet (gad run).")
    elif "adversarial" not in stages and (run.config or {}).get("adversarial") is not None:
        said.append("The adversarial stage has not begun (gad adversarial).")
    if (run.config or {}).get("seqkd") is None and "seqkd" not in run.students:
        said.append("SeqKD, the control: without it there is nothing to compare with (add `seqkd:` to the run file).")
    if not any(key.student != TEACHER for key in run.replies):
        said.append("Replies of the students (gad generate).")
    if not any(key.student == TEACHER for key in run.replies):
        said.append("The teacher’s replies to the sets (gad generate).")
    if run.summary is None:
        said.append("Figures: summary.json is not there yet (gad evaluate).")
    elif not run.summary.paired:
        said.append("Paired differences between the arms were not measured.")
    if not run.judgements:
        said.append("Verdicts of a judge: optional (gad judge). Until then preference is a discriminator’s word.")
    return said


def uneven(run: Gathered) -> list[str]:
    """Arms that lack replies which others have."""
    said = []
    for info in run.sets:
        for decoding in run.decodings:
            have = {name: run.reply(name, info.name, decoding.name).keys() for name in (*run.students, TEACHER)}
            everyone = set().union(*have.values())
            for name, ids in have.items():
                if ids and len(ids) < len(everyone):
                    said.append(
                        f"{arm(name)} has {len(ids)} of {len(everyone)} replies to {run.title(info.name)} "
                        f"({decoding.name})."
                    )
    return list(dict.fromkeys(said))


def skipped(run: Gathered) -> list[str]:
    """Updates that were not made because a loss or a gradient was not finite, by stage and model."""
    counts: dict[tuple[str, str], list[bool]] = {}
    for row in run.metrics:
        for part in ("student", "discriminator"):
            value = row.get(f"{part}/skipped")
            if isinstance(value, int | float):
                counts.setdefault((str(row.get("stage")), part), []).append(value > 0)
    return [
        f"{stage_title(stage)}: {sum(found)} of the {part}’s {len(found)} updates were skipped, because loss or "
        f"gradient was not finite; the folder {SKIPPED} holds what they were made of."
        for (stage, part), found in counts.items()
        if any(found)
    ]


def effort(run: Gathered) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
    """Seconds by stage, tokens, and money, as (what, how much); from the metrics where there is no summary yet."""
    if run.summary is not None and (run.summary.seconds or run.summary.tokens):
        seconds, tokens = dict(run.summary.seconds), dict(run.summary.tokens)
    else:
        seconds, tokens = {}, {}
        for row in run.metrics:
            _add(seconds, str(row.get("stage")), row.get("time/step"))
            for name, value in row.items():
                if name.startswith("tokens/"):
                    _add(tokens, name.removeprefix("tokens/"), value)
    cost = dict(run.summary.cost) if run.summary is not None else {}
    cost |= {"judge_usd": run.judges_usd} if run.judges_usd is not None else {}
    return (
        [(name.replace("_", " "), duration(value)) for name, value in seconds.items() if value is not None],
        [(name.replace("_", " "), f"{value:,.0f}") for name, value in tokens.items() if value is not None],
        [
            (name.removesuffix("_usd").replace("_", " "), f"${value:,.2f}")
            for name, value in cost.items()
            if value is not None
        ],
    )


def teacher(run: Gathered) -> list[tuple[str, str]]:
    """Where the teacher's replies are from, where they were bought: what was asked, who answered, when, how much."""
    bought = dict(run.summary.teacher) if run.summary is not None else {}
    if not bought:
        return []
    models = ", ".join(f"{name} ({count:,})" for name, count in bought["models"].items())
    days = [
        datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        for at in (bought["first_reply"], bought["last_reply"])
        if at is not None
    ]
    return [
        ("asked", f"{bought['model']} at {bought['endpoint']}"),
        ("answered", models or "nobody"),
        ("replies", f"{bought['bought']:,}"),
        ("between", " and ".join(days)),
        *((name.replace("_", " "), f"{count:,}") for name, count in bought["tokens"].items() if count),
        ("prices", str(bought["prices_from"])),
    ]


def duration(seconds: float) -> str:
    """41 s, 12 min 05 s, 3 h 07 min."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A config as rows of dotted key and value."""
    if isinstance(value, Mapping) and value:
        return [row for key, part in value.items() for row in flat(part, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(value, list) and any(isinstance(part, Mapping) for part in value):
        return [row for index, part in enumerate(value) for row in flat(part, f"{prefix}[{index}]")]
    return [(prefix, "null" if value is None else str(value))]


def _add(totals: dict[str, float | None], name: str, value: Any) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        totals[name] = (totals.get(name) or 0.0) + float(value)


def _farther(run: Gathered, against: str, set_name: str) -> bool:
    assert run.summary is not None
    decoding = run.decodings[0].name
    mine = run.summary.figure(run.headline, set_name, decoding, "c2st_auc")
    other = run.summary.figure(against, set_name, decoding, "c2st_auc")
    return bool(mine and other and mine.value and other.value and mine.value > other.value)
