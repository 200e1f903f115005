"""A link for weights on machines without GPU: gloo in NCCL's place, and all else as vLLM's weight transfer has it.

Both ends: `GlooLink` of the trainer, `join` and `receive` of a server's worker.
"""

from __future__ import annotations

import math
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gad.rollout.transfer import BUFFER_BYTES

PATIENCE = timedelta(seconds=20)


class GlooLink:
    """See `gad.rollout.transfer.Link`."""

    def __init__(self, workers: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self._size = workers + 1
        self._group: Any = None

    def invitation(self) -> dict[str, Any]:
        return {
            "master_address": "127.0.0.1",
            "master_port": self._port,
            "rank_offset": 1,
            "world_size": self._size,
            "packed": True,
            "packed_buffer_size_bytes": BUFFER_BYTES,
        }

    def join(self) -> None:
        self._group = _group(self.invitation(), 0)

    def send(self, bytes_B: Tensor) -> None:
        self._group.broadcast([bytes_B], _from_the_trainer()).wait()

    def close(self) -> None:
        self._group = None


def join(invitation: dict[str, Any], rank: int = 0) -> Any:
    """The group of a worker, whose rank among the workers this is."""
    return _group(invitation, invitation["rank_offset"] + rank)


def receive(
    group: Any, invitation: dict[str, Any], names: list[str], dtype_names: list[str], shapes: list[list[int]]
) -> Iterator[tuple[str, Tensor]]:
    """Buffers are cut as vLLM 0.32 cuts them in `packed_nccl_broadcast_consumer`."""
    parts: list[tuple[str, torch.dtype, list[int], int]] = []
    for place, (name, dtype_name, shape) in enumerate(zip(names, dtype_names, shapes, strict=True)):
        dtype = getattr(torch, dtype_name)
        parts.append((name, dtype, shape, math.prod(shape) * dtype.itemsize))
        size = sum(part[3] for part in parts)
        if size > invitation["packed_buffer_size_bytes"] or place == len(names) - 1:
            bytes_B = torch.empty(size, dtype=torch.uint8)
            group.broadcast([bytes_B], _from_the_trainer()).wait()
            for (each, kind, form, _), part in zip(parts, bytes_B.split([part[3] for part in parts]), strict=True):
                yield each, part.view(kind).view(form)
            parts = []


def _group(invitation: dict[str, Any], rank: int) -> Any:
    address, port = invitation["master_address"], invitation["master_port"]
    store = dist.TCPStore(address, port, is_master=rank == 0, wait_for_workers=False, timeout=PATIENCE)
    return dist.ProcessGroupGloo(store, rank, invitation["world_size"], PATIENCE)


def _from_the_trainer() -> Any:
    options = dist.BroadcastOptions()
    options.rootRank = 0
    return options
