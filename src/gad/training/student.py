"""Updates of the student: imitation of the teacher's replies, and the policy gradient.

P prompts, G replies per prompt, B = P * G rows, T reply tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gad import objectives
from gad.config.training import Kl, PolicyLoss
from gad.crew import everywhere
from gad.layouts import Readout, TokenBatch, TokenGroup, tokens_of
from gad.models.forward import reply_logps
from gad.models.network import Member
from gad.models.passes import predictors
from gad.models.tokens import Codec
from gad.records import Example, Prompt, RolloutGroup, TeacherReply
from gad.training import losses
from gad.training.batching import Batcher
from gad.training.costs import Costs
from gad.training.evidence import Evidence, Row, example_rows, group_rows
from gad.training.importance import weigh
from gad.training.losses import Totals
from gad.training.optimizer import Metrics, Updater, entries
from gad.training.parts import Part, Sums


@dataclass(frozen=True, slots=True)
class PolicyObjective:
    """What the adversarial stage minimises. `importance_cap`: bound of p_trained / p_sampled, None weighs nothing."""

    policy_loss: PolicyLoss
    kl: Kl
    cross_entropy_weight: float
    temperature: float
    max_reply_tokens: int
    importance_cap: float | None = None


class StudentTrainer:
    """Trains a member as a policy. `reference` is the policy that the KL term pulls to, None without one."""

    def __init__(
        self,
        member: Member,
        codec: Codec,
        batcher: Batcher,
        updater: Updater,
        *,
        reference: Member | None = None,
    ) -> None:
        self.member = member
        self._codec = codec
        self._batcher = batcher
        self._updater = updater
        self._reference = reference
        self._costs = Costs(member, "student")
        self._reference_costs = None if reference is None else Costs(reference, "reference")
        self.updates = 0
        self.bad_steps = 0
        self.evidence: Evidence | None = None
        self.crew = member.crew
        self.crew.adopt(self)

    def keep(self, examples: Sequence[Example]) -> Iterator[int]:
        """Keep what imitation of these examples computes in every epoch alike, and nothing of others. Yields replies
        that are done; none where there is nothing to keep, or it is there."""
        rows = [self._imitation_row(example.prompt, reply) for example in examples for reply in example.replies]
        return self.member.keep(rows, (part.batch for part in self._batcher.micro_batches(rows)))

    @everywhere("imitating the teacher")
    def imitate(self, examples: Sequence[tuple[Example, TeacherReply]]) -> Metrics:
        """One update by cross-entropy on the teacher's replies."""
        started = time.perf_counter()
        groups = [self._imitation_row(example.prompt, reply) for example, reply in examples]
        total_tokens = sum(len(reply) for group in groups for reply in group.replies)
        total = torch.zeros((), dtype=torch.float64)
        with self.member.using(), self.member.imitating():
            for part in self._batcher.micro_batches(groups):
                self._costs.saw(part)
                with self._batcher.room("imitating the teacher", part):
                    logps_BT, _ = self._logps(self.member, part.batch)
                    loss = objectives.token_cross_entropy(logps_BT, part.batch.readout.mask_BL, total_tokens)
                    (loss * 0.0 if part.spare else loss).backward()
                if not part.spare:
                    total += loss.item()
        cross_entropy = self.crew.sum(total).item()
        return {
            "student/cross_entropy": cross_entropy,
            **self._step(cross_entropy, lambda: example_rows(examples)),
            "tokens/imitated": total_tokens,
            **self._costs.imitation(groups),
            "time/student": time.perf_counter() - started,
        }

    @everywhere("updating the student")
    def update(self, groups: Sequence[RolloutGroup], advantages_PG: Tensor, objective: PolicyObjective) -> Metrics:
        """One policy-gradient update on freshly sampled replies; the ids are those that were sampled.

        With a cross-entropy weight the teacher's reply rides along as one more reply of its prompt. A reference that
        nothing pulls to (a KL term of weight 0) is only watched, on the step's first prompt.
        """
        started = time.perf_counter()
        pulled = self._reference is not None and objective.kl.weight > 0
        watched = () if self._reference is None or pulled else groups[:1]
        watched_kl = self._kl_sums(watched, objective).sum().item() if watched else 0.0
        mixed = objective.cross_entropy_weight > 0
        rows = [self._policy_row(group, with_teacher=mixed) for group in groups]
        sampled = sum(len(rollout.token_ids) for group in groups for rollout in group.rollouts)
        imitated = sum(len(row.replies[-1]) for row in rows) if mixed else 0
        totals = Totals(sampled, advantages_PG.numel(), objective.max_reply_tokens, imitated)
        sums = Sums()
        for micro in self._batcher.micro_batches(rows):
            self._costs.saw(micro)
            picked_groups = [groups[index] for index in micro.picked]
            part = Part.of(micro, picked_groups, advantages_PG[micro.picked], with_teacher=mixed)
            with self._batcher.room("the student's update", micro):
                sums.add(self._accumulate(part, objective, totals))
        sums = sums.over(self.crew)
        metrics: Metrics = {
            "student/loss": sums.loss,
            "student/entropy": sums.entropy / sampled,
            **self._step(sums.loss, lambda: group_rows(groups, advantages_PG, "advantage")),
            "tokens/trained": float(sampled + imitated),
            "tokens/student": sums.tokens,
            **self._costs.update(
                rows,
                self._reference_costs,
                pulled=self._sampled_rows(groups if pulled else ()),
                before=self._sampled_rows(groups if objective.kl.in_reward else watched),
            ),
        }
        if pulled:
            metrics["student/kl_to_reference"] = sums.kl / sampled
        elif watched:
            metrics["student/kl_to_reference"] = watched_kl / sum(len(each.token_ids) for each in watched[0].rollouts)
        if all(rollout.logps for group in groups for rollout in group.rollouts):
            metrics["rollout/logp_gap"] = sums.logp_gap / sampled
        if objective.importance_cap is not None:
            metrics["rollout/importance_mean"] = sums.importance / sampled
            metrics["rollout/importance_capped"] = sums.capped / sampled
        if mixed:
            metrics["student/cross_entropy"] = sums.cross_entropy
        metrics["time/student"] = time.perf_counter() - started
        return metrics

    @everywhere("measuring the distance to the reference")
    def kl_sums(self, groups: Sequence[RolloutGroup], objective: PolicyObjective) -> Tensor:
        """KL estimates (P, G) summed over each reply, under the weights as they are: for a KL term in the reward."""
        return self._kl_sums(groups, objective)

    def _kl_sums(self, groups: Sequence[RolloutGroup], objective: PolicyObjective) -> Tensor:
        assert self._reference is not None
        sums_PG = torch.zeros(len(groups), len(groups[0].rollouts))
        rows = self._sampled_rows(groups)
        with torch.no_grad():
            for part in self._batcher.micro_batches(rows):
                mask_BT = part.batch.readout.mask_BL
                with self._reference.using():
                    reference_BT, _ = self._logps(self._reference, part.batch, objective.temperature)
                with self.member.using():
                    logps_BT, _ = self._logps(self.member, part.batch, objective.temperature)
                kl_BT = losses.kl(objective.kl, logps_BT, reference_BT, mask_BT)
                if not part.spare:
                    kl_B = objectives.sequence_sum(kl_BT, mask_BT)
                    sums_PG[part.picked] = kl_B.view(len(part.picked), -1).float().cpu()
        return self.crew.sum(sums_PG)

    @everywhere("measuring likelihoods")
    def teacher_nll(self, prompts: Sequence[Prompt], replies: Sequence[TeacherReply]) -> list[float]:
        """Mean negative log-likelihood of each reply in nats per token, 0 for one of no tokens; nothing is trained."""
        rows = [self._imitation_row(prompt, reply) for prompt, reply in zip(prompts, replies, strict=True)]
        nll_P = torch.zeros(len(rows), dtype=torch.float64)
        with torch.no_grad(), self.member.using():
            for part in self._batcher.micro_batches(rows):
                logps_BT, _ = self._logps(self.member, part.batch)
                if not part.spare:
                    lengths_B = part.batch.readout.mask_BL.sum(-1).clamp(min=1)
                    nll_P[part.picked] = (-logps_BT.sum(-1) / lengths_B).double().cpu()
        values: list[float] = self.crew.sum(nll_P).tolist()
        return values

    @property
    def note(self) -> str:
        """Why the first micro-batch has the layout that it has; empty before it."""
        return self._costs.note

    def _accumulate(self, part: Part, objective: PolicyObjective, totals: Totals) -> Sums:
        """Backward pass of one micro-batch."""
        sampled, mask_BT = part.sampled, part.sampled.mask_BL
        read_N = predictors(part.batch.readout)
        below = self.member.below(part.batch)
        reference_BT = None
        if self._reference is not None and objective.kl.weight > 0:
            with torch.no_grad(), self._reference.using():
                states_MH = self._reference.passes.states(part.batch, read_N, below)
                reference_BT, _ = self._read(self._reference, states_MH, sampled, objective.temperature)
        with self.member.using():
            states_MH = self.member.passes.states(part.batch, read_N, below)
            logps_BT, entropies_BT = self._read(self.member, states_MH, sampled, objective.temperature)
            sums = Sums(tokens=float(tokens_of(part.batch)), entropy=entropies_BT.sum().item())
            found = weigh(logps_BT.detach(), mask_BT, part.sampler_logps, objective.importance_cap)
            sums.logp_gap, sums.importance, sums.capped = found.gap, found.total, found.capped
            loss = losses.policy(objective.policy_loss, logps_BT, part.advantages_B, mask_BT, totals, found.weights_BT)
            if reference_BT is not None:
                kl_BT = losses.kl(objective.kl, logps_BT, reference_BT, mask_BT)
                sums.kl = kl_BT.detach().sum().item()
                if objective.kl.in_loss:
                    loss = loss + objective.kl.weight * objectives.token_mean(kl_BT, mask_BT, totals.tokens)
            if part.imitated is not None:
                teacher_BT, _ = self._read(self.member, states_MH, part.imitated, 1.0)
                cross_entropy = objectives.token_cross_entropy(teacher_BT, part.imitated.mask_BL, totals.imitated)
                sums.cross_entropy = cross_entropy.item()
                loss = loss + objective.cross_entropy_weight * cross_entropy
            (loss * 0.0 if part.spare else loss).backward()
        sums.loss = loss.item()
        return Sums() if part.spare else sums

    def _logps(self, member: Member, batch: TokenBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        states_MH = member.passes.states(batch, predictors(batch.readout))
        return self._read(member, states_MH, batch.readout, temperature)

    def _read(self, member: Member, states_MH: Tensor, readout: Readout, temperature: float) -> tuple[Tensor, Tensor]:
        network = member.network
        return reply_logps(states_MH, readout, network.head_VH, temperature=temperature, softcap=network.softcap)

    def _imitation_row(self, prompt: Prompt, reply: TeacherReply) -> TokenGroup:
        encoded = self._codec.reply_ids(reply.text, finished=reply.finished)
        return TokenGroup(self._codec.prompt_ids(prompt), (encoded.token_ids,))

    def _sampled_rows(self, groups: Sequence[RolloutGroup]) -> list[TokenGroup]:
        return [self._policy_row(group, with_teacher=False) for group in groups]

    def _policy_row(self, group: RolloutGroup, *, with_teacher: bool) -> TokenGroup:
        replies = [rollout.token_ids for rollout in group.rollouts]
        if with_teacher:
            replies.append(self._codec.reply_ids(group.teacher.text, finished=group.teacher.finished).token_ids)
        return TokenGroup(self._codec.prompt_ids(group.example.prompt), tuple(replies))

    def _step(self, loss: float, batch: Callable[[], tuple[Row, ...]]) -> Metrics:
        self.updates += 1
        norm = self._updater.step(self.updates, loss)
        if norm is None:
            self.bad_steps += 1
            broken = [name for index, name in enumerate(self.member.names()) if index in self._updater.broken]
            self.evidence = Evidence(loss, self._updater.norm, tuple(broken), batch())
        return {"student/grad_norm": float("nan") if norm is None else norm, "student/skipped": float(norm is None)}

    def state(self) -> dict[str, Tensor]:
        """Everything that the next update depends on."""
        return {
            **{f"weights.{name}": value for name, value in self.member.state().items()},
            **{f"optimizer.{name}": value for name, value in self._updater.state().items()},
            "updates": torch.tensor(self.updates),
            "bad_steps": torch.tensor(self.bad_steps),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take what `state` gave."""
        self.member.load(entries(state, "weights."))
        self._updater.load(entries(state, "optimizer."))
        self._count(int(state["updates"]), int(state["bad_steps"]))

    @everywhere("taking up counts")
    def _count(self, updates: int, bad_steps: int) -> None:
        self.updates, self.bad_steps = updates, bad_steps
