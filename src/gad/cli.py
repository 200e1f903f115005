"""The command `gad`: one verb per stage, and `run` for all of them. How it ends: `gad.exits`."""

from __future__ import annotations

import inspect
import os
import re
from typing import Annotated

import typer

from gad.commands import around, stages

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich's Markdown costs twice the rest of --help
    help="Distil a teacher that only gives text into a student you own (arXiv 2511.10643).\n\n"
    "`gad init` writes a run file, `gad plan` checks it, `gad run` does it.\n\n"
    "Exit codes: 0 done, 1 failed at run time, 2 the input is at fault, 130 stopped by Ctrl-C, 143 by SIGTERM.",
)

VERBS = (
    around.init,
    around.plan,
    stages.run,
    stages.collect,
    stages.seqkd,
    stages.warmup,
    stages.adversarial,
    stages.generate,
    stages.evaluate,
    stages.judge,
    around.fork,
    around.report,
    around.export,
    around.arena,
    around.doctor,
)
"""In the order of the help."""


def in_plain_text(documentation: str) -> str:
    """A verb's help for the terminal: the formatter would run the examples of a list together."""
    paragraphs = inspect.cleandoc(documentation).split("\n\n")
    listed = [re.sub(r"(?m)^- `(.*)`$", r"  \1", text) for text in paragraphs]
    return "\n\n".join(new if new == old else f"\b\n{new}" for old, new in zip(paragraphs, listed, strict=True))


for verb in VERBS:
    text = in_plain_text(verb.__doc__ or "")
    app.command(help=text, short_help=" ".join(text.split("\n\n")[0].split()))(verb)


def main() -> None:
    """Entry point."""
    let_threads_sleep()
    app()


def let_threads_sleep() -> None:
    """Threads soon wait asleep; before torch is imported.

    On a busy machine threads that spin make every step many times slower, and on an idle one waking them for each of
    many small kernels cost 15% of the quickstart's imitation steps.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")


@app.callback(invoke_without_command=True)
def about(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        from gad import __version__

        typer.echo(f"gad {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(2)
