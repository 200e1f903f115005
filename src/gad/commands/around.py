"""The verbs around a run: what comes before it, and what is made of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gad.commands.common import Overrides, RunFile, settings, train
from gad.exits import errors_as_messages

if TYPE_CHECKING:
    from gad.pipeline import Pipeline


def init(
    file: Annotated[Path, typer.Argument(metavar="[FILE]", help="Where to write it.")] = Path("run.yaml"),
    preset: Annotated[str, typer.Option(metavar="NAME", help="The recipe to begin with.")] = "start",
    list_presets: Annotated[bool, typer.Option("--list", help="Name the recipes and leave.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.")] = False,
) -> None:
    """Write a commented run file.

    Examples:

    - `gad init`
    - `gad init big.yaml --preset single-gpu-lora`
    - `gad init --list`
    """
    with errors_as_messages():
        from gad import presets

        if list_presets:
            for name, summary in presets.summaries().items():
                typer.echo(f"{name:<20} {summary}")
            return
        written, *texts = presets.write(file, preset, force=force)
        beside = f" and {len(texts)} files in {texts[0].parent}" if texts else ""
        typer.echo(f"wrote {written}{beside}; next: gad plan {written}")


def plan(run_file: RunFile, overrides: Overrides = None) -> None:
    """Check a run file and its data, and print every number that follows. Computes nothing, touches no network.

    Examples:

    - `gad plan run.yaml`
    - `gad plan run.yaml adversarial.batch_size=64`
    """
    with settings(run_file, overrides) as config:
        from gad.plan import derive, show

        show(config, derive(config))


def fork(
    source: Annotated[Path, typer.Argument(metavar="FOLDER", help="The run folder to take over from.")],
    run_file: RunFile,
    overrides: Overrides = None,
) -> None:
    """Begin a new run with what another one has done with the same settings: try another rate, keep the warm-up.

    Finished stages and replies are copied where everything that they follow from is the same; `gad run` does the rest.

    Example: `gad fork runs/quickstart recipes/quickstart.yaml name=gentle adversarial.student.learning_rate=1e-4`
    """
    with settings(run_file, overrides) as config:
        from gad.fork import fork as take_over

        taken = take_over(source, config)
        typer.echo(f"differs: {', '.join(taken.changes) or 'nothing'}")
        typer.echo(f"taken over: the data, {', '.join(taken.stages) or 'no stage'}")
        typer.echo(f"{config.folder} is made; next: gad run {' '.join([str(run_file), *(overrides or ())])}")


def report(run_file: RunFile, overrides: Overrides = None) -> None:
    """One HTML file about the run, from whatever is there so far; also while it runs.

    Example: `gad report run.yaml`
    """
    with settings(run_file, overrides) as config:
        from gad.errors import RunFolderError
        from gad.report import write_report

        if not config.folder.is_dir():
            raise RunFolderError(f"{config.folder}: no such run folder; `gad run {run_file}` makes it")
        typer.echo(write_report(config.folder))


def export(
    run_file: RunFile,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that does not exist yet.")],
    overrides: Overrides = None,
    push: Annotated[str | None, typer.Option(metavar="REPO", help="Upload it to the Hugging Face hub as well.")] = None,
) -> None:
    """The chosen student as an ordinary Hugging Face folder, with a model card.

    `--push` takes the token from the environment variable HF_TOKEN.

    Examples:

    - `gad export run.yaml my-student`
    - `gad export run.yaml my-student --push me/my-student`
    """
    with errors_as_messages():
        from gad.publish import may_export, may_upload

        may_export(directory)
        if push is not None:
            may_upload(push)

    def work(pipeline: Pipeline) -> None:
        typer.echo(pipeline.export(directory))
        if push is not None:
            from gad.publish import upload

            typer.echo(upload(directory, push))

    train(run_file, overrides, work)


def arena(
    run_file: RunFile,
    overrides: Overrides = None,
    port: Annotated[
        int | None, typer.Option(help="Port on 127.0.0.1, in place of arena.port; 0 takes a free one.")
    ] = None,
    export_to: Annotated[Path | None, typer.Option("--export", help="Write one HTML file for a rater.")] = None,
    take_in: Annotated[Path | None, typer.Option("--import", help="Take in a rater's votes.")] = None,
) -> None:
    """Compare replies blind, on a page at 127.0.0.1.

    Examples:

    - `gad arena run.yaml`
    - `gad arena run.yaml --export sheet.html`
    - `gad arena run.yaml --import votes.json`
    """
    with settings(run_file, overrides) as config:
        from gad import arena as pages

        if export_to is not None:
            typer.echo(pages.export(config.folder, export_to, config=config.arena))
        elif take_in is not None:
            done = pages.import_votes(config.folder, take_in)
            typer.echo(f"{done.added} votes of {done.rater} taken in, {done.already} were there already")
        else:
            pages.serve(config.folder, port=port, config=config.arena)


def doctor() -> None:
    """What is installed, what is missing and how to get it. Touches no network.

    Example: `gad doctor`
    """
    with errors_as_messages():
        from gad.doctor import show

        show()
