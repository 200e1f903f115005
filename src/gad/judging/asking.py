"""Questions to a model, and answers that may be of no use: read, counted, asked once more, never guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gad.records import Message

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Question:
    """One call. key: who asked, unique among the questions of a batch; logprobs: ask for the first token's odds."""

    key: str
    messages: tuple[Message, ...]
    max_tokens: int
    logprobs: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What the model said. logprobs: first token's likeliest alternatives -> log-probability; empty where not given."""

    key: str
    text: str
    cost_usd: float = 0.0
    logprobs: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class NoAnswer:
    """The endpoint refused this one question for good, e.g. one that is too long for the model."""

    key: str
    reason: str


class Respondent(Protocol):
    """A model behind an endpoint, or a script.

    answers: one Answer or NoAnswer for every question, in any order, as they come; questions are taken lazily.
    Raises TeacherError where going on makes no sense: no key, no connection, too expensive.
    """

    def answers(self, questions: Iterable[Question]) -> Iterator[Answer | NoAnswer]: ...


@dataclass(frozen=True, slots=True)
class Malformed:
    """An answer that is no verdict, and which kind of none it is (few kinds; they are counted by it)."""

    kind: str


@dataclass(frozen=True, slots=True)
class Reading(Generic[T]):
    """What came of one question.

    value: None where no answer could be read. problem: why the last one could not. raw: the last answer.
    rejected: malformed answers before the last one. answered: False where the endpoint gave none.
    """

    key: str
    value: T | None
    raw: str
    problem: str | None
    rejected: tuple[str, ...]
    cost_usd: float
    answered: bool = True

    @property
    def attempts(self) -> int:
        return len(self.rejected) + 1


def ask(
    respondent: Respondent, questions: Sequence[Question], read: Callable[[Answer], T | Malformed], reminder: str
) -> Iterator[Reading[T]]:
    """Read every answer; a malformed one is shown to the model with `reminder` and asked for once more.

    Good readings come as they are answered, second attempts at the end. A question never gets a made-up value.
    Raises ValueError where the respondent leaves a question without an answer, or answers one twice.
    """
    open_questions = {question.key: question for question in questions}
    if len(open_questions) != len(questions):
        raise ValueError("two questions share a key")
    again: dict[str, tuple[Question, str, float]] = {}
    for answer in respondent.answers(questions):
        question = _taken(open_questions, answer.key)
        reading = _read(answer, read, (), 0.0)
        if reading.answered and reading.value is None:
            turns = (Message("assistant", reading.raw or "(empty)"), Message("user", reminder))
            retry = Question(question.key, question.messages + turns, question.max_tokens, question.logprobs)
            again[answer.key] = (retry, reading.raw, reading.cost_usd)
        else:
            yield reading
    _all_answered(open_questions)
    open_questions = {key: retry for key, (retry, _, _) in again.items()}
    for answer in respondent.answers(list(open_questions.values())) if again else ():
        _taken(open_questions, answer.key)
        _, before, cost = again[answer.key]
        yield _read(answer, read, (before,), cost)
    _all_answered(open_questions)


def _read(
    answer: Answer | NoAnswer, read: Callable[[Answer], T | Malformed], rejected: tuple[str, ...], cost: float
) -> Reading[T]:
    if isinstance(answer, NoAnswer):
        return Reading(answer.key, None, "", f"no answer: {answer.reason}", rejected, cost, answered=False)
    found, cost = read(answer), cost + answer.cost_usd
    if isinstance(found, Malformed):
        return Reading(answer.key, None, answer.text, found.kind, rejected, cost)
    return Reading(answer.key, found, answer.text, None, rejected, cost)


def _taken(open_questions: dict[str, Question], key: str) -> Question:
    question = open_questions.pop(key, None)
    if question is None:
        raise ValueError(f"an answer to {key!r}, which was not asked or has its answer already")
    return question


def _all_answered(open_questions: Mapping[str, Question]) -> None:
    if open_questions:
        raise ValueError(
            f"{len(open_questions)} questions were left without an answer, e.g. {next(iter(open_questions))!r}"
        )
