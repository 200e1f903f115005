"""Who samples replies: the trained model itself, vLLM beside it, or vLLM servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from gad.config.base import Section
from gad.config.models import Quantization
from gad.config.teacher import ApiUrl, EnvironmentVariable


class LocalEngine(Section):
    """The training model's own arithmetic, on any device, in every process."""

    kind: Literal["local"] = "local"


class VllmEngine(Section):
    """vLLM inside the training process: `pip install 'gad[vllm]'`. For a run of one process."""

    kind: Literal["vllm"] = "vllm"
    memory_share: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.4
    """Of the GPU's memory, for vLLM's weights and cache; what trains needs the rest. Without effect on CPU."""
    cpu_cache_gib: PositiveInt = 1
    """Size of vLLM's cache of keys and values on a machine without GPU."""
    compile: bool = False
    """Let vLLM compile and record graphs: minutes at the start, then faster. Off is vLLM's `enforce_eager`."""


class VllmServers(Section):
    """vLLM servers, on this machine or others. `docs/scaling.md` has the command that starts one."""

    kind: Literal["vllm_server"] = "vllm_server"
    urls: tuple[ApiUrl, ...]
    """Each server's address without a path, e.g. http://10.0.0.7:8000."""
    sync_folder: Path | None = None
    """A folder that this process writes and all servers read, under the same name: a shared file system, or /dev/shm
    where they are on this machine. `sync: nccl` needs none."""
    sync: Literal["adapter", "weights", "nccl"] = "adapter"
    """What servers are handed after each update, and how: through `sync_folder` the LoRA adapter alone, megabytes, or
    all weights; with `nccl` all weights from GPU to GPU, which touches no disk."""
    model: str | None = None
    """The name under which the servers offer the model; empty takes the only one they offer."""
    api_key_env: EnvironmentVariable | None = None
    """Name of the environment variable that holds the servers' key, where they were started with one."""
    requests_per_server: PositiveInt = 64
    """Replies that are asked for at a time; vLLM batches them."""
    request_seconds: PositiveFloat = 600.0
    """A reply that takes longer is asked for again, at another server where there is one."""
    health_seconds: PositiveFloat = 5.0
    """How often a server at work is asked whether it lives, and how long it has to answer."""
    patience_seconds: PositiveFloat = 300.0
    """So long all servers may be away, starting or restarting, before the run stops."""

    @model_validator(mode="after")
    def _servers_differ(self) -> VllmServers:
        if not self.urls:
            raise ValueError("`urls` names no server")
        if len(set(self.urls)) < len(self.urls):
            raise ValueError(f"`urls` names a server twice: {', '.join(self.urls)}")
        return self

    @model_validator(mode="after")
    def _weights_have_a_way(self) -> VllmServers:
        if self.sync == "nccl" and self.sync_folder is not None:
            raise ValueError(f"`sync_folder`: {self.sync_folder} with sync: nccl, which needs none: leave it out")
        if self.sync != "nccl" and self.sync_folder is None:
            raise ValueError(f"`sync_folder` is not set: sync: {self.sync} needs a folder that all servers see")
        return self


Engine = Annotated[LocalEngine | VllmEngine | VllmServers, Field(discriminator="kind")]


def quantization_mistakes(quantization: Quantization | None, engine: Engine, merge_adapters: bool) -> Iterator[str]:
    """Why replies would not be sampled from the quantized base that is trained on, or not with its memory."""
    if quantization is None:
        return
    if isinstance(engine, LocalEngine) and merge_adapters:
        yield (
            f"student.quantization.kind={quantization.kind} needs compute.merge_adapters=false: adapters are merged "
            "into a whole second base that is not quantized, more memory than quantization saves"
        )
    if isinstance(engine, VllmServers) and engine.sync == "adapter":
        yield (
            f"student.quantization.kind={quantization.kind} needs compute.engine.sync=weights or nccl: the servers' "
            "base is another than the quantized one that the adapter is trained on"
        )
