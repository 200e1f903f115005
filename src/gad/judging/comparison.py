"""Two models' replies to one set, and what a judge's verdicts on them add up to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gad.config.compared import REFERENCE
from gad.errors import RunFolderError
from gad.judging.preference import (
    length_controlled_preference,
    position_bias,
    preferences_by_prompt,
    win_rate,
)
from gad.judging.statistics import outcome
from gad.judging.tables import Cell, Preferences
from gad.judging.verdicts import Judge, verdict_of
from gad.records import GeneratedReply, Prompt, Verdict
from gad.seeds import stable_seed
from gad.storage import Row

Replies = Mapping[str, GeneratedReply]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models' replies to the prompts of one set, by prompt id."""

    first: str
    second: str
    set_name: str
    prompts: tuple[Prompt, ...]
    replies: Replies
    other_replies: Replies

    def __post_init__(self) -> None:
        for name, replies in ((self.first, self.replies), (self.second, self.other_replies)):
            missing = [prompt.id for prompt in self.prompts if prompt.id not in replies]
            if missing:
                raise RunFolderError(
                    f"{name} has no reply to {len(missing)} of {len(self.prompts)} prompts of {self.set_name}, "
                    f"e.g. {missing[0]}: run `gad generate` to write them"
                )


def figures_of(
    judge: Judge, comparison: Comparison, rows: Sequence[Row], *, seed: int, level: float = 0.95
) -> dict[str, Any]:
    """What the verdicts add up to. Rows without a verdict are counted by their problem and enter no figure."""
    verdicts = verdicts_of(rows)
    seed = figure_seed(seed, judge.name, comparison.first, comparison.second, comparison.set_name)
    figures: dict[str, Any] = {
        "judge": judge.name,
        "first": comparison.first,
        "second": comparison.second,
        "set": comparison.set_name,
        "verdicts": len(rows),
        "unread": dict(Counter(row["problem"] for row in rows if row["preference"] is None)),
        "asked_again": sum(row["attempts"] > 1 for row in rows),
        "by": dict(Counter(row["by"] for row in rows if row["preference"] is not None)),
        "cost_usd": sum(row["cost_usd"] for row in rows),
        "win_rate": None,
        "score": None,
        "position_bias": None,
        "length_controlled": None,
        "too_few": True,
    }
    if not verdicts:
        return figures
    rate = win_rate(verdicts, seed=seed, level=level)
    bias = position_bias(verdicts, seed=seed, level=level)
    figures |= {"win_rate": rate.as_dict(), "position_bias": bias.as_dict() if bias else None}
    figures["too_few"] = rate.preference.too_few
    if judge.writes_reference:
        figures["score"] = rate.preference.scaled(100.0).as_dict()
    else:
        lengths = {key: float(reply.tokens) for key, reply in comparison.replies.items()}
        others = {key: float(reply.tokens) for key, reply in comparison.other_replies.items()}
        controlled = length_controlled_preference(
            preferences_by_prompt(verdicts), lengths, others, seed=seed, level=level
        )
        figures["length_controlled"] = controlled.as_dict()
    return figures


def figure_seed(seed: int, judge: str, first: str, second: str, set_name: str) -> int:
    """Of the intervals of one judge on one pair and set, so that file and page show the same ones. seed: the run's."""
    return stable_seed(seed, "judging", judge, first, second, set_name)


def compared_by_score(preferences: Preferences, comparisons: Sequence[Comparison]) -> dict[Cell, Mapping[str, float]]:
    """These preferences, and for judges that score each model against their own reference: who scored higher."""
    found = dict(preferences)
    for judge in dict.fromkeys(cell.judge for cell in preferences if cell.second == REFERENCE):
        for each in comparisons:
            one, two = (preferences.get(Cell(judge, each.set_name, n, REFERENCE)) for n in (each.first, each.second))
            if one is not None and two is not None:
                shared = one.keys() & two.keys()
                cell = Cell(judge, each.set_name, each.first, each.second)
                found[cell] = {key: (1.0 + outcome(0.5 + (one[key] - two[key]) / 2.0)) / 2.0 for key in sorted(shared)}
    return found


def verdicts_of(rows: Sequence[Row]) -> list[Verdict]:
    """The rows that hold a verdict."""
    return [verdict for row in rows if (verdict := verdict_of(row)) is not None]
