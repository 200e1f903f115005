"""When a checkpoint is written, and which ones stay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor

from gad.config.compute import CheckpointConfig
from gad.training.checkpoint import Checkpoint


class Writing:
    """Writes at once, or in a thread of its own: then one write at a time, and what failed is raised by the next call.

    in_background: whether in a thread.
    """

    def __init__(self, *, in_background: bool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint") if in_background else None
        self._last: Future[None] | None = None

    def snapshot(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What may be written while training goes on: copies, where it is written in the background."""
        return {name: tensor.detach().cpu().clone() if self._pool else tensor for name, tensor in state.items()}

    def do(self, work: Callable[[], None]) -> None:
        """Do the work, or begin it once the one before is done."""
        self.wait()
        if self._pool is None:
            work()
        else:
            self._last = self._pool.submit(work)

    def wait(self) -> None:
        """Return when everything is on disk. Raises what the last write raised."""
        last, self._last = self._last, None
        if last is not None:
            last.result()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Where the block fails, or the stage whose step it is, have the write that was begun end first."""
        try:
            yield
        except BaseException:
            with suppress(Exception):  # what went wrong first is what is told
                self.wait()
            raise


def kept(
    found: Sequence[Checkpoint], stage: str, config: CheckpointConfig, log: Callable[[], Iterable[Mapping[str, Any]]]
) -> set[int]:
    """Steps of a stage's checkpoints that stay: the latest, the last ones that were due, the best ones that were due.

    A checkpoint of a stop that was asked for only serves to go on from: it must not push out others, or a run that was
    stopped would have others to choose its student from. found: the latest first. log: the rows of `metrics.jsonl`.
    """
    due = [checkpoint.step for checkpoint in found if checkpoint.is_due()]
    stay = {found[0].step, *due[: config.keep_last]} if found else set()
    if config.keep_best:
        means = _means(due, stage, config, log())
        sign = 1 if config.best_is == "lowest" else -1
        best = sorted((step for step in due if step in means), key=lambda step: (sign * means[step], -step))
        stay.update(best[: config.keep_best])
    return stay


def _means(
    steps: Iterable[int], stage: str, config: CheckpointConfig, rows: Iterable[Mapping[str, Any]]
) -> dict[int, float]:
    """By the log alone, so that a run that was killed keeps what one that was not keeps."""
    values: dict[int, list[float]] = {step: [] for step in steps}
    for row in rows:
        value = row.get(config.best_metric)
        if row["stage"] == stage and isinstance(value, int | float):
            for step, own in values.items():
                if step - config.every_steps < row["step"] <= step:
                    own.append(value)
    return {step: sum(own) / len(own) for step, own in values.items() if own}
