"""From the run file to who samples the student's replies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, assert_never

from gad.config.rollout import LocalEngine as LocalConfig
from gad.config.rollout import VllmEngine as VllmConfig
from gad.config.rollout import VllmServers
from gad.config.run import RunConfig
from gad.crew import Crew
from gad.models.loading import resolve
from gad.models.network import Network
from gad.models.tokens import Codec
from gad.rollout import inspection, vllm
from gad.rollout.engine import Engine
from gad.rollout.inspection import expected
from gad.rollout.local import LocalEngine
from gad.rollout.nccl import library
from gad.rollout.servers import ServerEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def engine(
    config: RunConfig,
    network: Network,
    plain: PreTrainedModel | None,
    codec: Codec,
    prompt_limit: Callable[[], int],
) -> Engine:
    """The engine that `compute.engine` names. plain: a copy to merge adapters into, where `needs_plain_copy`."""
    compute, student, limit = config.compute, config.student, config.prompt.max_reply_tokens
    match compute.engine:
        case VllmServers() as servers:
            wants = expected(servers, codec, student.model)
            return ServerEngine(network, codec, servers, wants, max_reply_tokens=limit)
        case VllmConfig() as settings:
            return vllm.VllmEngine(
                network,
                codec,
                settings,
                resolve(student.model),
                context=prompt_limit() + limit,
                max_reply_tokens=limit,
                trust_remote_code=student.trust_remote_code,
            )
        case LocalConfig():
            rows = compute.rows_per_sampling_batch
            return LocalEngine(network, codec, max_reply_tokens=limit, rows_per_batch=rows, plain=plain)
        case _:
            assert_never(compute.engine)


def needs_plain_copy(config: RunConfig) -> bool:
    """Whether the engine merges adapters into a copy of the base; vLLM has a copy of its own."""
    return config.compute.merge_adapters and isinstance(config.compute.engine, LocalConfig)


def check_engine(config: RunConfig, codec: Codec, crew: Crew) -> None:
    """What would come out at the first reply is said before anything is computed.

    Raises MissingExtra without vLLM where it is asked for, ConfigError or RolloutError where vLLM servers are named
    that will not do, do not answer, or could not be given weights from here.
    """
    match config.compute.engine:
        case VllmServers() as servers:
            if servers.sync == "nccl":
                library()
            inspection.check(servers, expected(servers, codec, config.student.model))
        case VllmConfig():
            vllm.check(crew)
        case LocalConfig():
            pass
        case _:
            assert_never(config.compute.engine)
