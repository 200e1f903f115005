"""What needs a model in the evaluation: the independent discriminator's preference and the teacher's likelihood.

Both are written a line per prompt; `summarize` turns them into figures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from gad.errors import TrainingStopped
from gad.models.tokens import Codec
from gad.records import Example, GeneratedReply, Rollout, RolloutGroup, TeacherReply
from gad.storage import read_jsonl, write_jsonl
from gad.training.discriminator import DiscriminatorTrainer
from gad.training.student import StudentTrainer

SCORES = "scores"
LIKELIHOODS = "likelihoods"


def scores_path(folder: Path, student: str, set_name: str, decoding: str) -> Path:
    """Scores of the independent discriminator, a line per prompt."""
    return folder / SCORES / student / f"{set_name}@{decoding}.jsonl"


def likelihood_path(folder: Path, student: str, set_name: str) -> Path:
    """The student's negative log-likelihood of the teacher's reply, a line per prompt."""
    return folder / LIKELIHOODS / student / f"{set_name}.jsonl"


def score(
    replies: Mapping[Path, Mapping[str, GeneratedReply]],
    examples: Sequence[Example],
    independent: DiscriminatorTrainer,
    codec: Codec,
) -> None:
    """Score the teacher and several students on every prompt of a set, in one pass: prompt and teacher are read once.

    replies: by the file that a student's scores go to. What is there already is not written again.
    """
    groups = [
        group(example, example.replies[0], [student[example.prompt.id] for student in replies.values()], codec)
        for example in examples
    ]
    teacher_P, student_PG = independent.score(groups)
    for path, student_P in zip(replies, student_PG.unbind(dim=1), strict=True):
        if not path.exists():
            rows = zip(examples, teacher_P.tolist(), student_P.tolist(), strict=True)
            write_jsonl(path, ({"id": e.prompt.id, "teacher": high, "student": low} for e, high, low in rows))


def likelihood(path: Path, examples: Sequence[Example], student: StudentTrainer) -> None:
    """Nats per token of the teacher's reply. Raises TrainingStopped for a student that gives no finite ones."""
    values = student.teacher_nll([e.prompt for e in examples], [e.replies[0] for e in examples])
    broken = [e.prompt.id for e, value in zip(examples, values, strict=True) if not math.isfinite(value)]
    if broken:
        raise TrainingStopped(
            f"the student {path.parent.name} has diverged: its likelihood of the teacher's reply is not finite for "
            f"{len(broken)} of {len(values)} prompts, {broken[0]} first. Begin again under another name with a lower "
            "learning rate (`gad fork` keeps the stages before it); checkpoints and replies are as they were"
        )
    write_jsonl(path, ({"id": e.prompt.id, "nll": value} for e, value in zip(examples, values, strict=True)))


def read_column(path: Path, column: str) -> dict[str, float]:
    """One column of a file above, by prompt id."""
    return {row["id"]: row[column] for row in read_jsonl(path)}


def group(example: Example, teacher: TeacherReply, replies: Sequence[GeneratedReply], codec: Codec) -> RolloutGroup:
    """Replies from disk beside one of the teacher's, as a discriminator reads them."""
    return RolloutGroup(example, teacher, tuple(_rollout(reply, codec) for reply in replies))


def _rollout(reply: GeneratedReply, codec: Codec) -> Rollout:
    ids = codec.reply_ids(reply.completion, finished=reply.finished).token_ids or (codec.end_id,)
    return Rollout(reply.id, ids, reply.completion, reply.finished)
