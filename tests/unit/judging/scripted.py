"""Judges with a known answer: a script in the place of the model, everything else as in use."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator

from gad.judging.asking import Answer, NoAnswer, Question
from gad.judging.comparison import Comparison
from gad.progress import Lines
from gad.records import GeneratedReply, Prompt
from gad.signals import StopRequest

SHOWN = re.compile(r"=== Reply A ===\n(.*?)\n\n=== Reply B ===\n(.*?)\n\n=== Your task ===", re.DOTALL)


class Scripted:
    """answer(question) -> text, Answer or NoAnswer. Keeps what it was asked."""

    def __init__(self, answer: Callable[[Question], str | Answer | NoAnswer], cost: float = 0.0) -> None:
        self._answer, self._cost = answer, cost
        self.asked: list[Question] = []

    def answers(self, questions: Iterable[Question]) -> Iterator[Answer | NoAnswer]:
        for question in questions:
            self.asked.append(question)
            given = self._answer(question)
            yield Answer(question.key, given, self._cost) if isinstance(given, str) else given


def choosing(choose: Callable[[str, str], str]) -> Callable[[Question], str]:
    """A script from what it shows: (reply A, reply B) -> A, B or T."""

    def answer(question: Question) -> str:
        a, b = SHOWN.search(question.messages[0].content).groups()
        return f"{choose(a, b)}\nbecause"

    return answer


def coin(seed: int) -> Callable[[str, str], str]:
    r = random.Random(seed)
    return lambda *_: r.choice("AB")


class Silent(Lines):
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


def replies(texts: dict[str, str], prompts: Iterable[Prompt]) -> dict[str, GeneratedReply]:
    return {p.id: GeneratedReply(p.id, p.messages, texts[p.id], len(texts[p.id].split()), True) for p in prompts}


def comparison(
    first: dict[str, str], second: dict[str, str], names: tuple[str, str] = ("gad", "teacher")
) -> Comparison:
    prompts = tuple(Prompt.from_text(key, f"question {key}") for key in first)
    return Comparison(*names, "held_out", prompts, replies(first, prompts), replies(second, prompts))


def going_on() -> StopRequest:
    return StopRequest()
