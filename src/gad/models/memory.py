"""Less memory for more time: activations that are computed again on the way back."""

from __future__ import annotations

from typing import Any

from torch import nn


def recompute_activations(model: Any) -> None:
    """Keep each layer's input alone. That needs training mode, in which dropout would make scores random: it is off.

    transformers 5.23 has renamed the method and warns of the old name; earlier versions know the old one alone.
    """
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
