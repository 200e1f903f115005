"""P prompts, G replies per prompt, B = P*G rows, T reply tokens.

From values per token to one number. Each divides by a *global* count that the caller passes in (over all
micro-batches and ranks), so that the parts of a split batch add up to the whole, in the loss and in the
gradient. (Where data parallelism averages gradients, multiply by the number of ranks.)

mask_BT is bool and True on reply tokens; what values_BT holds elsewhere, inf and NaN included, reaches
neither value nor gradient. A reply without tokens adds 0. Any value per token can go in: losses, KL,
entropies.
"""

from torch import Tensor

from gad.objectives._tensors import Count, at_least_one, keep, require


def sequence_sum(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum over each sequence's own tokens: (B, T) -> (B,); 0 for an empty reply."""
    return keep(values_BT, mask_BT).sum(dim=1)


def token_mean(values_BT: Tensor, mask_BT: Tensor, total_tokens: Count) -> Tensor:
    """Sum over reply tokens / total_tokens: every token weighs the same (arXiv 2503.14476, section 3.3).

    The official scripts' aggregation. total_tokens: reply tokens of the global batch.
    """
    return sequence_sum(values_BT, mask_BT).sum() / at_least_one(total_tokens)


def sequence_mean(values_BT: Tensor, mask_BT: Tensor, total_sequences: Count) -> Tensor:
    """Mean over a sequence's own tokens, summed over sequences / total_sequences (arXiv 2402.03300, Eq. 3).

    Every reply weighs the same, so a token of a long reply weighs less. total_sequences: replies of the
    global batch, the empty ones included.
    """
    lengths_B = mask_BT.sum(dim=1).clamp(min=1)
    return (sequence_sum(values_BT, mask_BT) / lengths_B).sum() / at_least_one(total_sequences)


def constant_length(values_BT: Tensor, mask_BT: Tensor, total_sequences: Count, length: int) -> Tensor:
    """Sum over reply tokens / (total_sequences * length), with one `length` for the whole run.

    Dr.GRPO (arXiv 2503.20783, section 3.2) is this over `clipped_surrogate(..., dual_clip=None)` of
    `centered` advantages. length: the reply limit in tokens, so that the divisor depends neither on the
    replies nor on the padding. total_sequences: replies of the global batch. ValueError when length < 1.
    """
    require(length >= 1, "length", length, "sums are divided by it; use the reply limit in tokens")
    return sequence_sum(values_BT, mask_BT).sum() / (at_least_one(total_sequences) * length)
