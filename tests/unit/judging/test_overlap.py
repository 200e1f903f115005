"""Diagnostics against values worked by hand and against slow definitions."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gad.judging.overlap import (
    compression_ratio,
    distinct_n,
    ngram_f1,
    ngrams,
    repetition,
    rouge_l,
    self_bleu,
    words,
)

SENTENCES = st.lists(st.sampled_from(["a", "b", "c", "d"]), max_size=14).map(" ".join)


def test_words_are_lower_case_runs_marks_and_single_characters():
    assert words("Don't PANIC, 42!") == ["don", "'", "t", "panic", ",", "42", "!"]
    assert words("Tip: 你好 カナ") == ["tip", ":", "你", "好", "カ", "ナ"]
    assert words("naïve café") == ["naïve", "café"]


@pytest.mark.parametrize(
    ("student", "n", "expected"),
    [
        ("the cat sat", 1, 1.0),
        ("the cat sat", 3, 1.0),
        ("the cat ran", 1, 2 * 2 / 6),
        ("the cat ran", 2, 2 * 1 / 4),
        ("the cat ran", 3, 0.0),
        ("the the the cat", 1, 2 * 2 / 7),  # one "the" counts once, as the teacher has one
        ("", 1, 0.0),
        ("dogs", 2, 0.0),
        ("the cat sat", 4, None),
    ],
)
def test_ngram_f1_by_hand(student, n, expected):
    assert ngram_f1(student, "The cat sat", n) == (expected if expected is None else pytest.approx(expected))


@given(SENTENCES, SENTENCES, st.integers(1, 6))
def test_ngram_f1_is_symmetric_and_a_share(one, two, n):
    value = ngram_f1(one, two, n)
    assert value == ngram_f1(two, one, n)
    assert value is None or 0.0 <= value <= 1.0


def slow_common_subsequence(one, two):
    table = [[0] * (len(two) + 1) for _ in range(len(one) + 1)]
    for i, a in enumerate(one):
        for j, b in enumerate(two):
            table[i + 1][j + 1] = table[i][j] + 1 if a == b else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1]


@given(SENTENCES, SENTENCES)
def test_rouge_l_is_the_textbooks(one, two):
    a, b = one.split(), two.split()
    expected = 2 * slow_common_subsequence(a, b) / (len(a) + len(b)) if a and b else 0.0
    assert rouge_l(one, two) == pytest.approx(expected)


def test_rouge_l_of_long_replies_is_quick():
    one, two = (" ".join(f"w{(i * step) % 701}" for i in range(3000)) for step in (7, 11))
    start = time.process_time()
    assert 0.0 < rouge_l(one, two) < 1.0
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    ("reply", "n", "expected"),
    [
        ("a b c d e f", 4, 0.0),
        ("a b c", 4, 0.0),
        ("", 4, 0.0),
        ("a a a a a a", 4, 1 - 1 / 3),
        ("a b a b a b a b", 2, 1 - 2 / 7),
        ([5, 6, 5, 6, 5], 2, 1 - 2 / 4),
        ("x " * 1000, 4, 1 - 1 / 997),
    ],
)
def test_repetition_by_hand(reply, n, expected):
    assert repetition(reply, n) == pytest.approx(expected)


def test_an_ngram_of_no_words_is_refused():
    with pytest.raises(ValueError, match="n=0"):
        repetition("a b", 0)


def slow_self_bleu(replies):
    rows = [words(reply) for reply in replies]
    scores = []
    for i, row in enumerate(rows):
        others = rows[:i] + rows[i + 1 :]
        logs = []
        for n in range(1, min(4, len(row)) + 1):
            mine = ngrams(row, n)
            best = Counter()
            for other in others:
                best |= ngrams(other, n)
            add = 0 if n == 1 else 1
            logs.append(((mine & best).total() + add) / (mine.total() + add))
        if not logs or 0 in logs:
            scores.append(0.0)
            continue
        closest = min((len(other) for other in others), key=lambda m: (abs(m - len(row)), m))
        scores.append(math.exp(min(0.0, 1 - closest / len(row)) + sum(map(math.log, logs)) / len(logs)))
    return sum(scores) / len(scores)


@given(st.lists(SENTENCES, min_size=2, max_size=6))
def test_self_bleu_is_the_slow_definition(replies):
    assert self_bleu(replies) == pytest.approx(slow_self_bleu(replies))


def test_variety_falls_where_replies_are_alike():
    alike = ["Rinse it with cold water first. Tip: use salt."] * 20
    varied = [f"word{i} thing{i * 7} other{i * 13} place{i * 3} end{i}" for i in range(20)]
    assert self_bleu(alike) == pytest.approx(1.0)
    assert self_bleu(varied) < 0.2
    assert self_bleu(["one"]) is None
    assert distinct_n(alike, 2) < 0.1 < distinct_n(varied, 2) == 1.0
    assert compression_ratio(alike) > 3 * compression_ratio(varied)


def test_distinct_n_by_hand_and_nothing_at_all():
    assert distinct_n(["a b a", "a b"], 1) == pytest.approx(2 / 5)
    assert distinct_n(["a b a", "a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n([], 1) == 0.0
    assert compression_ratio([]) == 1.0
    assert compression_ratio(["\ud800"]) > 0.0  # half a surrogate pair, as a broken tokenizer may write it


def test_texts_alone_need_no_numpy_sklearn_or_torch():
    modules = ["overlap", "style", "statistics", "preference", "twosample"]
    code = "import sys\n" + "\n".join(f"import gad.judging.{module}" for module in modules)
    code += "\nprint(sorted({'numpy', 'torch', 'sklearn', 'scipy', 'openai'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
