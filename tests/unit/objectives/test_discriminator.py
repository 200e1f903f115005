"""P prompts, G replies per prompt, B = P*G rows, T reply tokens."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gad.objectives import accuracy, bradley_terry, cross_entropy, least_squares, margins, score_centering

LN2 = math.log(2)
LOSSES = [bradley_terry, cross_entropy, least_squares]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=lambda f: f.__name__)
every_term = pytest.mark.parametrize("loss", [*LOSSES, score_centering], ids=lambda f: f.__name__)
every_log_loss = pytest.mark.parametrize("loss", [bradley_terry, cross_entropy], ids=lambda f: f.__name__)


def scores(P: int = 5, G: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return (
        torch.randn(P, generator=g, dtype=torch.float64) * 2,
        torch.randn(P, G, generator=g, dtype=torch.float64) * 2,
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def reference(loss, teacher: list[float], student: list[list[float]], s: float = 0.0) -> float:
    pairs = [(t, y) for t, ys in zip(teacher, student, strict=True) for y in ys]
    if loss is least_squares:
        return math.fsum((t - y - 1) ** 2 for t, y in pairs) / len(pairs)
    if loss is score_centering:
        return math.fsum((t + y) ** 2 for t, y in pairs) / len(pairs)

    def log_loss(p: float) -> float:
        return -(1 - s) * math.log(p) - s * math.log(1 - p)

    if loss is bradley_terry:
        return math.fsum(log_loss(sigmoid(t - y)) for t, y in pairs) / len(pairs)
    real = math.fsum(log_loss(sigmoid(t)) for t in teacher) / len(teacher)
    fake = math.fsum(log_loss(1 - sigmoid(y)) for _, y in pairs) / len(pairs)
    return real + fake


@every_term
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (2, 8)])
def test_agrees_with_the_definition(loss, shape):
    teacher_P, student_PG = scores(*shape)
    expected = reference(loss, teacher_P.tolist(), student_PG.tolist())
    assert loss(teacher_P, student_PG).item() == pytest.approx(expected, rel=1e-12)


@every_log_loss
def test_label_smoothing_agrees_with_the_definition(loss):
    teacher_P, student_PG = scores()
    expected = reference(loss, teacher_P.tolist(), student_PG.tolist(), s=0.1)
    assert loss(teacher_P, student_PG, label_smoothing=0.1).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("loss", "expected"), [(bradley_terry, LN2), (cross_entropy, 2 * LN2), (least_squares, 1.0)])
@pytest.mark.parametrize("P", [1, 4])
@pytest.mark.parametrize("G", [1, 8])
def test_value_where_every_score_is_zero(loss, expected, P, G):
    assert loss(torch.zeros(P), torch.zeros(P, G)).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("loss", "expected"), [(bradley_terry, LN2), (least_squares, 1.0)])
@given(score=st.floats(-1e4, 1e4, width=32))
def test_identical_texts_teach_nothing_whatever_their_score(loss, expected, score):
    assert loss(torch.full((2,), score), torch.full((2, 3), score)).item() == pytest.approx(expected, rel=1e-6)


def test_bradley_terry_at_a_margin_of_log_three():
    """sigmoid(log 3) = 3/4."""
    loss = bradley_terry(torch.tensor([math.log(3)]), torch.zeros(1, 2))
    assert loss.item() == pytest.approx(-math.log(0.75), rel=1e-6)


def test_cross_entropy_counts_the_teacher_once_and_the_students_by_their_mean():
    """Teacher at log 3: -log(3/4). Students at log 3 and 0: the mean of -log(1/4) and -log(1/2)."""
    teacher_P, student_PG = torch.tensor([math.log(3)]), torch.tensor([[math.log(3), 0.0]])
    expected = -math.log(0.75) - (math.log(0.25) + math.log(0.5)) / 2
    assert cross_entropy(teacher_P, student_PG).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("margin", "expected"), [(0.5, 6.25), (1.0, 4.0), (3.0, 0.0), (4.0, 1.0)])
def test_least_squares_is_zero_at_its_margin(margin, expected):
    loss = least_squares(torch.tensor([2.0]), torch.tensor([[-1.0]]), margin=margin)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


def test_score_centering_is_zero_for_opposite_scores_and_sees_their_level():
    assert score_centering(torch.tensor([3.0]), torch.tensor([[-3.0, -3.0]])).item() == 0.0
    assert score_centering(torch.tensor([4.0]), torch.tensor([[-2.0, -2.0]])).item() == pytest.approx(4.0)


@every_log_loss
@pytest.mark.parametrize("sign", [1, -1])
def test_scores_of_ten_thousand_neither_overflow_nor_vanish(loss, sign):
    teacher_P = torch.tensor([sign * 1e4], requires_grad=True)
    student_PG = torch.tensor([[-sign * 1e4]], requires_grad=True)
    value = loss(teacher_P, student_PG)
    value.backward()
    assert value.item() == (0.0 if sign == 1 else 2e4)
    assert (teacher_P.grad.item(), student_PG.grad.item()) == ((0.0, 0.0) if sign == 1 else (-1.0, 1.0))


@every_log_loss
def test_smoothing_costs_confidence(loss):
    """At a margin of 2e4 with s = 0.1 one tenth of the labels is entirely wrong."""
    value = loss(torch.tensor([1e4]), torch.tensor([[-1e4]]), label_smoothing=0.1)
    assert value.item() == pytest.approx(2e3, rel=1e-6)


def test_smoothed_bradley_terry_is_least_at_log_odds():
    teacher_P = torch.tensor([math.log(0.9 / 0.1)], dtype=torch.float64, requires_grad=True)
    bradley_terry(teacher_P, torch.zeros(1, 1, dtype=torch.float64), label_smoothing=0.1).backward()
    assert teacher_P.grad.item() == pytest.approx(0.0, abs=1e-12)


@every_log_loss
def test_smoothing_is_off_by_default_and_leaves_a_tie_alone(loss):
    teacher_P, student_PG = scores()
    assert loss(teacher_P, student_PG).item() == loss(teacher_P, student_PG, label_smoothing=0.0).item()
    zeros = torch.zeros(2), torch.zeros(2, 3)
    assert loss(*zeros, label_smoothing=0.3).item() == pytest.approx(loss(*zeros).item(), rel=1e-6)


@pytest.mark.parametrize(
    ("loss", "teacher", "student"),
    [(bradley_terry, -0.5, 0.5), (cross_entropy, -0.5, 0.5), (least_squares, -2.0, 2.0)],
)
def test_gradient_at_zero_scores_raises_the_teacher_and_lowers_the_students(loss, teacher, student):
    teacher_P, student_PG = torch.zeros(4, requires_grad=True), torch.zeros(4, 3, requires_grad=True)
    loss(teacher_P, student_PG).backward()
    torch.testing.assert_close(teacher_P.grad, torch.full((4,), teacher / 4))
    torch.testing.assert_close(student_PG.grad, torch.full((4, 3), student / 12))


@every_log_loss
def test_gradient_never_changes_sign_without_smoothing(loss):
    teacher_P, student_PG = (t.requires_grad_() for t in scores())
    loss(teacher_P, student_PG).backward()
    assert (teacher_P.grad < 0).all()
    assert (student_PG.grad > 0).all()


def test_least_squares_pulls_back_beyond_its_margin():
    teacher_P = torch.tensor([3.0], requires_grad=True)
    least_squares(teacher_P, torch.zeros(1, 1)).backward()
    assert teacher_P.grad.item() == pytest.approx(4.0)


@every_term
def test_gradcheck(loss):
    assert torch.autograd.gradcheck(loss, tuple(t.requires_grad_() for t in scores()))


@every_log_loss
def test_gradcheck_with_smoothing(loss):
    assert torch.autograd.gradcheck(
        lambda t, y: loss(t, y, label_smoothing=0.2), tuple(t.requires_grad_() for t in scores())
    )


@pytest.mark.parametrize("loss", [bradley_terry, least_squares])
def test_blind_to_a_shift_of_each_prompt(loss):
    teacher_P, student_PG = (t.requires_grad_() for t in scores())
    shift_P = torch.tensor([1.0, -50.0, 7.0, 0.0, 3.0], dtype=torch.float64)
    value = loss(teacher_P, student_PG)
    torch.testing.assert_close(loss(teacher_P + shift_P, student_PG + shift_P[:, None]), value)
    value.backward()
    torch.testing.assert_close(teacher_P.grad, -student_PG.grad.sum(dim=1))


def test_cross_entropy_sees_a_common_shift():
    at_one = math.log(1 + math.exp(-1)) + math.log(1 + math.exp(1))
    assert cross_entropy(torch.ones(2), torch.ones(2, 3)).item() == pytest.approx(at_one, rel=1e-6)
    assert at_one > 2 * LN2 + 0.2


@every_term
def test_order_of_replies_and_prompts_does_not_matter(loss):
    teacher_P, student_PG = scores()
    prompts, replies = torch.tensor([4, 2, 0, 1, 3]), torch.tensor([2, 0, 1])
    torch.testing.assert_close(
        loss(teacher_P[prompts], student_PG[prompts][:, replies]),
        loss(teacher_P, student_PG),
        rtol=1e-12,
        atol=0,
    )


@every_term
@pytest.mark.parametrize("total", [5, torch.tensor(5)], ids=["int", "tensor"])
def test_micro_batches_add_up_in_loss_and_gradient(loss, total):
    def loss_and_gradients(splits):
        leaves = [t.requires_grad_() for t in scores()]
        parts = zip(leaves[0].split(splits), leaves[1].split(splits), strict=True)
        value = sum(loss(t, y, total_prompts=total) for t, y in parts)
        value.backward()
        return value.detach(), leaves[0].grad, leaves[1].grad

    leaves = [t.requires_grad_() for t in scores()]
    whole = loss(*leaves)
    whole.backward()
    for splits in ([5], [2, 3], [1, 1, 3], [0, 5]):
        torch.testing.assert_close(
            loss_and_gradients(splits),
            (whole.detach(), leaves[0].grad, leaves[1].grad),
            rtol=1e-12,
            atol=1e-15,
        )


@every_term
@pytest.mark.parametrize("total", [None, 0, torch.tensor(0)], ids=["none", "int", "tensor"])
def test_no_prompts_no_loss(loss, total):
    assert loss(torch.zeros(0), torch.zeros(0, 4), total_prompts=total).item() == 0.0


@every_term
def test_half_precision_scores_are_widened(loss):
    teacher_P, student_PG = (t.bfloat16() for t in scores())
    value = loss(teacher_P, student_PG)
    assert value.dtype == torch.float32
    assert value.item() == loss(teacher_P.float(), student_PG.float()).item()


@every_term
@pytest.mark.parametrize("where", ["teacher", "student"])
def test_a_nan_score_stays_visible(loss, where):
    teacher_P, student_PG = scores()
    (teacher_P if where == "teacher" else student_PG[0])[0] = math.nan
    assert loss(teacher_P, student_PG).isnan()


@every_log_loss
@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, 1.0, math.nan])
def test_label_smoothing_is_refused(loss, label_smoothing):
    message = rf"^label_smoothing = {label_smoothing}: with half the labels wrong nothing can be learned; use 0"
    with pytest.raises(ValueError, match=message):
        loss(*scores(), label_smoothing=label_smoothing)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan])
def test_margin_is_refused(margin):
    message = rf"^margin = {margin}: the teacher has to rank first by some margin; use more than 0$"
    with pytest.raises(ValueError, match=message):
        least_squares(*scores(), margin=margin)


@every_term
@pytest.mark.parametrize(
    ("teacher_shape", "student_shape"), [((3,), (2, 4)), ((3, 1), (3, 4)), ((4,), (4,)), ((1,), (3, 4))]
)
def test_scores_of_other_shapes_are_a_bug(loss, teacher_shape, student_shape):
    with pytest.raises(AssertionError):
        loss(torch.zeros(teacher_shape), torch.zeros(student_shape))


def test_margins_are_positive_where_the_discriminator_is_right():
    margins_PG = margins(torch.tensor([1.0, -2.0]), torch.tensor([[0.0, 1.0], [3.0, -5.0]]))
    assert margins_PG.tolist() == [[1.0, 0.0], [-5.0, 3.0]]


def test_accuracy_counts_a_tie_as_one_half():
    assert accuracy(torch.tensor([[1.0, 0.0], [-5.0, 1e-9]])).item() == 2.5 / 4
    assert accuracy(torch.zeros(2, 2)).item() == 0.5
    assert accuracy(torch.tensor([[math.inf, -math.inf]])).item() == 0.5


def test_accuracy_of_a_nan_is_nan_and_has_no_gradient():
    assert accuracy(torch.tensor([[1.0, math.nan]])).isnan()
    assert not accuracy(torch.ones(1, 2, requires_grad=True)).requires_grad
