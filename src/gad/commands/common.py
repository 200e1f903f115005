"""What the verbs share: their arguments, and how a run is opened."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from gad.exits import errors_as_messages

if TYPE_CHECKING:
    from gad.config.run import RunConfig
    from gad.crew import Crew
    from gad.pipeline import Pipeline

RunFile = Annotated[Path, typer.Argument(metavar="RUN.yaml", help="The run file.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.PATH=VALUE]...", help="Keys to override, e.g. adversarial.steps=10.", show_default=False
    ),
]
Nproc = Annotated[
    int | None,
    typer.Option(
        "--nproc", metavar="N", help="Start N processes on this machine that train together.", show_default=False
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
    nproc: int | None = None,
    *,
    profile: bool = False,
) -> None:
    """Open the run and do some of its stages: alone, by several processes that are started here, or as one of them.

    needs: the section of the run file without which there is no work.
    """
    with settings(run_file, overrides) as config:
        from gad.errors import ConfigError
        from gad.folder import opened
        from gad.progress import progress
        from gad.signals import StopRequest

        if needs and getattr(config, needs) is None:
            raise ConfigError(f"{run_file} has no {needs}: add the section `{needs}:`, or leave this stage out")
        _need_training_packages()
        if nproc is not None and _started(nproc, config, run_file, overrides, profile=profile):
            return
        with _crew(config) as crew:
            if crew.rank > 0:
                _serve(config, crew)
            shown = progress()
            stop = StopRequest(shown.say)
            # What a signal raises is swallowed where pydantic writes a config, so they are noted before it does.
            with stop.listening(), opened(config):
                from gad.pipeline import Pipeline

                work(Pipeline(config, shown, stop, crew, profile=profile))


def _started(nproc: int, config: RunConfig, run_file: Path, overrides: list[str] | None, *, profile: bool) -> bool:
    """Whether the work was done by processes started for it; leaves with their exit code where they failed."""
    from gad import processes
    from gad.errors import ConfigError

    if profile:
        raise ConfigError("--profile records one process: leave --nproc out")
    if processes.seat() is not None:
        raise ConfigError(f"--nproc {nproc} within processes that were started already: leave --nproc out")
    processes.check_count(nproc, config.compute.device)
    if nproc == 1:
        return False
    verb = sys.argv[1]
    code = processes.start(nproc, [sys.executable, "-m", "gad", verb, str(run_file), *(overrides or ())])
    if code:
        sys.exit(code)
    return True


@contextmanager
def _crew(config: RunConfig) -> Iterator[Crew]:
    """The processes of which this is one; it alone where nobody said otherwise."""
    from gad.crew import ALONE
    from gad.processes import seat

    place = seat()
    if place is None:
        yield ALONE
        return
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # the end of a connection is said by us, once
    from gad.build import device
    from gad.training.parallel import joined

    compute = config.compute
    with joined(place, compute.shard, lambda: device(compute.device, place.local), compute.stall_seconds) as team:
        yield team


def _serve(config: RunConfig, crew: Crew) -> NoReturn:
    """The work of all processes but the first. Raises Followed at its end."""
    from gad.build import Workshop
    from gad.errors import Followed

    Workshop(config, crew)
    raise Followed(crew.serve())


def _need_training_packages() -> None:
    from importlib.util import find_spec

    from gad.errors import MissingExtra

    if any(find_spec(name) is None for name in ("torch", "transformers", "peft", "safetensors")):
        raise MissingExtra("training and sampling", "train")
