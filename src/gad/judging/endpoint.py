"""A respondent behind an OpenAI-compatible endpoint. The one file of the judging that imports `openai`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from typing import Any

from gad.config.judging import JudgeEndpoint
from gad.errors import ConfigError, TeacherError
from gad.judging.asking import Answer, NoAnswer, Question

TOP_LOGPROBS = 20
_CHARACTERS_PER_TOKEN = 2.0
"""For the cap alone, and low on purpose: English has about 4, so a question rarely costs more than reckoned."""


class EndpointRespondent:
    """Asks several questions at once, retries those that failed on the way, counts the money.

    Raises ConfigError where the environment variable of the key is not set. `spent_usd` grows as answers come.
    """

    def __init__(self, settings: JudgeEndpoint) -> None:
        from openai import OpenAI

        self._settings = settings
        self._key = _key(settings.api_key_env)
        self._client = OpenAI(
            api_key=self._key or "none",
            base_url=settings.base_url,
            timeout=settings.timeout_seconds,
            max_retries=settings.max_retries,
        )
        self._logprobs = True
        self.spent_usd = 0.0

    def answers(self, questions: Iterable[Question]) -> Iterator[Answer | NoAnswer]:
        """Answers as they come. Raises TeacherError for what no later question would escape,
        after the answers that were under way."""
        waiting: dict[Future[Answer | NoAnswer], float] = {}
        todo = iter(questions)
        failure: TeacherError | None = None
        with ThreadPoolExecutor(self._settings.concurrency) as pool:
            try:
                while True:
                    if failure is None:
                        failure = self._refill(waiting, todo, pool)
                    if not waiting:
                        break
                    done, _ = wait(waiting, return_when=FIRST_COMPLETED)
                    for future in done:
                        del waiting[future]
                        try:
                            answer = future.result()
                        except TeacherError as error:
                            failure = failure or error
                        else:
                            self.spent_usd += answer.cost_usd if isinstance(answer, Answer) else 0.0
                            yield answer
            finally:
                for future in waiting:
                    future.cancel()
        if failure is not None:
            raise failure

    def _refill(
        self, waiting: dict[Future[Answer | NoAnswer], float], todo: Iterator[Question], pool: ThreadPoolExecutor
    ) -> TeacherError | None:
        """Send questions until as many are under way as may be; an error where the cap forbids the next one."""
        for question in islice(todo, self._settings.concurrency - len(waiting)):
            price = self._price_of(question)
            too_much = self._above_the_cap(price + sum(waiting.values()))
            if too_much is not None:
                return too_much
            waiting[pool.submit(self._ask, question)] = price
        return None

    def _ask(self, question: Question) -> Answer | NoAnswer:
        import openai

        try:
            return self._asked(question)
        except (openai.BadRequestError, openai.UnprocessableEntityError) as error:
            return NoAnswer(question.key, self._without_key(_one_line(error)))
        except openai.APIConnectionError as error:
            raise TeacherError(
                f"the judge at {self._settings.base_url} cannot be reached ({_one_line(error)}): is the server up? "
                "Verdicts so far are kept; run `gad judge` again to go on"
            ) from None
        except openai.APIStatusError as error:
            if error.status_code == 413:
                return NoAnswer(question.key, self._without_key(_one_line(error)))
            raise TeacherError(
                f"the judge {self._settings.model} answers with status {error.status_code}: "
                f"{self._without_key(_one_line(error))}. Verdicts so far are kept; run `gad judge` again to go on"
            ) from None
        except openai.OpenAIError as error:
            raise TeacherError(f"the judge {self._settings.model}: {self._without_key(_one_line(error))}") from None

    def _asked(self, question: Question) -> Answer | NoAnswer:
        import openai

        wants = question.logprobs and self._logprobs
        try:
            reply = self._complete(question, wants)
        except openai.BadRequestError as error:
            if not wants or "logprob" not in str(error).lower():
                raise
            self._logprobs = False
            reply = self._complete(question, False)
        if not reply.choices:
            return NoAnswer(question.key, "an answer without choices")
        choice = reply.choices[0]
        return Answer(question.key, choice.message.content or "", self._cost(reply.usage), _first_odds(choice))

    def _complete(self, question: Question, logprobs: bool) -> Any:
        extra: dict[str, Any] = {"logprobs": True, "top_logprobs": TOP_LOGPROBS} if logprobs else {}
        if self._settings.temperature is not None:
            extra["temperature"] = self._settings.temperature
        messages: Any = [message.as_dict() for message in question.messages]
        return self._client.chat.completions.create(
            model=self._settings.model, messages=messages, max_completion_tokens=question.max_tokens, **extra
        )

    def _cost(self, usage: Any) -> float:
        if usage is None:
            return 0.0
        return self._usd(usage.prompt_tokens or 0, usage.completion_tokens or 0)

    def _usd(self, read: float, written: float) -> float:
        settings = self._settings
        return (read * settings.usd_per_million_input + written * settings.usd_per_million_output) / 1e6

    def _price_of(self, question: Question) -> float:
        characters = sum(len(message.content) for message in question.messages)
        return self._usd(characters / _CHARACTERS_PER_TOKEN, question.max_tokens)

    def _above_the_cap(self, coming: float) -> TeacherError | None:
        cap = self._settings.max_usd
        if cap is None or self.spent_usd + coming <= cap:
            return None
        return TeacherError(
            f"the judge {self._settings.model} has cost {self.spent_usd:.4f} USD, and the next answers may cost "
            f"{coming:.4f}: above max_usd={cap}. Verdicts so far are kept; raise the cap to go on"
        )

    def _without_key(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _key(variable: str | None) -> str | None:
    if variable is None:
        return None
    key = os.environ.get(variable, "")
    if not key:
        raise ConfigError(
            f"the judge's key is expected in the environment variable {variable}, which is not set: export it, or set "
            "api_key_env to null for an endpoint that needs none"
        )
    return key


def _first_odds(choice: Any) -> Mapping[str, float]:
    content = choice.logprobs.content if choice.logprobs is not None else None
    return {top.token: top.logprob for top in content[0].top_logprobs} if content else {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
