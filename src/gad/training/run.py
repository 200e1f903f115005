"""The bookkeeping of a training stage: batches, log, checkpoints, resuming, stopping.

A stage's loop sees none of it but `batches`, `log` and `checkpoint_if_due`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from gad.config.compute import CheckpointConfig
from gad.errors import TrainingStopped
from gad.folder import CHECKPOINTS, METRICS
from gad.progress import Progress
from gad.records import Example, TeacherReply
from gad.seeds import stable_seed
from gad.signals import StopRequest
from gad.storage import JsonlWriter, flush, keep_rows, read_jsonl
from gad.training import checkpoint, evidence
from gad.training.checkpoint import Checkpoint
from gad.training.evidence import Evidence
from gad.training.saving import Writing, kept
from gad.training.signs import Signs
from gad.training.trace import traced


class Trained(Protocol):
    """Something whose training state can be saved and taken up again."""

    bad_steps: int
    evidence: Evidence | None

    def state(self) -> dict[str, Tensor]: ...

    def load(self, state: Mapping[str, Tensor]) -> None: ...


@runtime_checkable
class Explains(Protocol):
    """Something that can say why it computes as it does; empty before it has computed anything."""

    @property
    def note(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Drawn:
    """One prompt of a batch: the teacher reply it meets, and the epoch, which tells repeats apart."""

    example: Example
    teacher: TeacherReply
    epoch: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stage keeps its things and whom it listens to. profile: record a step of each stage."""

    folder: Path
    seed: int
    checkpoints: CheckpointConfig
    progress: Progress
    stop: StopRequest
    profile: bool = False


class StageRun:
    """A training stage from its last checkpoint to its end.

    parts: what is trained, by the name of its file in a checkpoint.
    max_bad_steps: steps that may be skipped for values that are not finite before the stage stops.
    peak_flops: FLOPs a second that the machines could make at best, to measure the steps against.
    """

    def __init__(
        self,
        stage: str,
        place: Place,
        examples: Sequence[Example],
        *,
        batch_size: int,
        total_steps: int,
        parts: Mapping[str, Trained],
        max_bad_steps: int,
        peak_flops: float | None = None,
    ) -> None:
        self.stage = stage
        self.total_steps = total_steps
        self._place = place
        self.examples = examples
        self._batch_size = min(batch_size, len(examples))
        self._parts = parts
        self._max_bad_steps = max_bad_steps
        self._peak_flops = peak_flops
        self._unexplained = dict(parts)
        self._metrics_path = place.folder / METRICS
        self._checkpoints = place.folder / CHECKPOINTS
        self.step = self._first_step = self._resume()
        self._saved_step = self.step
        self._writing = Writing(in_background=place.checkpoints.in_background)
        self._note = ""
        self._epoch, self._order = -1, list[int]()
        self._last_time = time.perf_counter()
        self._shares = list[float]()
        self._signs = Signs()

    @property
    def done(self) -> bool:
        """Whether the stage has made all its steps."""
        return self.step >= self.total_steps

    @property
    def repeats(self) -> bool:
        """Whether examples come again."""
        return self.total_steps * self._batch_size > len(self.examples)

    def batches(self) -> Iterator[tuple[int, list[Drawn]]]:
        """Steps that are still to do, each with its batch. Steps count from 1.

        Raises Interrupted after a stop request, TrainingStopped after too many steps that were not finite; the
        training state is saved first.
        """
        title = f"{self.stage}"
        with self._place.progress.task(title, self.total_steps, self.step) as bar:
            while self.step < self.total_steps:
                self._last_time = time.perf_counter()
                with self._recording(), self._writing.closing():
                    yield self.step + 1, self._batch(self.step)
                self.step += 1
                bar.advance(note=self._note)
                if self._place.stop.signal_number is not None:
                    if self._saved_step != self.step:
                        self._save()
                    self._writing.wait()
                    self._place.stop.check()
                self._check_finite()
        if self._saved_step < self.total_steps:
            self._save()
        self._writing.wait()

    def _recording(self) -> AbstractContextManager[None]:
        """Of the second step that is made, which is warm, or of the last one where there is no second."""
        wanted = min(self._first_step + 1, self.total_steps - 1)
        if not self._place.profile or self.step != wanted:
            return nullcontext()
        return traced(self._place.folder, self.stage)

    def batch(self, step: int) -> list[Drawn]:
        """The batch of a step, counted from 1."""
        return self._batch(step - 1)

    def upcoming(self, step: int) -> list[Drawn] | None:
        """The batch of a step; None after the last."""
        return self.batch(step) if step <= self.total_steps else None

    def drawn(self) -> list[Example]:
        """The examples that the stage meets from its first step to its last, each once."""
        met = {
            drawn.example.prompt.id: drawn.example for step in range(self.total_steps) for drawn in self._batch(step)
        }
        return list(met.values())

    def spread(self, seconds: float, steps: int) -> None:
        """Count seconds of the step that is under way for it and the following steps alike."""
        self._last_time += seconds
        self._shares = [seconds / steps] * steps

    def log(self, step: int, *metrics: Mapping[str, float]) -> None:
        """One line of `metrics.jsonl`."""
        row: dict[str, Any] = {"stage": self.stage, "step": step, "time": time.time()}
        for part in metrics:
            row.update(part)
        shared = self._shares.pop() if self._shares else 0.0
        row["time/step"] = time.perf_counter() - self._last_time + shared
        row.update(self._work(row))
        self._explain()
        shown = ("discriminator/accuracy_fresh", "reward/mean", "student/cross_entropy", "reply/length_mean")
        self._note = "  ".join(f"{name.split('/')[1]} {row[name]:.3g}" for name in shown if name in row)
        with JsonlWriter(self._metrics_path) as writer:
            writer.append({name: _json_number(value) for name, value in row.items()})
        self._note_skipped(step)
        if "reward/mean" in row:
            for line in self._signs.of(step, row):
                self._place.progress.say(f"{self.stage}: {line}")

    def _note_skipped(self, step: int) -> None:
        for name, part in self._parts.items():
            if part.evidence is not None:
                path = evidence.write(self._place.folder, self.stage, step, name, part.evidence)
                what = f"{self.stage}, step {step}: the {name}'s {part.evidence.what()}; its update is skipped"
                self._place.progress.say(f"{what}, {path} holds what it was made of")
                part.evidence = None

    def _work(self, row: Mapping[str, Any]) -> dict[str, float]:
        """Operations of the whole step, and their share of what the machines could have made in its time."""
        total = sum(value for name, value in row.items() if name.startswith("flops/"))
        if not total or self._peak_flops is None:
            return {}
        share = total / (row["time/step"] * self._peak_flops)
        return {"flops/step": total, "time/flops_peak": self._peak_flops, "time/flops_utilisation": share}

    def _explain(self) -> None:
        """Once a stage, how its parts compute and why."""
        for name, part in list(self._unexplained.items()):
            note = part.note if isinstance(part, Explains) else ""
            if note:
                del self._unexplained[name]
                self._place.progress.say(f"{self.stage}: {note}")

    def checkpoint_if_due(self, step: int) -> None:
        """Save after every so many steps and after the last one."""
        if step % self._place.checkpoints.every_steps == 0 and step < self.total_steps:
            self._save(step)

    def _save(self, step: int | None = None) -> None:
        step = self.step if step is None else step
        parts = {name: self._writing.snapshot(part.state()) for name, part in self._parts.items()}
        done = step >= self.total_steps
        due = done or step % self._place.checkpoints.every_steps == 0
        state = {"total_steps": self.total_steps, "done": done, "due": due, "torch": torch.__version__}
        self._writing.do(lambda: self._write(step, parts, state))
        self._saved_step = step

    def _write(self, step: int, parts: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        flush(self._metrics_path)  # what a checkpoint goes on from must not be lost with the machine's memory
        checkpoint.save(self._checkpoints, self.stage, step, parts, state)
        checkpoint.prune(self._checkpoints, self.stage, step, self._kept)

    def _kept(self, found: Sequence[Checkpoint]) -> set[int]:
        return kept(found, self.stage, self._place.checkpoints, lambda: read_jsonl(self._metrics_path))

    def _resume(self) -> int:
        found, passed = checkpoint.latest(self._checkpoints, self.stage)
        for line in passed:
            self._place.progress.say(line)
        step = 0
        if found is not None:
            for name, part in self._parts.items():
                part.load(found.tensors(name))
            step = found.step
        keep_rows(self._metrics_path, lambda row: row["stage"] != self.stage or row["step"] <= step)
        return step

    def _batch(self, step: int) -> list[Drawn]:
        """Batches cut an endless row of shuffled epochs, so all have the same size."""
        count = len(self.examples)
        drawn: list[Drawn] = []
        for position in range(step * self._batch_size, (step + 1) * self._batch_size):
            epoch, place = divmod(position, count)
            if epoch != self._epoch:
                self._epoch, self._order = epoch, self._shuffled(epoch)
            example = self.examples[self._order[place]]
            drawn.append(Drawn(example, example.replies[epoch % len(example.replies)], epoch))
        return drawn

    def _shuffled(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(stable_seed(self._place.seed, self.stage, "order", epoch))
        order: list[int] = torch.randperm(len(self.examples), generator=generator).tolist()
        return order

    def _check_finite(self) -> None:
        for name, part in self._parts.items():
            if part.bad_steps > self._max_bad_steps:
                bad_steps, part.bad_steps = part.bad_steps, 0  # a run that is taken up again has its allowance again
                self._save()
                self._writing.wait()
                raise TrainingStopped(
                    f"{self.stage}: the {name}'s loss or gradient was not finite in {bad_steps} steps, the last of "
                    f"them step {self.step}; those steps did not change it. What they were made of is in "
                    f"{self._place.folder / evidence.FOLDER}. Begin again under another name with a lower learning "
                    "rate, or in float32 (`gad fork` keeps the stages before it); "
                    f"the state is saved in {self._checkpoints / f'{self.stage}-{self.step}'}"
                )


def done_checkpoint(folder: Path, stage: str) -> Checkpoint | None:
    """The last checkpoint of a stage that has made all its steps; None where it has not."""
    found, _ = checkpoint.latest(folder / CHECKPOINTS, stage)
    return found if found is not None and found.state()["done"] else None


def _json_number(value: Any) -> Any:
    """NaN and infinities are no JSON: null, and the bad step is counted beside."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
