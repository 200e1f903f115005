"""Signs that a game goes wrong, said while it is still cheap to stop it. They change nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

STEPS = 3
"""In a row, before a sign is believed: single steps of few replies stray."""
CUT, SHORT = 0.5, 0.5

Row = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sign:
    """What is wrong with a row of the log, and the way out."""

    seen: Callable[[Row], bool]
    what: str
    way_out: str


SIGNS = (
    Sign(
        lambda row: row.get("reply/truncated", 0.0) >= CUT,
        "half of the replies or more were cut at prompt.max_reply_tokens; where all replies to a prompt are cut, none "
        "of them tells the student to be shorter",
        "adversarial.length_guard, a lower adversarial.student.learning_rate, a higher "
        "adversarial.discriminator.learning_rate or adversarial.kl.weight; more prompt.max_reply_tokens if the "
        "teacher's replies are as long",
    ),
    Sign(
        lambda row: row.get("reply/length_ratio_to_teacher", 1.0) <= SHORT,
        "the replies are at most half as long as the teacher's",
        "adversarial.length_guard, a lower adversarial.student.learning_rate, a higher adversarial.kl.weight, or "
        "some of the teacher's texts in the loss (adversarial.cross_entropy_weight)",
    ),
    Sign(
        lambda row: row.get("reward/group_std", 1.0) == 0.0,
        "all replies to each prompt got the same reward, so that the student learned nothing",
        "a higher adversarial.sampling.temperature, more adversarial.replies_per_prompt, or a longer warm-up of the "
        "discriminator",
    ),
)


class Signs:
    """Each sign is told once, when it has been seen in so many steps in a row."""

    def __init__(self) -> None:
        self._seen = dict.fromkeys(SIGNS, 0)

    def of(self, step: int, row: Row) -> Iterator[str]:
        """One line for each sign that this row of the log is the last proof of."""
        for sign in self._seen:
            self._seen[sign] = self._seen[sign] + 1 if sign.seen(row) else 0
        for sign in [sign for sign, steps in self._seen.items() if steps == STEPS]:
            del self._seen[sign]
            yield f"in steps {step - STEPS + 1} to {step} {sign.what}. If that goes on, fork with {sign.way_out}"
