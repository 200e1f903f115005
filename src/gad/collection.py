"""The texts of a run: imported as they were recorded, or bought from the teacher that the run file names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from gad.config.data import HeldOutShare
from gad.config.run import RunConfig
from gad.config.teacher import TeacherConfig
from gad.data import AskedSets, Dropped, Origin, StreamedPrompts, has_replies, load_asked
from gad.data.loading import fingerprint
from gad.errors import ConfigError, DataError, RunFolderError, TeacherError
from gad.folder import has_trained
from gad.progress import Progress
from gad.records import Prompt
from gad.signals import StopRequest
from gad.stages.collect import ORIGINS, import_once, read_examples, write_origins, write_set
from gad.stages.collect_api import collect as buy
from gad.teacher.files import SetContents, path_of
from gad.teacher.shards import Shard
from gad.teacher.summary import CollectSummary


@dataclass(frozen=True, slots=True)
class Purchase:
    """How replies are bought: those that were given up as well; one part of them only; through the Batch API."""

    retry_failed: bool = False
    shard: Shard | None = None
    batch: bool = False


def collect(config: RunConfig, folder: Path, progress: Progress, stop: StopRequest, how: Purchase) -> None:
    """Texts into the run folder. With a teacher: until every prompt has a reply or was given up.

    Raises Interrupted after a stop request; DataError, ConfigError, TeacherError, RunFolderError.
    """
    if config.teacher is None:
        if how != Purchase():
            raise ConfigError("the run file has no `teacher`: there is nothing to buy, and no use for this option")
        import_once(config, folder, progress)
        return
    if has_trained(folder):
        if how != Purchase():
            raise RunFolderError(
                f"{folder} has been trained on what was collected, which stays as it is. To buy more, copy "
                f"{folder / 'teacher'} into the folder of a new run: what is in it is not bought again"
            )
        progress.say("collect: done before; what has been trained on stays as it is")
        return
    before, stop.promise = stop.promise, "no more is sent; waiting for replies under way (Ctrl-C again gives them up)"
    try:
        _buy(config, config.teacher, folder, progress, stop, how)
    finally:
        stop.promise = before


def _buy(
    config: RunConfig, teacher: TeacherConfig, folder: Path, progress: Progress, stop: StopRequest, how: Purchase
) -> None:
    asked = None if how.shard is not None else load_asked(config.data, config.seed)
    if asked is not None:
        # What training looks for: absent from here until every set is whole.
        (folder / ORIGINS).unlink(missing_ok=True)
        for name, loaded in asked.answered.items():
            progress.say(f"{name}: {len(loaded.examples)} prompts have replies of their own, which are kept")
    stop.check()
    summary = buy(
        teacher,
        _streams(config) if asked is None else _prompts(asked),
        folder,
        filters=config.data.filters,
        progress=progress,
        retry_failed=how.retry_failed,
        shard=how.shard,
        batch=how.batch,
        stop=lambda: stop.asked,
    )
    stop.check()
    if not summary.complete:
        waiting = f"{summary.in_batches} requests wait in batches: `gad collect --batch` fetches them"
        raise TeacherError(waiting if summary.in_batches else f"{summary.missing} replies are missing")
    if asked is not None:
        _finish(asked, summary, folder, progress)


def _prompts(asked: AskedSets) -> dict[str, Iterable[Prompt]]:
    return {name: each.prompts for name, each in asked.sets.named.items() if name not in asked.answered}


def _streams(config: RunConfig) -> dict[str, Iterable[Prompt]]:
    """The prompts for one part of a split, in constant memory: leaks are found, and sets are kept apart, when the parts
    come together."""
    data = config.data
    sources = {"train": data.train}
    if not isinstance(data.held_out, HeldOutShare) and not has_replies(data.held_out):
        sources["held_out"] = (data.held_out,)
    if data.out_of_distribution is not None and not has_replies(data.out_of_distribution):
        sources["out_of_distribution"] = (data.out_of_distribution,)
    return {
        name: StreamedPrompts(listed, on_bad_rows=data.on_bad_rows, filters=data.filters)
        for name, listed in sources.items()
    }


def _finish(asked: AskedSets, summary: CollectSummary, folder: Path, progress: Progress) -> None:
    """The sets that brought their own replies, and where all of them are from."""
    origins: dict[str, tuple[int, Origin]] = {}
    for name, each in asked.sets.named.items():
        if name in asked.answered:
            write_set(asked.answered[name], name, folder)
            origins[name] = len(each.prompts), each.origin
        else:
            origins[name] = _origin(name, each.origin, summary.sets[name], folder)
    write_origins(folder, origins, asked.sets.leaks, summary.models, progress)


def _origin(name: str, prompts: Origin, bought: SetContents, folder: Path) -> tuple[int, Origin]:
    """Prompts of a set that have replies, and where they are from. Raises DataError where there are none."""
    without = {**bought.left_out, **{f"no reply: {reason}": each for reason, each in bought.given_up.items()}}
    if not bought.kept:
        reasons = ", ".join(f"{each.count} {reason}" for reason, each in without.items())
        raise DataError(
            f"{name}: no reply can be used ({reasons}); the lists are in {folder / 'teacher'}. Replies are kept: "
            "change data.filters and run `gad collect` again, which buys none twice, or take another `name` for others"
        )
    examples = read_examples(path_of(name, folder))
    dropped = tuple(Dropped(reason, each.count, tuple(each.first)) for reason, each in without.items())
    origin = replace(prompts, dropped=(*prompts.dropped, *dropped), sha256=fingerprint(examples))
    return len(examples), origin
