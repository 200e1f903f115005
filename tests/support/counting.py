"""Counts what processes send each other, where torch sends it: every collective with the bytes of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {
    "c10d::_allgather_base_": ("all_gather", 0),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", 1),
    "c10d::allreduce_": ("all_reduce", 0),
    "c10d::broadcast_": ("broadcast", 0),
    "_c10d_functional::all_gather_into_tensor": ("all_gather", None),
    "_c10d_functional::reduce_scatter_tensor": ("reduce_scatter", 0),
    "_c10d_functional::all_reduce": ("all_reduce", 0),
}
"""What each is called here, and which argument is the whole tensor; None: what it returns is."""


class Counting(TorchDispatchMode):
    """Within the block: `calls` and `bytes` of whole tensors by kind of collective, and `largest` by kind.

    A collective of a kind that is not known is an error: nothing is left uncounted.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not name.startswith(("c10d::", "_c10d_functional::")):
            return result
        if name in KINDS:
            kind, place = KINDS[name]
            self.calls[kind] += 1
            self.bytes[kind] += _bytes(result if place is None else args[place])
        elif name not in ("_c10d_functional::wait_tensor", "_c10d_functional::_wrap_tensor_autograd"):
            self.calls[name] += 1  # gathers of objects, barriers: not the model's
        return result


def _bytes(whole: Any) -> int:
    if isinstance(whole, torch.Tensor):
        return whole.numel() * whole.element_size()
    return sum(_bytes(each) for each in whole if isinstance(each, Tensor | list | tuple))
