"""What the verbs share: their arguments, and how a run is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gad.exits import errors_as_messages

if TYPE_CHECKING:
    from gad.config.run import RunConfig
    from gad.pipeline import Pipeline

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.PATH=VALUE]...", help="Keys to override, e.g. adversarial.steps=10.", show_default=False
    ),
]


@contextmanager
def settings(run_file: Path, overrides: list[str] | None) -> Iterator[RunConfig]:
    """The checked run file; what goes wrong in the block ends as one message."""
    with errors_as_messages() as scene:
        from gad.config.loading import load

        config = load(run_file, overrides or ())
        scene.folder = config.folder
        yield config


def train(
    run_file: Path,
    overrides: list[str] | None,
    work: Callable[[Pipeline], None],
    needs: str = "",
    *,
    profile: bool = False,
) -> None:
    """Open the run and do some of its stages. needs: the section of the run file without which there is no work."""
    with settings(run_file, overrides) as config:
        from gad.errors import ConfigError
        from gad.folder import opened
        from gad.progress import progress
        from gad.signals import StopRequest

        if needs and getattr(config, needs) is None:
            raise ConfigError(f"{run_file} has no {needs}: add the section `{needs}:`, or leave this stage out")
        _need_training_packages()
        shown = progress()
        stop = StopRequest(shown.say)
        with opened(config), stop.listening():
            from gad.pipeline import Pipeline

            work(Pipeline(config, shown, stop, profile=profile))


def _need_training_packages() -> None:
    from importlib.util import find_spec

    from gad.errors import MissingExtra

    if any(find_spec(name) is None for name in ("torch", "transformers", "peft", "safetensors")):
        raise MissingExtra("training and sampling", "train")
