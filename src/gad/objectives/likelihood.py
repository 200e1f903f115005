"""P prompts, G replies per prompt, B = P*G rows, T reply tokens.

Cross-entropy on the teacher's replies: SeqKD, the student's warm-up, and the term mixed into the adversarial
stage.
"""

from torch import Tensor

from gad.objectives._tensors import Count
from gad.objectives.aggregation import token_mean


def token_cross_entropy(logps_BT: Tensor, mask_BT: Tensor, total_tokens: Count) -> Tensor:
    """Negative log-likelihood per token, in nats: `-sum(log p) / total_tokens` (arXiv 1606.07947, SeqKD).

    logps_BT: log-probabilities of the *teacher's* tokens under the student, at temperature 1; B is the number
    of teacher replies here. mask_BT: bool, True on reply tokens; the rest, inf and NaN included, reaches
    neither value nor gradient. total_tokens: reply tokens of the global batch, so that the parts of a split
    batch add up. log V at a uniform student over V tokens.

    In the adversarial stage: `policy_loss + weight * token_cross_entropy(...)`, as PPO-ptx mixes in
    pretraining data (arXiv 2203.02155, Eq. 2), each term with its own token count.
    """
    return token_mean(-logps_BT, mask_BT, total_tokens)
