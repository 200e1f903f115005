"""How fast a discriminator's head should learn, against the rest of it.

`python -m claims.head` writes claims/results/head.json and a table in docs/algorithm.md.

As in `claims.layers`: a student that has warmed up replies to prompts; discriminators begin as that student with a head
of zeros, and learn from the same replies in the same order; then each says of other replies to other prompts which of a
pair is the teacher's. Here they differ in `discriminator.head_rate` alone. Pairs of all seeds are taken together.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims import arms
from claims.evidence import ROOT, provenance
from claims.layers import RECIPE, SETS, Row, parser, prepared, row, share
from gad.config.loading import load
from gad.config.run import RunConfig
from gad.judging.statistics import bootstrap_mean, paired_difference
from gad.storage import write_json

WRITTEN = Path("claims/results/head.json")
PAGE = Path("docs/algorithm.md")
MARKS = ("<!-- head -->\n", "<!-- end of head -->\n")
RESTS_ON = ("claims/head.py", "claims/layers.py", str(RECIPE), "recipes/quickstart", "src/gad")


def measured(config: RunConfig, rates: Sequence[float], steps: int, replies: int) -> list[Row]:
    """A row for each rate of one seed."""
    lessons, found = prepared(config, steps, replies), []
    layer = config.discriminator.layer
    assert layer is not None
    for rate in rates:
        discriminator = config.discriminator.model_copy(update={"head_rate": rate})
        changed = config.model_copy(update={"discriminator": discriminator})
        found.append({"seed": config.seed, "rate": rate, **row(changed, lessons, layer)})
    return found


def summarized(rows: Sequence[Row], rates: Sequence[float]) -> dict[str, Any]:
    """By rate and set: share of pairs told right, with its interval over prompts; its difference to the first rate's;
    the mean Bradley-Terry loss (ln 2 for one that knows nothing)."""

    def right(rate: float, name: str) -> list[list[float]]:
        return [pair for each in rows if each["rate"] == rate for pair in each[name]["right"]]

    found: dict[str, Any] = {}
    for rate in rates:
        figures: dict[str, Any] = {}
        for name in SETS:
            figures[name] = bootstrap_mean(right(rate, name), seed=0).as_dict()
            if rate != rates[0]:
                differs = paired_difference(right(rate, name), right(rates[0], name), seed=0)
                figures[f"{name}_minus_first"] = differs.as_dict()
            figures[f"{name}_loss"] = statistics.fmean(each[name]["loss"] for each in rows if each["rate"] == rate)
        found[f"{rate:g}"] = figures
    return found


def table(summary: Mapping[str, Any]) -> str:
    """Markdown of `summarized`."""
    columns = ["head's rate over the rest's"]
    for says in ("held out", "out of distribution"):
        columns += [says, "less the first row", "loss"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for rate, found in summary.items():
        cells = [rate]
        for name in SETS:
            apart = found.get(f"{name}_minus_first")
            cells += [share(found[name]), "" if apart is None else share(apart, "+.2f"), f"{found[f'{name}_loss']:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the file and the page."""
    made = parser("head", __doc__ or "", steps=6, replies=2, out=WRITTEN)
    made.add_argument("--rates", type=float, nargs="+", default=[1.0, 10.0, 30.0])
    made.add_argument("--seeds", type=int, default=1)
    words = made.parse_args()
    stages = ["seqkd=null", "adversarial=null", "warmup.phases=[{train: student, steps: 20}]", "warmup.batch_size=8"]
    rows: list[Row] = []
    for seed in range(words.seeds):
        place = [f"runs_dir={words.work}", f"name=head{seed}", f"seed={seed}", "evaluation.max_prompts=60"]
        config = load(ROOT / RECIPE, [*place, *stages, *words.overrides])
        rows += measured(config, words.rates, words.steps, words.replies)
    summary = summarized(rows, words.rates)
    said = " ".join(["python -m claims.head", *sys.argv[1:]])
    write_json(words.out, {**provenance(RESTS_ON, said), "summary": summary, "rows": rows})
    if words.out == ROOT / WRITTEN:
        arms.write_between(ROOT / PAGE, MARKS, table(summary))
    print(table(summary))


if __name__ == "__main__":
    main()
