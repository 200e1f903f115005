"""What every figure is called, how its value is written, and what it means in plain words."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Literal

from gad.report.summary import Figure, Paired
from gad.report.text import one_line

Form = Literal["share", "plain", "ratio", "nats", "score", "tokens"]
Better = Literal["higher", "lower", "one", "neither"]
MISSING = "–"


@dataclass(frozen=True, slots=True)
class Meaning:
    """How to read a figure.

    better: which way is better; "one" is as near to 1 as can be, "neither" is a diagnostic without a direction.
    level: the value that means on a par with the teacher, drawn as a line in the pictures.
    changes: what a clear rise and a clear fall are called; by default better and worse, or higher and lower.
    """

    title: str
    form: Form
    better: Better
    plain: str
    level: float | None = None
    changes: tuple[str, str] | None = None


MEANINGS = {
    "preference": Meaning(
        "Preferred to the teacher",
        "share",
        "higher",
        "How often an independent discriminator, never used in training, puts the student’s reply above the "
        "teacher’s. 50% is on a par with the teacher.",
        0.5,
    ),
    "c2st_auc": Meaning(
        "Told apart (C2ST AUC)",
        "plain",
        "lower",
        "How well a fresh classifier tells the student’s replies from the teacher’s on prompts it has not seen. "
        "0.5: it cannot tell; 1: it always can.",
        0.5,
        ("easier to tell apart", "harder to tell apart"),
    ),
    "style": Meaning("House style kept", "share", "higher", "Share of replies that have the form the run asks for."),
    "length_ratio": Meaning(
        "Length against teacher", "ratio", "one", "Mean reply length in tokens, divided by the teacher’s.", 1.0
    ),
    "finished": Meaning("Finished", "share", "higher", "Share of replies that ended by themselves, not at the limit."),
    "repetition": Meaning(
        "Repetition", "share", "lower", "Share of word sequences that a reply has already used. High: it loops."
    ),
    "teacher_nll": Meaning(
        "Teacher likelihood",
        "nats",
        "lower",
        "How surprised the student is by the teacher’s own replies, in nats per token. Low: it covers what the "
        "teacher may say.",
    ),
    "length": Meaning("Length", "tokens", "neither", "Mean reply length in tokens."),
    "rouge_l": Meaning("ROUGE-L", "plain", "neither", "Longest common word sequence with the teacher’s reply (F1)."),
    "self_bleu": Meaning(
        "Self-BLEU", "plain", "neither", "How alike the replies are to each other. High: little variety."
    ),
    "compression_ratio": Meaning(
        "Compression ratio", "plain", "neither", "How far the replies compress together. High: they repeat each other."
    ),
}
HEADLINE_FIGURES = ("preference", "c2st_auc", "style", "length_ratio")
AT_EQUAL_LENGTH = "win rate at equal length"
_JUDGE = re.compile(r"judge_(?P<judge>.+?)_(?P<what>win_rate|length_controlled|score)")
_JUDGED: dict[str, tuple[str, Form, str]] = {
    "win_rate": (
        "win rate",
        "share",
        "How often this judge prefers the student’s reply to the teacher’s; ties count half.",
    ),
    "length_controlled": (
        AT_EQUAL_LENGTH,
        "share",
        "The same judge’s preference with what longer replies gain by their length taken out.",
    ),
    "score": ("score", "score", "100 × student / (student + reference), the paper’s formula. 50 is on a par."),
}


def meaning(name: str) -> Meaning:
    """How to read the figure of this name; a name that is not known is shown as it is."""
    if name in MEANINGS:
        return MEANINGS[name]
    overlap = re.fullmatch(r"overlap_f1_(\d+)", name)
    if overlap:
        n = overlap[1]
        return Meaning(
            f"{n}-gram overlap", "plain", "neither", f"F1 of the {n}-word sequences shared with the teacher’s reply."
        )
    distinct = re.fullmatch(r"distinct_(\d+)", name)
    if distinct:
        return Meaning(f"Distinct {distinct[1]}-grams", "share", "neither", "Share of word sequences used once only.")
    judged = _JUDGE.fullmatch(name)
    if judged:
        title, form, plain = _JUDGED[judged["what"]]
        level = 50.0 if form == "score" else 0.5
        return Meaning(f"{one_line(judged['judge'])}: {title}", form, "higher", plain, level)
    return Meaning(one_line(name).replace("_", " "), "plain", "neither", "")


def better(direction: Better) -> str:
    """Which way is better, in words."""
    return {"higher": "higher is better", "lower": "lower is closer", "one": "near 1 is best", "neither": "diagnostic"}[
        direction
    ]


def written(value: float | None, form: Form, *, signed: bool = False) -> str:
    """A value as people read it: 54%, 0.79, 1.05×. Missing and not finite: a dash."""
    if value is None or not math.isfinite(value):
        return MISSING
    sign = "+" if signed and value > 0 else ""
    match form:
        case "share":
            text = f"{sign}{value * 100:.0f}" + (" points" if signed else "%")
        case "ratio":
            text = f"{sign}{value:.2f}" + ("" if signed else "×")
        case "score" | "tokens":
            text = f"{sign}{value:.1f}"
        case "nats" | "plain":
            text = f"{sign}{value:.2f}"
    return text.replace("-", "−")


def interval(low: float | None, high: float | None, form: Form, *, words: bool = False) -> str:
    """`47–59` (with `words`: `47 to 59`), without the unit; empty where a bound is not known."""
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    factor, digits = {"share": (100.0, 0), "score": (1.0, 1), "tokens": (1.0, 1)}.get(form, (1.0, 2))
    ends = [f"{bound * factor:.{digits}f}".replace("-", "−") for bound in (low, high)]
    return f"{ends[0]} to {ends[1]}" if low < 0 or words else "–".join(ends)


def rough(value: float | None, form: Form) -> str:
    """A value that rests on too few prompts, rounded so that it cannot look precise."""
    if value is None or not math.isfinite(value):
        return MISSING
    if form == "share":
        return f"≈ {round(value * 10) * 10}%"
    if form in ("score", "tokens"):
        return f"≈ {round(value / 10) * 10}"
    return f"≈ {value:.1f}".replace("-", "−") + ("×" if form == "ratio" else "")


def p_written(p_value: float | None) -> str:
    """p-values below what permutation can show are written as a bound."""
    if p_value is None or not math.isfinite(p_value):
        return MISSING
    return "< .001" if p_value < 0.001 else f"{p_value:.3f}".removeprefix("0") if p_value < 1 else "1"


def arm(name: str) -> str:
    """An arm's name for people: `gad` is GAD, a name of the user's stays as it is."""
    known = {
        "base": "Base",
        "seqkd": "SeqKD",
        "gad": "GAD",
        "teacher": "Teacher",
        "reference": "Judge’s reference",
        "warmup": "Warm-up",
        "seqkd_equal_time": "SeqKD, equal time",
        "gad_cross_entropy": "GAD + cross-entropy",
    }
    return known.get(name) or one_line(name)


def set_title(name: str) -> str:
    """A set's name for people."""
    return {"held_out": "Held-out", "out_of_distribution": "Out of distribution"}.get(name) or one_line(name)


def comparison(paired: Paired, alpha: float = 0.05, *, where: str = "") -> str:
    """A paired difference in words; it claims nothing that the interval or the p-value does not carry.

    where: the set's title, if it has another one.
    """
    form = meaning(paired.name).form
    where = (where or set_title(paired.set)).lower()
    if paired.difference is None:
        return f"{where} not measured"
    if paired.few:
        return f"{where} only {paired.n} prompts, too few to say"
    spread = interval(paired.low, paired.high, form, words=True)
    value = written(paired.difference, form, signed=True) + (f" ({spread})" if spread else "")
    return f"{where} {value}, {verdict(paired, alpha)}"


def verdict(paired: Paired, alpha: float = 0.05) -> str:
    """`better`, `worse` or what else the figure calls it, or `no clear difference`.

    paired: with a p-value that is corrected for how many are shown; an interval is not, and the two may disagree.
    """
    apart = paired.low is not None and paired.high is not None and (paired.low > 0 or paired.high < 0)
    if paired.difference is None or paired.few:
        return "no clear difference"
    if not (apart if paired.p_value is None else paired.p_value < alpha):
        return "no clear difference" + (" by the corrected p-value" if apart else "")
    how, up = meaning(paired.name), paired.difference > 0
    direction = how.better
    if how.changes is not None:
        return how.changes[0 if up else 1]
    if direction in ("higher", "lower"):
        return "better" if up == (direction == "higher") else "worse"
    return "higher" if up else "lower"


def figure_sentence(figure: Figure, level: float = 0.95) -> str:
    """A preference with its interval, and whether it is above or below the teacher's 50% as far as that tells."""
    prompts = f"{figure.n} prompts"
    if figure.value is None:
        return "an unknown share of prompts: not measured"
    if figure.few:
        return f"{rough(figure.value, 'share')} of only {prompts}: too few to say"
    spread = interval(figure.low, figure.high, "share", words=True)
    if figure.low is None or figure.high is None or not spread:
        return f"{written(figure.value, 'share')} of {prompts}, without an interval"
    where = "not clearly above or below the teacher"
    if figure.low > 0.5 or figure.high < 0.5:
        where = "above the teacher" if figure.low > 0.5 else "below the teacher"
    return f"{written(figure.value, 'share')} of {prompts} ({level * 100:g}% interval {spread}): {where}"
