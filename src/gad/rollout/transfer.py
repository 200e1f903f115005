"""All weights from this process's memory into a vLLM server's, as vLLM's weight transfer packs them. No disk.

A link joins this process with all workers of one server. Each server has a link of its own, so that one that dies takes
no other along.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

BUFFER_BYTES = 256 * 2**20
"""Weights travel in buffers of at least this size, the last one aside. Both sides must cut them alike."""


class Link(Protocol):
    """From this process to `workers` processes of one server. What a link raises is RuntimeError or OSError."""

    def invitation(self) -> dict[str, Any]:
        """What the workers are told so that they join."""
        ...

    def join(self) -> None:
        """Return once all have joined."""
        ...

    def send(self, bytes_B: Tensor) -> None:
        """Return once all have them."""
        ...

    def close(self) -> None:
        """Let go; whoever waits in one of the others is freed where that is possible."""
        ...


@dataclass(frozen=True, slots=True)
class Parcel:
    """The weights of one version. They are kept: a server that is started again later needs the same ones."""

    weights: tuple[tuple[str, Tensor], ...]

    @classmethod
    def of(cls, weights: Iterable[tuple[str, Tensor]]) -> Parcel:
        """Copies in the machine's memory: training goes on with the weights themselves."""
        return cls(tuple((name, weight.detach().to("cpu", copy=True).contiguous()) for name, weight in weights))

    def contents(self) -> dict[str, Any]:
        """`update_info` of vLLM's /update_weights."""
        return {
            "names": [name for name, _ in self.weights],
            "dtype_names": [str(weight.dtype).removeprefix("torch.") for _, weight in self.weights],
            "shapes": [list(weight.shape) for _, weight in self.weights],
        }

    def buffers(self) -> Iterator[Tensor]:
        """A buffer is full with the tensor that brings it above `BUFFER_BYTES`."""
        parts: list[Tensor] = []
        size = 0
        for _, weight in self.weights:
            parts.append(weight.view(-1).view(torch.uint8))
            size += weight.nbytes
            if size > BUFFER_BYTES:
                yield torch.cat(parts)
                parts, size = [], 0
        if parts:
            yield torch.cat(parts)

    def send(self, link: Link) -> None:
        for buffer_B in self.buffers():
            link.send(buffer_B)
