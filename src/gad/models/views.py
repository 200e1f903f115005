"""Views of a transformers backbone: the same weights, less of the work.

    first(backbone, n)     the first n layers, then the final norm
    below(backbone, n)     the first n layers alone
    above(backbone, n)     the others, from states that `below` gave
    narrowed(backbone)     in the last layer what is read alone: of all other tokens it needs keys and values only

A view shares every weight and every hook with its model. What differs from pass to pass (the states to go on from, the
tokens that are read) travels with the attention plan, so that it is there again when activations are recomputed.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, cast

import torch
from torch import Tensor, nn

from gad.models.attention import Carried

HOOKS = ("_forward_pre_hooks", "_forward_pre_hooks_with_kwargs")


def view(module: nn.Module, **children: nn.Module) -> nn.Module:
    """The same module with other children."""
    made: nn.Module = object.__new__(type(module))  # copy.copy would call the constructor of a sharded module
    made.__dict__.update(module.__dict__)
    made.__dict__.update({name: OrderedDict(module.__dict__[name]) for name in HOOKS})
    made._modules = {**module._modules, **children}
    return made


def first(backbone: nn.Module, count: int) -> nn.Module:
    """The first `count` layers, then the final norm."""
    return view(backbone, layers=nn.ModuleList(_layers(backbone)[:count]))


def below(backbone: nn.Module, count: int) -> nn.Module:
    """The first `count` layers without the final norm."""
    return view(backbone, layers=nn.ModuleList(_layers(backbone)[:count]), norm=nn.Identity())


def above(backbone: nn.Module, count: int) -> nn.Module:
    """All layers but the first `count`, which hand on the states that come with the plan.

    They stay in the list, so that a model which looks up something by a layer's place finds the right thing.
    """
    layers = _layers(backbone)
    return view(backbone, layers=nn.ModuleList([_Given(), *(_Skip() for _ in layers[1:count]), *layers[count:]]))


def narrowed(backbone: nn.Module) -> nn.Module:
    """With a last layer whose queries and MLP are computed for the tokens alone that come with the plan as `read_N`.

    What it gives for others means nothing. A layer that is built otherwise is left as it is.
    """
    *others, last = _layers(backbone)
    parts: Any = last
    if not can_narrow(parts):
        return backbone
    rows = _Rows()
    attention = view(
        parts.self_attn, q_proj=_Narrow(parts.self_attn.q_proj, rows), o_proj=_Narrow(parts.self_attn.o_proj, rows)
    )
    attention.register_forward_pre_hook(rows.take, with_kwargs=True)
    narrow = view(last, self_attn=attention, mlp=_Narrow(parts.mlp, rows))
    return view(backbone, layers=nn.ModuleList([*others, narrow]))


def _layers(backbone: nn.Module) -> list[nn.Module]:
    return list(cast(nn.ModuleList, backbone.layers))


def can_narrow(layer: Any) -> bool:
    """Whether `narrowed` knows the layer: queries have a projection of their own, the MLP takes tokens one by one."""
    attention, mlp = getattr(layer, "self_attn", None), getattr(layer, "mlp", None)
    return all(isinstance(getattr(attention, name, None), nn.Module) for name in ("q_proj", "o_proj")) and all(
        isinstance(getattr(mlp, name, None), nn.Module) for name in ("gate_proj", "up_proj", "down_proj")
    )


class _Given(nn.Module):
    """In the place of the first layer: the states that come with the plan."""

    def forward(self, states_RTH: Tensor, *_: Any, **kwargs: Any) -> Tensor:
        given: Carried = kwargs["plan"]
        return states_RTH if given.below_RTH is None else given.below_RTH


class _Skip(nn.Module):
    """In the place of a layer whose work is done."""

    def forward(self, states_RTH: Tensor, *_: Any, **__: Any) -> Tensor:
        return states_RTH


class _Rows:
    """The tokens that the layer is to be computed for: flat places in (rows, tokens), None for all."""

    def __init__(self) -> None:
        self.read_N: Tensor | None = None

    def take(self, _module: nn.Module, _arguments: Any, kwargs: dict[str, Any]) -> None:
        """From the plan, before anything else in the layer that asks."""
        self.read_N = kwargs["plan"].read_N


class _Narrow(nn.Module):
    """Computes the rows that are read; the others are zero."""

    def __init__(self, inner: nn.Module, rows: _Rows) -> None:
        super().__init__()
        self.inner = inner
        self._rows = rows

    def forward(self, x: Tensor) -> Tensor:
        read_N = self._rows.read_N
        if read_N is None:
            whole: Tensor = self.inner(x)
            return whole
        flat = x.flatten(0, -2)
        found: Tensor = self.inner(flat.index_select(0, read_N))
        spread = torch.zeros(len(flat), found.shape[-1], dtype=found.dtype, device=found.device)
        return spread.index_copy_(0, read_N, found).view(*x.shape[:-1], -1)
