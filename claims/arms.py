"""Arms of a run on several seeds: training them, their figures over seeds, and tables of those.

Arms of a seed share what the same settings have made (`gad.fork`), so their differences are paired.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from claims.evidence import ROOT, interval
from gad.config.run import RunConfig
from gad.folder import opened
from gad.fork import fork
from gad.pipeline import Pipeline
from gad.progress import Lines
from gad.signals import StopRequest
from gad.storage import write_text

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

Row = dict[str, Any]


def forked(source: Path, config: RunConfig) -> Row:
    """The summary of a run that takes over what `source` has made."""
    if not config.folder.exists():
        fork(source, config)
    return evaluated(config)


def evaluated(config: RunConfig) -> Row:
    """The summary of a run that has been trained and measured."""
    stop = StopRequest()
    with opened(config) as folder, stop.listening():
        pipeline = Pipeline(config, Lines(), stop)
        for stage in (pipeline.collect, *pipeline.training, pipeline.evaluate):
            stage()
    summary: Row = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    return summary


def rows_of(summary: Row, seed: int, names: Mapping[str, str]) -> Iterator[Row]:
    """Figures of a run's students, under the names of arms."""
    for row in summary["figures"]:
        if row["student"] in names and row["name"] in FIGURES:
            yield {
                "seed": seed,
                "arm": names[row["student"]],
                **{key: row[key] for key in ("set", "decoding", "name", "value", "low", "high", "n")},
            }


def summarized(rows: Sequence[Row], decoding: str, against: Sequence[str], headline: str = "gad") -> dict[str, Any]:
    """`<arm>.<set>.<figure>` and `paired.<headline>_minus_<arm>.<set>.<figure>`, each {mean, low, high, seeds}."""
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
        ours = values.get((headline, set_name, name))
        if arm in against and ours is not None:
            place = paired.setdefault(f"{headline}_minus_{arm}", {}).setdefault(set_name, {})
            place[name] = interval([ours[seed] - theirs[seed] for seed in sorted(theirs)])
    return {**found, "paired": paired}


def table(
    decodings: Mapping[str, Mapping[str, Any]], arms: Mapping[str, str], against: Sequence[str], headline: str = "gad"
) -> str:
    """Markdown: a table for each set and way of decoding, then the headline's arm less each of `against`."""
    parts = []
    for decoding, figures in decodings.items():
        for set_name, says in SETS.items():
            names = [name for name in FIGURES if name in figures[headline][set_name]]
            parts += [f"**{says.capitalize()}, {decoding}**\n", _head(["arm", *(FIGURES[name] for name in names)])]
            for arm, title in arms.items():
                cells = [_cell(figures[arm][set_name][name]) for name in names]
                parts.append(f"| {title} | {' | '.join(cells)} |")
            for arm in against:
                of_arm = figures["paired"][f"{headline}_minus_{arm}"][set_name]
                cells = [_cell(of_arm[name], "+") for name in names]
                parts.append(f"| *{arms[headline]} less {arms[arm]}* | {' | '.join(cells)} |")
            parts.append("")
    return "\n".join(parts)


def _head(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n|{'---|' * len(cells)}"


def _cell(figure: Mapping[str, Any], sign: str = "") -> str:
    mean = f"{figure['mean']:{sign}.2f}"
    return mean if figure["low"] is None else f"{mean} ({figure['low']:{sign}.2f} to {figure['high']:{sign}.2f})"


def parser(module: str, says: str, *, seeds: int, first: int, out: Path) -> argparse.ArgumentParser:
    """What claims over seeds can be asked for."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=says)
    made.add_argument("overrides", nargs="*", metavar="KEY.PATH=VALUE", help="keys of the recipe, for a trial")
    made.add_argument("--seeds", type=int, default=seeds, help=f"seeds of every arm (default {seeds})")
    made.add_argument("--first", type=int, default=first, help=f"the first seed (default {first})")
    made.add_argument("--jobs", type=int, default=2, help="seeds at a time, one thread each (default 2)")
    work = ROOT / "runs" / module.replace(".", "-")
    made.add_argument("--work", type=Path, default=work, help="folder of the runs")
    made.add_argument("--out", type=Path, default=ROOT / out, help=f"results (default {out})")
    made.add_argument("--seed", type=int, help="run this one seed and gather nothing")
    return made


def found_by(module: str, asked: argparse.Namespace, run_seed: Callable[[int, Path, Sequence[str]], None]) -> list[Row]:
    """What the seeds that were asked for found. The process of a single seed runs it, and gathers nothing."""
    if asked.seed is not None:
        run_seed(asked.seed, asked.work.resolve(), asked.overrides)
        return []
    seeds = range(asked.first, asked.first + asked.seeds)
    return run_seeds(module, seeds, asked.work, asked.jobs, asked.overrides)


def run_seeds(module: str, seeds: Sequence[int], work: Path, jobs: int, overrides: Sequence[str]) -> list[Row]:
    """What `module --seed` leaves in `<work>/seed<N>.json`, one process a seed, `jobs` at a time."""
    work = work.resolve()
    work.mkdir(parents=True, exist_ok=True)

    def child(seed: int) -> int:
        command = [sys.executable, "-m", module, f"--seed={seed}", f"--work={work}", *overrides]
        with (work / f"seed{seed}.log").open("a", encoding="utf-8") as log:
            return subprocess.run(command, cwd=ROOT, stdout=log, stderr=log).returncode

    with ThreadPoolExecutor(jobs) as pool:
        failed = [seed for seed, code in zip(seeds, pool.map(child, seeds), strict=True) if code]
    if failed:
        sys.exit(f"seeds {failed} failed; what they say is in {work}/seed<N>.log")
    return [json.loads((work / f"seed{seed}.json").read_text(encoding="utf-8")) for seed in seeds]


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replace what stands between two marks of a page."""
    before, _, rest = page.read_text(encoding="utf-8").partition(marks[0])
    write_text(page, f"{before}{marks[0]}{text}{marks[1]}{rest.partition(marks[1])[2]}")
