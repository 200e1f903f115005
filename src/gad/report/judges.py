"""What the judges said, added up: win rates, length taken out, position bias, and where two judges disagree."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gad.records import Verdict
from gad.report.gather import Gathered, Judgement
from gad.report.summary import FEW_PROMPTS
from gad.report.text import one_line
from gad.report.wording import MISSING, Form, arm, interval, rough, set_title, written

REFERENCE = "reference"
"""Stands for the reply that a judge of the paper's kind writes itself; its verdicts are scores, not wins."""
_FORM: Form = "share"
SEED = 0
"""Of the bootstrap; the same verdicts give the same page."""


@dataclass(frozen=True, slots=True)
class WinRow:
    """One judge on one pair and set."""

    judge: str
    pair: str
    set: str
    rate: str
    interval: str
    controlled: str
    shown_first: str
    n: int
    failed: int


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """Two judges on the prompts that both judged."""

    judges: str
    pair: str
    agree: str
    kappa: str
    opposed: int
    n: int


Key = tuple[str, str, str, str]


def win_rows(run: Gathered) -> list[WinRow]:
    """One row a judge, pair and set, with how many verdicts could not be read."""
    return [_win_row(run, key, judgements) for key, judgements in sorted(_grouped(run).items())]


def agreement_rows(run: Gathered) -> list[AgreementRow]:
    """Every two judges of the same pair and set."""
    from gad.judging.statistics import agreement

    by_pair: dict[tuple[str, str, str], dict[str, dict[str, float]]] = {}
    for (judge, first, second, set_name), judgements in _grouped(run).items():
        preferences = _preferences(judgements)
        if preferences:
            by_pair.setdefault((first, second, set_name), {})[judge] = preferences
    rows = []
    for (first, second, set_name), by_judge in sorted(by_pair.items()):
        names = sorted(by_judge)
        for index, one in enumerate(names):
            for other in names[index + 1 :]:
                shared = by_judge[one].keys() & by_judge[other].keys()
                if shared:
                    found = agreement(_keyed(by_judge[one]), _keyed(by_judge[other]), seed=SEED)
                    few = len(shared) < FEW_PROMPTS
                    rows.append(
                        AgreementRow(
                            judges=f"{one_line(one)} and {one_line(other)}",
                            pair=f"{arm(first)} against {arm(second)}, {_set(set_name)}",
                            agree=_said(found.raw, "share", few),
                            kappa=MISSING if found.kappa is None or few else _said(found.kappa, "plain", False),
                            opposed=len(_opposed(by_judge[one], by_judge[other])),
                            n=len(shared),
                        )
                    )
    return rows


def _keyed(preferences: Mapping[str, float]) -> dict[Hashable, float]:
    return {key: value for key, value in preferences.items()}  # noqa: C416 - dict() would keep the narrower key type


def _opposed(one: Mapping[str, float], other: Mapping[str, float]) -> list[str]:
    return [id for id in one.keys() & other.keys() if (one[id] - 0.5) * (other[id] - 0.5) < 0]


def _win_row(run: Gathered, key: Key, judgements: Sequence[Judgement]) -> WinRow:
    from gad.judging.preference import length_controlled_preference, position_bias, win_rate

    judge, first, second, set_name = key
    verdicts = _verdicts(judgements)
    failed = sum(judgement.preference is None for judgement in judgements)
    head = {"judge": one_line(judge), "pair": f"{arm(first)} against {arm(second)}", "set": _set(set_name)}
    if not verdicts:
        return WinRow(**head, rate=MISSING, interval="", controlled=MISSING, shown_first=MISSING, n=0, failed=failed)
    rate, form = win_rate(verdicts, seed=SEED).preference, _FORM
    if second == REFERENCE:
        rate, form = rate.scaled(100.0), "score"
    few = rate.n < FEW_PROMPTS
    bias = position_bias(verdicts, seed=SEED)
    preferences = _preferences(judgements)
    lengths = _lengths(run, first, set_name), _lengths(run, second, set_name)
    controlled = MISSING
    if not few and all(preferences.keys() <= length.keys() for length in lengths):
        found = length_controlled_preference(dict(preferences), *lengths, seed=SEED).controlled
        controlled = _said(found, "share", few)
    return WinRow(
        **head,
        rate=rough(rate.value, form) if few else written(rate.value, form),
        interval="too few prompts" if few else interval(rate.low, rate.high, form),
        controlled=controlled,
        shown_first=MISSING if bias is None else _said(bias.shown_first, "share", few),
        n=rate.n,
        failed=failed,
    )


def _said(estimate: Any, form: Any, few: bool) -> str:
    if few:
        return f"{rough(estimate.value, form)}, too few"
    spread = interval(estimate.low, estimate.high, form)
    return f"{written(estimate.value, form)}" + (f" ({spread})" if spread else "")


def _set(name: str) -> str:
    return set_title(name) if name else "all sets"


def _grouped(run: Gathered) -> dict[Key, list[Judgement]]:
    groups: dict[Key, list[Judgement]] = {}
    for judgement in run.judgements:
        key = (judgement.judge, judgement.first, judgement.second, judgement.set or "")
        groups.setdefault(key, []).append(judgement)
    return groups


def _verdicts(judgements: Sequence[Judgement]) -> list[Verdict]:
    orders = {"first", "second", "both"}
    return [
        Verdict(j.prompt_id, min(1.0, max(0.0, j.preference)), j.order if j.order in orders else "both")  # type: ignore[arg-type]
        for j in judgements
        if j.preference is not None
    ]


def _preferences(judgements: Sequence[Judgement]) -> dict[str, float]:
    from gad.judging.preference import preferences_by_prompt

    return preferences_by_prompt(_verdicts(judgements))


def _lengths(run: Gathered, arm_name: str, set_name: str) -> dict[str, float]:
    decoding = run.decodings[0].name if run.decodings else None
    names = [set_name] if set_name else [info.name for info in run.sets]
    return {id: float(r.tokens) for name in names for id, r in run.reply(arm_name, name, decoding).items()}
