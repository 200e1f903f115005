"""The weights of each arm of a run: what training starts from, and what its checkpoints hold."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path

from torch import Tensor

from gad.build import Workshop
from gad.config.compared import LocalModel
from gad.config.run import RunConfig
from gad.errors import CheckpointError, RunFolderError
from gad.folder import CHECKPOINTS
from gad.models.tokens import Codec
from gad.rollout.engine import Engine
from gad.training import checkpoint
from gad.training.optimizer import entries
from gad.training.run import done_checkpoint

BASE = "base"
HEADLINE = "gad"
CHOICE = "choice.json"

Weights = dict[str, Tensor]


class Arms:
    """Puts an arm's weights into the student that is in memory."""

    def __init__(self, config: RunConfig, shop: Workshop) -> None:
        self._config = config
        self._folder: Path = config.folder
        self._shop = shop

    @property
    def names(self) -> list[str]:
        """The arms of this run, in the order in which they are shown; the last one is the headline's."""
        return list(self._config.students)

    def speaking(self, name: str) -> tuple[Engine, Codec]:
        """What samples an arm's replies, with its weights in place. Raises as `take`, and as `Workshop.visitor`."""
        visitor = next(
            (m for m in self._config.evaluation.models if m.name == name and isinstance(m, LocalModel)), None
        )
        if visitor is not None:
            return self._shop.visitor(visitor)
        self.take(name)
        self._shop.engine.load_weights(self._shop.student, version=0)
        return self._shop.engine, self._shop.codec

    def take(self, name: str) -> None:
        """An arm by its name, or the student of one adversarial checkpoint, `gad-<step>`.

        Raises RunFolderError where the stage that makes it has not been run to its end.
        """
        self._load(self._initial if name == BASE else self._of(name))

    def take_warm(self) -> None:
        """The student that the adversarial stage starts from."""
        self.take(BASE if self._config.warmup is None else "warmup")

    def _load(self, weights: Weights) -> None:
        assert self._initial, "the initial weights are noted before the first change"
        self._shop.student.load(weights)

    @cached_property
    def _initial(self) -> Weights:
        return {name: tensor.clone() for name, tensor in self._shop.student.state().items()}

    def _of(self, name: str) -> Weights:
        if name == HEADLINE:
            stage, step = self._chosen()
        elif name.startswith(f"{HEADLINE}-"):
            stage, step = "adversarial", name.removeprefix(f"{HEADLINE}-")
        else:
            return self._of_stage(name)
        found = {str(item.step): item for item in checkpoint.find(self._folder / CHECKPOINTS, stage)}
        if step not in found:
            way_out = (
                f"which {CHOICE} names: delete that file to choose again among the checkpoints that are there"
                if name == HEADLINE
                else f"which evaluation.models names; it holds {', '.join(map(str, found)) or 'none'}"
            )
            raise RunFolderError(f"{self._folder / CHECKPOINTS} holds no {stage}-{step}, {way_out}")
        damage = found[step].damage()
        if damage is not None:
            raise CheckpointError(
                f"{found[step].path} is damaged ({damage}): delete this folder and run the same command again; what "
                f"is left is used, or made again by `gad {stage}`. Delete {CHOICE} too where it names this checkpoint"
            )
        return entries(found[step].tensors("student"), "weights.")

    def _chosen(self) -> tuple[str, str]:
        """Stage and step of the checkpoint that is the student. Raises RunFolderError where none is chosen yet."""
        path = self._folder / CHOICE
        if not path.exists():
            raise RunFolderError(f"{self._folder} holds no choice of a checkpoint yet: run `gad generate` first")
        try:
            stage, step = json.loads(path.read_text(encoding="utf-8"))["chosen"].rsplit("-", 1)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise RunFolderError(f"{path} is damaged ({error}): delete it to choose again") from error
        return stage, step

    def _of_stage(self, stage: str) -> Weights:
        done = done_checkpoint(self._folder, stage)
        if done is None:
            raise RunFolderError(f"{self._folder} holds no finished {stage}: run `gad {stage}` first")
        return entries(done.tensors("student"), "weights.")
