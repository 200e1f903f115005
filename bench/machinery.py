"""How much of a step is not mathematics: batches, rows of tokens, micro-batches, records, counting, the log.

Timed in the running program: every function of the list is wrapped with a clock of CPU seconds. What is written in
Python inside of the passes themselves (transformers' modules, autograd's bookkeeping) is no part of it.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock


class Clock:
    """CPU seconds inside the wrapped functions; a function that a wrapped one calls is not counted twice."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        self._depth += 1
        started = time.process_time()
        try:
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                self.seconds += time.process_time() - started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For the mathematics inside a wrapped function."""
        depth, self._depth = self._depth, 0
        started = time.process_time()
        try:
            yield
        finally:
            self._depth = depth
            if depth:
                self.seconds -= time.process_time() - started

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.running():
                return function(*args, **kwargs)

        return wrapped

    def untimed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            with self.paused():
                return function(*args, **kwargs)

        return wrapped

    def stepwise(self, generator: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
        def wrapped(*args: Any, **kwargs: Any) -> Iterator[Any]:
            items = generator(*args, **kwargs)
            while True:
                with self.running():
                    item = next(items, self)
                if item is self:
                    return
                yield item

        return wrapped


def share(folder: Path, steps: int) -> float:
    """CPU seconds of the machinery over those of the steps, after a first step that is not counted."""
    import torch
    from bench import ours
    from bench import workload as files
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    from gad.build import Workshop
    from gad.folder import opened
    from gad.models.scorer import Scorer
    from gad.progress import Lines
    from gad.rollout.local import LocalEngine
    from gad.signals import StopRequest
    from gad.stages import adversarial
    from gad.stages.sampling import Sampler
    from gad.training.batching import Batcher
    from gad.training.costs import Costs
    from gad.training.run import Place, StageRun
    from gad.training.student import StudentTrainer

    AutoTokenizer.from_pretrained = PreTrainedTokenizerFast.from_pretrained
    torch.set_num_threads(1)
    clock = Clock()
    timed: list[tuple[type, str, Callable[..., Any]]] = [
        (StageRun, "_batch", clock.timed),
        (StageRun, "log", clock.timed),
        (Scorer, "row", clock.timed),
        (StudentTrainer, "_policy_row", clock.timed),
        (Batcher, "micro_batches", clock.stepwise),
        (Costs, "update", clock.timed),
        (Costs, "train", clock.timed),
        (Costs, "saw", clock.timed),
        (Sampler, "groups", clock.timed),
        (LocalEngine, "generate", clock.untimed),
        (LocalEngine, "_rollout", clock.timed),
    ]
    marks: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as runs, ExitStack() as patches:
        for owner, name, wrap in timed:
            patches.enter_context(mock.patch.object(owner, name, wrap(getattr(owner, name))))
        config = ours.run_config(folder, Path(runs))
        shop = Workshop(config)
        rules = ours.game(shop, config, frozen=False)
        with opened(config) as place:
            stage = StageRun(
                "adversarial",
                Place(place, 0, config.checkpoints, Lines(), StopRequest()),
                ours.examples(folder),
                batch_size=files.read(folder)[0].prompts,
                total_steps=steps + 1,
                parts={"student": rules.student, "discriminator": rules.discriminator},
                max_bad_steps=5,
            )
            stage.checkpoint_if_due = lambda _: marks.append((clock.seconds, time.process_time()))  # type: ignore[method-assign]
            stage._save = lambda *_: None  # type: ignore[method-assign]
            adversarial.train(stage, rules)
    (first, began), (last, ended) = marks[0], marks[-1]
    return (last - first) / (ended - began)
