"""A step of GAD against its peers, taking turns on one thread of one machine.

    python -m bench.step [--rounds N]

Writes bench/results/step.json. Run it by `make bench`, which installs the peers into `.venv-bench`. Figures are medians
over rounds of CPU seconds a step; the first step of each contestant is not counted.
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


def race(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """Rows of all contestants, round by round."""
    contestants = [Contestant(name, folder) for name in CONTESTANTS]
    found = []
    for turn in range(-1, rounds):
        for contestant in contestants:
            row = contestant.step()
            if turn >= 0:
                found.append({"round": turn, "contestant": contestant.name, **row})
    for contestant in contestants:
        contestant.stop()
    return found


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    versions = {name: metadata.version(name) for name in PACKAGES}
    print("  ".join(f"{name} {version}" for name, version in versions.items()), flush=True)
    result: dict[str, Any] = {
        "commit": commit(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "command": "make bench",
        "versions": versions,
        "rounds": rounds,
    }
    from bench.checks import equal_losses, products, sampling

    with tempfile.TemporaryDirectory() as folder:
        for name, workload in files.WORKLOADS.items():
            files.write(Path(folder) / name, workload)
        for name in files.WORKLOADS:
            result[name] = figures(race(Path(folder) / name, rounds))
            shown = {key: round(value, 3) for key, value in result[name].items() if isinstance(value, float)}
            print(name, json.dumps(shown), flush=True)
        result["equality"] = equal_losses(Path(folder) / "short")
        result["products"] = products()
        result.update(sampling(Path(folder) / "long", rounds))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"wrote {RESULTS.relative_to(ROOT)}", flush=True)


if __name__ == "__main__":
    main()
