"""The quickstart and its controls on several seeds.

`python -m claims.quickstart` writes claims/results/quickstart.json, the picture docs/images/quickstart.svg and the
table in docs/quickstart-results.md.

The arms share a seed's texts, warm-up and independent discriminator, so their differences are paired. SeqKD at equal
time has as many epochs as fit into the seconds of warm-up and adversarial stage, rounded up: in the control's favour.
Each seed is a process of one thread. Runs lie in --work and go on where they were stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from claims.evidence import ROOT, interval, provenance
from claims.quickstart_picture import draw
from gad.config.loading import load
from gad.config.run import RunConfig
from gad.folder import opened
from gad.fork import fork
from gad.pipeline import Pipeline
from gad.progress import Lines
from gad.signals import StopRequest
from gad.storage import write_json, write_text

RECIPE = Path("recipes/quickstart.yaml")
WRITTEN = Path("claims/results/quickstart.json")
PICTURE = Path("docs/images/quickstart.svg")
PAGE = Path("docs/quickstart-results.md")
MARKS = ("<!-- figures -->\n", "<!-- end of figures -->\n")
RESTS_ON = ("claims/quickstart.py", str(RECIPE), "recipes/quickstart", "src/gad")
FIRST_SEED = 100
"""The recipe was chosen on seed 0; the seeds here decided nothing."""
ARMS = {
    "base": "the model as it came",
    "seqkd": "SeqKD, 3 epochs",
    "seqkd_equal_time": "SeqKD, as long as GAD",
    "gad": "GAD",
    "gad_cross_entropy": "GAD + 0.5 x cross-entropy",
}
SETS = {"held_out": "held out", "out_of_distribution": "out of distribution"}
FIGURES = {
    "preference": "preferred to the teacher",
    "c2st_auc": "C2ST",
    "style": "style kept",
    "length_ratio": "length ratio",
    "finished": "finished",
    "teacher_nll": "teacher NLL",
}
SHARES = ("preference", "c2st_auc", "style", "finished")
PAIRED = ("base", "seqkd", "seqkd_equal_time", "gad_cross_entropy")

Row = dict[str, Any]


def run_seed(seed: int, work: Path, overrides: Sequence[str]) -> None:
    """All arms of one seed, then `<work>/seed<seed>.json` with their figures."""
    common = (f"seed={seed}", f"runs_dir={work}", "compute.threads=1", *overrides)
    main = _evaluated(load(ROOT / RECIPE, [*common, f"name=seed{seed}"]))
    seconds = main["seconds"]
    ratio = (seconds["warmup"] + seconds["adversarial"]) / seconds["seqkd"]
    epochs = math.ceil(ratio * load(ROOT / RECIPE, common).seqkd.epochs)  # type: ignore[union-attr]
    source = work / f"seed{seed}"
    longer = _forked(source, load(ROOT / RECIPE, [*common, f"name=seed{seed}-equal-time", f"seqkd.epochs={epochs}"]))
    changes = ("seqkd=null", "adversarial.cross_entropy_weight=0.5")
    mixed = _forked(source, load(ROOT / RECIPE, [*common, f"name=seed{seed}-cross-entropy", *changes]))
    rows = [
        *_rows(main, seed, {"base": "base", "seqkd": "seqkd", "gad": "gad"}),
        *_rows(longer, seed, {"seqkd": "seqkd_equal_time"}),
        *_rows(mixed, seed, {"gad": "gad_cross_entropy"}),
    ]
    times = {"seqkd_epochs_at_equal_time": epochs, "seconds": seconds, "seconds_equal_time": longer["seconds"]["seqkd"]}
    write_json(work / f"seed{seed}.json", {"seed": seed, **times, "rows": rows})


def _forked(source: Path, config: RunConfig) -> Row:
    if not config.folder.exists():
        fork(source, config)
    return _evaluated(config)


def _evaluated(config: RunConfig) -> Row:
    """The summary of a run that has been trained and measured."""
    stop = StopRequest()
    with opened(config) as folder, stop.listening():
        pipeline = Pipeline(config, Lines(), stop)
        for stage in (pipeline.collect, pipeline.seqkd, pipeline.warmup, pipeline.adversarial, pipeline.evaluate):
            stage()
    summary: Row = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def _rows(summary: Row, seed: int, names: Mapping[str, str]) -> Iterator[Row]:
    for row in summary["figures"]:
        if row["student"] in names and row["name"] in FIGURES:
            yield {
                "seed": seed,
                "arm": names[row["student"]],
                **{key: row[key] for key in ("set", "decoding", "name", "value", "low", "high", "n")},
            }


def summarized(rows: Sequence[Row], decoding: str) -> dict[str, Any]:
    """`<arm>.<set>.<figure>` and `paired.gad_minus_<arm>.<set>.<figure>`, each {mean, low, high, seeds}."""
    values: dict[tuple[str, str, str], dict[int, float]] = {}
    for row in rows:
        if row["decoding"] == decoding:
            values.setdefault((row["arm"], row["set"], row["name"]), {})[row["seed"]] = row["value"]
    found: dict[str, Any] = {}
    for (arm, set_name, name), by_seed in sorted(values.items()):
        ends = {"least": 0.0, "most": 1.0} if name in SHARES else {}
        place = found.setdefault(arm, {}).setdefault(set_name, {})
        place[name] = interval([by_seed[seed] for seed in sorted(by_seed)], **ends)
    paired: dict[str, Any] = {}
    for (arm, set_name, name), theirs in sorted(values.items()):
        ours = values.get(("gad", set_name, name))
        if arm in PAIRED and ours is not None:
            place = paired.setdefault(f"gad_minus_{arm}", {}).setdefault(set_name, {})
            place[name] = interval([ours[seed] - theirs[seed] for seed in sorted(theirs)])
    return {**found, "paired": paired}


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a table for each set and way of decoding, then GAD less each control."""
    parts = []
    for decoding, figures in (("temperature 1", results), ("greedy", results["greedy"])):
        for set_name, says in SETS.items():
            names = [name for name in FIGURES if name in figures["gad"][set_name]]
            parts += [f"**{says.capitalize()}, {decoding}**\n", _head(["arm", *(FIGURES[name] for name in names)])]
            for arm, title in ARMS.items():
                cells = [_cell(figures[arm][set_name][name]) for name in names]
                parts.append(f"| {title} | {' | '.join(cells)} |")
            for arm in PAIRED:
                of_arm = figures["paired"][f"gad_minus_{arm}"][set_name]
                parts.append(f"| *GAD less {ARMS[arm]}* | {' | '.join(_cell(of_arm[name], '+') for name in names)} |")
            parts.append("")
    return "\n".join(parts)


def _head(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"


def _cell(figure: Mapping[str, Any], sign: str = "") -> str:
    mean = f"{figure['mean']:{sign}.2f}"
    return mean if figure["low"] is None else f"{mean} ({figure['low']:{sign}.2f} to {figure['high']:{sign}.2f})"


def write_results(seeds: Sequence[int], work: Path, out: Path, command: str) -> None:
    """Gather the seeds' files into the results, the picture and the page."""
    found = [json.loads((work / f"seed{seed}.json").read_text(encoding="utf-8")) for seed in seeds]
    rows = [row for each in found for row in each["rows"]]
    results = {
        **provenance(RESTS_ON, command),
        "settings": {"recipe": str(RECIPE), "arms": ARMS, "seeds": list(seeds)},
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
        before, _, rest = (ROOT / PAGE).read_text(encoding="utf-8").partition(MARKS[0])
        write_text(ROOT / PAGE, f"{before}{MARKS[0]}{table(results)}{MARKS[1]}{rest.partition(MARKS[1])[2]}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m claims.quickstart", description="The quickstart and its controls.")
    parser.add_argument("overrides", nargs="*", metavar="KEY.PATH=VALUE", help="keys of the recipe, for a trial")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every arm (default 3)")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help=f"the first seed (default {FIRST_SEED})")
    parser.add_argument("--jobs", type=int, default=2, help="seeds at a time, one thread each (default 2)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "claims-quickstart", help="folder of the runs")
    parser.add_argument("--out", type=Path, default=ROOT / WRITTEN, help=f"results (default {WRITTEN})")
    parser.add_argument("--seed", type=int, help="run this one seed and gather nothing")
    parser.add_argument("--again", action="store_true", help="run nothing: figures from the raw rows of the results")
    asked = parser.parse_args()
    if asked.again:
        write_figures(json.loads(asked.out.read_text(encoding="utf-8")), asked.out)
        return
    if asked.seed is not None:
        run_seed(asked.seed, asked.work.resolve(), asked.overrides)
        return
    seeds = range(asked.first, asked.first + asked.seeds)
    asked.work.mkdir(parents=True, exist_ok=True)

    def child(seed: int) -> int:
        command = [sys.executable, "-m", "claims.quickstart", f"--seed={seed}", f"--work={asked.work.resolve()}"]
        with (asked.work / f"seed{seed}.log").open("a", encoding="utf-8") as log:
            return subprocess.run([*command, *asked.overrides], cwd=ROOT, stdout=log, stderr=log).returncode

    with ThreadPoolExecutor(asked.jobs) as pool:
        failed = [seed for seed, code in zip(seeds, pool.map(child, seeds), strict=True) if code]
    if failed:
        sys.exit(f"seeds {failed} failed; what they say is in {asked.work}/seed<N>.log")
    write_results(seeds, asked.work, asked.out, " ".join(["python -m claims.quickstart", *sys.argv[1:]]))


if __name__ == "__main__":
    main()
