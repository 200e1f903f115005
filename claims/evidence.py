"""What every file of results says beside its figures: intervals over seeds, and where the figures come from."""

from __future__ import annotations

import math
import platform
import statistics
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from gad.judging.statistics import t_quantile

ROOT = Path(__file__).resolve().parents[1]


def interval(
    values: Sequence[float], *, least: float = -math.inf, most: float = math.inf
) -> dict[str, float | int | None]:
    """mean, low, high (95%, Student's t) and the number of seeds; of a single seed the interval is not known.

    The interval of something that cannot be below `least` or above `most` ends there.
    """
    n, mean = len(values), statistics.fmean(values)
    if n == 1:
        return {"mean": mean, "low": None, "high": None, "seeds": n}
    half = t_quantile(0.975, n - 1) * statistics.stdev(values) / math.sqrt(n)
    return {"mean": mean, "low": max(mean - half, least), "high": min(mean + half, most), "seeds": n}


def provenance(rests_on: Sequence[str], command: str) -> dict[str, Any]:
    """Where figures come from. `changed`: files they rest on that differ from the commit."""
    names = [line.partition("model name")[2].strip(" \t:\n") for line in _read("/proc/cpuinfo") if "model name" in line]
    return {
        "commit": _git("rev-parse", "HEAD") or None,
        "changed": [line[3:] for line in _git("status", "--porcelain", "--", *rests_on).splitlines()],
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cpu": names[0] if names else platform.processor(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        "command": command,
    }


def _git(*arguments: str) -> str:
    """Output of git, or "" where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.rstrip()


def _read(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []
