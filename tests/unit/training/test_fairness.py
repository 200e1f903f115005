"""Teacher and student are told apart by what they say alone: the same text gives the same row and the same score."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gad.config.training import CrossEntropy, Kl, LeastSquares, Reinforce
from gad.models.tokens import Codec
from gad.records import Example, Prompt, Rollout, RolloutGroup, TeacherReply
from gad.training.student import PolicyObjective
from unit.models import plain
from unit.training import game

LAYOUTS = ("padded", "tree", "cache", "auto")
TEXTS = ["the inn", "ça va 🎈", "<|end|> is text, so is <|start|>user", "in\nthere", "漢字", "a  b"]


def spellings(text: str, *, finished: bool) -> list[tuple[int, ...]]:
    """Ids that a student could have sampled for a text: canonical, byte by byte, half and half, with white space."""
    canonical = game.canonical(text, finished=finished)
    bytewise = game.spelled(text, finished=finished)
    half = len(text) // 2
    mixed = (*game.spelled(text[:half], finished=False), *game.canonical_raw(text[half:]), *([game.END] * finished))
    return [canonical, bytewise, mixed, game.spelled(f" \n{text}\t ", finished=finished)]


def same_text(text: str, *, finished: bool, made_by: Codec) -> RolloutGroup:
    """A group whose four replies all say what the teacher says."""
    teacher = TeacherReply(text, finished=finished)
    rollouts = tuple(
        Rollout("p", ids, made_by.text(ids), finished=finished) for ids in spellings(text, finished=finished)
    )
    return RolloutGroup(Example(Prompt.from_text("p", f"Say {text[:5]}"), (teacher,)), teacher, rollouts)


def scores(
    groups: Sequence[RolloutGroup], layout: str, made_by: Codec, budget: int = 4096
) -> tuple[Tensor, Tensor, float]:
    """Scores of teacher and student by a discriminator with strong weights, and its loss."""
    _, (member,) = plain.network("qwen2", game.LORA, "discriminator", dtype=torch.float32)
    made = game.scorer(member, made_by=made_by)
    trainer, _ = game.discriminator(made, game.batcher(member.network.config, layout, budget))
    teacher_P, student_PG = trainer.score(groups)
    _, metrics = trainer.update(groups)
    assert metrics["discriminator/accuracy_fresh"] == 0.5
    assert metrics["discriminator/margin"] == 0.0
    return teacher_P, student_PG, metrics["discriminator/loss"]


def test_the_spellings_differ() -> None:
    """Without this the tests below might compare a row with itself."""
    for text in TEXTS:
        assert len({*spellings(text, finished=True)}) >= (2 if text in ("漢字", "ça va 🎈", "a  b") else 3), text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("pad_is_end", [True, False])
def test_equal_texts_give_equal_scores_and_exactly_log_2(layout: str, finished: bool, pad_is_end: bool) -> None:
    made_by = game.codec(pad_is_end=pad_is_end, limit=60)
    groups = [same_text(text, finished=finished, made_by=made_by) for text in TEXTS[:4]]
    teacher_P, student_PG, loss = scores(groups, layout, made_by)
    assert torch.equal(student_PG, teacher_P[:, None].expand(4, 4))
    assert len(set(teacher_P.tolist())) == 4
    assert teacher_P.std() > 0.5
    assert loss == torch.tensor(math.log(2), dtype=torch.float32).item()


def test_log_2_to_the_last_bit_of_float64() -> None:
    made_by = game.codec(limit=60)
    with plain.wide():
        _, (member,) = plain.network("gemma2", game.LORA, "discriminator")
        made = game.scorer(member, made_by=made_by)
        trainer, kept = game.discriminator(made, game.batcher(member.network.config))
        _, metrics = trainer.update([same_text("the inn", finished=True, made_by=made_by)])
    assert metrics["discriminator/loss"] == math.log(2)
    assert max(float(gradient.abs().max()) for gradient in kept.gradients.values()) < 1e-15


@pytest.mark.parametrize("text", TEXTS)
def test_nothing_is_learnt_from_equal_texts(text: str) -> None:
    """The gradient is zero, weights and head: there is no shortcut to climb."""
    made_by = game.codec(limit=60)
    _, (member,) = plain.network("qwen2", game.LORA, "discriminator", dtype=torch.float32)
    trainer, kept = game.discriminator(
        game.scorer(member, made_by=made_by), game.batcher(member.network.config, "padded")
    )
    trainer.update([same_text(text, finished=True, made_by=made_by)])
    assert max(float(gradient.abs().max()) for gradient in kept.gradients.values()) < 1e-6


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_anchor_of_the_other_losses(layout: str) -> None:
    """A head of zero: cross-entropy is 2 log 2, least squares 1."""
    made_by = game.codec(limit=60)
    groups = [same_text(text, finished=True, made_by=made_by) for text in TEXTS[:2]]
    for loss, anchor in ((CrossEntropy(), 2 * math.log(2)), (LeastSquares(), 1.0)):
        _, (member,) = plain.network("qwen2", game.LORA, "discriminator", dtype=torch.float32)
        made = game.scorer(member, made_by=made_by)
        made.head_H.data.zero_()
        trainer, _ = game.discriminator(made, game.batcher(member.network.config, layout), loss)
        assert trainer.update(groups)[1]["discriminator/loss"] == pytest.approx(anchor, rel=1e-7)


def test_rows_by_hand() -> None:
    """Finished replies end with end-of-text on both sides, cut ones on neither; white space is gone on both."""
    made_by = game.codec()
    teacher = TeacherReply("\n the inn ", finished=True)
    rollouts = tuple(
        Rollout("p", ids, made_by.text(ids), finished=ids[-1] == game.END)
        for ids in (
            game.spelled("the inn", finished=True),
            game.spelled("the inn", finished=False),
            (game.END,),
            game.spelled(" ", finished=False),
        )
    )
    group = RolloutGroup(Example(Prompt.from_text("p", "x"), (teacher,)), teacher, rollouts)
    _, (member,) = plain.network("qwen2", game.LORA, "discriminator")
    row, places = game.scorer(member).row(group)
    words = game.canonical("the inn", finished=False)
    assert row.replies == ((*words, game.END), words, (game.END,), ())
    assert places == [0, 0, 1, 2, 3]


@pytest.mark.parametrize("limit", [6, 7, 8, 9])
def test_a_reply_at_the_limit(limit: int) -> None:
    """'abcdefg' has 7 tokens and end-of-text. The student is cut at the limit; the teacher's text is cut alike."""
    made_by = game.codec(limit=limit)
    sampled = game.spelled("abcdefg", finished=True)[:limit]
    finished = sampled[-1] == game.END
    rollout = Rollout("p", sampled, made_by.text(sampled), finished=finished)
    teacher = TeacherReply("abcdefg")
    group = RolloutGroup(Example(Prompt.from_text("p", "x"), (teacher,)), teacher, (rollout,))
    _, (member,) = plain.network("qwen2", game.LORA, "discriminator")
    row, places = game.scorer(member, made_by=made_by).row(group)
    assert finished == (limit >= 8)
    assert row.replies == (sampled,)
    assert places == [0, 0]


def test_the_policy_loss_takes_the_ids_as_sampled() -> None:
    """No spelling is mended, no white space dropped, nothing appended: what was drawn is what is trained."""
    _, (member,) = plain.network("qwen2", game.LORA, "student")
    spy = game.SpyBatcher(game.batcher(member.network.config))
    trainer, _ = game.student(member, spy)
    groups = game.groups()
    for weight in (0.0, 0.5):
        objective = PolicyObjective(Reinforce(), Kl(weight=0.0), weight, game.TEMPERATURE, game.LIMIT)
        trainer.update(groups, torch.ones(4, 3, dtype=torch.float64), objective)
        for row, group in zip(spy.groups, groups, strict=True):
            sampled = tuple(rollout.token_ids for rollout in group.rollouts)
            imitated = (game.canonical(group.teacher.text, finished=group.teacher.finished),) if weight else ()
            assert row.replies == (*sampled, *imitated)
    assert game.spelled("  the inn\n", finished=True) == spy.groups[0].replies[0]


def test_imitation_takes_the_canonical_row() -> None:
    _, (member,) = plain.network("qwen2", game.LORA, "student")
    spy = game.SpyBatcher(game.batcher(member.network.config))
    trainer, _ = game.student(member, spy)
    replies = [TeacherReply(" the inn\n"), TeacherReply("the inn", finished=False)]
    trainer.imitate([(Example(Prompt.from_text("p", "x"), (reply,)), reply) for reply in replies])
    assert [row.replies[0] for row in spy.groups] == [
        game.canonical("the inn", finished=True),
        game.canonical("the inn", finished=False),
    ]
