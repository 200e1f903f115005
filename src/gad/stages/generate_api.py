"""Replies of a model behind an API, for evaluation: bought once each, the ledger in the model's reply folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gad.config.teacher import ApiConfig
from gad.errors import TeacherError
from gad.models.tokens import Codec
from gad.progress import Task
from gad.records import Prompt
from gad.signals import StopRequest
from gad.stages.generate import counted
from gad.stages.replies import read_replies
from gad.storage import JsonlWriter, write_json
from gad.teacher.caller import ApiCaller
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
    requests = [ApiRequest(key, prompt.messages) for key, prompt in by_id.items() if key not in have]
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
            text = outcome.text or outcome.refusal or ""
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
