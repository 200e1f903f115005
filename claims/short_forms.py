"""Forms of the quickstart that `make demo` takes on two cores, on several seeds: `claims.game` and `claims.brief`.

What is trained is the demo's; it is measured on all prompts, by an independent discriminator that has learned from
more of them. SeqKD also goes on, from the same warm-up, until it has trained for as many seconds as GAD with all of its
warm-up. A form may have one arm more, forked from the same warm-up and measured by the same discriminator.
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
from gad.folder import METRICS
from gad.storage import read_jsonl, write_json

RECIPE = Path("recipes/quickstart.yaml")
DEMO = "scripts/demo.py"
OF_DEMO: Mapping[str, tuple[str, ...]] = runpy.run_path(str(ROOT / DEMO))["FORMS"]
MEASURED = ("evaluation.max_prompts=60", "evaluation.independent.epochs=0.5")
PAGE = Path("docs/quickstart-results.md")
RESTS_ON = ("claims/short_forms.py", "claims/arms.py", DEMO, str(RECIPE), "recipes/quickstart", "src/gad")


@dataclass(frozen=True, slots=True)
class Form:
    """What is run, and where it is written.

    name: in the page's marks and of the results. says: in a line. of_demo: the form of `scripts/demo.py`. headline:
    title of its GAD. other: name, title and change of an arm that is forked from it. first_seed: where its seeds
    begin.
    """

    name: str
    says: str
    of_demo: str
    headline: str
    first_seed: int
    other: tuple[str, str, str] | None = None

    @property
    def written(self) -> Path:
        """The results."""
        return Path(f"claims/results/{self.name}.json")

    @property
    def changes(self) -> tuple[str, ...]:
        """Of the recipe."""
        return OF_DEMO[self.of_demo]

    @property
    def arms(self) -> dict[str, str]:
        """Names to titles."""
        named = {
            "base": "the model as it came",
            "seqkd": "SeqKD",
            "seqkd_equal_time": "SeqKD, as long as GAD",
            "gad": self.headline,
        }
        return named if self.other is None else {**named, self.other[0]: self.other[1]}

    @property
    def against(self) -> tuple[str, ...]:
        """The arms whose difference to GAD is shown."""
        return tuple(name for name in self.arms if name not in ("base", "gad"))

    @property
    def marks(self) -> tuple[str, str]:
        """Between which the page has its table."""
        return f"<!-- figures of the {self.name} form -->\n", f"<!-- end of figures of the {self.name} form -->\n"


def run_seed(form: Form, seed: int, work: Path, overrides: Sequence[str]) -> None:
    """All arms of one seed, then `<work>/seed<seed>.json` with their figures."""
    common = (*form.changes, *MEASURED, f"seed={seed}", f"runs_dir={work}", "compute.threads=1", *overrides)
    config, source = load(ROOT / RECIPE, [*common, f"name=seed{seed}"]), work / f"seed{seed}"
    own = evaluated(config)
    seconds = own["seconds"]
    assert config.seqkd is not None
    assert config.warmup is not None
    imitated = float(config.warmup.phases[0].epochs or 0)
    epoch = imitation_seconds(config.folder) / imitated
    epochs = round((seconds["warmup"] + seconds["adversarial"]) / epoch - imitated, 4)
    longer = forked(source, load(ROOT / RECIPE, [*common, f"name=seed{seed}-equal-time", f"seqkd.epochs={epochs}"]))
    rows = [
        *rows_of(own, seed, {"base": "base", "seqkd": "seqkd", "gad": "gad"}),
        *rows_of(longer, seed, {"seqkd": "seqkd_equal_time"}),
    ]
    if form.other is not None:
        name, _, change = form.other
        other = load(ROOT / RECIPE, [*common, f"name=seed{seed}-{name.replace('_', '-')}", change])
        rows += rows_of(forked(source, other), seed, {"gad": name})
    times = {
        "seqkd_epochs_at_equal_time": epochs,
        "seconds": seconds | {"epoch": epoch},
        "seconds_equal_time": longer["seconds"]["seqkd"],
    }
    write_json(work / f"seed{seed}.json", {"seed": seed, **times, "rows": rows})


def imitation_seconds(folder: Path) -> float:
    """What the warm-up's imitation took: its epochs tell what one of them takes, not the control's part of one."""
    rows = read_jsonl(folder / METRICS)
    return sum(row["time/step"] for row in rows if row["stage"] == "warmup" and "student/cross_entropy" in row)


def write_results(form: Form, found: Sequence[Row], out: Path, command: str) -> None:
    """Gather what the seeds found into the results and the page."""
    rows = [row for each in found for row in each["rows"]]
    settings = {"recipe": str(RECIPE), "form": form.changes, "arms": form.arms}
    settings |= {"seeds": [each["seed"] for each in found]}
    figures = arms.summarized(rows, "t1", form.against)
    times = [{key: value for key, value in each.items() if key != "rows"} for each in found]
    origin = provenance((*RESTS_ON, f"claims/{form.name}.py"), command)
    results = {**origin, "settings": settings, "times": times, **figures, "rows": rows}
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out, results)
    print(f"{table(form, results)}\nWritten: {out}")
    if out == ROOT / form.written:
        arms.write_between(ROOT / PAGE, form.marks, table(form, results))


def table(form: Form, results: Row) -> str:
    """See `claims.arms`."""
    return arms.table({"temperature 1": results}, form.arms, form.against)


def main(module: str, form: Form, seeds: int) -> None:
    """`python -m <module>`."""
    asked = arms.parser(module, form.says, seeds=seeds, first=form.first_seed, out=form.written).parse_args()
    if found := found_by(module, asked, partial(run_seed, form)):
        write_results(form, found, asked.out, " ".join([f"python -m {module}", *sys.argv[1:]]))
