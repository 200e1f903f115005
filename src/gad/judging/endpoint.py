"""Any OpenAI-compatible endpoint as a respondent: the teacher's caller, with its ledger, limits, cap and resume."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from gad.config.judging import JudgeApi
from gad.judging.asking import Answer, NoAnswer, Question
from gad.signals import StopRequest
from gad.teacher.caller import ApiCaller
from gad.teacher.requests import ApiRequest, GivenUp, Outcome

TOP_LOGPROBS = 20
"""As many alternatives as OpenAI and vLLM give, so that all three letters are among them."""


class EndpointRespondent:
    """Answers are bought once: the ledger in `folder` keeps them, and the next run takes them from there.

    A request that was given up is tried again by the next run. An endpoint that refuses to give odds is asked without
    them from then on; each verdict says how it was read.
    """

    def __init__(self, config: JudgeApi, folder: Path, stop: StopRequest) -> None:
        self._config, self._folder, self._stop = config, folder, stop
        self._odds: bool | None = None
        """Whether the endpoint gives odds; None until the first question has shown it."""

    def answers(self, questions: Iterable[Question]) -> Iterator[Answer | NoAnswer]:
        """As `Respondent`. Raises what `ApiCaller` raises, and Interrupted on a stop."""
        waiting = iter(questions)
        with ApiCaller(self._config, self._folder, stop=self._stopping) as caller:
            if self._odds is None:
                yield from self._first(caller, waiting)
            for outcome in caller.outcomes(map(self._request, waiting), retry_failed=True):
                yield _read(outcome)
        self._stop.check()

    def _first(self, caller: ApiCaller, waiting: Iterator[Question]) -> Iterator[Answer | NoAnswer]:
        """Questions one at a time until one has shown whether the endpoint gives odds, or none is left."""
        for question in waiting:
            for outcome in caller.outcomes([self._request(question)], retry_failed=True):
                if question.logprobs and isinstance(outcome, GivenUp) and "logprob" in outcome.message.lower():
                    self._odds = False
                    yield from map(_read, caller.outcomes([self._request(question)], retry_failed=True))
                else:
                    self._odds = True if question.logprobs and not isinstance(outcome, GivenUp) else None
                    yield _read(outcome)
            if self._odds is not None or not question.logprobs:
                return

    def _request(self, question: Question) -> ApiRequest:
        top = TOP_LOGPROBS if question.logprobs and self._odds is not False else None
        return ApiRequest(question.key, question.messages, max_tokens=question.max_tokens, top_logprobs=top)

    def _stopping(self) -> bool:
        return self._stop.signal_number is not None


def _read(outcome: Outcome) -> Answer | NoAnswer:
    if isinstance(outcome, GivenUp):
        return NoAnswer(outcome.id, f"{outcome.reason} ({outcome.message})" if outcome.message else outcome.reason)
    odds = {} if outcome.reasoning else outcome.logprobs
    return Answer(outcome.id, outcome.text or outcome.refusal or "", outcome.cost_usd, odds)
