"""The quickstart's forms for slow machines, those that `make demo` takes, on several seeds.

`python -m claims.brief` writes claims/results/brief.json and the second part of docs/quickstart-results.md.

What is trained is the demo's; it is measured on all prompts, by an independent discriminator that has learned from
more of them. SeqKD also goes on for as long as the game took. In the brief form GAD is also played with replies that
are one update old (`adversarial.one_step_off`): from the same warm-up, measured by the same discriminator. This process
samples such replies as servers would; it only saves no time.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from claims import arms
from claims.arms import Row, evaluated, forked, found_by, rows_of
from claims.evidence import ROOT, provenance
from gad.config.loading import load
from gad.storage import write_json

RECIPE = Path("recipes/quickstart.yaml")
DEMO = "scripts/demo.py"
CHANGES: dict[str, tuple[str, ...]] = runpy.run_path(str(ROOT / DEMO))["FORMS"]
MEASURED = ("evaluation.max_prompts=60", "evaluation.independent.epochs=0.5")
ONE_STEP_OFF = "adversarial.one_step_off=true"
PAGE = Path("docs/quickstart-results.md")
RESTS_ON = ("claims/brief.py", "claims/arms.py", DEMO, str(RECIPE), "recipes/quickstart", "src/gad")
SEQKD_ARMS = {"base": "the model as it came", "seqkd": "SeqKD", "seqkd_equal_time": "SeqKD, as long as GAD"}


@dataclass(frozen=True, slots=True)
class Form:
    """A form of the demo: what it changes in the recipe, its arms, and where its results go.

    first_seed: the form was chosen on others; those from here on decided nothing.
    """

    changes: tuple[str, ...]
    arms: Mapping[str, str]
    written: Path
    first_seed: int
    page_name: str

    @property
    def against(self) -> tuple[str, ...]:
        """The arms that GAD is compared with."""
        return tuple(arm for arm in self.arms if arm not in ("base", "gad"))

    @property
    def marks(self) -> tuple[str, str]:
        """What the figures stand between on the page."""
        return f"<!-- figures of the {self.page_name} -->\n", f"<!-- end of figures of the {self.page_name} -->\n"


FORMS = {
    "brief-9": Form(
        CHANGES["brief-9"],
        {
            **SEQKD_ARMS,
            "gad": "GAD + 0.5 x cross-entropy",
            "gad_one_step_off": "the same, replies one update old",
        },
        Path("claims/results/brief.json"),
        600,  # chosen on 0, 200, 201, 300, 301, 400, 401, 500 and 501
        "brief form",
    ),
}


def run_seed(seed: int, work: Path, overrides: Sequence[str], form: Form) -> None:
    """All arms of one seed, then `<work>/seed<seed>.json` with their figures."""
    common = (*form.changes, *MEASURED, f"seed={seed}", f"runs_dir={work}", "compute.threads=1", *overrides)
    config, source = load(ROOT / RECIPE, [*common, f"name=seed{seed}"]), work / f"seed{seed}"
    main = evaluated(config)
    seconds = main["seconds"]
    assert config.seqkd is not None
    epochs = round(config.seqkd.epochs * seconds["adversarial"] / seconds["seqkd"], 4)
    longer = forked(source, load(ROOT / RECIPE, [*common, f"name=seed{seed}-equal-time", f"seqkd.epochs={epochs}"]))
    rows = [
        *rows_of(main, seed, {"base": "base", "seqkd": "seqkd", "gad": "gad"}),
        *rows_of(longer, seed, {"seqkd": "seqkd_equal_time"}),
    ]
    if "gad_one_step_off" in form.arms:
        older = load(ROOT / RECIPE, [*common, f"name=seed{seed}-one-step-off", ONE_STEP_OFF])
        rows += rows_of(forked(source, older), seed, {"gad": "gad_one_step_off"})
    times = {"seqkd_epochs_at_equal_time": epochs, "seconds": seconds, "seconds_equal_time": longer["seconds"]["seqkd"]}
    write_json(work / f"seed{seed}.json", {"seed": seed, **times, "rows": rows})


def write_results(found: Sequence[Row], out: Path, command: str, form: Form) -> None:
    """Gather what the seeds found into the results and the page."""
    rows = [row for each in found for row in each["rows"]]
    settings = {
        "recipe": str(RECIPE),
        "form": form.changes,
        "arms": form.arms,
        "seeds": [each["seed"] for each in found],
    }
    figures = arms.summarized(rows, "t1", form.against)
    times = [{key: value for key, value in each.items() if key != "rows"} for each in found]
    results = {**provenance(RESTS_ON, command), "settings": settings, "times": times, **figures, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, results)
    print(f"{table(results, form)}\nWritten: {out}")
    if out == ROOT / form.written:
        arms.write_between(ROOT / PAGE, form.marks, table(results, form))


def table(results: Row, form: Form) -> str:
    """See `claims.arms`."""
    return arms.table({"temperature 1": results}, form.arms, form.against)


def main() -> None:
    says = "The quickstart's forms for slow machines and their controls."
    parser = arms.parser("claims.brief", says, seeds=4, first=None, out=None)
    parser.add_argument("--form", choices=FORMS, default="brief-9", help="form of the demo (default brief-9)")
    asked = parser.parse_args()
    form = FORMS[asked.form]
    asked.first = form.first_seed if asked.first is None else asked.first
    asked.out = asked.out or ROOT / form.written
    asked.work = asked.work if asked.seed is not None else asked.work / asked.form
    if found := found_by("claims.brief", asked, partial(run_seed, form=form), options=[f"--form={asked.form}"]):
        write_results(found, asked.out, " ".join(["python -m claims.brief", *sys.argv[1:]]), form)


if __name__ == "__main__":
    main()
