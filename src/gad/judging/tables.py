"""Tables over several comparisons: arms against each other prompt by prompt, and judges against each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from gad.judging.statistics import agreement, holm, paired_difference
from gad.seeds import stable_seed


@dataclass(frozen=True, slots=True, order=True)
class Cell:
    """One judge's word on one pair of models on one set."""

    judge: str
    set_name: str
    first: str
    second: str


Preferences = Mapping[Cell, Mapping[str, float]]
"""Prompt id -> preference of the first model's reply."""


def paired_table(preferences: Preferences, *, seed: int, level: float = 0.95) -> list[dict[str, Any]]:
    """Differences between models that a judge compared with the same second one, over the prompts both have.

    In shares, as preferences; times 100 they are points of the paper's score. p-values are corrected (Holm) over all
    rows of a judge.
    """
    rows: list[dict[str, Any]] = []
    for judge in dict.fromkeys(cell.judge for cell in preferences):
        own: list[dict[str, Any]] = []
        for one, two in combinations([cell for cell in preferences if cell.judge == judge], 2):
            keys = sorted(preferences[one].keys() & preferences[two].keys())
            if (one.set_name, one.second) != (two.set_name, two.second) or len(keys) < 2:
                continue
            identity = stable_seed(seed, "paired", judge, one.set_name, one.first, two.first, one.second)
            values = [[preferences[cell][key] for key in keys] for cell in (one, two)]
            found = paired_difference(values[0], values[1], seed=identity, level=level)
            head = {
                "judge": judge,
                "set": one.set_name,
                "model": one.first,
                "against": two.first,
                "both_to": one.second,
            }
            own.append({**head, **found.as_dict()})
        for row, corrected in zip(own, holm([row["p_value"] for row in own]), strict=True):
            rows.append({**row, "p_value_corrected": corrected})
    return rows


def agreement_table(preferences: Preferences, *, seed: int, level: float = 0.95) -> list[dict[str, Any]]:
    """Every two judges of the same pair and set, over the prompts that both judged; people may be one of them.

    opposed: prompts on which they take opposite sides.
    """
    rows = []
    for one, two in combinations(preferences, 2):
        same = (one.set_name, one.first, one.second) == (two.set_name, two.first, two.second)
        if same and preferences[one].keys() & preferences[two].keys():
            identity = stable_seed(seed, "agreement", one.judge, two.judge, one.set_name, one.first, one.second)
            found = agreement(dict(preferences[one]), dict(preferences[two]), seed=identity, level=level)
            head = {"judges": [one.judge, two.judge], "set": one.set_name, "first": one.first, "second": one.second}
            shared = preferences[one].keys() & preferences[two].keys()
            opposed = sum((preferences[one][key] - 0.5) * (preferences[two][key] - 0.5) < 0.0 for key in shared)
            rows.append({**head, **found.as_dict(), "opposed": opposed})
    return rows
