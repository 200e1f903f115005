"""Our step as a run makes it: the adversarial stage itself, with its log; only checkpoints are out of the way.

`ours` is GAD; `ours_grpo` is the same with a discriminator that stays as it is: GRPO with a frozen reward model.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import workload as files
from bench.worker import Turns

from gad.build import Workshop
from gad.config.run import RunConfig
from gad.folder import opened
from gad.progress import Lines
from gad.records import Example, Prompt, TeacherReply
from gad.signals import StopRequest
from gad.stages import adversarial
from gad.stages.sampling import Fresh
from gad.training.run import Place, StageRun

ENDLESS = 1_000_000
BUDGET = int(os.environ.get("BENCH_TOKENS", "4096"))
"""Tokens of a micro-batch; the default is gad's own."""


def run_config(folder: Path, runs: Path, *, budget: int = BUDGET, reply_limit: int | None = None) -> RunConfig:
    """Full tuning in float32, as the peers do; no KL term, as TRL's default has none."""
    workload, _ = files.read(folder)
    optimizer = {
        "learning_rate": files.LEARNING_RATE,
        "max_grad_norm": files.MAX_GRAD_NORM,
        "betas": files.BETAS,
        "weight_decay": files.WEIGHT_DECAY,
    }
    model = {"model": str(folder / "model"), "tuning": {"kind": "full"}, "dtype": "float32"}
    return RunConfig.model_validate(
        {
            "name": "bench",
            "runs_dir": runs,
            "data": {"train": str(folder / "train.jsonl")},
            "prompt": {"max_prompt_tokens": 4096, "max_reply_tokens": reply_limit or workload.reply_limit},
            "student": model,
            "discriminator": {"kind": "own", **model},
            "adversarial": {
                "epochs": None,
                "steps": ENDLESS,
                "batch_size": workload.prompts,
                "replies_per_prompt": workload.replies,
                "sampling": {"temperature": 1.0},
                "student": optimizer,
                "discriminator": optimizer,
                "kl": {"weight": 0.0},
                "advantages": {"kind": "std_scaled"},
            },
            "compute": {"device": "cpu", "threads": 1, "tokens_per_micro_batch": budget},
            "checkpoints": {"every_steps": ENDLESS},
        }
    )


class TurnByTurn(StageRun):
    """A stage that waits for the word before each step and reports after it has logged."""

    turns: Turns

    def batches(self) -> Iterator[Any]:
        for step, batch in super().batches():
            self.turns.begin()
            yield step, batch

    def log(self, step: int, *metrics: Mapping[str, float]) -> None:
        super().log(step, *metrics)
        merged = {name: value for part in metrics for name, value in part.items()}
        self.turns.end(tokens=merged["tokens/sampled"], **{n: v for n, v in merged.items() if n.startswith("time/")})


def examples(folder: Path) -> list[Example]:
    _, rows = files.read(folder)
    return [Example(Prompt.from_text(row["id"], row["prompt"]), (TeacherReply(row["completion"]),)) for row in rows]


def game(shop: Workshop, config: RunConfig, *, frozen: bool) -> adversarial.Game:
    settings = config.adversarial
    assert settings is not None
    student = shop.student_trainer(settings.student, ENDLESS)
    discriminator = shop.discriminator_trainer(None if frozen else settings.discriminator, ENDLESS)
    sampler = shop.sampler("adversarial", settings.sampling, settings.replies_per_prompt)
    return adversarial.Game(
        student, discriminator, Fresh(sampler, student.member), settings.advantages, shop.objective()
    )


def play(name: str, folder: Path, turns: Turns) -> None:
    with tempfile.TemporaryDirectory() as runs:
        config = run_config(folder, Path(runs))
        shop = Workshop(config)
        rules = game(shop, config, frozen=name == "ours_grpo")
        with opened(config) as place:
            stage = TurnByTurn(
                "adversarial",
                Place(place, 0, config.checkpoints, Lines(), StopRequest()),
                examples(folder),
                batch_size=files.read(folder)[0].prompts,
                total_steps=ENDLESS,
                parts={"student": rules.student, "discriminator": rules.discriminator},
                max_bad_steps=5,
            )
            stage.turns = turns
            adversarial.train(stage, rules)
