"""The quickstart's brief form, the one that `make demo` takes on a CPU without bfloat16 instructions, on several seeds.

`python -m claims.brief` writes claims/results/brief.json and the second part of docs/quickstart-results.md.

What is trained is the demo's; it is measured on all prompts, by an independent discriminator that has learned from
more of them. SeqKD also goes on for as long as the game took. GAD is also played with replies that are one update old
(`adversarial.one_step_off`): from the same warm-up, measured by the same discriminator. This process samples such
replies as servers would; it only saves no time.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from claims import arms
from claims.arms import Row, evaluated, forked, found_by, rows_of
from claims.evidence import ROOT, provenance
from gad.config.loading import load
from gad.storage import write_json

RECIPE = Path("recipes/quickstart.yaml")
DEMO = "scripts/demo.py"
FORM: tuple[str, ...] = runpy.run_path(str(ROOT / DEMO))["FORMS"]["brief-9"]
MEASURED = ("evaluation.max_prompts=60", "evaluation.independent.epochs=0.5")
ONE_STEP_OFF = "adversarial.one_step_off=true"
WRITTEN = Path("claims/results/brief.json")
PAGE = Path("docs/quickstart-results.md")
MARKS = ("<!-- figures of the brief form -->\n", "<!-- end of figures of the brief form -->\n")
RESTS_ON = ("claims/brief.py", "claims/arms.py", DEMO, str(RECIPE), "recipes/quickstart", "src/gad")
FIRST_SEED = 600
"""The form was chosen on seeds 0, 200, 201, 300, 301, 400, 401, 500 and 501; those from here on decided nothing."""
ARMS = {
    "base": "the model as it came",
    "seqkd": "SeqKD",
    "seqkd_equal_time": "SeqKD, as long as GAD",
    "gad": "GAD + 0.5 x cross-entropy",
    "gad_one_step_off": "the same, replies one update old",
}
AGAINST = ("seqkd", "seqkd_equal_time", "gad_one_step_off")


def run_seed(seed: int, work: Path, overrides: Sequence[str]) -> None:
    """All arms of one seed, then `<work>/seed<seed>.json` with their figures."""
    common = (*FORM, *MEASURED, f"seed={seed}", f"runs_dir={work}", "compute.threads=1", *overrides)
    config, source = load(ROOT / RECIPE, [*common, f"name=seed{seed}"]), work / f"seed{seed}"
    main = evaluated(config)
    seconds = main["seconds"]
    assert config.seqkd is not None
    epochs = round(config.seqkd.epochs * seconds["adversarial"] / seconds["seqkd"], 4)
    longer = forked(source, load(ROOT / RECIPE, [*common, f"name=seed{seed}-equal-time", f"seqkd.epochs={epochs}"]))
    older = load(ROOT / RECIPE, [*common, f"name=seed{seed}-one-step-off", ONE_STEP_OFF])
    behind = forked(source, older)
    rows = [
        *rows_of(main, seed, {"base": "base", "seqkd": "seqkd", "gad": "gad"}),
        *rows_of(longer, seed, {"seqkd": "seqkd_equal_time"}),
        *rows_of(behind, seed, {"gad": "gad_one_step_off"}),
    ]
    times = {"seqkd_epochs_at_equal_time": epochs, "seconds": seconds, "seconds_equal_time": longer["seconds"]["seqkd"]}
    write_json(work / f"seed{seed}.json", {"seed": seed, **times, "rows": rows})


def write_results(found: Sequence[Row], out: Path, command: str) -> None:
    """Gather what the seeds found into the results and the page."""
    rows = [row for each in found for row in each["rows"]]
    settings = {"recipe": str(RECIPE), "form": FORM, "arms": ARMS, "seeds": [each["seed"] for each in found]}
    figures = arms.summarized(rows, "t1", AGAINST)
    times = [{key: value for key, value in each.items() if key != "rows"} for each in found]
    results = {**provenance(RESTS_ON, command), "settings": settings, "times": times, **figures, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, results)
    print(f"{table(results)}\nWritten: {out}")
    if out == ROOT / WRITTEN:
        arms.write_between(ROOT / PAGE, MARKS, table(results))


def table(results: Row) -> str:
    """See `claims.arms`."""
    return arms.table({"temperature 1": results}, ARMS, AGAINST)


def main() -> None:
    says = "The quickstart's brief form and its control."
    asked = arms.parser("claims.brief", says, seeds=4, first=FIRST_SEED, out=WRITTEN).parse_args()
    if found := found_by("claims.brief", asked, run_seed):
        write_results(found, asked.out, " ".join(["python -m claims.brief", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
