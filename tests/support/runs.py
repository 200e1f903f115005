"""Small whole runs: a tiny model, a few rows, every stage. What they compute is most of what all tests cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gad.config.run import RunConfig
from gad.errors import Interrupted
from gad.folder import opened
from gad.pipeline import Pipeline
from gad.progress import Lines
from gad.signals import StopRequest
from gad.storage import read_jsonl

SUBJECTS = ("tea", "rain", "bread", "snow", "salt", "wool", "glass", "paper", "iron", "sand", "milk", "fire")
REPLY_LIMIT = 24
"""Tokens; each costs a pass through the model wherever something is sampled. The longest of our replies has 21."""
BOTH: list[dict[str, Any]] = [
    {"name": "t1", "sampling": {"temperature": 1.0}},
    {"name": "greedy", "sampling": {"temperature": 0.0}},
]
"""The decodings that a run has if its file names none; `ONE` for a run that is not about them costs half."""
ONE = BOTH[:1]


def write_rows(path: Path, count: int, *, first: int = 0) -> Path:
    """Rows with different prompts and replies of one style."""
    rows = [
        {
            "id": f"{path.stem}-{index}",
            "prompt": f"{index}: what is {SUBJECTS[index % len(SUBJECTS)]} good for?",
            "completion": f"Try {SUBJECTS[(index * 5) % len(SUBJECTS)]}.\nTip: {index}.",
        }
        for index in range(first, first + count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def run_config(folder: Path, model: Path | str, **changes: Any) -> RunConfig:
    """A run of a few steps; `changes` replace whole sections."""
    optimizer = {"learning_rate": 1e-3, "max_grad_norm": 1.0}
    values: dict[str, Any] = {
        "name": "tiny",
        "runs_dir": folder / "runs",
        "data": {
            "train": str(write_rows(folder / "train.jsonl", 12)),
            "held_out": str(write_rows(folder / "held.jsonl", 5, first=100)),
            "out_of_distribution": str(write_rows(folder / "ood.jsonl", 4, first=200)),
            "leak_check": None,
        },
        "prompt": {"max_prompt_tokens": 128, "max_reply_tokens": REPLY_LIMIT},
        "student": {"model": str(model), "dtype": "float32", "tuning": {"kind": "lora", "rank": 4}},
        "discriminator": {"kind": "shared", "layer": 2},
        "seqkd": {"epochs": 1, "batch_size": 4, "optimizer": optimizer},
        "warmup": {
            "phases": [{"train": "discriminator", "steps": 1}, {"train": "both", "steps": 2}],
            "batch_size": 4,
            "replies_per_prompt": 2,
            "student": optimizer,
            "discriminator": optimizer,
        },
        "adversarial": {
            "epochs": None,
            "steps": 3,
            "batch_size": 3,
            "replies_per_prompt": 3,
            "sampling": {"temperature": 1.0},
            "student": optimizer,
            "discriminator": optimizer,
        },
        "evaluation": {
            "decodings": ONE,
            "style": "Tip: ",
            "independent": {"epochs": 0.4, "batch_size": 4, "optimizer": optimizer},
        },
        "compute": {"device": "cpu", "threads": 1},
        "checkpoints": {"every_steps": 1},
    }
    return RunConfig.model_validate({**values, **changes})


class StopAfter(StopRequest):
    """Asks for a stop when it has been looked at so many times."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        super().__init__()

    @property  # type: ignore[override]
    def signal_number(self) -> int | None:
        self._looks -= 1
        return 15 if self._looks < 0 else None

    @signal_number.setter
    def signal_number(self, value: int | None) -> None:
        pass


def stopped_all_along(train: Callable[[StopRequest], object]) -> int:
    """Train to the end, stopping as soon as may be each time; how many stops it took."""
    stops = 0
    while True:
        try:
            train(StopAfter(looks=1))
        except Interrupted:
            stops += 1
        else:
            return stops


def run(config: RunConfig, stop: StopRequest | None = None) -> Path:
    """Every stage; returns the run folder."""
    with opened(config) as folder:
        Pipeline(config, Lines(), stop or StopRequest()).run()
    return folder


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The training log without times, and with steps of each stage in their order."""
    rows = [without_times(row) for row in read_jsonl(folder / "metrics.jsonl")]
    return sorted(rows, key=lambda row: (row["stage"], row["step"]))


def without_times(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without what depends on the clock."""
    return {name: value for name, value in row.items() if name != "time" and not name.startswith("time/")}


def figures(folder: Path) -> list[dict[str, Any]]:
    """All figures of `summary.json`."""
    rows: list[dict[str, Any]] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["figures"]
    return rows
