"""A model's arithmetic, read off its modules."""

from __future__ import annotations

from typing import Any

from torch import nn

from gad.flops import Arithmetic
from gad.models.network import Network

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Settings of models whose tokens go through some of the weights only."""


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
    frozen = trained = 0
    for name, module in backbone.named_modules():
        if isinstance(module, nn.Linear) and _takes_part(name, member):
            flops = 2 * module.in_features * module.out_features
            if whole or "lora_" in name:
                trained += flops
            else:
                frozen += flops
    heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Arithmetic(
        frozen,
        trained,
        2 * network.width * network.vocabulary,
        whole,
        4 * heads * width,
        tuple(_window(config, layer) for layer in range(len(backbone.layers))),
    )


def _takes_part(name: str, member: str | None) -> bool:
    """Adapters of other members do not."""
    return "lora_" not in name or (member is not None and name.endswith(f".{member}"))


def _window(config: Any, layer: int) -> int | None:
    window: int | None = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    return window if kinds is None or kinds[layer] == "sliding_attention" else None
