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
from gad.storage import JsonlWriter, read_jsonl

REPLIES = "replies"


def replies_path(folder: Path, student: str, set_name: str, decoding: str, headline: str) -> Path:
    """`replies/<student>/<set>.jsonl` for the headline's decoding, `<set>@<decoding>.jsonl` for the others."""
    name = set_name if decoding == headline else f"{set_name}@{decoding}"
    return folder / REPLIES / student / f"{name}.jsonl"


def read_replies(path: Path) -> dict[str, GeneratedReply]:
    """Replies by prompt id."""
    return {row["id"]: GeneratedReply.from_dict(row) for row in read_jsonl(path)}


def missing(path: Path, prompts: Sequence[Prompt]) -> int:
    """How many prompts have no reply yet."""
    have = read_replies(path).keys()
    return sum(prompt.id not in have for prompt in prompts)


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
) -> None:
    """Write the replies that are not there yet. All arms get the same seeds for the same prompt.

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
                        writer.append(_reply(prompt, rollouts[0]).as_dict())
                task.advance(len(batch))
            stop.check()


def _request(prompt: Prompt, codec: Codec, seed: int, decoding: NamedDecoding) -> Request:
    return Request(prompt, codec.prompt_ids(prompt), (stable_seed(seed, "generate", decoding.name, prompt.id),))


def _reply(prompt: Prompt, rollout: Rollout) -> GeneratedReply:
    return GeneratedReply(prompt.id, prompt.messages, rollout.text, len(rollout.token_ids), rollout.finished)
