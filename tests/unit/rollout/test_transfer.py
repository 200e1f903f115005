"""Weights as vLLM's weight transfer packs them, and what is said to NCCL."""

from __future__ import annotations

import base64
import ctypes
from typing import Any

import pytest
import torch

from gad.errors import ConfigError
from gad.rollout import nccl, transfer
from gad.rollout.transfer import Parcel


def parcel() -> Parcel:
    return Parcel.of(
        [
            ("a", torch.arange(6, dtype=torch.float32).view(2, 3)),
            ("b", torch.arange(4, dtype=torch.bfloat16)),
            ("c", torch.arange(10, dtype=torch.float32)[::2]),
            ("d", torch.ones(1, dtype=torch.float32)),
        ]
    )


def test_contents_are_vllms() -> None:
    assert parcel().contents() == {
        "names": ["a", "b", "c", "d"],
        "dtype_names": ["float32", "bfloat16", "float32", "float32"],
        "shapes": [[2, 3], [4], [5], [1]],
    }


def test_a_buffer_ends_with_the_tensor_that_brings_it_above_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """24, 8, 20 and 4 bytes: exactly full is not above, as vLLM's worker counts."""
    for size, lengths in ((31, [32, 24]), (32, [52, 4]), (0, [24, 8, 20, 4]), (1000, [56])):
        monkeypatch.setattr(transfer, "BUFFER_BYTES", size)
        buffers = list(parcel().buffers())
        assert [len(buffer_B) for buffer_B in buffers] == lengths
        whole = torch.cat(buffers)
        assert whole[:24].view(torch.float32).tolist() == [0, 1, 2, 3, 4, 5]
        assert whole[24:32].view(torch.bfloat16).tolist() == [0, 1, 2, 3]
        assert whole[32:52].view(torch.float32).tolist() == [0, 2, 4, 6, 8]


def test_copies_do_not_change_with_what_is_trained() -> None:
    weight = torch.ones(3)
    kept = Parcel.of([("w", weight)])
    weight.zero_()
    assert kept.weights[0][1].tolist() == [1, 1, 1]


class Library:
    """NCCL's functions as they are called; `fails` is the one that answers with an error."""

    def __init__(self, fails: str = "") -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._fails = fails

    def __getattr__(self, name: str) -> Any:
        def called(*arguments: Any) -> Any:
            self.calls.append((name, arguments))
            if name == "ncclGetErrorString":
                return b"unhandled system error"
            if name == "ncclGetUniqueId":
                ctypes.memmove(arguments[0], bytes(range(128)), 128)
            if name == "ncclCommInitRank":
                arguments[0]._obj.value = 4242
            return int(name == self._fails)

        return called


def test_workers_are_invited_with_the_id() -> None:
    link = nccl.NcclLink(Library(), 4, torch.device("cpu"))
    told = link.invitation()
    assert base64.b64decode(told.pop("nccl_unique_id_b64"), validate=True) == bytes(range(128))
    assert told == {
        "rank_offset": 1,
        "world_size": 5,
        "packed": True,
        "packed_buffer_size_bytes": transfer.BUFFER_BYTES,
    }


class Stream:
    """A stream of no GPU."""

    cuda_stream = 77


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of CUDA around the calls."""
    monkeypatch.setattr(torch.cuda, "device", lambda _: torch.no_grad())
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(nccl, "_wait", lambda stream: None)


@pytest.mark.usefixtures("no_gpu")
def test_a_trial_then_broadcasts_of_bytes_and_the_end() -> None:
    """The order and the arguments that `PyNcclCommunicator.from_unique_id_bytes` of vLLM 0.32 asks of its peer."""
    library = Library()
    link = nccl.NcclLink(library, 2, torch.device("cpu"))
    link.join()
    bytes_B = torch.arange(5, dtype=torch.uint8)
    link.send(bytes_B)
    link.close()
    link.close()
    names = [name for name, _ in library.calls]
    assert names == ["ncclGetUniqueId", "ncclCommInitRank", "ncclAllReduce", "ncclBroadcast", "ncclCommAbort"]
    made, trial, sent, ended = (arguments for _, arguments in library.calls[1:])
    assert (made[1], bytes(made[2]), made[3]) == (3, bytes(range(128)), 0)
    assert trial[0] == trial[1]
    assert (*trial[2:5], trial[5].value, trial[6]) == (1, 7, 0, 4242, 77)
    assert sent[0] == sent[1] == bytes_B.data_ptr()
    assert (*sent[2:5], sent[5].value, sent[6]) == (5, 1, 0, 4242, 77)
    assert ended[0].value == 4242


@pytest.mark.usefixtures("no_gpu")
def test_an_error_is_told_in_its_own_words() -> None:
    link = nccl.NcclLink(Library("ncclCommInitRank"), 1, torch.device("cpu"))
    with pytest.raises(RuntimeError, match="NCCL: unhandled system error"):
        link.join()


def test_a_broadcast_that_nobody_takes_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        def record(self, stream: Any) -> None:
            pass

        def query(self) -> bool:
            return False

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(nccl, "SECONDS", 0.05)
    with pytest.raises(TimeoutError, match=r"not taken within 0\.05 s"):
        nccl._wait(Stream())  # type: ignore[arg-type]


def test_without_a_gpu_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="sync=nccl needs a GPU that trains: write sync: weights"):
        nccl.library()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError("libnccl.so.2: cannot open")))
    with pytest.raises(ConfigError, match=r"torch brings no NCCL here \(libnccl.so.2"):
        nccl.library()
