"""One-step-off replies: while a step updates the weights, those before the update already answer the next batch.

Where another machine samples (vLLM servers), sampling and updating take place at the same time. The price is that
replies are one update old: they are labelled with the weights that sampled them, and their losses are weighed by
truncated importance weights (`adversarial.importance_cap`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice

import torch
from torch import Tensor

from gad.models.network import Member
from gad.records import Rollout, RolloutGroup
from gad.stages.sampling import Pending, Sampler
from gad.training.evidence import Evidence
from gad.training.optimizer import Metrics
from gad.training.run import Drawn


class OneStepOff:
    """Replies of a training stage, each batch's asked for one step before it is its turn.

    It is a part of the stage's checkpoints: replies that wait for their turn are kept there, so that a run that was
    stopped meets the same ones. upcoming: the batch of a step, None after the last.
    """

    def __init__(self, sampler: Sampler, member: Member, upcoming: Callable[[int], Sequence[Drawn] | None]) -> None:
        self._sampler, self._member, self._upcoming = sampler, member, upcoming
        self._asked: tuple[int, Pending] | None = None
        self._kept: Mapping[str, Tensor] = {}
        self.bad_steps = 0
        self.evidence: Evidence | None = None

    def groups(self, batch: Sequence[Drawn], step: int) -> tuple[list[RolloutGroup], Metrics]:
        """The replies of this step's batch; the next one's are under way when this returns."""
        waiting = self._waiting(batch, step)
        found = None if waiting is None else waiting.groups()  # before the engine is given other weights
        self._sampler.engine.load_weights(self._member, version=step)
        groups, metrics = found or self._sampler.begin(batch, step).groups()
        following = self._upcoming(step + 1)
        self._asked = None if following is None else (step + 1, self._sampler.begin(following, step + 1))
        self._kept = {}
        lag = step - min(rollout.policy_version for group in groups for rollout in group.rollouts)
        return groups, {**metrics, "rollout/lag": float(lag)}

    def state(self) -> dict[str, Tensor]:
        """Waits for the replies that are under way."""
        if self._asked is None:
            return dict(self._kept)
        step, pending = self._asked
        groups, _ = pending.groups()
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        return {
            "step": torch.tensor(step),
            "replies": torch.tensor([len(group.rollouts) for group in groups]),
            "tokens": torch.tensor([len(rollout.token_ids) for rollout in rollouts]),
            "token_ids": torch.tensor([token for rollout in rollouts for token in rollout.token_ids]),
            "logps": torch.tensor([logp for rollout in rollouts for logp in rollout.logps], dtype=torch.float64),
            "finished": torch.tensor([rollout.finished for rollout in rollouts]),
            "policy_versions": torch.tensor([rollout.policy_version for rollout in rollouts]),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Replies that waited for their turn when the state was saved."""
        self._asked, self._kept = None, state

    def _waiting(self, batch: Sequence[Drawn], step: int) -> Pending | None:
        if self._asked is not None:
            return self._asked[1]
        if not self._kept:
            return None
        assert int(self._kept["step"]) == step, "a checkpoint keeps the replies of the step that follows it"
        prompts = [drawn.example.prompt.id for drawn in batch]
        return self._sampler.kept(batch, step, _rollouts(self._kept, prompts, self._sampler.codec.text))


def _rollouts(
    state: Mapping[str, Tensor], prompt_ids: Sequence[str], text: Callable[[tuple[int, ...]], str]
) -> list[list[Rollout]]:
    lengths = state["tokens"].tolist()
    ids = [tuple(part.tolist()) for part in state["token_ids"].split(lengths)]
    known = len(state["logps"]) > 0
    logps = [tuple(part.tolist()) for part in state["logps"].split(lengths)] if known else [()] * len(ids)
    rows = zip(ids, logps, state["finished"].tolist(), state["policy_versions"].tolist(), strict=True)
    return [
        [
            Rollout(prompt_id, token_ids, text(token_ids), finished, known_logps, version)
            for token_ids, known_logps, finished, version in islice(rows, count)
        ]
        for prompt_id, count in zip(prompt_ids, state["replies"].tolist(), strict=True)
    ]
