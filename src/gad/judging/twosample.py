"""Classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv 1610.06545): can a simple classifier tell the student's
replies from the teacher's? It measures the distance of two *distributions*, not which reply is better.

P prompts; rows are replies; high always means teacher.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gad.judging.statistics import Estimate, bootstrap_mean, resampled_weights

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from gad.judging.statistics import Floats

Replies = str | Sequence[str]
FOLDS = 5
MIN_PROMPTS = 4
MAX_CHARACTERS = 20_000
"""A longer reply is read up to here: style shows long before, and a reply that never ends must not stop the test."""


@dataclass(frozen=True, slots=True)
class TwoSample:
    """auc: .5 the classifier cannot tell, 1 it always can.

    teacher_likeness: prompt -> share of (teacher, student) pairs of that prompt where the student's reply looks at
        least as much like a teacher's (a tie counts half): the classifier's verdict, to set beside a judge's.
    """

    auc: Estimate
    teacher_likeness: dict[Hashable, float]


def c2st(
    teacher_texts_by_prompt: Mapping[Any, Replies],
    student_texts_by_prompt: Mapping[Any, Replies],
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """AUC of telling teacher from student replies; see `two_sample`."""
    return two_sample(teacher_texts_by_prompt, student_texts_by_prompt, seed=seed, resamples=resamples, level=level).auc


def two_sample(
    teacher_texts_by_prompt: Mapping[Any, Replies],
    student_texts_by_prompt: Mapping[Any, Replies],
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> TwoSample:
    """Logistic regression on TF-IDF of words (1-2) and characters (2-4), five folds *by prompt*, bootstrap by prompt.

    prompt id -> one reply, or several. All replies to a prompt lie in one fold, so that the classifier cannot use what
    a prompt is about. White space at the ends is cut off: it is no style. Raises ValueError where the two sets of
    prompts differ, or for fewer than 4 prompts. Brackets mark where a reply begins and ends.
    """
    from scipy.sparse import hstack  # type: ignore[import-untyped]
    from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer

    teacher, student = _texts(teacher_texts_by_prompt), _texts(student_texts_by_prompt)
    if teacher.keys() != student.keys():
        strangers = sorted(map(repr, teacher.keys() ^ student.keys()))
        raise ValueError(
            f"{len(strangers)} prompts have replies of one side only, e.g. {strangers[0]}: pass the same prompts"
        )
    if len(teacher) < MIN_PROMPTS:
        raise ValueError(f"{len(teacher)} prompts: telling two sets of replies apart needs at least {MIN_PROMPTS}")
    texts, is_teacher, groups = [], [], []
    for key in teacher:
        for side, replies in ((1, teacher[key]), (0, student[key])):
            texts += replies
            is_teacher += [side] * len(replies)
            groups += [key] * len(replies)

    words = CountVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\w+|[^\w\s]").fit_transform(texts).tocsr()
    characters = CountVectorizer(analyzer="char", ngram_range=(2, 4), max_features=30_000).fit_transform(texts).tocsr()

    def features(train: NDArray[np.int64], test: NDArray[np.int64]) -> tuple[Any, Any]:
        weighted = [(TfidfTransformer(sublinear_tf=True).fit(x[train]), x) for x in (words, characters)]
        return tuple(hstack([tfidf.transform(x[rows]) for tfidf, x in weighted]).tocsr() for rows in (train, test))

    once_each = _written_once_by_each(texts, is_teacher)
    return _cross_validated(features, is_teacher, groups, seed, resamples, level, untrained=once_each)


def c2st_features(
    features_teacher: NDArray[Any],
    features_student: NDArray[Any],
    groups: Sequence[Hashable],
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> Estimate:
    """The same test on given features, e.g. hidden states: arrays [rows, width], row i of prompt groups[i].

    Row i of both arrays belongs to one prompt. Standardised by the training folds.
    """
    import numpy as np
    from sklearn.preprocessing import StandardScaler

    if features_teacher.shape != features_student.shape or features_teacher.ndim != 2:
        raise ValueError(
            f"features of shape {features_teacher.shape} and {features_student.shape}: need one [rows, width]"
        )
    if len(groups) != len(features_teacher):
        raise ValueError(f"{len(groups)} groups for {len(features_teacher)} rows")
    rows = np.concatenate([features_teacher, features_student]).astype(np.float64)
    if not np.isfinite(rows).all():
        raise ValueError("features hold values that are not finite")

    def features(train: NDArray[np.int64], test: NDArray[np.int64]) -> tuple[Any, Any]:
        scaler = StandardScaler().fit(rows[train])
        width = math.sqrt(rows.shape[1])
        return scaler.transform(rows[train]) / width, scaler.transform(rows[test]) / width

    is_teacher = [1] * len(features_teacher) + [0] * len(features_student)
    return _cross_validated(features, is_teacher, [*groups, *groups], seed, resamples, level).auc


def _texts(replies_by_prompt: Mapping[Any, Replies]) -> dict[Hashable, list[str]]:
    rows = {key: [value] if isinstance(value, str) else list(value) for key, value in replies_by_prompt.items()}
    empty = [key for key, replies in rows.items() if not replies]
    if empty:
        raise ValueError(f"prompt {empty[0]!r} has no replies")
    return {key: [f"⟨{reply.strip()[:MAX_CHARACTERS]}⟩" for reply in replies] for key, replies in rows.items()}


def _written_once_by_each(texts: Sequence[str], is_teacher: Sequence[int]) -> list[bool]:
    """Rows of a text that teacher and student wrote once each. Where one of the two is tested, the other would be a
    training row with the wrong label: a student that repeats the teacher's replies to other prompts got an AUC of .02.
    """
    by_side = Counter(zip(texts, is_teacher, strict=True))
    return [by_side[text, 0] == by_side[text, 1] == 1 for text in texts]


def _cross_validated(
    features: Any,
    is_teacher: Sequence[int],
    groups: Sequence[Hashable],
    seed: int,
    resamples: int,
    level: float,
    *,
    untrained: Sequence[bool] | None = None,
) -> TwoSample:
    """untrained: rows that are tested only. A fold that has nothing to learn from cannot tell: its scores are equal."""
    import numpy as np
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold

    keys = list(dict.fromkeys(groups))
    if len(keys) < MIN_PROMPTS:
        raise ValueError(f"{len(keys)} prompts: telling two sets of replies apart needs at least {MIN_PROMPTS}")
    number = {key: index for index, key in enumerate(keys)}
    prompts = np.array([number[group] for group in groups])
    labels = np.array(is_teacher)
    scores = np.zeros(len(labels))
    folds = GroupKFold(min(FOLDS, len(keys)), shuffle=True, random_state=seed % 2**32)
    learnt_from = np.ones(len(labels), dtype=bool) if untrained is None else ~np.array(untrained)
    for train, test in folds.split(prompts, labels, prompts):
        train = train[learnt_from[train]]
        if len(set(labels[train].tolist())) < 2:
            continue
        x_train, x_test = features(train, test)
        model = LogisticRegression(C=10.0, class_weight="balanced", max_iter=1000)
        scores[test] = model.fit(x_train, labels[train]).decision_function(x_test)
    right_PP = _pairs_right(scores, labels, prompts, len(keys))
    likeness = {key: float(1.0 - right_PP[0][i, i] / right_PP[1][i, i]) for i, key in enumerate(keys)}
    return TwoSample(_auc(*right_PP, seed, resamples, level), likeness)


def _pairs_right(
    scores: Floats, labels: NDArray[np.int64], prompts: NDArray[np.int64], count: int
) -> tuple[Floats, Floats]:
    """[P, P]: of the pairs (teacher reply of prompt i, student reply of prompt j), how many are right, and all."""
    import numpy as np

    teacher, student = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    difference = scores[teacher][:, None] - scores[student][None, :]
    right = (difference > 0.0) + 0.5 * (np.abs(difference) <= 1e-12)
    to_teacher, to_student = (np.eye(count)[prompts[side]] for side in (teacher, student))
    right_PP: Floats = to_teacher.T @ right @ to_student
    all_PP: Floats = np.outer(to_teacher.sum(axis=0), to_student.sum(axis=0))
    return right_PP, all_PP


def _auc(right_PP: Floats, all_PP: Floats, seed: int, resamples: int, level: float) -> Estimate:
    """Percentile bootstrap by prompt, widened because the folds' classifiers share their training prompts.

    The factor of the variance is Nadeau and Bengio's (2003), 1 + folds * test / train = 2.25 for five folds. Without it
    77% of the 95% intervals held .5 where both sides were drawn alike (60 prompts).
    """
    import numpy as np

    n = len(right_PP)
    value = float(right_PP.sum() / all_PP.sum())
    drawn = [
        ((weights @ right_PP) * weights).sum(axis=1) / ((weights @ all_PP) * weights).sum(axis=1)
        for weights in resampled_weights(n, resamples, seed)
    ]
    low, high = np.quantile(np.concatenate(drawn), [0.5 - level / 2.0, 0.5 + level / 2.0])
    folds = min(FOLDS, n)
    widening = math.sqrt(1.0 + folds / (folds - 1.0))
    low, high = value - widening * (value - low), value + widening * (high - value)
    if value in (0.0, 1.0):
        certain = bootstrap_mean([value] * n, seed=seed, level=level)
        low, high = certain.low, certain.high
    return Estimate(value, max(0.0, min(float(low), value)), min(1.0, max(float(high), value)), n)
