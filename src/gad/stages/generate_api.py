"""Replies of a model behind an API, for evaluation: bought once each, the ledger in the model's reply folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from gad.config.teacher import ApiConfig, TeacherConfig
from gad.errors import ConfigError, TeacherError
from gad.models.tokens import Codec
from gad.progress import Task
from gad.records import Message, Prompt
from gad.signals import StopRequest
from gad.stages.collect_api import SUMMARY
from gad.stages.generate import counted
from gad.stages.replies import read_replies
from gad.storage import JsonlWriter, write_json
from gad.teacher.caller import ApiCaller
from gad.teacher.money import asked_messages
from gad.teacher.requests import ApiRequest, GivenUp

ENDPOINTS = "endpoints"
"""`endpoints/<model>/` holds the ledger, and `bill.json` what it comes to."""


def generate(
    path: Path, prompts: Sequence[Prompt], api: ApiConfig, folder: Path, codec: Codec, *, task: Task, stop: StopRequest
) -> None:
    """Write the replies that are not there yet, counted and cut by the student's tokens. folder: of the ledger.

    Raises what ApiCaller raises, Interrupted on a stop, and TeacherError where the endpoint would not reply to a
    prompt: models are compared on the same prompts.
    """
    by_id = {prompt.id: prompt for prompt in prompts}
    have = read_replies(path).keys()
    requests = [ApiRequest(key, _messages(api, prompt)) for key, prompt in by_id.items() if key not in have]
    task.advance(len(by_id) - len(requests))
    given_up: list[GivenUp] = []
    with (
        JsonlWriter(path) as writer,
        ApiCaller(api, folder, stop=lambda: stop.signal_number is not None) as caller,
    ):
        for outcome in caller.outcomes(requests, retry_failed=True):
            if isinstance(outcome, GivenUp):
                given_up.append(outcome)
                continue
            # Half a surrogate pair is no text to a tokenizer.
            text = (outcome.text or outcome.refusal or "").encode("utf-8", "replace").decode()
            writer.append(counted(by_id[outcome.id], text, finished=outcome.finished, codec=codec).as_dict())
            task.advance()
        write_json(folder / "bill.json", {"spent_usd": caller.bill.spent, "maybe_usd": caller.bill.maybe})
    stop.check()
    if given_up:
        first = given_up[0]
        raise TeacherError(
            f"{path.parent.name} ({api.model}) would not reply to {len(given_up)} of {len(prompts)} prompts of "
            f"{path.stem}, {first.id} first: {first.reason} ({first.message}). The other replies are kept. Run the "
            "same command to ask again, or take the model out of evaluation.models"
        )


def what_is_left(api: ApiConfig, run_folder: Path) -> ApiConfig:
    """The same, with the run's own teacher capped at what the collection left of its `max_cost_usd`.

    Raises ConfigError where nothing is left.
    """
    path = run_folder / SUMMARY
    if not isinstance(api, TeacherConfig) or api.max_cost_usd is None or not path.exists():
        return api
    collected = json.loads(path.read_text(encoding="utf-8"))
    left = api.max_cost_usd - collected["spent_usd"] - collected["maybe_usd"]
    if left <= 0.0:
        raise ConfigError(
            f"teacher.max_cost_usd={api.max_cost_usd:g} was used up by the collection; the teacher's replies to the "
            "sets of judging.sets would pass it: raise it to go on"
        )
    return api.model_copy(update={"max_cost_usd": left})


def _messages(api: ApiConfig, prompt: Prompt) -> tuple[Message, ...]:
    """The run's own teacher is asked as it was for the training set: with its system prompt."""
    return asked_messages(api, prompt) if isinstance(api, TeacherConfig) else prompt.messages
