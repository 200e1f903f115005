"""Sampling by vLLM inside this process. The one file that imports vllm.

Weights go from the trained model into vLLM's copy without touching disk. On a GPU vLLM keeps its own copy of the model
and a cache of keys and values beside what trains: `memory_share` is its part.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from gad.config.rollout import VllmEngine as VllmConfig
from gad.config.training import Sampling
from gad.crew import Crew
from gad.errors import ConfigError, MissingExtra, RolloutError, is_out_of_memory
from gad.models.network import Member, Network
from gad.models.tokens import Codec
from gad.records import Rollout
from gad.rollout.engine import Request

_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # weights are handed over as tensors of this process
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # the update uses the same cores
    "VLLM_CONFIGURE_LOGGING": "0",  # a run's output is its own
}


def check(crew: Crew) -> None:
    """Raises MissingExtra without vLLM, ConfigError for a run of several processes."""
    if crew.size > 1:
        raise ConfigError(
            f"compute.engine.kind=vllm is for a run of one process, this one has {crew.size}: use vllm_server, or local"
        )
    if find_spec("vllm") is None:
        raise MissingExtra("vLLM rollouts", "vllm")


class VllmEngine:
    """See `Engine`."""

    def __init__(
        self,
        network: Network,
        codec: Codec,
        config: VllmConfig,
        model: str,
        *,
        context: int,
        max_reply_tokens: int,
        trust_remote_code: bool = False,
    ) -> None:
        """model: a folder or a Hugging Face name, of the student before training. context: tokens of the longest row.

        Raises what `check` raises, and RolloutError where vLLM does not start.
        """
        check(network.crew)
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(config.cpu_cache_gib))
        self._codec, self._limit = codec, max_reply_tokens
        self._version: int | None = None
        threads = torch.get_num_threads()
        self._vllm: Any = _started(
            model=model,
            dtype=str(network.dtype).removeprefix("torch."),
            max_model_len=context,
            gpu_memory_utilization=config.memory_share,
            enforce_eager=not config.compile,
            trust_remote_code=trust_remote_code,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            disable_log_stats=True,
            seed=0,
            # on CPU 0.32 dies of a seeded request whose prompt is read in parts: "Generator does not use offset"
            enable_chunked_prefill=False if network.device.type == "cpu" else None,
        )
        torch.set_num_threads(threads)

    def counts(self) -> dict[str, float]:
        """Nothing can go wrong on the way."""
        return {}

    def load_weights(self, member: Member, *, version: int) -> None:
        """All weights, adapters merged, straight into vLLM's model; what it cached of prompts is dropped."""
        with torch.no_grad():
            weights = member.network.everything(member.name)
            self._vllm.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})
        self._vllm.reset_prefix_cache()
        self._version = version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """Raises RolloutError where no weights were loaded, or vLLM fails."""
        if self._version is None:
            raise RolloutError("no weights: call load_weights before generate")
        wanted = [(request, seed) for request in requests for seed in request.seeds]
        try:
            outputs = self._vllm.generate(
                [{"prompt_token_ids": list(request.prompt_ids)} for request, _ in wanted],
                [_parameters(seed, self._limit, sampling, self._codec.stop_ids) for _, seed in wanted],
                use_tqdm=False,
            )
        except (RuntimeError, ValueError) as error:
            way_out = "; lower compute.engine.memory_share" if is_out_of_memory(error) else ""
            raise RolloutError(f"vLLM failed ({_first_line(error)}){way_out}") from error
        replies = iter(output.outputs[0] for output in outputs)
        return [[self._rollout(request, next(replies), sampling) for _ in request.seeds] for request in requests]

    def begin(self, requests: Sequence[Request], sampling: Sampling) -> Callable[[], list[list[Rollout]]]:
        """Samples at once: the device is the one that trains."""
        replies = self.generate(requests, sampling)
        return lambda: replies

    def _rollout(self, request: Request, output: Any, sampling: Sampling) -> Rollout:
        ids = tuple(output.token_ids)
        cut = sampling.top_p < 1.0 or sampling.top_k > 0
        logps = tuple(by_id[token].logprob for token, by_id in zip(ids, output.logprobs, strict=True))
        assert self._version is not None
        return Rollout(
            prompt_id=request.prompt.id,
            token_ids=ids,
            text=self._codec.text(ids),
            finished=output.finish_reason == "stop",
            logps=() if cut else tuple(min(0.0, logp) for logp in logps),
            policy_version=self._version,
        )


def _started(**settings: Any) -> Any:
    try:
        from vllm import LLM
    except (ImportError, RuntimeError, OSError) as error:
        raise RolloutError(
            f"vLLM is installed but cannot be imported ({_first_line(error)}): it wants an environment of its own, see "
            "docs/scaling.md"
        ) from error
    try:
        return LLM(**settings)
    except (RuntimeError, ValueError, OSError, AssertionError) as error:
        raise RolloutError(
            f"vLLM does not start with {settings['model']} ({_first_line(error)}); its own words stand above with "
            "VLLM_CONFIGURE_LOGGING=1"
        ) from error


def _parameters(seed: int, limit: int, sampling: Sampling, stop_ids: frozenset[int]) -> Any:
    from vllm import SamplingParams

    return SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k or -1,
        seed=seed,
        max_tokens=limit,
        stop_token_ids=sorted(stop_ids),
        ignore_eos=True,
        logprobs=0,
        detokenize=False,
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
