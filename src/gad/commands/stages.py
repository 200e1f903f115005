"""The stages as verbs, and `run` for all of them."""

from __future__ import annotations

from gad.commands.common import Overrides, RunFile, settings, train


def run(run_file: RunFile, overrides: Overrides = None) -> None:
    """Every stage in turn. Run it again after any stop and it goes on where it was.

    Examples:

    - `gad run run.yaml`
    - `gad run recipes/quickstart.yaml name=short adversarial.steps=4`
    """
    train(run_file, overrides, lambda pipeline: pipeline.run())


def collect(run_file: RunFile, overrides: Overrides = None) -> None:
    """Teacher texts into the run folder: read, filtered, checked for leaks.

    Examples:

    - `gad collect run.yaml`
    - `gad collect run.yaml data.on_bad_rows=skip`
    """
    with settings(run_file, overrides) as config:
        from gad.folder import opened
        from gad.progress import progress
        from gad.stages.collect import collect as collect_texts

        with opened(config) as folder:
            collect_texts(config, folder, progress())


def seqkd(run_file: RunFile, overrides: Overrides = None) -> None:
    """The control: cross-entropy on the teacher's replies, no rollouts.

    Example: `gad seqkd run.yaml`
    """
    train(run_file, overrides, lambda pipeline: pipeline.seqkd(), needs="seqkd")


def warmup(run_file: RunFile, overrides: Overrides = None) -> None:
    """Stage 1: student and discriminator warm up.

    Example: `gad warmup run.yaml`
    """
    train(run_file, overrides, lambda pipeline: pipeline.warmup(), needs="warmup")


def adversarial(run_file: RunFile, overrides: Overrides = None) -> None:
    """Stage 2: the student against a discriminator that keeps learning.

    Example: `gad adversarial run.yaml compute.tokens_per_micro_batch=2048`
    """
    train(run_file, overrides, lambda pipeline: pipeline.adversarial(), needs="adversarial")


def generate(run_file: RunFile, overrides: Overrides = None) -> None:
    """Replies of every student to every set.

    Example: `gad generate run.yaml`
    """
    train(run_file, overrides, lambda pipeline: pipeline.generate())


def evaluate(run_file: RunFile, overrides: Overrides = None) -> None:
    """Figures of every student: preference, C2ST, style, length and more, into `summary.json`.

    Example: `gad evaluate run.yaml`
    """
    train(run_file, overrides, lambda pipeline: pipeline.evaluate())
