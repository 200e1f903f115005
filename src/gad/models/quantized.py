"""A frozen base whose linear layers are held in 8 or 4 bits, by bitsandbytes. The one file that imports it.

transformers quantizes each weight as it is loaded, so the whole base never exists; peft adapts such layers by classes
of its own. Embeddings, norms and the output head stay as they are.
"""

from __future__ import annotations

import logging
from importlib.util import find_spec
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from transformers import BitsAndBytesConfig

from gad.config.models import Int8, Nf4, OwnDiscriminator, Quantization, StudentConfig
from gad.errors import ConfigError, MissingExtra


def arguments(quantization: Quantization, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """What `from_pretrained` is told; a quantized model is not moved afterwards.

    Raises MissingExtra without bitsandbytes.
    """
    if find_spec("bitsandbytes") is None:
        raise MissingExtra(f"quantization.kind={quantization.kind}", "quantized")
    # At every product of 8 bits it warns that inputs become float16.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    match quantization:
        case Int8(threshold=threshold):
            how = BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)
        case Nf4(double=double):
            how = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=double,
                bnb_4bit_compute_dtype=dtype,
            )
        case _:
            assert_never(quantization)
    return {"quantization_config": how, "device_map": {"": device}}


def check_processes(source: StudentConfig | OwnDiscriminator, processes: int, shard: str) -> None:
    """Raises ConfigError where several processes would share out quantized weights."""
    if source.quantization is None or processes == 1 or shard == "none":
        return
    where = "student" if isinstance(source, StudentConfig) else "discriminator"
    raise ConfigError(
        f"{where}.quantization.kind={source.quantization.kind}: quantized weights are not shared out among processes, "
        f"of which there are {processes}; use compute.shard=none, which keeps the base in each of them, or leave "
        "quantization out"
    )


def is_quantized(module: nn.Module) -> bool:
    """Whether a layer's weight is held in 8 or 4 bits."""
    return isinstance(module, nn.Linear) and not module.weight.is_floating_point()


def plain_weight(layer: Any) -> Tensor:
    """A linear layer's weight as the numbers that it stands for."""
    weight: Any = layer.weight
    if not is_quantized(layer):
        plain: Tensor = weight
        return plain
    import bitsandbytes.functional as functions

    if weight.dtype == torch.int8:
        plain = functions.int8_vectorwise_dequant(weight.data, layer.state.SCB if weight.SCB is None else weight.SCB)
    else:
        plain = functions.dequantize_4bit(weight.data, weight.quant_state)
    return plain
