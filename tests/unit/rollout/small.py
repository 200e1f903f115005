"""A student as a folder that vLLM can serve too, and engines to sample from it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from gad.config.models import Lora
from gad.config.rollout import VllmServers
from gad.models.loading import load_model
from gad.models.network import Member, Network
from gad.records import Prompt
from gad.rollout.engine import Engine, Request
from gad.rollout.inspection import expected
from gad.rollout.local import LocalEngine
from gad.rollout.servers import ServerEngine
from support import tiny
from support.gloo_link import GlooLink
from support.vllm_server import Behaviour, VllmServer
from unit.models import plain

LIMIT = 12
LORA = Lora(rank=4, alpha=6.0)
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "head_dim": 32}
"""vLLM's attention on CPU wants heads of 32 channels at least."""
TEXTS = ("Hi", "Why is the sky blue?", "x", "A prompt that is longer than all the others by far", "né 🎈")


def folder(path: Path, seed: int = 0) -> Path:
    """A saved student that ends some replies early, some late, and cuts others."""
    model = tiny.model("qwen3", seed=seed, **plain.MILD, **SHAPE)
    model.get_output_embeddings().weight.data[tiny.tokenizer().eos_token_id] *= 3.0
    model.save_pretrained(path)
    saved = tiny.PreTrainedTokenizerFast(
        tokenizer_object=tiny.tokenizer().backend_tokenizer,
        eos_token=tiny.SPECIALS[0],
        pad_token=tiny.SPECIALS[2],
        additional_special_tokens=[tiny.SPECIALS[1]],
    )
    saved.chat_template = tiny.CHAT_TEMPLATE
    saved.save_pretrained(path)
    return path


def load(path: Path) -> Any:
    return load_model(str(path), dtype=torch.float32, device=torch.device("cpu"))


def student(path: Path, seed: int = 3) -> Member:
    """Its adapter is not the identity."""
    member = Network(load(path), LORA).member("student")
    plain.shake(member, torch.float32, seed=seed, scale=0.2)
    return member


def local(member: Member, version: int = 0) -> LocalEngine:
    engine = LocalEngine(member.network, tiny.codec(), max_reply_tokens=LIMIT, rows_per_batch=64, plain=None)
    engine.load_weights(member, version=version)
    return engine


def requests(replies: int = 1, texts: tuple[str, ...] = TEXTS, shift: int = 0) -> list[Request]:
    codec = tiny.codec()
    prompts = [Prompt.from_text(text, text) for text in texts]
    return [
        Request(prompt, codec.prompt_ids(prompt), tuple(1000 * index + reply + shift for reply in range(replies)))
        for index, prompt in enumerate(prompts)
    ]


def settings(urls: list[str], shared: Path, **changes: Any) -> VllmServers:
    """As in a run file, with times short enough for tests. What is said of NCCL here goes by gloo."""
    times = {"request_seconds": 60.0, "health_seconds": 5.0, "patience_seconds": 60.0}
    folder = {} if changes.get("sync") == "nccl" else {"sync_folder": shared}
    return VllmServers.model_validate({"urls": urls, **folder, **times, **changes})


def server_engine(member: Member, config: VllmServers, limit: int = LIMIT) -> ServerEngine:
    codec = tiny.codec()
    wants = expected(config, codec, "the-student")
    return ServerEngine(member.network, codec, config, wants, max_reply_tokens=limit, connect=GlooLink)


@contextmanager
def serving(path: Path, *behaviours: Behaviour) -> Iterator[list[VllmServer]]:
    """So many servers of a saved student."""
    servers = [VllmServer(lambda: load(path), behaviour) for behaviour in behaviours]
    with ExitStack() as stack:
        for server in servers:
            stack.enter_context(server.running())
        yield servers


def ids(engine: Engine, wanted: list[Request], sampling: Any) -> list[list[tuple[int, ...]]]:
    return [[reply.token_ids for reply in row] for row in engine.generate(wanted, sampling)]
