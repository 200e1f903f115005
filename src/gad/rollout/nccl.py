"""A link from this GPU to the GPUs of one vLLM server. The one file that speaks NCCL, by the library that torch brings.

vLLM's workers join by an id that is made here, sum one number as a trial, and take part in a broadcast a buffer. torch
has no way to leave a broadcast whose other side died; NCCL's own interface has.
"""

from __future__ import annotations

import base64
import ctypes
import time
from typing import Any

import torch
from torch import Tensor

from gad.errors import ConfigError
from gad.rollout.transfer import BUFFER_BYTES

SECONDS = 300.0
"""For a buffer to arrive."""
_UINT8, _FLOAT32, _SUM = 1, 7, 0


class _Id(ctypes.Structure):
    _fields_ = (("internal", ctypes.c_byte * 128),)


_POINTER, _INT, _SIZE = ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t
_FUNCTIONS: dict[str, list[Any]] = {
    "ncclGetUniqueId": [ctypes.POINTER(_Id)],
    "ncclCommInitRank": [ctypes.POINTER(_POINTER), _INT, _Id, _INT],
    "ncclAllReduce": [_POINTER, _POINTER, _SIZE, _INT, _INT, _POINTER, _POINTER],
    "ncclBroadcast": [_POINTER, _POINTER, _SIZE, _INT, _INT, _POINTER, _POINTER],
    "ncclCommAbort": [_POINTER],
}


def library() -> Any:
    """Raises ConfigError where there is no GPU or no NCCL."""
    if not torch.cuda.is_available():
        raise ConfigError("compute.engine.sync=nccl needs a GPU that trains: write sync: weights, or sync: adapter")
    try:
        found = ctypes.CDLL("libnccl.so.2")
    except OSError as error:
        raise ConfigError(
            f"compute.engine.sync=nccl: torch brings no NCCL here ({error}); write sync: weights, or sync: adapter"
        ) from error
    for name, arguments in _FUNCTIONS.items():
        getattr(found, name).argtypes = arguments
        getattr(found, name).restype = _INT
    found.ncclGetErrorString.argtypes, found.ncclGetErrorString.restype = [_INT], ctypes.c_char_p
    return found


class NcclLink:
    """See `Link`. workers: processes of the server; device: the GPU that sends."""

    def __init__(self, nccl: Any, workers: int, device: torch.device) -> None:
        self._nccl, self._size, self._device = nccl, workers + 1, device
        self._id, self._comm = _Id(), _POINTER()
        self._check(nccl.ncclGetUniqueId(ctypes.byref(self._id)))

    def invitation(self) -> dict[str, Any]:
        return {
            "nccl_unique_id_b64": base64.b64encode(bytes(self._id)).decode(),
            "rank_offset": 1,
            "world_size": self._size,
            "packed": True,
            "packed_buffer_size_bytes": BUFFER_BYTES,
        }

    def join(self) -> None:
        with torch.cuda.device(self._device):
            self._check(self._nccl.ncclCommInitRank(ctypes.byref(self._comm), self._size, self._id, 0))
            trial = torch.zeros(1, device=self._device)
            stream = torch.cuda.current_stream()
            place = trial.data_ptr()
            self._check(
                self._nccl.ncclAllReduce(place, place, 1, _FLOAT32, _SUM, self._comm, stream.cuda_stream),
            )
            _wait(stream)

    def send(self, bytes_B: Tensor) -> None:
        with torch.cuda.device(self._device):
            there_B = bytes_B.to(self._device)
            stream = torch.cuda.current_stream()
            place = there_B.data_ptr()
            self._check(self._nccl.ncclBroadcast(place, place, len(there_B), _UINT8, 0, self._comm, stream.cuda_stream))
            _wait(stream)

    def close(self) -> None:
        if self._comm:
            comm, self._comm = self._comm, _POINTER()
            self._nccl.ncclCommAbort(comm)

    def _check(self, result: int) -> None:
        if result != 0:
            raise RuntimeError(f"NCCL: {self._nccl.ncclGetErrorString(result).decode()}")


def _wait(stream: torch.cuda.Stream) -> None:
    """Raises TimeoutError; a plain wait for a broadcast whose other side died has no end."""
    done = torch.cuda.Event()
    done.record(stream)
    deadline = time.monotonic() + SECONDS
    while not done.query():
        if time.monotonic() > deadline:
            raise TimeoutError(f"the weights were not taken within {SECONDS:g} s")
        time.sleep(0.001)
