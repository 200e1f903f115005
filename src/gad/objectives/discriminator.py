"""P prompts, G replies per prompt, B = P*G rows, T reply tokens.

Discriminator losses. A high score always means teacher.

teacher_scores_P    D(x, y_t), one teacher reply per prompt
student_scores_PG   D(x, y_s), all G student replies of a prompt meet that prompt's one teacher reply
total_prompts       prompts of the *global* batch, over all micro-batches and ranks, so that the parts of a
                    split batch add up to the whole; None where these P are all there are

Each loss is a scalar in nats (least squares: in score units squared). A score of inf or NaN passes through
visibly.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from gad.objectives._tensors import Count, at_least_one, require, widen


def margins(teacher_scores_P: Tensor, student_scores_PG: Tensor) -> Tensor:
    """`D(x, y_t) - D(x, y_s)` (P, G): positive where the discriminator is right."""
    assert teacher_scores_P.ndim == 1, teacher_scores_P.shape
    assert student_scores_PG.ndim == 2, student_scores_PG.shape
    assert len(teacher_scores_P) == len(student_scores_PG), (len(teacher_scores_P), len(student_scores_PG))
    return widen(teacher_scores_P)[:, None] - student_scores_PG


def accuracy(margins_PG: Tensor) -> Tensor:
    """Share (scalar, 0 to 1, no gradient) of pairs ranked right; a tie counts 1/2, a NaN makes it NaN."""
    m_PG = margins_PG.detach()
    right_PG = torch.heaviside(m_PG, m_PG.new_tensor(0.5))
    return torch.where(m_PG.isnan(), m_PG, right_PG).mean()


def bradley_terry(
    teacher_scores_P: Tensor,
    student_scores_PG: Tensor,
    *,
    label_smoothing: float = 0.0,
    total_prompts: Count | None = None,
) -> Tensor:
    """Mean over all P*G pairs of `-log sigmoid(D(x, y_t) - D(x, y_s))` (arXiv 2511.10643, Eq. 3 and 8).

    ln 2 where the scores tie; blind to a common shift of the scores. Smoothing s: every label is wrong with
    probability s, `-(1 - s) log sigmoid(m) - s log sigmoid(-m)` (arXiv 1512.00567, section 7), least at the
    finite margin log((1 - s) / s); 0 as in the paper. ValueError unless 0 <= label_smoothing < 0.5.
    """
    m_PG = margins(teacher_scores_P, student_scores_PG)
    return _pair_mean(_log_loss(m_PG, label_smoothing), total_prompts)


def cross_entropy(
    teacher_scores_P: Tensor,
    student_scores_PG: Tensor,
    *,
    label_smoothing: float = 0.0,
    total_prompts: Count | None = None,
) -> Tensor:
    """`-log sigmoid(D(x, y_t)) - log(1 - sigmoid(D(x, y_s)))` (arXiv 2511.10643, Eq. 4), an ablation.

    The first term is averaged over the P teacher replies, the second over the P*G student replies. 2 ln 2 at
    score 0. Unlike Bradley-Terry it sees a common shift. Smoothing as in `bradley_terry`, on both terms; 0 as
    in the paper. ValueError unless 0 <= label_smoothing < 0.5.
    """
    P, G = margins(teacher_scores_P, student_scores_PG).shape
    prompts = at_least_one(P if total_prompts is None else total_prompts)
    teacher = _log_loss(widen(teacher_scores_P), label_smoothing).sum() / prompts
    student = _log_loss(-widen(student_scores_PG), label_smoothing).sum() / (prompts * G)
    return teacher + student


def least_squares(
    teacher_scores_P: Tensor,
    student_scores_PG: Tensor,
    *,
    margin: float = 1.0,
    total_prompts: Count | None = None,
) -> Tensor:
    """Mean over all P*G pairs of `(D(x, y_t) - D(x, y_s) - margin)^2` (RpLSGAN, arXiv 1807.00734).

    Least squares on the margin and not on each score (LSGAN's targets 1 and 0, arXiv 1611.04076), so that it
    plays the game of Eq. 1, blind to a common shift as Bradley-Terry is. Its gradient dies at the margin
    instead of never, which keeps scores from running away. margin^2 where the scores tie; margin 1 is the
    distance between LSGAN's targets, and a smaller one is what label smoothing would do. ValueError unless
    margin > 0.
    """
    require(margin > 0, "margin", margin, "the teacher has to rank first by some margin; use more than 0")
    m_PG = margins(teacher_scores_P, student_scores_PG)
    return _pair_mean((m_PG - margin).square(), total_prompts)


def score_centering(
    teacher_scores_P: Tensor, student_scores_PG: Tensor, *, total_prompts: Count | None = None
) -> Tensor:
    """Mean over all P*G pairs of `(D(x, y_t) + D(x, y_s))^2` (arXiv 2312.09244); to add with a small weight.

    Bradley-Terry and least squares leave the level of the scores free to drift; this pins it and leaves
    margins alone. 0 where the two scores of each pair are opposite.
    """
    opposite_PG = margins(teacher_scores_P, -student_scores_PG)
    return _pair_mean(opposite_PG.square(), total_prompts)


def _log_loss(margin: Tensor, label_smoothing: float) -> Tensor:
    require(
        0 <= label_smoothing < 0.5,
        "label_smoothing",
        label_smoothing,
        "with half the labels wrong nothing can be learned; use 0 to less than 0.5",
    )
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def _pair_mean(loss_PG: Tensor, total_prompts: Count | None) -> Tensor:
    P, G = loss_PG.shape
    return loss_PG.sum() / (at_least_one(P if total_prompts is None else total_prompts) * G)
