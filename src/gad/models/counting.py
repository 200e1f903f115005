"""A model's arithmetic, read off its modules."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import nn

from gad.flops import Arithmetic, Layer
from gad.models import views
from gad.models.network import Network

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Settings of models whose tokens go through some of the weights only."""
READ = ("mlp.", "self_attn.q_proj", "self_attn.o_proj")
"""What of a last layer is computed for tokens that are read alone (`views.narrowed`)."""


def arithmetic(network: Network, member: str | None, *, layers: int | None = None) -> Arithmetic | None:
    """What a member's passes cost; of its first `layers` layers where given.

    member: None for a plain copy with merged weights. None is returned for a mixture of experts: which weights a token
    meets is not known beforehand.
    """
    config = network.config
    if any(getattr(config, name, None) for name in EXPERTS):
        return None
    backbone: Any = network.backbone(layers)
    whole = network.trained_whole and member is not None
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    last = len(backbone.layers) - 1
    narrow = network.shortcuts.narrows and views.can_narrow(backbone.layers[last])
    return Arithmetic(
        tuple(
            _layer(layer, member, whole=whole, narrow=narrow and place == last, window=_window(config, place))
            for place, layer in enumerate(backbone.layers)
        ),
        2 * network.width * network.vocabulary,
        whole,
        4 * heads * width,
        0 if member is None else min(network.common, last + 1),
    )


def _layer(layer: nn.Module, member: str | None, *, whole: bool, narrow: bool, window: int | None) -> Layer:
    flops = Counter[str]()
    for name, module in layer.named_modules():
        if isinstance(module, nn.Linear) and _takes_part(name, member):
            read = narrow and name.startswith(READ)
            trained = whole or "lora_" in name
            flops["read_" * read + ("trained" if trained else "frozen")] += 2 * module.in_features * module.out_features
    return Layer(**flops, window=window)


def _takes_part(name: str, member: str | None) -> bool:
    """Adapters of other members do not."""
    return "lora_" not in name or (member is not None and name.endswith(f".{member}"))


def _window(config: Any, layer: int) -> int | None:
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or kinds[layer] == "sliding_attention" else None
