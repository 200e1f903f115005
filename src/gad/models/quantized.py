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
from gad.errors import ConfigError, MissingExtra, ModelError

SORTS_ANEW = "support_avx512bf16_for_cpu"
"""bitsandbytes' own switch, on each of its layers in 4 bits."""
ROUNDING = 0.13
"""More than rounding to 4 bits does: .09 to .10. bitsandbytes 0.50.2 on AVX-512, rows of 32, 48 or 96: .16 to .37."""


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


def settle(model: nn.Module, reference: str) -> None:
    """Let weights in 4 bits stay in the order and with the scales that they were loaded with.

    On CPUs with AVX-512 and bfloat16 bitsandbytes sorts them anew in the first pass that is no training, with scales
    rounded to bfloat16: another base than the one whose gradients are computed, and an error for narrow layers.
    Raises ModelError for layers of a width that it computes wrong there.
    """
    widths = set[int]()
    module: Any
    for module in model.modules():
        if hasattr(module, SORTS_ANEW):
            setattr(module, SORTS_ANEW, False)
            if module.weight.device.type == "cpu":
                widths.add(module.in_features)
    for width in sorted(widths):
        off = _rounding(width)
        if off > ROUNDING:
            raise ModelError(
                f"{reference}: bitsandbytes reads 4 bits of layers {width} wide wrong on this CPU, off by {off:.0%}; "
                "use quantization.kind=int8, or none"
            )


def _rounding(width: int) -> float:
    """How far numbers of a normal distribution, in rows of this width, are from themselves in 4 bits; relative."""
    import bitsandbytes.functional as functions

    weight = torch.randn(16, width, generator=torch.Generator().manual_seed(0))
    found = functions.dequantize_4bit(*functions.quantize_4bit(weight, blocksize=64, quant_type="nf4"))
    return float((found - weight).norm() / weight.norm())


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
