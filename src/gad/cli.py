"""The command `gad`: one verb per stage, and `run` for all of them.

Exit codes: 0 done, 1 a failure at run time, 2 the input is at fault, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from gad.config.run import RunConfig
    from gad.pipeline import Pipeline

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="Distil a teacher that only gives text into a student you own (arXiv 2511.10643).\n\n"
    "`gad init run.yaml` writes a run file, `gad run run.yaml` does the rest.",
)

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.PATH=VALUE]...", help="Keys to override, e.g. adversarial.steps=10.", show_default=False
    ),
]


def main() -> None:
    """Entry point."""
    # Threads that wait asleep: on a busy machine threads that spin make every step many times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    app()


@contextmanager
def errors_as_messages() -> Iterator[None]:
    """Turn errors into one message and an exit code; a user's mistake never ends in a traceback."""
    from gad.errors import GadError, Interrupted

    try:
        yield
    except KeyboardInterrupt:
        _leave("stopped; what was saved is safe, run the same command again to go on", 130)
    except Interrupted as stop:
        _leave("stopped on request, everything is saved; run the same command again to go on", stop.exit_code)
    except GadError as error:
        _leave(f"error: {error}", error.exit_code)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        _leave(
            f"error: {error.filename or 'the run folder'}: {error.strerror}; what was saved before is safe, "
            "run the same command again once that is mended",
            1,
        )


def _leave(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    sys.exit(code)


def _config(run_file: Path, overrides: list[str] | None) -> RunConfig:
    from gad.config.loading import load

    return load(run_file, overrides or ())


def _stages(run_file: Path, overrides: list[str] | None, stages: Callable[[Pipeline], None]) -> None:
    """Open the run and do some of its stages."""
    with errors_as_messages():
        config = _config(run_file, overrides)
        _need_training_packages()
        from gad.folder import opened
        from gad.pipeline import Pipeline
        from gad.progress import progress
        from gad.signals import StopRequest

        stop = StopRequest()
        with opened(config), stop.listening():
            stages(Pipeline(config, progress(), stop))


def _need_training_packages() -> None:
    from importlib.util import find_spec

    from gad.errors import MissingExtra

    if any(find_spec(name) is None for name in ("torch", "transformers", "peft", "safetensors")):
        raise MissingExtra("training and sampling", "train")


@app.command()
def run(run_file: RunFile, overrides: Overrides = None) -> None:
    """Every stage in turn. Run it again after any stop and it goes on where it was.

    Example: `gad run recipes/quickstart.yaml adversarial.steps=4`
    """
    _stages(run_file, overrides, lambda pipeline: pipeline.run())


@app.command()
def seqkd(run_file: RunFile, overrides: Overrides = None) -> None:
    """The control: cross-entropy on the teacher's replies, no rollouts.

    Example: `gad seqkd run.yaml`
    """
    _stages(run_file, overrides, lambda pipeline: pipeline.seqkd())


@app.command()
def warmup(run_file: RunFile, overrides: Overrides = None) -> None:
    """Stage 1: student and discriminator warm up.

    Example: `gad warmup run.yaml`
    """
    _stages(run_file, overrides, lambda pipeline: pipeline.warmup())


@app.command()
def adversarial(run_file: RunFile, overrides: Overrides = None) -> None:
    """Stage 2: the student against a discriminator that keeps learning.

    Example: `gad adversarial run.yaml`
    """
    _stages(run_file, overrides, lambda pipeline: pipeline.adversarial())


@app.command()
def generate(run_file: RunFile, overrides: Overrides = None) -> None:
    """Replies of every student to every set.

    Example: `gad generate run.yaml`
    """
    _stages(run_file, overrides, lambda pipeline: pipeline.generate())


@app.command()
def evaluate(run_file: RunFile, overrides: Overrides = None) -> None:
    """Figures of every student: preference, C2ST, style, length and more, into `summary.json`.

    Example: `gad evaluate run.yaml`
    """
    _stages(run_file, overrides, lambda pipeline: pipeline.evaluate())
