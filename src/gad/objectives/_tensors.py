"""P prompts, G replies per prompt, B = P*G rows, T reply tokens.

What every objective does before its own maths: enough precision, nothing from padding, and a divisor that
cannot be zero.
"""

import torch
from torch import Tensor

Count = int | Tensor
"""A number of tokens, sequences or prompts; a tensor where it was summed over ranks, on their device."""


def widen(values: Tensor) -> Tensor:
    """`values` in float32 at least: bf16's 8 bits are too few for differences and long sums."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def keep(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """`values_BT` (B, T) widened, and 0 where `mask_BT` is False, in the value and in the gradient.

    `torch.where`, because a product would turn the inf or NaN that padding may hold into NaN.
    """
    assert mask_BT.dtype == torch.bool, mask_BT.dtype
    assert values_BT.shape == mask_BT.shape, (values_BT.shape, mask_BT.shape)
    assert mask_BT.ndim == 2, mask_BT.shape
    return torch.where(mask_BT, widen(values_BT), 0.0)


def at_least_one(count: Count) -> Count:
    """`count`, or 1 where it is 0: a batch with nothing in it has loss 0, not NaN."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def require(valid: bool, name: str, value: float, way_out: str) -> None:
    """Raise ValueError naming the argument, its value and the way out, unless `valid`."""
    if not valid:
        raise ValueError(f"{name} = {value}: {way_out}")
