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


@app.callback(invoke_without_command=True)
def about(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        from gad import __version__

        typer.echo(f"gad {__version__}")
        raise typer.Exit


@app.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = Path("run.yaml"),
    preset: Annotated[str, typer.Option(help="The recipe to begin with; `--list` names them.")] = "start",
    list_presets: Annotated[bool, typer.Option("--list", help="Name the recipes and leave.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented run file.

    Examples: `gad init`, `gad init big.yaml --preset single-gpu-lora`, `gad init --list`
    """
    with errors_as_messages():
        from gad import presets

        if list_presets:
            for name in presets.names():
                typer.echo(name)
            return
        presets.write(file, preset, force=force)
        typer.echo(f"wrote {file}; next: gad plan {file}")


@app.command()
def plan(run_file: RunFile, overrides: Overrides = None) -> None:
    """Check a run file and its data and print every number that follows. Computes nothing, touches no network.

    Example: `gad plan run.yaml adversarial.batch_size=64`
    """
    with errors_as_messages():
        config = _config(run_file, overrides)
        from rich.console import Console
        from rich.table import Table

        from gad.plan import derive

        table = Table(title=f"{config.name}: {config.folder}", title_justify="left", show_header=False, box=None)
        for section, lines in derive(config):
            table.add_row(f"[bold]{section}[/bold]")
            for what, value in lines:
                table.add_row(f"  {what}", value)
        Console().print(table)


@app.command()
def run(run_file: RunFile, overrides: Overrides = None) -> None:
    """Every stage in turn. Run it again after any stop and it goes on where it was.

    Example: `gad run recipes/quickstart.yaml adversarial.steps=4`
    """
    _stages(run_file, overrides, lambda pipeline: pipeline.run())


@app.command()
def collect(run_file: RunFile, overrides: Overrides = None) -> None:
    """Recorded teacher texts into the run folder: read, filtered, checked for leaks.

    Example: `gad collect run.yaml data.on_bad_rows=skip`
    """
    with errors_as_messages():
        config = _config(run_file, overrides)
        from gad.folder import opened
        from gad.progress import progress
        from gad.stages.collect import collect as collect_texts

        with opened(config) as folder:
            collect_texts(config, folder, progress())


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


@app.command()
def report(run_file: RunFile, overrides: Overrides = None) -> None:
    """One HTML file about the run, from whatever is there so far.

    Example: `gad report run.yaml`
    """
    with errors_as_messages():
        config = _config(run_file, overrides)
        from gad.errors import RunFolderError
        from gad.report import write_report

        if not config.folder.is_dir():
            raise RunFolderError(f"{config.folder}: no such run folder; `gad run {run_file}` makes it")
        typer.echo(write_report(config.folder))


@app.command()
def export(
    run_file: RunFile,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet.")],
    overrides: Overrides = None,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Upload it to the Hugging Face hub as well.")] = None,
) -> None:
    """The chosen student as an ordinary Hugging Face folder, with a model card.

    Examples: `gad export run.yaml my-student`, `gad export run.yaml my-student --push me/my-student`
    """

    def write(pipeline: Pipeline) -> None:
        from gad.errors import ConfigError

        if directory.exists():
            raise ConfigError(f"{directory} exists: give a folder that does not, or remove it")
        typer.echo(pipeline.export(directory))
        if push is not None:
            from gad.publish import upload

            typer.echo(upload(directory, push))

    _stages(run_file, overrides, write)


@app.command()
def arena(
    run_file: RunFile,
    overrides: Overrides = None,
    port: Annotated[int | None, typer.Option(help="Port on 127.0.0.1; free choice without.")] = None,
    export_to: Annotated[Path | None, typer.Option("--export", help="Write one HTML file for a rater.")] = None,
    take_in: Annotated[Path | None, typer.Option("--import", help="Take in a rater's votes.")] = None,
) -> None:
    """Compare replies blind, on a page at 127.0.0.1.

    Examples: `gad arena run.yaml`, `gad arena run.yaml --export sheet.html`, `gad arena run.yaml --import votes.json`
    """
    with errors_as_messages():
        config = _config(run_file, overrides)
        from gad import arena as pages

        if export_to is not None:
            typer.echo(pages.export(config.folder, export_to))
        elif take_in is not None:
            done = pages.import_votes(config.folder, take_in)
            typer.echo(f"{done.added} votes of {done.rater} taken in, {done.already} were there already")
        else:
            pages.serve(config.folder, port=port)


@app.command()
def doctor() -> None:
    """What is installed, what is missing and how to get it.

    Example: `gad doctor`
    """
    from gad.doctor import findings

    for line in findings():
        typer.echo(line)
