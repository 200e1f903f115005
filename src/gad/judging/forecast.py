"""How many questions a judge will be asked, what that will about cost, and what so many prompts can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

from gad.config.judging import JudgeConfig, JudgingConfig, PairwiseJudge, PaperJudge
from gad.judging.pairwise import RUBRIC, WORDING_TOKENS
from gad.judging.paper import WORDING_TOKENS as PAPER_WORDING_TOKENS
from gad.judging.statistics import detectable_points, prompts_needed
from gad.records import Message
from gad.teacher.money import USUAL_REPLY, cost, prices_of, usual_tokens
from gad.teacher.requests import Usage

_LETTER_AND_REASON = 40
_SCORES_AND_REASONS = 150
"""Tokens of an ordinary answer in the form that is asked for."""


@dataclass(frozen=True, slots=True)
class Workload:
    """A set to judge. models: that take part in any pair. prompt_tokens, reply_tokens: means, about."""

    set_name: str
    prompts: int
    pairs: int
    models: int
    prompt_tokens: float
    reply_tokens: float


@dataclass(frozen=True, slots=True)
class Forecast:
    """USD. at_most: every answer as long as is allowed, and every question asked twice. source: of the prices."""

    calls: int
    expected: float
    at_most: float
    source: str


def forecast(judge: JudgeConfig, work: Sequence[Workload]) -> Forecast:
    """Of everything, what was answered before included. Raises ConfigError for a cap without a price."""
    listed = prices_of(judge.api)
    calls, expected, at_most = 0, 0.0, 0.0
    for each in work:
        for number, asked, answer, longest in _questions(judge, each):
            calls += number
            expected += number * cost(listed.prices, Usage(round(asked), round(min(answer, longest))))
            at_most += 2 * number * cost(listed.prices, Usage(round(asked + longest), longest))
    return Forecast(calls, expected, at_most, listed.source)


def power_note(prompts: int) -> str:
    """What so many prompts can show, in a sentence."""
    return (
        f"{prompts} prompts show a difference of {detectable_points(prompts):.1f} points or more from 50 four times in "
        f"five; one of 5 points takes {prompts_needed(5.0)}"
    )


def announcement(config: JudgingConfig, work: Sequence[Workload]) -> list[tuple[str, str]]:
    """What so many prompts can show ("power"), and what every judge may cost. Raises ConfigError as `forecast`."""
    lines = [("power", power_note(size)) for size in sorted({each.prompts for each in work})]
    for judge in config.judges:
        found, cap = forecast(judge, work), judge.api.max_cost_usd
        capped = "" if cap is None else f"; never more than {cap:g} USD (max_cost_usd)"
        bill = f"{found.calls:,} questions, about {found.expected:.2f} USD, at most {found.at_most:.2f}{capped}"
        lines.append((judge.name, f"{bill}; prices of {judge.api.model}: {found.source}"))
    return lines


def _questions(judge: JudgeConfig, work: Workload) -> list[tuple[int, float, float, int]]:
    """(how many, tokens asked, tokens of an ordinary answer, tokens of the longest answer) of each kind of question."""
    match judge:
        case PairwiseJudge():
            orders = 2 if judge.orders == "both" else 1
            rubric = usual_tokens([Message("user", judge.rubric or RUBRIC)])
            asked = WORDING_TOKENS + rubric + work.prompt_tokens + 2 * work.reply_tokens
            return [(work.prompts * work.pairs * orders, asked, _LETTER_AND_REASON, judge.max_verdict_tokens)]
        case PaperJudge():
            reference = min(USUAL_REPLY, judge.max_reference_tokens)
            asked = PAPER_WORDING_TOKENS + work.prompt_tokens + reference + work.reply_tokens
            return [
                (work.prompts, work.prompt_tokens, reference, judge.max_reference_tokens),
                (work.prompts * work.models, asked, _SCORES_AND_REASONS, judge.max_verdict_tokens),
            ]
        case _:
            assert_never(judge)
