"""What a discriminator that stops at a lower layer loses, and what it saves.

`python -m claims.layers` writes claims/results/layers.json and the table in docs/algorithm.md.

The student of the quickstart warms up for ten steps, and replies to prompts. One discriminator for each layer begins as
that student, as the game's does, and learns from the same replies in the same order at the recipe's rate. Then each
says, of replies that it has not seen to prompts that it has not seen, which of a pair is the teacher's. Times are CPU
seconds of one thread; of several steps the median.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from torch.nn.functional import softplus

from claims import arms
from claims.evidence import ROOT, provenance
from gad.arms import Arms
from gad.build import Workshop
from gad.config.loading import load
from gad.config.run import RunConfig
from gad.config.training import BradleyTerry, Sampling
from gad.examples import Examples
from gad.folder import opened
from gad.judging.statistics import bootstrap_mean, paired_difference
from gad.models.scorer import Scorer
from gad.pipeline import Pipeline
from gad.progress import Lines
from gad.records import Example, RolloutGroup
from gad.seeds import stable_seed
from gad.signals import StopRequest
from gad.storage import write_json
from gad.training.batching import Batcher
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.optimizer import Updater
from gad.training.run import Drawn

RECIPE = Path("recipes/quickstart.yaml")
WRITTEN = Path("claims/results/layers.json")
PAGE = Path("docs/algorithm.md")
MARKS = ("<!-- layers -->\n", "<!-- end of layers -->\n")
RESTS_ON = ("claims/layers.py", str(RECIPE), "recipes/quickstart", "src/gad")

SETS = ("held_out", "out_of_distribution")

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Lessons:
    """Where discriminators begin, what they learn from, and what they are asked."""

    shop: Workshop
    batches: Sequence[Sequence[RolloutGroup]]
    sets: Mapping[str, Sequence[RolloutGroup]]


def measured(config: RunConfig, layers: Sequence[int], steps: int, replies: int) -> list[Row]:
    """A row for each layer, the deepest first."""
    lessons = prepared(config, steps, replies)
    return [row(config, lessons, layer) for layer in sorted(layers, reverse=True)]


def prepared(config: RunConfig, steps: int, replies: int) -> Lessons:
    """A student that has warmed up, and its replies to prompts to learn from and to prompts to be asked about."""
    assert config.warmup is not None
    with opened(config) as folder:
        pipeline = Pipeline(config, Lines(), StopRequest())
        pipeline.collect()
        pipeline.warmup()
        shop = Workshop(config)
        Arms(config, shop).take_warm()
        examples = Examples(folder, shop, Lines())
        size = config.warmup.batch_size
        order = random.Random(stable_seed(config.seed, "layers")).sample(examples.train, size * steps)
        train = sampled(shop, order, "layers", replies)
        sets = {name: sampled(shop, found, name, replies) for name, found in examples.sets(None).items()}
    batches = [train[start : start + size] for start in range(0, len(train), size)]
    return Lessons(shop, batches, sets)


def sampled(shop: Workshop, examples: Sequence[Example], stage: str, replies: int) -> list[RolloutGroup]:
    """The warm student's replies beside the teacher's."""
    shop.engine.load_weights(shop.student, version=0)
    sampler = shop.sampler(stage, Sampling(), replies)
    return sampler.groups([Drawn(example, example.replies[0], 0) for example in examples], 1)[0]


def row(config: RunConfig, lessons: Lessons, layer: int) -> Row:
    """Train one discriminator and let it judge."""
    assert config.warmup is not None
    shop, batches, rate = lessons.shop, lessons.batches, config.discriminator.head_rate
    network = shop.student.network
    name = f"layer {layer}, head's rate {rate:g}"
    member = network.member(name.replace(".", "_"), seed=stable_seed(config.seed, "adapter", "discriminator"))
    scorer = Scorer(member, shop.codec, layer=layer, like_student=True, head_rate=rate)
    scorer.start_from(shop.student)
    batcher = Batcher.of(config.compute, shop.device, network.config, shop.crew, network.unfit)
    updater = Updater(scorer.parameters(), config.warmup.discriminator, len(batches), shop.crew, scorer.rates())
    trainer = DiscriminatorTrainer(scorer, batcher, BradleyTerry(), updater)
    seconds, flops = [], []
    for number, batch in enumerate(batches, 1):
        started = time.process_time()
        figures = trainer.update(batch)[1]
        seconds.append(time.process_time() - started)
        flops.append(figures["flops/discriminator"])
        print(f"{name}: {number}/{len(batches)}, loss {figures['discriminator/loss']:.3f}", flush=True)
    found: Row = {"layer": layer, "cpu_seconds": statistics.median(seconds), "flops": statistics.fmean(flops)}
    for name, groups in lessons.sets.items():
        teacher_P, student_PG = trainer.score(groups)
        margins_PG = teacher_P[:, None] - student_PG
        right_PG = (margins_PG > 0).double() + 0.5 * (margins_PG == 0).double()
        found[name] = {
            "right": right_PG.tolist(),
            "margin": margins_PG.mean().item(),
            "loss": softplus(-margins_PG).mean().item(),
        }
    return found


def summarized(rows: Sequence[Row]) -> dict[str, Any]:
    """Share of pairs told right with its interval over prompts, difference to the deepest layer, cost over its cost."""
    deepest = rows[0]
    found: dict[str, Any] = {}
    for each in rows:
        figures: dict[str, Any] = {
            "cpu_seconds_over_deepest": each["cpu_seconds"] / deepest["cpu_seconds"],
            "flops_over_deepest": each["flops"] / deepest["flops"],
        }
        for name in SETS:
            right, all_layers = each[name]["right"], deepest[name]["right"]
            figures[name] = bootstrap_mean(right, seed=0).as_dict()
            if each is not deepest:
                figures[f"{name}_minus_deepest"] = paired_difference(right, all_layers, seed=0).as_dict()
        found[str(each["layer"])] = figures
    return found


def table(summary: Mapping[str, Any]) -> str:
    """Markdown of `summarized`."""
    lines = [
        "| layer | held out | out of distribution | held out, less the deepest | operations | CPU time of an update |",
        "|---|---|---|---|---|---|",
    ]
    for layer, found in summary.items():
        shares = [share(found[name]) for name in SETS]
        apart = found.get("held_out_minus_deepest")
        costs = [f"{found[name]:.2f}" for name in ("flops_over_deepest", "cpu_seconds_over_deepest")]
        cells = [layer, *shares, "" if apart is None else share(apart, "+.2f"), *costs]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def share(found: Mapping[str, float], form: str = ".2f") -> str:
    """A share with its interval."""
    return f"{found['value']:{form}} ({found['low']:{form}} to {found['high']:{form}})"


def parser(name: str, says: str, *, steps: int, replies: int, out: Path) -> argparse.ArgumentParser:
    """What claims about discriminators can be asked for."""
    made = argparse.ArgumentParser(prog=f"python -m claims.{name}", description=says.partition("\n")[0])
    made.add_argument("--steps", type=int, default=steps, help="updates of each discriminator")
    made.add_argument("--replies", type=int, default=replies, help="to each prompt")
    made.add_argument("--work", type=Path, default=Path(f"runs/claims-{name}"))
    made.add_argument("--out", type=Path, default=ROOT / out)
    made.add_argument("overrides", nargs="*", help="key.path=value")
    return made


def main() -> None:
    """Measure, write the file and the page."""
    made = parser("layers", __doc__ or "", steps=8, replies=1, out=WRITTEN)
    made.add_argument("--layers", type=int, nargs="+", default=[10, 15, 20, 30])
    words = made.parse_args()
    stages = ["seqkd=null", "adversarial=null", "warmup.phases=[{train: student, steps: 10}]"]
    place = [f"runs_dir={words.work}", "name=layers", "compute.threads=1"]
    config = load(ROOT / RECIPE, [*place, *stages, *words.overrides])
    rows = measured(config, words.layers, words.steps, words.replies)
    summary = summarized(rows)
    said = " ".join(["python -m claims.layers", *sys.argv[1:]])
    write_json(words.out, {**provenance(RESTS_ON, said), "summary": summary, "rows": rows})
    if words.out == ROOT / WRITTEN:
        arms.write_between(ROOT / PAGE, MARKS, table(summary))
    print(table(summary))


if __name__ == "__main__":
    main()
