"""The quickstart and its controls on several seeds.

`python -m claims.quickstart` writes claims/results/quickstart.json, the picture docs/images/quickstart.svg and the
table in docs/quickstart-results.md.

The arms share a seed's texts, warm-up and independent discriminator, so their differences are paired. SeqKD at equal
time has as many epochs as fit into the seconds of warm-up and adversarial stage, rounded up: in the control's favour.
Each seed is a process of one thread. Runs lie in --work and go on where they were stopped.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from claims import arms
from claims.arms import SETS, Row, evaluated, forked, found_by, rows_of
from claims.evidence import ROOT, provenance
from claims.quickstart_picture import draw
from gad.config.loading import load
from gad.storage import write_json, write_text

RECIPE = Path("recipes/quickstart.yaml")
WRITTEN = Path("claims/results/quickstart.json")
PICTURE = Path("docs/images/quickstart.svg")
PAGE = Path("docs/quickstart-results.md")
MARKS = ("<!-- figures -->\n", "<!-- end of figures -->\n")
RESTS_ON = ("claims/quickstart.py", "claims/arms.py", str(RECIPE), "recipes/quickstart", "src/gad")
FIRST_SEED = 100
"""The recipe was chosen on seed 0; the seeds here decided nothing."""
ARMS = {
    "base": "the model as it came",
    "seqkd": "SeqKD, 3 epochs",
    "seqkd_equal_time": "SeqKD, as long as GAD",
    "gad": "GAD",
    "gad_cross_entropy": "GAD + 0.5 x cross-entropy",
}
PAIRED = ("base", "seqkd", "seqkd_equal_time", "gad_cross_entropy")


def run_seed(seed: int, work: Path, overrides: Sequence[str]) -> None:
    """All arms of one seed, then `<work>/seed<seed>.json` with their figures."""
    common = (f"seed={seed}", f"runs_dir={work}", "compute.threads=1", *overrides)
    main = evaluated(load(ROOT / RECIPE, [*common, f"name=seed{seed}"]))
    seconds = main["seconds"]
    ratio = (seconds["warmup"] + seconds["adversarial"]) / seconds["seqkd"]
    epochs = math.ceil(ratio * load(ROOT / RECIPE, common).seqkd.epochs)  # type: ignore[union-attr]
    source = work / f"seed{seed}"
    longer = forked(source, load(ROOT / RECIPE, [*common, f"name=seed{seed}-equal-time", f"seqkd.epochs={epochs}"]))
    changes = ("seqkd=null", "adversarial.cross_entropy_weight=0.5")
    mixed = forked(source, load(ROOT / RECIPE, [*common, f"name=seed{seed}-cross-entropy", *changes]))
    rows = [
        *rows_of(main, seed, {"base": "base", "seqkd": "seqkd", "gad": "gad"}),
        *rows_of(longer, seed, {"seqkd": "seqkd_equal_time"}),
        *rows_of(mixed, seed, {"gad": "gad_cross_entropy"}),
    ]
    times = {"seqkd_epochs_at_equal_time": epochs, "seconds": seconds, "seconds_equal_time": longer["seconds"]["seqkd"]}
    write_json(work / f"seed{seed}.json", {"seed": seed, **times, "rows": rows})


def summarized(rows: Sequence[Row], decoding: str) -> dict[str, Any]:
    """See `claims.arms`."""
    return arms.summarized(rows, decoding, PAIRED)


def table(results: Mapping[str, Any]) -> str:
    """See `claims.arms`."""
    return arms.table({"temperature 1": results, "greedy": results["greedy"]}, ARMS, PAIRED)


def write_results(found: Sequence[Row], out: Path, command: str) -> None:
    """Gather what the seeds found into the results, the picture and the page."""
    rows = [row for each in found for row in each["rows"]]
    results = {
        **provenance(RESTS_ON, command),
        "settings": {"recipe": str(RECIPE), "arms": ARMS, "seeds": [each["seed"] for each in found]},
        "times": [{key: value for key, value in each.items() if key != "rows"} for each in found],
        "rows": rows,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    write_figures(results, out)


def write_figures(results: Mapping[str, Any], out: Path) -> None:
    """Figures from the raw rows, into the results, the picture and the page."""
    rows = results["rows"]
    kept = {name: part for name, part in results.items() if name != "rows"}
    results = {**kept, **summarized(rows, "t1"), "greedy": summarized(rows, "greedy"), "rows": rows}
    write_json(out, results)
    print(f"{table(results)}\nWritten: {out}")
    if out == ROOT / WRITTEN:
        write_text(ROOT / PICTURE, draw(rows, ARMS, SETS))
        arms.write_between(ROOT / PAGE, MARKS, table(results))


def main() -> None:
    says = "The quickstart and its controls."
    parser = arms.parser("claims.quickstart", says, seeds=3, first=FIRST_SEED, out=WRITTEN)
    parser.add_argument("--again", action="store_true", help="run nothing: figures from the raw rows of the results")
    asked = parser.parse_args()
    if asked.again:
        write_figures(json.loads(asked.out.read_text(encoding="utf-8")), asked.out)
        return
    if found := found_by("claims.quickstart", asked, run_seed):
        write_results(found, asked.out, " ".join(["python -m claims.quickstart", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
