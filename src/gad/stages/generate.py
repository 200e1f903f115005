"""Replies for evaluation: every student, every set, every decoding, on disk as they come."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from gad.config.run import NamedDecoding
from gad.models.tokens import Codec
from gad.progress import Task
from gad.records import GeneratedReply, Prompt, Rollout
from gad.rollout.engine import Engine, Request
from gad.seeds import stable_seed
from gad.signals import StopRequest
from gad.stages.replies import read_replies
from gad.storage import JsonlWriter


def generate(
    path: Path,
    prompts: Sequence[Prompt],
    decoding: NamedDecoding,
    engine: Engine,
    codec: Codec,
    *,
    seed: int,
    batch_size: int,
    task: Task,
    stop: StopRequest,
    counts: Codec | None = None,
) -> None:
    """Write the replies that are not there yet. All arms get the same seeds for the same prompt.

    counts: counts and cuts replies in place of the codec of the model that wrote them, so that lengths compare.
    Batches are cut from the whole set, done or not: a set that was stopped half-way ends as if it never had been.
    """
    have = read_replies(path).keys()
    order = sorted(prompts, key=lambda prompt: (len(codec.prompt_ids(prompt)), prompt.id))
    with JsonlWriter(path) as writer:
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            if any(prompt.id not in have for prompt in batch):
                requests = [_request(prompt, codec, seed, decoding) for prompt in batch]
                for prompt, rollouts in zip(batch, engine.generate(requests, decoding.sampling), strict=True):
                    if prompt.id not in have:
                        writer.append(_reply(prompt, rollouts[0], counts).as_dict())
                task.advance(len(batch))
            stop.check()


def _request(prompt: Prompt, codec: Codec, seed: int, decoding: NamedDecoding) -> Request:
    return Request(prompt, codec.prompt_ids(prompt), (stable_seed(seed, "generate", decoding.name, prompt.id),))


def counted(prompt: Prompt, text: str, *, finished: bool, codec: Codec) -> GeneratedReply:
    """A text that another model wrote, in this codec's tokens, and cut as it would cut its own."""
    encoded = codec.reply_ids(text, finished=finished)
    kept = text.strip() if encoded.finished == finished else codec.text(encoded.token_ids)
    return GeneratedReply(prompt.id, prompt.messages, kept, len(encoded.token_ids), encoded.finished)


def _reply(prompt: Prompt, rollout: Rollout, counts: Codec | None) -> GeneratedReply:
    if counts is not None:
        return counted(prompt, rollout.text, finished=rollout.finished, codec=counts)
    return GeneratedReply(prompt.id, prompt.messages, rollout.text, len(rollout.token_ids), rollout.finished)
