"""Weights as files that vLLM servers read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

SHARD_BYTES = 2**30
"""Weights are written in files of about this size, so that a model need not be in memory a second time."""


def write_adapter(folder: Path, state: Mapping[str, Tensor], settings: Mapping[str, Any]) -> None:
    """As peft saves one."""
    tensors = {f"base_model.model.{name}": tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=1), encoding="utf-8")


def write_weights(folder: Path, weights: Iterable[tuple[str, Tensor]]) -> None:
    """All weights of a model, in as many files as they need."""
    shard: dict[str, Tensor] = {}
    files = 0
    for name, weight in weights:
        shard[name] = weight.cpu().contiguous()
        if sum(tensor.nbytes for tensor in shard.values()) >= SHARD_BYTES:
            save_file(shard, folder / f"model-{files:05d}.safetensors")
            shard, files = {}, files + 1
    if shard:
        save_file(shard, folder / f"model-{files:05d}.safetensors")
