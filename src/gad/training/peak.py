"""What a machine could compute at best: the figure that a step's operations are measured against."""

from __future__ import annotations

import re
import time

import torch

from gad.models.linear import product

TENSOR_CORES = (
    ("B200", 2250),
    ("H200", 989),
    ("H100 PCIe", 756),
    ("H100", 989),
    ("A100", 312),
    ("A10G", 70),
    ("A10", 125),
    ("L40S", 362),
    ("L40", 181),
    ("L4", 121),
)
"""TFLOP/s of dense products in bfloat16 with sums in float32, from NVIDIA's data sheets, by a word of the name.
The first that fits counts."""
SIZE = 1024
SECONDS = 0.3


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, str]:
    """FLOPs a second of one device, and how they are known: NVIDIA's figure where it is known, else measured products.

    Measured: the fastest of square products of 1,024 rows, by as many threads as torch is set to.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        for part, tera in TENSOR_CORES:
            if re.search(rf"\b{part}\b", name):
                return tera * 1e12, f"{name}, data sheet"
    return _measured(device, dtype), f"{device.type}, {str(dtype).removeprefix('torch.')}, measured products"


def _measured(device: torch.device, dtype: torch.dtype) -> float:
    x = torch.ones(SIZE, SIZE, device=device, dtype=dtype)
    began, best = time.perf_counter(), float("inf")
    with torch.inference_mode():
        rounds = 0
        while rounds < 3 or time.perf_counter() - began < SECONDS:
            started = time.perf_counter()
            product(x, x)[0, 0].item()
            best = min(best, time.perf_counter() - started) if rounds else float("inf")
            rounds += 1
    return 2.0 * SIZE**3 / best
