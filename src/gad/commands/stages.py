"""The stages as verbs, and `run` for all of them."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated

import typer

from gad.commands.common import Nproc, Overrides, RunFile, settings, train


def run(
    run_file: RunFile,
    overrides: Overrides = None,
    profile: Annotated[
        bool, typer.Option("--profile", help="Record a step of each stage into the run folder, for ui.perfetto.dev.")
    ] = False,
    nproc: Nproc = None,
) -> None:
    """Every stage in turn. Run it again after any stop and it goes on where it was.

    Examples:

    - `gad run run.yaml`
    - `gad run recipes/quickstart.yaml name=short adversarial.steps=4`
    - `gad run run.yaml --nproc 2`
    """
    train(run_file, overrides, lambda pipeline: pipeline.run(), nproc=nproc, profile=profile)


def collect(
    run_file: RunFile,
    overrides: Overrides = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again for replies that were given up.")
    ] = False,
    shard: Annotated[str | None, typer.Option(metavar="I/N", help="Buy only part I of N, e.g. 2/8.")] = None,
    batch: Annotated[
        bool, typer.Option("--batch", help="Buy through the Batch API: half the price, in a day.")
    ] = False,
) -> None:
    """Teacher texts into the run folder: read or bought, filtered, checked for leaks.

    With a section `teacher` in the run file they are bought from an API, each reply once. Run it again after any stop.

    Examples:

    - `gad collect run.yaml`
    - `gad collect run.yaml data.on_bad_rows=skip`
    - `gad collect run.yaml teacher.max_cost_usd=50 teacher.limits.concurrency=256`
    - `gad collect run.yaml --retry-failed`
    """
    with settings(run_file, overrides) as config:
        from gad.collection import Purchase
        from gad.collection import collect as collect_texts
        from gad.folder import opened
        from gad.progress import progress
        from gad.signals import StopRequest
        from gad.stages.judged_sets import record
        from gad.teacher.shards import Shard

        how = Purchase(retry_failed, None if shard is None else Shard.parse(shard), batch)
        shown = progress()
        stop = StopRequest(shown.say)
        listening = nullcontext() if config.teacher is None else stop.listening()
        with listening, opened(config, alone=how.shard is None) as folder:
            collect_texts(config, folder, shown, stop, how)
            if how.shard is None:
                record(config, folder, shown)


def seqkd(run_file: RunFile, overrides: Overrides = None, nproc: Nproc = None) -> None:
    """The control: cross-entropy on the teacher's replies, no rollouts.

    Example: `gad seqkd run.yaml`
    """
    train(run_file, overrides, lambda pipeline: pipeline.seqkd(), needs="seqkd", nproc=nproc)


def warmup(run_file: RunFile, overrides: Overrides = None, nproc: Nproc = None) -> None:
    """Stage 1: student and discriminator warm up.

    Example: `gad warmup run.yaml`
    """
    train(run_file, overrides, lambda pipeline: pipeline.warmup(), needs="warmup", nproc=nproc)


def adversarial(run_file: RunFile, overrides: Overrides = None, nproc: Nproc = None) -> None:
    """Stage 2: the student against a discriminator that keeps learning.

    Example: `gad adversarial run.yaml compute.tokens_per_micro_batch=2048`
    """
    train(run_file, overrides, lambda pipeline: pipeline.adversarial(), needs="adversarial", nproc=nproc)


def generate(run_file: RunFile, overrides: Overrides = None, nproc: Nproc = None) -> None:
    """Replies of every student to every set.

    Example: `gad generate run.yaml`
    """
    train(run_file, overrides, lambda pipeline: pipeline.generate(), nproc=nproc)


def evaluate(run_file: RunFile, overrides: Overrides = None, nproc: Nproc = None) -> None:
    """Figures of every student: preference, C2ST, style, length and more, into `summary.json`.

    Example: `gad evaluate run.yaml`
    """
    train(run_file, overrides, lambda pipeline: pipeline.evaluate(), nproc=nproc)


def judge(run_file: RunFile, overrides: Overrides = None) -> None:
    """Judges compare the replies on disk, in pairs; needs the section `judging:`. Answers are bought once.

    What it costs is said first, and by `gad plan`.

    Examples:

    - `gad judge run.yaml`
    - `gad judge run.yaml judging.max_prompts=100`
    """
    with settings(run_file, overrides) as config:
        from gad.folder import opened
        from gad.judgement import judge as judge_replies
        from gad.progress import progress
        from gad.signals import StopRequest

        shown = progress()
        stop = StopRequest(shown.say)
        with opened(config) as folder, stop.listening():
            judge_replies(config, folder, shown, stop)
