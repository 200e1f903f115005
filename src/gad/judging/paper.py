"""The paper's judge (arXiv 2511.10643, evaluation): a reference reply of its own, then both scored from 1 to 10.

The form of question and answer is the paper's: helpfulness, relevance, accuracy and level of detail, both numbers on
the first line, the reference shown first; the wording is ours. Score = 100 * student / (student + reference), so that
50 is parity.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gad.judging.asking import Answer, Malformed, Question, Reading, Respondent, ask
from gad.judging.verdicts import Case, Judgement, ShownOrder, conversation, spoken
from gad.records import Message, Prompt
from gad.storage import JsonlWriter, read_jsonl
from gad.teacher.money import usual_tokens

SCORE_RANGE = (1.0, 10.0)

_QUESTION = """\
Two assistants have replied to the same user. Please rate each reply.

=== User ===
{prompt}

=== Reply of assistant 1 ===
{reference}

=== Reply of assistant 2 ===
{student}

=== Your task ===
Consider helpfulness, relevance, accuracy and level of detail. Give each reply one overall score from 1 to 10, where a \
higher score is better. The first line of your answer holds the two scores and nothing else: that of assistant 1, a \
space, that of assistant 2. From the second line on, explain your rating; do not let the order in which the replies \
are shown, or their length as such, influence you."""

WORDING_TOKENS = usual_tokens([Message("user", _QUESTION)])
"""Of the question without prompt and replies, about."""

_REMINDER = """\
I could not read your scores. Answer again. The first line must hold exactly two numbers from 1 to 10 with a space \
between them, the score of assistant 1 and the score of assistant 2, and nothing else."""

_PAIR = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)(?:[ \t]+|[ \t]*,[ \t]*)(-?[0-9]+(?:\.[0-9]+)?)")
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?")
_MANY = ("no number", "one number", "numbers and other text", "more than two numbers")


def paper_score(student: float, reference: float) -> float:
    """100 * student / (student + reference): 50 where both got the same."""
    return 100.0 * student / (student + reference)


def read_scores(answer: Answer) -> tuple[float, float] | Malformed:
    """(reference's, student's) from the first line: two numbers from 1 to 10 and nothing else.

    Strict on purpose: of "8/10 9/10" or a table one could guess the scores, and would now and then guess wrong.
    """
    text, _ = spoken(answer.text)
    if not text:
        return Malformed("empty")
    line = text.splitlines()[0].strip()
    found = _PAIR.fullmatch(line)
    if found is None:
        return Malformed(_MANY[min(len(_NUMBER.findall(line)), 3)])
    reference, student = float(found[1]), float(found[2])
    low, high = SCORE_RANGE
    if not (low <= reference <= high and low <= student <= high):
        return Malformed("score out of range")
    return reference, student


@dataclass(frozen=True, slots=True)
class ReferenceScoring:
    """The judge. references: file of the replies it wrote, one a prompt, kept for every student and every later run."""

    name: str
    model: str
    respondent: Respondent
    references: Path
    max_reference_tokens: int
    max_verdict_tokens: int

    @property
    def identity(self) -> str:
        return f"paper/{self.model}/{self.max_reference_tokens}/{_sha(_QUESTION)}"

    @property
    def writes_reference(self) -> bool:
        return True

    def orders(self, prompt_id: str) -> tuple[ShownOrder, ...]:  # noqa: ARG002
        """The reference is shown first, always, as in the paper; so position bias is in the score, alike for all."""
        return ("second",)

    def judge(self, cases: Sequence[Case]) -> Iterator[Judgement]:
        """Write the references that are missing, then score."""
        references = self._written({case.prompt.id: case.prompt for case in cases}.values())
        by_key = {case.key: case for case in cases}
        questions = []
        for case in cases:
            reference = references[_reference_key(case.prompt, self.model)]
            if reference.value is None:
                yield _without_reference(case, reference)
            else:
                text = _QUESTION.format(prompt=conversation(case.prompt), reference=reference.value, student=case.first)
                questions.append(Question(case.key, (Message("user", text),), self.max_verdict_tokens))
        for reading in ask(self.respondent, questions, read_scores, _REMINDER):
            yield _judgement(by_key[reading.key], reading)

    def _written(self, prompts: Iterable[Prompt]) -> dict[str, Reading[str]]:
        """Readings of reference replies by key, from the file or freshly asked for and written to it."""
        have = {row["key"]: row["reference"] for row in read_jsonl(self.references)}
        known: dict[str, Reading[str]] = {}
        questions = []
        for prompt in prompts:
            key = _reference_key(prompt, self.model)
            if key in have:
                known[key] = Reading(key, have[key], have[key], None, (), 0.0)
            elif key not in known:
                known[key] = Reading(key, None, "", "not asked", (), 0.0, answered=False)
                questions.append(Question(key, prompt.messages, self.max_reference_tokens))
        if questions:
            with JsonlWriter(self.references, durable=True) as writer:
                for reading in ask(self.respondent, questions, _read_reference, _EMPTY_REFERENCE):
                    known[reading.key] = reading
                    if reading.value is not None:
                        row = {"key": reading.key, "model": self.model, "reference": reading.value}
                        writer.append({**row, "cost_usd": reading.cost_usd})
        return known


_EMPTY_REFERENCE = "Your reply was empty. Please reply."


def _read_reference(answer: Answer) -> str | Malformed:
    text, _ = spoken(answer.text)
    return text or Malformed("empty")


def _without_reference(case: Case, reference: Reading[str]) -> Judgement:
    cost = reference.cost_usd
    problem = f"no reference reply ({reference.problem})"
    return Judgement(case, None, None, reference.raw, problem, reference.rejected, cost, final=reference.answered)


def _judgement(case: Case, reading: Reading[tuple[float, float]]) -> Judgement:
    cost = reading.cost_usd
    if reading.value is None:
        return Judgement(case, None, None, reading.raw, reading.problem, reading.rejected, cost, final=reading.answered)
    reference, student = reading.value
    preference = paper_score(student, reference) / 100.0
    return Judgement(case, preference, (student, reference), reading.raw, None, reading.rejected, cost)


def _reference_key(prompt: Prompt, model: str) -> str:
    turns = [[message.role, message.content] for message in prompt.messages]
    return _sha(json.dumps([model, turns]))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
