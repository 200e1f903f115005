"""What the judges said, added up: win rates, length taken out, position bias, a matrix, and where judges disagree.

The figures are those of `judging.json`; where there is none yet, they are reckoned from the verdicts that are there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gad.config.compared import REFERENCE, TEACHER
from gad.errors import RunFolderError
from gad.records import Verdict
from gad.report.gather import Gathered, Judgement
from gad.report.summary import FEW_PROMPTS
from gad.report.text import one_line
from gad.report.wording import MISSING, Form, arm, interval, rough, written

_FORM: Form = "share"
_SCORE: Form = "score"
SEED = 0
"""Of the bootstrap where there is no `judging.json`; the same verdicts give the same page."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WinRow:
    """One judge on one pair and set. lead: the headline arm against the teacher, or against SeqKD."""

    lead: bool
    judge: str
    pair: str
    set: str
    rate: str
    interval: str
    controlled: str
    matched: str
    shown_first: str
    n: int
    failed: int


@dataclass(frozen=True, slots=True)
class AgreementRow:
    """Two judges on the prompts that both judged. lead: of the headline arm against the teacher."""

    lead: bool
    judges: str
    pair: str
    agree: str
    kappa: str
    opposed: int
    n: int


@dataclass(frozen=True, slots=True)
class Matrix:
    """How often one judge prefers the model of a row to that of a column, on one set; (value, small print) a cell."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]


Key = tuple[str, str, str, str]


def win_rows(run: Gathered) -> list[WinRow]:
    """One row a judge, pair and set, with how many verdicts could not be read."""
    return [_win_row(run, row) for row in _rows(run, "figures")]


def agreement_rows(run: Gathered) -> list[AgreementRow]:
    """Every two judges of the same pair and set; people and classifiers among them."""
    return [_agreement_row(run, row) for row in _rows(run, "agreement")]


def matrices(run: Gathered) -> list[Matrix]:
    """Preference of every model over every other, by judge and set, where a judge compared three models or more."""
    shares: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in _rows(run, "figures"):
        if row["second"] != REFERENCE and row["win_rate"]:
            turned = _turned(row["win_rate"])
            found = shares.setdefault((row["judge"], row["set"]), {})
            found[row["first"], row["second"]] = row["win_rate"]
            found.setdefault((row["second"], row["first"]), turned)
    tables = []
    for (judge, set_name), found in shares.items():
        order = [*run.students, TEACHER]
        models = sorted(
            {name for pair in found for name in pair}, key=lambda n: (order.index(n) if n in order else 99, n)
        )
        if len(models) > 2:
            cells = [(arm(one), tuple(_matrix_cell(found, one, other) for other in models)) for one in models]
            title = f"{one_line(judge)}, {_set(run, set_name)}"
            tables.append(Matrix(title, tuple(arm(name) for name in models), tuple(cells)))
    return tables


def opposed_prompts(run: Gathered, first: str, second: str) -> dict[tuple[str, str], float]:
    """(set, prompt id) -> how far two judges of a pair are apart, where they take opposite sides."""
    by_prompt: dict[tuple[str, str], list[float]] = {}
    for (_, *pair, set_name), judgements in _grouped(run).items():
        if pair in ([first, second], [second, first]):
            for id, preference in _preferences(judgements).items():
                by_prompt.setdefault((set_name, id), []).append(preference if pair[0] == first else 1.0 - preference)
    return {key: max(said) - min(said) for key, said in by_prompt.items() if min(said) < 0.5 < max(said)}


def _rows(run: Gathered, table: str) -> Sequence[Row]:
    """Rows of `judging.json`, or reckoned. Raises RunFolderError where the file is damaged."""
    if table not in run.judging:
        return list(_reckoned(run)) if table == "figures" else _agreements(run)
    try:
        needed = ("first", "second", "set", *(("judge", "win_rate") if table == "figures" else ("judges", "raw")))
        rows: list[Row] = [dict(row) for row in run.judging[table] if [row[key] for key in needed]]
    except (KeyError, TypeError, ValueError) as error:
        raise RunFolderError(
            f"{run.folder / 'judging.json'}: not the figures of judges ({error!r}); run `gad judge` again"
        ) from error
    return rows


def _reckoned(run: Gathered) -> Iterator[Row]:
    from gad.judging.preference import length_controlled_preference, position_bias, win_rate

    for (judge, first, second, set_name), judgements in sorted(_grouped(run).items()):
        verdicts, preferences = _verdicts(judgements), _preferences(judgements)
        head = {"judge": judge, "first": first, "second": second, "set": set_name}
        row: dict[str, Any] = {
            **head,
            "win_rate": None,
            "score": None,
            "length_controlled": None,
            "position_bias": None,
        }
        row["unread"] = {"no verdict": sum(judgement.preference is None for judgement in judgements)}
        if verdicts:
            rate, bias = win_rate(verdicts, seed=SEED), position_bias(verdicts, seed=SEED)
            row |= {"win_rate": rate.as_dict(), "position_bias": bias.as_dict() if bias else None}
            lengths = _lengths(run, first, set_name), _lengths(run, second, set_name)
            if second == REFERENCE:
                row["score"] = rate.preference.scaled(100.0).as_dict()
            elif all(preferences.keys() <= length.keys() for length in lengths):
                row["length_controlled"] = length_controlled_preference(preferences, *lengths, seed=SEED).as_dict()
        yield row


def _agreements(run: Gathered) -> list[dict[str, Any]]:
    from gad.judging.tables import Cell, agreement_table

    said = {
        Cell(judge, set_name, first, second): _preferences(judgements)
        for (judge, first, second, set_name), judgements in sorted(_grouped(run).items())
    }
    return agreement_table(said, seed=SEED)


def _win_row(run: Gathered, row: Row) -> WinRow:
    pair = {row["first"], row["second"]}
    head = {
        "lead": run.headline in pair and bool(pair & {TEACHER, REFERENCE, "seqkd"}),
        "judge": one_line(row["judge"]),
        "pair": f"{arm(row['first'])} against {arm(row['second'])}",
        "set": _set(run, row["set"]),
        "failed": sum(row["unread"].values()),
    }
    found, form = row["score"] or row["win_rate"], _SCORE if row["score"] else _FORM
    if not found:
        return WinRow(**head, rate=MISSING, interval="", controlled=MISSING, matched="", shown_first=MISSING, n=0)
    few = found["n"] < FEW_PROMPTS
    controlled, bias = row["length_controlled"], row["position_bias"]
    matched = controlled and controlled["matched"]
    return WinRow(
        **head,
        rate=rough(found["value"], form) if few else written(found["value"], form),
        interval="too few prompts" if few else interval(found["low"], found["high"], form),
        controlled=_said(controlled["controlled"], "share") if controlled and not few else MISSING,
        matched=f"of like length, n {matched['n']}: {_said(matched, 'share')}" if matched and not few else "",
        shown_first=_said(bias["shown_first"], "share") if bias else MISSING,
        n=found["n"],
    )


def _agreement_row(run: Gathered, row: Row) -> AgreementRow:
    few, kappa = row["raw"]["n"] < FEW_PROMPTS, row["kappa"]
    return AgreementRow(
        lead={row["first"], row["second"]} == {run.headline, TEACHER},
        judges=" and ".join(one_line(name) for name in row["judges"]),
        pair=f"{arm(row['first'])} against {arm(row['second'])}, {_set(run, row['set'])}",
        agree=_said(row["raw"], "share"),
        kappa=MISSING if kappa is None or few else _said(kappa, "plain"),
        opposed=row["opposed"],
        n=row["raw"]["n"],
    )


def _matrix_cell(found: Mapping[tuple[str, str], Row], one: str, other: str) -> tuple[str, str]:
    share = found.get((one, other))
    if share is None:
        return ("·" if one == other else MISSING), ""
    if share["n"] < FEW_PROMPTS:
        return rough(share["value"], _FORM), f"too few: {share['n']}"
    return written(share["value"], _FORM), f"{interval(share['low'], share['high'], _FORM)} · n {share['n']}"


def _turned(share: Row) -> dict[str, Any]:
    low, high = (None if share[bound] is None else 1.0 - share[bound] for bound in ("high", "low"))
    return {"value": 1.0 - share["value"], "low": low, "high": high, "n": share["n"]}


def _said(estimate: Row, form: Form) -> str:
    if estimate["n"] < FEW_PROMPTS:
        return f"{rough(estimate['value'], form)}, too few"
    spread = interval(estimate["low"], estimate["high"], form)
    return f"{written(estimate['value'], form)}" + (f" ({spread})" if spread else "")


def _set(run: Gathered, name: str) -> str:
    return run.title(name) if name else "all sets"


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
