"""One pass of the discriminator a step: its scores before the update are the rewards.

P prompts, G replies per prompt.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gad import objectives
from gad.config.training import DiscriminatorLoss
from gad.crew import everywhere
from gad.layouts import tokens_of
from gad.models.scorer import Scorer
from gad.records import RolloutGroup
from gad.training import losses
from gad.training.batching import Batcher
from gad.training.costs import Costs
from gad.training.evidence import Evidence, Row, group_rows
from gad.training.optimizer import Metrics, Updater, entries


class DiscriminatorTrainer:
    """Trains a scorer; `updater` is None for one that stays as it is."""

    def __init__(
        self, scorer: Scorer, batcher: Batcher, loss: DiscriminatorLoss, updater: Updater | None, *, step: int = 0
    ) -> None:
        self.scorer = scorer
        self._batcher = batcher
        self._loss = loss
        self._updater = updater
        self._costs = Costs(scorer.member, "discriminator", layers=scorer.layer)
        self.updates = step
        self.bad_steps = 0
        self.evidence: Evidence | None = None
        self.crew = scorer.crew
        self.crew.adopt(self)

    @everywhere("updating the discriminator")
    def update(self, groups: Sequence[RolloutGroup]) -> tuple[Tensor, Metrics]:
        """Rewards (P, G) by the weights before the update, then the update.

        The teacher's reply is computed once per prompt. All groups must have the same number of replies.
        """
        started = time.perf_counter()
        train = self._updater is not None
        teacher_P, student_PG, loss, tokens, flops = self._pass(groups, train=train)
        margins_PG = objectives.margins(teacher_P, student_PG)
        metrics: Metrics = {
            "discriminator/loss": loss,
            "discriminator/accuracy_fresh": objectives.accuracy(margins_PG).item(),
            "discriminator/margin": margins_PG.mean().item(),
            "discriminator/teacher_score": teacher_P.mean().item(),
            "tokens/discriminator": tokens,
            "flops/discriminator": flops,
            **self._costs.layouts(),
        }
        if self._updater is not None:
            norm = self._updater.step(self.updates + 1, loss)
            self.updates += 1
            if norm is None:
                self._note(self._updater, loss, group_rows(groups, student_PG, "score"))
            metrics["discriminator/grad_norm"] = float("nan") if norm is None else norm
            metrics["discriminator/skipped"] = float(norm is None)
        metrics["time/discriminator"] = time.perf_counter() - started
        return student_PG, metrics

    def _note(self, updater: Updater, loss: float, batch: tuple[Row, ...]) -> None:
        self.bad_steps += 1
        broken = [name for index, name in enumerate(self.scorer.names()) if index in updater.broken]
        self.evidence = Evidence(loss, updater.norm, tuple(broken), batch)

    @everywhere("scoring")
    def score(self, groups: Sequence[RolloutGroup]) -> tuple[Tensor, Tensor]:
        """Scores of the teacher's replies (P,) and the student's (P, G); nothing is trained."""
        teacher_P, student_PG, *_ = self._pass(groups, train=False)
        return teacher_P, student_PG

    @property
    def note(self) -> str:
        """Why the first micro-batch has the layout that it has; empty before it."""
        return self._costs.note

    def _pass(self, groups: Sequence[RolloutGroup], *, train: bool) -> tuple[Tensor, Tensor, float, float, float]:
        """Scores of teacher (P,) and student (P, G), loss, tokens that were computed, FLOPs that were needed."""
        rows, places = zip(*map(self.scorer.row, groups), strict=True)
        count = len(groups[0].rollouts)
        dtype = self.scorer.head_H.dtype
        teacher_P, student_PG = torch.zeros(len(groups), dtype=dtype), torch.zeros(len(groups), count, dtype=dtype)
        total_loss, tokens = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)
        with self.scorer.member.using(), torch.set_grad_enabled(train):
            for part in self._batcher.micro_batches(rows):
                picked = part.picked
                self._costs.saw(part)
                spread = _spread([places[i] for i in picked], [len(rows[i].replies) for i in picked])
                with self._batcher.room("the discriminator's pass", part):
                    scores_PK = self.scorer.scores(part.batch)[spread]
                    loss = losses.discriminator(self._loss, scores_PK[:, 0], scores_PK[:, 1:], len(groups))
                    if train:
                        (loss * 0.0 if part.spare else loss).backward()
                if not part.spare:
                    total_loss += loss.item()
                    tokens += tokens_of(part.batch)
                    teacher_P[picked] = scores_PK[:, 0].detach().cpu()
                    student_PG[picked] = scores_PK[:, 1:].detach().cpu()
        sums = self.crew.sum(teacher_P), self.crew.sum(student_PG)
        flops = (self._costs.train if train else self._costs.forward)(rows, predicts=False) - self._costs.spared()
        return *sums, self.crew.sum(total_loss).item(), self.crew.sum(tokens).item(), flops

    def state(self) -> dict[str, Tensor]:
        """Everything that the next update depends on."""
        optimizer = {} if self._updater is None else self._updater.state()
        return {
            **{f"weights.{name}": value for name, value in self.scorer.state().items()},
            **{f"optimizer.{name}": value for name, value in optimizer.items()},
            "updates": torch.tensor(self.updates),
            "bad_steps": torch.tensor(self.bad_steps),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""
        self.scorer.load(entries(state, "weights."))
        if self._updater is not None:
            self._updater.load(entries(state, "optimizer."))
        self._count(int(state["updates"]), int(state["bad_steps"]))

    @everywhere("taking up counts")
    def _count(self, updates: int, bad_steps: int) -> None:
        self.updates, self.bad_steps = updates, bad_steps


def _spread(places: Sequence[list[int]], sizes: Sequence[int]) -> Tensor:
    """Row indices (P, 1 + G) in a batch whose groups hold `sizes` distinct replies each."""
    starts = torch.tensor([0, *sizes[:-1]]).cumsum(0)
    return torch.tensor(places) + starts[:, None]
