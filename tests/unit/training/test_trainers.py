"""Both trainers with their real optimizers: resuming, skipped steps, figures on the side."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gad.config.models import Full, Tuning
from gad.config.training import (
    BatchScaled,
    BradleyTerry,
    Clipped,
    Kl,
    LeaveOneOut,
    MeanOnly,
    Optimizer,
    StdScaled,
)
from gad.models.network import Member
from gad.records import Example
from gad.training import losses
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.optimizer import Updater
from gad.training.student import PolicyObjective, StudentTrainer
from unit.models import plain
from unit.training import game

OPTIMIZER = Optimizer(learning_rate=0.01, schedule="linear", max_grad_norm=1.0)
OBJECTIVE = PolicyObjective(Clipped(), Kl(weight=0.1), 0.2, game.TEMPERATURE, game.LIMIT)


def student(member: Member, reference: Member | None = None, budget: int = 200) -> StudentTrainer:
    updater = Updater(member.parameters(), OPTIMIZER, total_steps=6)
    return StudentTrainer(
        member, game.codec(), game.batcher(member.network.config, budget=budget), updater, reference=reference
    )


def discriminator(member: Member, *, frozen: bool = False) -> DiscriminatorTrainer:
    made = game.scorer(member)
    updater = None if frozen else Updater(made.parameters(), OPTIMIZER, total_steps=6)
    return DiscriminatorTrainer(made, game.batcher(member.network.config, budget=200), BradleyTerry(), updater)


def step(one: StudentTrainer, two: DiscriminatorTrainer) -> list[float]:
    """A step of the game; all its figures but the times."""
    groups = game.groups()
    rewards_PG, first = two.update(groups)
    second = one.update(groups, losses.advantages(MeanOnly(), rewards_PG), OBJECTIVE)
    third = one.imitate([(group.example, group.teacher) for group in groups])
    figures = {**first, **second, **third}
    return [value for name, value in figures.items() if not name.startswith("time/")] + rewards_PG.flatten().tolist()


def players(tuning: Tuning) -> dict[str, Member]:
    return game.players("qwen2", tuning, dtype=torch.float32)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("tuning", [game.LORA, Full()], ids=["lora", "full"])
def test_resuming_equals_never_having_stopped(tuning: Tuning) -> None:
    """Bit for bit: two steps, a stop, three more; figures, weights and moments."""
    first = players(tuning)
    one, two = student(first["student"], first["reference"]), discriminator(first["discriminator"])
    for _ in range(2):
        step(one, two)
    saved = [{name: tensor.clone() for name, tensor in part.state().items()} for part in (one, two)]
    frozen = {name: tensor.clone() for name, tensor in first["reference"].state().items()}
    expected = [step(one, two) for _ in range(3)]

    other = players(tuning)
    for member in other.values():
        plain.shake(member, torch.float32, seed=77)
    again, twin = student(other["student"], other["reference"]), discriminator(other["discriminator"])
    twin.scorer.head_H.data.fill_(9.0)
    other["reference"].load(frozen)
    again.load(saved[0])
    twin.load(saved[1])
    assert (again.updates, twin.updates) == (4, 2)
    assert [step(again, twin) for _ in range(3)] == expected
    assert same(again.state(), one.state())
    assert same(twin.state(), two.state())


def test_a_step_moves_the_player_and_nobody_else() -> None:
    members = players(game.LORA)
    before = {name: {n: t.clone() for n, t in member.state().items()} for name, member in members.items()}
    discriminator(members["discriminator"]).update(game.groups())
    assert [same(before[name], member.state()) for name, member in members.items()] == [True, False, True]
    student(members["student"], members["reference"]).update(game.groups(), torch.randn(4, 3), OBJECTIVE)
    assert [same(before[name], member.state()) for name, member in members.items()] == [False, False, True]


def test_the_two_updates_commute() -> None:
    """The student's rewards come from the scores before the discriminator's update, whichever is made first."""
    groups = game.groups()
    states = []
    for order in ("discriminator first", "student first"):
        members = players(game.LORA)
        one, two = student(members["student"], members["reference"]), discriminator(members["discriminator"])
        _, scores_PG = two.score(groups)
        advantages_PG = losses.advantages(MeanOnly(), scores_PG)
        if order == "student first":
            one.update(groups, advantages_PG, OBJECTIVE)
        rewards_PG, _ = two.update(groups)
        assert torch.equal(rewards_PG, scores_PG)
        if order == "discriminator first":
            one.update(groups, losses.advantages(MeanOnly(), rewards_PG), OBJECTIVE)
        states.append({**one.state(), **{f"d.{name}": tensor for name, tensor in two.state().items()}})
    assert same(*states)


def test_training_lowers_the_loss_and_raises_the_margin() -> None:
    members = players(game.LORA)
    one, two = student(members["student"]), discriminator(members["discriminator"])
    losses_seen = [two.update(game.groups())[1] for _ in range(5)]
    assert losses_seen[-1]["discriminator/loss"] < losses_seen[0]["discriminator/loss"] - 0.02
    assert losses_seen[-1]["discriminator/margin"] > losses_seen[0]["discriminator/margin"] + 0.02
    examples = [(group.example, group.teacher) for group in game.groups()]
    seen = [one.imitate(examples)["student/cross_entropy"] for _ in range(5)]
    assert seen[-1] < seen[0] - 0.1


def test_rewarded_replies_become_likelier_and_punished_ones_less_likely() -> None:
    members = players(game.LORA)
    trainer = student(members["student"])
    objective = PolicyObjective(Clipped(), Kl(weight=0.0), 0.0, game.TEMPERATURE, game.LIMIT)
    groups = game.groups()
    advantages_PG = torch.tensor([[0.0, 1.0, -1.0], [0.0, 1.0, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    reference = plain.Plain("qwen2", members["student"], game.LORA)

    def logps(which: int) -> float:
        reference.leaves = dict(members["student"].state())
        return sum(
            float(sum(reference.logps(game.codec().prompt_ids(g.example.prompt), g.rollouts[which].token_ids)))
            for g in groups[:2]
        )

    with torch.no_grad():
        before = [logps(1), logps(2)]
    for _ in range(5):
        trainer.update(groups, advantages_PG, objective)
    with torch.no_grad():
        after = [logps(1), logps(2)]
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted() -> None:
    members = players(game.LORA)
    one, two = student(members["student"]), discriminator(members["discriminator"])
    bad_PG = torch.full((4, 3), math.inf)
    before = {name: tensor.clone() for name, tensor in members["student"].state().items()}
    metrics = one.update(game.groups(), bad_PG, OBJECTIVE)
    assert math.isnan(metrics["student/grad_norm"])
    assert same(before, members["student"].state())
    assert (one.bad_steps, one.updates, int(one.state()["bad_steps"])) == (1, 1, 1)
    assert math.isfinite(one.update(game.groups(), torch.randn(4, 3), OBJECTIVE)["student/grad_norm"])
    assert (one.bad_steps, one.updates) == (1, 2)

    head = two.scorer.head_H.detach().clone()
    two.scorer.head_H.data[0] = math.nan
    before = {name: tensor.clone() for name, tensor in members["discriminator"].state().items()}
    assert math.isnan(two.update(game.groups())[1]["discriminator/grad_norm"])
    assert same(before, members["discriminator"].state())
    assert (two.bad_steps, two.updates) == (1, 1)
    two.scorer.head_H.data.copy_(head)
    assert math.isfinite(two.update(game.groups())[1]["discriminator/grad_norm"])
    assert (two.bad_steps, two.updates) == (1, 2)


def test_a_frozen_discriminator_scores_and_stays() -> None:
    members = players(game.LORA)
    frozen, free = discriminator(members["discriminator"], frozen=True), discriminator(members["discriminator"])
    before = {name: tensor.clone() for name, tensor in frozen.state().items()}
    rewards_PG, metrics = frozen.update(game.groups())
    assert same(before, frozen.state())
    assert "discriminator/grad_norm" not in metrics
    assert (frozen.updates, free.updates) == (0, 0)
    assert torch.equal(rewards_PG, free.update(game.groups())[0])
    assert free.updates == 1
    assert not torch.equal(rewards_PG, free.score(game.groups())[1])
    frozen.load(before)
    assert same(before, frozen.state())


def test_figures_of_the_discriminator_by_hand() -> None:
    """A head that reads nothing but the length of the last state: ranks by hand from the scores."""
    members = players(game.LORA)
    trainer = discriminator(members["discriminator"])
    teacher_P, student_PG = trainer.score(game.groups())
    _, metrics = trainer.update(game.groups())
    pairs = [(t, s) for t, row in zip(teacher_P.tolist(), student_PG.tolist(), strict=True) for s in row]
    right = [1.0 if t > s else 0.5 if t == s else 0.0 for t, s in pairs]
    assert set(right) == {0.0, 0.5, 1.0}
    assert metrics["discriminator/accuracy_fresh"] == pytest.approx(sum(right) / 12)
    assert metrics["discriminator/margin"] == pytest.approx(sum(t - s for t, s in pairs) / 12, rel=1e-5)
    assert metrics["discriminator/teacher_score"] == pytest.approx(sum(teacher_P.tolist()) / 4, rel=1e-5)
    expected = sum(math.log1p(math.exp(s - t)) for t, s in pairs) / 12
    assert metrics["discriminator/loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("budget", [100, 4096])
def test_negative_log_likelihood_of_replies(budget: int) -> None:
    """Per token, by rows alone; asked in any order, answered in that order."""
    members = players(game.LORA)
    trainer = student(members["student"], budget=budget)
    groups = game.groups()
    order = [2, 0, 3, 1]
    found = trainer.teacher_nll([groups[i].example.prompt for i in order], [groups[i].teacher for i in order])
    reference = plain.Plain("qwen2", members["student"], game.LORA)
    for value, index in zip(found, order, strict=True):
        group = groups[index]
        ids = game.canonical(group.teacher.text, finished=group.teacher.finished)
        logps = reference.logps(game.codec().prompt_ids(group.example.prompt), ids)
        assert value == pytest.approx(-sum(logp.item() for logp in logps) / len(ids), rel=1e-4)


def test_imitation_is_the_mean_over_all_tokens() -> None:
    members = players(game.LORA)
    groups = game.groups()
    reference = plain.Plain("qwen2", members["student"], game.LORA)
    logps = [
        logp.item()
        for group in groups
        for logp in reference.logps(
            game.codec().prompt_ids(group.example.prompt),
            game.canonical(group.teacher.text, finished=group.teacher.finished),
        )
    ]
    metrics = student(members["student"]).imitate([(group.example, group.teacher) for group in groups])
    assert metrics["student/cross_entropy"] == pytest.approx(-sum(logps) / len(logps), rel=1e-5)
    assert metrics["tokens/imitated"] == len(logps)


@pytest.mark.parametrize(
    ("estimator", "of"),
    [
        ("k1", lambda d: -d),
        ("k2", lambda d: d * d / 2),
        ("k3", lambda d: math.exp(d) - d - 1),
    ],
)
def test_kl_of_whole_replies_for_the_reward(estimator: str, of: Any) -> None:
    members = game.players("qwen2", dtype=torch.float64)
    trainer = student(members["student"], members["reference"])
    kl = Kl.model_validate({"estimator": estimator, "place": "reward", "weight": 0.5})
    objective = PolicyObjective(Clipped(), kl, 0.0, game.TEMPERATURE, game.LIMIT)
    before = {name: tensor.clone() for name, tensor in members["student"].state().items()}
    found_PG = trainer.kl_sums(game.groups(), objective)
    policy, frozen = (plain.Plain("qwen2", members[name], game.LORA) for name in ("student", "reference"))
    for row, group in zip(found_PG.tolist(), game.groups(), strict=True):
        prompt = game.codec().prompt_ids(group.example.prompt)
        for value, rollout in zip(row, group.rollouts, strict=True):
            pairs = zip(
                policy.logps(prompt, rollout.token_ids, game.TEMPERATURE),
                frozen.logps(prompt, rollout.token_ids, game.TEMPERATURE),
                strict=True,
            )
            assert value == pytest.approx(sum(of(r.item() - p.item()) for p, r in pairs), rel=1e-5, abs=1e-6)
    assert same(before, members["student"].state())
    weighted, free = (
        trainer_loss(members, PolicyObjective(Clipped(), changed, 0.0, game.TEMPERATURE, game.LIMIT))
        for changed in (kl, Kl(weight=0.0))
    )
    assert weighted == free


def trainer_loss(members: dict[str, Member], objective: PolicyObjective) -> float:
    """A KL term that is in the reward is not in the loss once more."""
    trainer, _ = game.student(members["student"], game.batcher(members["student"].network.config), members["reference"])
    return trainer.update(game.groups(), torch.ones(4, 3), objective)["student/loss"]


def test_a_student_equal_to_its_reference_has_no_kl() -> None:
    members = players(game.LORA)
    members["reference"].load(members["student"].state())
    metrics = student(members["student"], members["reference"]).update(game.groups(), torch.randn(4, 3), OBJECTIVE)
    assert metrics["student/kl_to_reference"] == pytest.approx(0.0, abs=1e-7)


def test_a_reference_that_nothing_pulls_to_is_watched_on_the_first_prompt() -> None:
    members = game.players("qwen2", dtype=torch.float64)
    trainer = student(members["student"], members["reference"])
    objective = PolicyObjective(Clipped(), Kl(weight=0.0), 0.0, game.TEMPERATURE, game.LIMIT)
    first = game.groups()[0]
    prompt = game.codec().prompt_ids(first.example.prompt)
    policy, frozen = (plain.Plain("qwen2", members[name], game.LORA) for name in ("student", "reference"))
    expected = [
        math.exp(r.item() - p.item()) - (r.item() - p.item()) - 1
        for rollout in first.rollouts
        for p, r in zip(
            policy.logps(prompt, rollout.token_ids, game.TEMPERATURE),
            frozen.logps(prompt, rollout.token_ids, game.TEMPERATURE),
            strict=True,
        )
    ]
    metrics = trainer.update(game.groups(), torch.ones(4, 3), objective)
    assert metrics["student/kl_to_reference"] == pytest.approx(sum(expected) / len(expected), rel=1e-5)
    assert metrics["student/kl_to_reference"] > 0


def test_a_teacher_reply_of_which_nothing_fits() -> None:
    """One token may be written, the reply begins with a character of four: an empty row is no error, and no news."""
    members = players(game.LORA)
    member = members["student"]
    updater = Updater(member.parameters(), OPTIMIZER, total_steps=6)
    trainer = StudentTrainer(member, game.codec(limit=1), game.batcher(member.network.config), updater)
    group = game.group("a", "Hi", game.TeacherReply("🎈"), (game.END,))
    metrics = trainer.imitate([(Example(group.example.prompt, (group.teacher,)), group.teacher)])
    assert (metrics["student/cross_entropy"], metrics["tokens/imitated"]) == (0.0, 0)
    assert trainer.bad_steps == 0


REWARDS = torch.tensor([[1.0, 2.0, 6.0], [5.0, 5.0, 5.0]])


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (MeanOnly(), [[-2.0, -1.0, 3.0], [0.0, 0.0, 0.0]]),
        (StdScaled(), [[-2 / math.sqrt(7), -1 / math.sqrt(7), 3 / math.sqrt(7)], [0.0, 0.0, 0.0]]),
        (BatchScaled(), [[x / math.sqrt(14 / 6) for x in (-2.0, -1.0, 3.0)], [0.0, 0.0, 0.0]]),
        (LeaveOneOut(), [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_every_kind_of_advantage(config: Any, expected: list[list[float]]) -> None:
    found = losses.advantages(config, REWARDS).tolist()
    assert [x for row in found for x in row] == pytest.approx([x for row in expected for x in row], rel=1e-5)
