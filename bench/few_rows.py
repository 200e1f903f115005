"""The linear layers of a step of sampling, by weights as they are, laid out by inputs, and sorted by the library.

One thread; all layers of SmolLM2-135M and its head in turn, so that no weight is still in the CPU's caches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.real import MODEL, fastest

ROWS = (8, 40, 64)
SORTED_FOR = 64
"""What the weights are sorted for; as replies end, fewer rows are left."""


def measure() -> dict[str, Any]:
    """CPU milliseconds of each way for each number of rows, in the number type that a run would take here."""
    import torch
    from torch import nn

    from gad.models import arithmetic, linear
    from gad.models.loading import load_model

    torch.set_num_threads(1)
    name = arithmetic.fastest(torch.device("cpu"))
    model = load_model(MODEL, dtype=arithmetic.TYPES[name], device=torch.device("cpu"))
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    weights = [layer.weight.detach() for layer in layers]
    by_inputs = [weight.T.contiguous().T for weight in weights]
    ways: dict[str, list[Callable[[Any], Any]]] = {
        "plain": [lambda x, weight=weight: linear.product(x, weight) for weight in weights],
        "by_inputs": [lambda x, weight=weight: linear.product(x, weight) for weight in by_inputs],
        "sorted": [linear.prepacked(weight, None, SORTED_FOR) for weight in weights],
    }
    found: dict[str, dict[str, float]] = {}
    with torch.inference_mode():
        for rows in ROWS:
            inputs = {width: torch.randn(rows, width).to(weights[0].dtype) for width in {w.shape[1] for w in weights}}
            for way, products in ways.items():

                def all_layers(products: Any = products, inputs: Any = inputs) -> None:
                    for weight, product in zip(weights, products, strict=True):
                        product(inputs[weight.shape[1]])

                all_layers()
                found.setdefault(way, {})[str(rows)] = 1000 * fastest(all_layers)
    return {
        "few_rows": {
            "model": MODEL,
            "dtype": name,
            "sorts": linear.gains_by_prepacking(model),
            "milliseconds": found,
        }
    }
