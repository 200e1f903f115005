"""A step of GAD against its peers, taking turns on one thread of one machine, and what our step is made of.

    python -m bench.step [--rounds N] [--parts race sampling few_rows portions real memory common ...]

Writes bench/results/step.json; parts that are not asked for stay as they are in it. Run it by `make bench`, which
installs the peers into `.venv-bench`. Figures are medians over rounds of CPU seconds a step; the first step of each
contestant is not counted. Before the race contestants make a step with each of several sizes of micro-batches, and race
with the fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from bench import workload as files

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "step.json"
CONTESTANTS = ("ours", "ours_grpo", "trl_grpo", "trl_naive", "trl_fused")
PARTS = ("race", "sampling", "few_rows", "portions", "real", "memory", "common", "curves", "machinery")
TUNED: dict[str, tuple[dict[str, str], ...]] = {
    "ours": tuple({"BENCH_TOKENS": str(tokens)} for tokens in (512, 1024, 4096)),
    "trl": tuple({"BENCH_POLICY_ROWS": rows, "BENCH_DISCRIMINATOR_ROWS": rows} for rows in ("8", "16", "32")),
}
"""Sizes of micro-batches: tokens of ours, rows of the peers'. 32 rows are a whole step."""
LIKE = {"ours_grpo": "ours", "trl_fused": "trl_naive"}
"""Contestants that race with the settings of another one: the same passes of the policy."""
PACKAGES = ("torch", "transformers", "trl", "accelerate")


class Contestant:
    """A worker process that makes steps when asked."""

    def __init__(self, name: str, folder: Path, **environment: str) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "bench.worker", name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment},
        )
        self._answer()

    def step(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} ended without an answer; run: python -m bench.worker {self.name} FOLDER")
        answer: dict[str, Any] = json.loads(line)
        return answer


def tune(name: str, folder: Path, steps: int = 1) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The settings of the fastest step, and what was tried."""
    tried = []
    for settings in TUNED[name.partition("_")[0]]:
        contestant = Contestant(name, folder, **settings)
        contestant.step()
        rows = [contestant.step() for _ in range(steps)]
        contestant.stop()
        fastest = min(row["cpu_seconds"] for row in rows)
        tried.append({"settings": settings, "cpu_seconds": fastest, "peak_mb": rows[-1]["peak_mb"]})
    best = min(tried, key=lambda row: row["cpu_seconds"])
    return best["settings"], tried


def race(folder: Path, rounds: int) -> dict[str, Any]:
    """Figures of all contestants, who take turns round by round."""
    tuned = {name: tune(name, folder) for name in CONTESTANTS if name not in LIKE}
    tuning = {name: tuned[LIKE.get(name, name)] for name in CONTESTANTS}
    for name, (settings, _) in tuning.items():
        print(f"  {folder.name}, {name}: {settings}", flush=True)
    contestants = [Contestant(name, folder, **tuning[name][0]) for name in CONTESTANTS]
    found = []
    for turn in range(-1, rounds):
        for contestant in contestants:
            row = contestant.step()
            if turn >= 0:
                found.append({"round": turn, "contestant": contestant.name, **row})
    for contestant in contestants:
        contestant.stop()
    result = figures(found)
    result["tuning"] = {name: {"taken": settings, "tried": tried} for name, (settings, tried) in tuning.items()}
    return result


def figures(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Ratios of medians, and each contestant's median, spread and peak."""
    seconds = {name: [row["cpu_seconds"] for row in rows if row["contestant"] == name] for name in CONTESTANTS}
    middle = {name: median(values) for name, values in seconds.items()}
    return {
        "gad_on_trl_naive_over_ours": middle["trl_naive"] / middle["ours"],
        "gad_on_trl_fused_over_ours": middle["trl_fused"] / middle["ours"],
        "ours_over_trl_grpo_frozen": middle["ours"] / middle["trl_grpo"],
        "ours_over_our_grpo_frozen": middle["ours"] / middle["ours_grpo"],
        "contestants": {
            name: {
                "cpu_seconds": middle[name],
                "lowest": min(values),
                "highest": max(values),
                "peak_mb": max(row["peak_mb"] for row in rows if row["contestant"] == name),
            }
            for name, values in seconds.items()
        },
        "rows": rows,
    }


def machine() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} processors, {platform.platform()}"


def commit() -> str:
    done = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip()


def measured(part: str, folder: Path, rounds: int) -> dict[str, Any]:
    """What one part of the bench adds to the results."""
    from bench import checks, curves, few_rows, machinery, portions, real

    match part:
        case "race":
            found: dict[str, Any] = {name: race(folder / name, rounds) for name in files.WORKLOADS}
            return {**found, "equality": checks.equal_losses(folder / "short"), "products": checks.products()}
        case "sampling":
            each = {name: checks.sampling(folder / name, rounds) for name in files.WORKLOADS}
            worst = min(part["transformers_over_ours"] for part in each.values())
            return {"transformers_generate_over_our_sampling": worst, "sampling": each}
        case "few_rows":
            return few_rows.measure()
        case "portions":
            return portions.measure()
        case "real":
            return real.shares()
        case "memory":
            return real.memories()
        case "common":
            return real.commons()
        case "curves":
            return {"curves": curves.measure(folder / "short", folder / "runs")}
        case _:
            shares = {name: machinery.share(folder / name, rounds) for name in files.WORKLOADS}
            return {"machinery_share": max(shares.values()), "machinery": shares}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    arguments = parser.parse_args()
    versions = {name: metadata.version(name) for name in PACKAGES}
    print("  ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name, workload in files.WORKLOADS.items():
            files.write(folder / name, workload)
        for part in arguments.parts:
            now = {"commit": commit(), "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
            found = measured(part, folder, arguments.rounds)
            add(
                part,
                {"command": "make bench", "versions": versions, **now, **found},
                {**now, "rounds": arguments.rounds},
            )
            print(part, json.dumps(_short(found)), flush=True)
    print(f"wrote {RESULTS.relative_to(ROOT)}", flush=True)


def add(part: str, found: dict[str, Any], origin: dict[str, Any]) -> None:
    """Into the results file, which another part may have been added to in the meantime."""
    result: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    if "parts" not in result:  # written before parts had their own origin: another bench
        result = {"parts": {}}
    result.update(found)
    result["parts"][part] = origin
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """The figures without the rows that they are made of."""
    kept = {name: _short(value) if isinstance(value, dict) else value for name, value in found.items()}
    return {name: value for name, value in kept.items() if isinstance(value, int | float) or value is None}


if __name__ == "__main__":
    main()
