"""The tables and pictures of `summary.json`: what each arm reached, what separates them, and how sure that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from markupsafe import Markup

from gad.report.gather import TEACHER, Gathered
from gad.report.intervals import Dot, PlanePoint, dots_picture, plane_picture
from gad.report.summary import Figure, Paired, SetInfo
from gad.report.text import one_line
from gad.report.wording import (
    HEADLINE_FIGURES,
    MISSING,
    Meaning,
    arm,
    interval,
    meaning,
    p_written,
    rough,
    set_title,
    verdict,
    written,
)

_BY_DEFINITION = {"preference": "50%", "c2st_auc": "0.50", "length_ratio": "1.00×"}


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure in a table: value, then interval and n in small print, then a remark."""

    title: str
    text: str
    small: str
    note: str = ""
    faint: bool = False


@dataclass(frozen=True, slots=True)
class ArmRow:
    """An arm's figures."""

    name: str
    series: int | None
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """All arms on one set."""

    set: SetInfo
    title: str
    columns: tuple[Meaning, ...]
    rows: tuple[ArmRow, ...]


@dataclass(frozen=True, slots=True)
class DecodingTables:
    """The tables of one way to draw."""

    name: str
    title: str
    headline: tuple[Table, ...]
    diagnostics: tuple[Table, ...]


@dataclass(frozen=True, slots=True)
class Card:
    """A picture of one figure over arms and sets."""

    meaning: Meaning
    picture: Markup


@dataclass(frozen=True, slots=True)
class DifferenceRow:
    """A paired difference as a table row. `corrected`: p after Holm's correction within the figure."""

    figure: str
    pair: str
    set: str
    value: str
    interval: str
    p_value: str
    corrected: str
    n: int
    verdict: str


def series_of(run: Gathered) -> dict[str, int]:
    """Arm -> number of its colour and mark; the same arm looks alike in every report. 3, a diamond, is the teacher."""
    fixed = {"base": 0, "seqkd": 1, run.headline: 2}
    free = (number for number in count(4) if number % 6 > 3)
    return {name: fixed[name] if name in fixed else next(free) for name in run.students}


def decoding_tables(run: Gathered) -> list[DecodingTables]:
    """Tables by decoding, the headline's first; decodings and sets without a figure are left out."""
    if run.summary is None:
        return []
    found = []
    for decoding in run.decodings:
        headline, diagnostics = [], []
        for info in run.sets:
            names = _names(run, info.name, decoding.name)
            lead = [name for name in HEADLINE_FIGURES if name in names]
            lead += [name for name in names if name.startswith("judge_")]
            rest = [name for name in names if name not in lead]
            headline += [_table(run, info, decoding.name, lead)] if lead else []
            diagnostics += [_table(run, info, decoding.name, rest)] if rest else []
        if headline or diagnostics:
            found.append(
                DecodingTables(decoding.name, decoding_title(run, decoding.name), tuple(headline), tuple(diagnostics))
            )
    return found


def decoding_title(run: Gathered, name: str) -> str:
    """`temperature 1`, `greedy`: a decoding in words."""
    info = next((info for info in run.decodings if info.name == name), None)
    if info is None or info.temperature is None:
        return name
    if info.temperature == 0:
        return "greedy"
    top_p = "" if info.top_p in (None, 1) else f", top-p {info.top_p:g}"
    return f"temperature {info.temperature:g}{top_p}"


def cards(run: Gathered) -> list[Card]:
    """The headline figures as dots with whiskers, in distribution (filled) against out of distribution (hollow)."""
    series, found = series_of(run), []
    decoding = run.decodings[0].name if run.decodings else None
    figures = run.summary.figures if run.summary is not None else ()
    judged = sorted({figure.name for figure in figures if figure.name.startswith("judge_")})
    for name in (*HEADLINE_FIGURES, *judged):
        how = meaning(name)
        dots = [
            _dot(run, figure, how, series.get(student, 0), info)
            for student in run.students
            for info in run.sets
            if (figure := _figure(run, student, info.name, decoding, name)) is not None and figure.value is not None
        ]
        if dots:
            said = "; ".join(f"{dot.label} {dot.text}" for dot in dots)
            factor = 100.0 if how.form == "share" else 1.0
            found.append(Card(how, dots_picture(f"{how.title}: {said}", dots, how.level, factor)))
    return found


def plane(run: Gathered) -> Markup | None:
    """Preference against C2ST for every arm and set; None where one of the two was not measured."""
    series, points = series_of(run), []
    decoding = run.decodings[0].name if run.decodings else None
    for student in run.students:
        for info in run.sets:
            preference = _figure(run, student, info.name, decoding, "preference")
            c2st = _figure(run, student, info.name, decoding, "c2st_auc")
            if preference is None or c2st is None or preference.value is None or c2st.value is None:
                continue
            number = series.get(student, 0)
            up = _dot(run, preference, meaning("preference"), number, info)
            points.append(PlanePoint(arm(student), up, _dot(run, c2st, meaning("c2st_auc"), number, info)))
    return plane_picture(points) if points else None


def confidence(run: Gathered) -> float:
    """The level of the intervals."""
    evaluation = (run.config or {}).get("evaluation")
    level = evaluation.get("confidence") if isinstance(evaluation, Mapping) else None
    return float(level) if isinstance(level, int | float) and 0.5 < level < 1 else 0.95


def differences(run: Gathered) -> list[DifferenceRow]:
    """Every paired difference of the headline's decoding, with p-values corrected for how many are shown."""
    return [_difference_row(run, pair, judged) for pair, judged in headline_pairs(run)]


def headline_pairs(run: Gathered) -> list[tuple[Paired, Paired]]:
    """The paired differences of the headline's decoding, in the order of the headline's figures; each as it was
    measured, and with the corrected p-value, which says whether it is clear."""
    if run.summary is None:
        return []
    decoding = run.decodings[0].name if run.decodings else None
    order = {info.name: index for index, info in enumerate(run.sets)}
    lead = {name: index for index, name in enumerate(HEADLINE_FIGURES)}
    pairs = [pair for pair in run.summary.paired if pair.decoding in (decoding, None)]
    shown = sorted(pairs, key=lambda p: (lead.get(p.name, len(lead)), order.get(p.set, len(order))))
    judged = [
        pair if corrected is None else pair.model_copy(update={"p_value": corrected})
        for pair, corrected in zip(shown, _corrected(shown), strict=True)
    ]
    return list(zip(shown, judged, strict=True))


def _corrected(pairs: Sequence[Paired]) -> list[float | None]:
    """As the summary corrected them; where it did not, Holm's correction within each figure over the rows shown."""
    from gad.judging.statistics import holm

    found = [pair.p_value_corrected for pair in pairs]
    for name in {pair.name for pair in pairs}:
        mine = [i for i, p in enumerate(pairs) if p.name == name and p.p_value is not None and 0 <= p.p_value <= 1]
        for index, value in zip(mine, holm([pairs[i].p_value or 0.0 for i in mine]), strict=True):
            found[index] = value if found[index] is None else found[index]
    return found


def _difference_row(run: Gathered, pair: Paired, judged: Paired) -> DifferenceRow:
    how = meaning(pair.name)
    return DifferenceRow(
        figure=how.title,
        pair=f"{arm(pair.student)} − {arm(pair.against)}",
        set=run.title(pair.set),
        value=MISSING if pair.few else written(pair.difference, how.form, signed=True),
        interval="" if pair.few else interval(pair.low, pair.high, how.form),
        p_value=MISSING if pair.few else p_written(pair.p_value),
        corrected=MISSING if pair.few else p_written(judged.p_value),
        n=pair.n,
        verdict=f"only {pair.n} prompts: too few to say" if pair.few else verdict(judged, 1.0 - confidence(run)),
    )


def _names(run: Gathered, set_name: str, decoding: str) -> list[str]:
    figures = run.summary.figures if run.summary is not None else ()
    return list(dict.fromkeys(f.name for f in figures if f.set == set_name and f.decoding in (decoding, None)))


def _figure(run: Gathered, student: str, set_name: str, decoding: str | None, name: str) -> Figure | None:
    return run.summary.figure(student, set_name, decoding, name) if run.summary is not None else None


def _table(run: Gathered, info: SetInfo, decoding: str, names: Sequence[str]) -> Table:
    series = series_of(run)
    rows = [
        ArmRow(arm(s), series[s], tuple(_cell(_figure(run, s, info.name, decoding, n), n) for n in names))
        for s in run.students
    ]
    teacher = tuple(_teacher_cell(_figure(run, TEACHER, info.name, decoding, n), n) for n in names)
    rows.append(ArmRow(arm(TEACHER), None, teacher))
    return Table(info, set_title(info.name), tuple(meaning(name) for name in names), tuple(rows))


def _teacher_cell(figure: Figure | None, name: str) -> Cell:
    known = "50%" if name.startswith("judge_") and not name.endswith("_score") else _BY_DEFINITION.get(name)
    if figure is None and known is not None:
        return Cell(meaning(name).title, known, "by definition", faint=True)
    return _cell(figure, name)


def _cell(figure: Figure | None, name: str) -> Cell:
    how = meaning(name)
    if figure is None or figure.value is None:
        return Cell(how.title, MISSING, "not measured", _note(figure), faint=True)
    if figure.few:
        small, text = f"too few prompts: {figure.n}", rough(figure.value, how.form)
    else:
        spread = interval(figure.low, figure.high, how.form)
        small, text = f"{spread or 'no interval'} · n {figure.n}", written(figure.value, how.form)
    return Cell(how.title, text, small, _note(figure), faint=figure.few)


def _note(figure: Figure | None) -> str:
    """A remark, unless the cell says the same already."""
    if figure is None or not figure.note or figure.few or figure.note == "diagnostic":
        return ""
    return one_line(figure.note)


def _dot(run: Gathered, figure: Figure, how: Meaning, series: int, info: SetInfo) -> Dot:
    assert figure.value is not None
    few = figure.few
    spread = "" if few else interval(figure.low, figure.high, how.form)
    text = rough(figure.value, how.form) if few else written(figure.value, how.form)
    return Dot(
        label=f"{arm(figure.student)} · {run.title(info.name).lower()}",
        text=f"{text} (n {figure.n}: too few)" if few else text + (f" ({spread})" if spread else ""),
        value=figure.value,
        low=None if few else figure.low,
        high=None if few else figure.high,
        series=series,
        hollow=info.kind == "out_of_distribution",
        faint=few,
    )
