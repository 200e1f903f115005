"""The two-sample test: it knows its own ignorance, finds what differs, and never learns what a prompt is about."""

from __future__ import annotations

import random
import time

import numpy as np
import pytest

from gad.judging.twosample import c2st, c2st_features, two_sample

VOCABULARY = [f"word{i}" for i in range(300)]


def replies(count, seed, marker=0.0, replies_per_prompt=1):
    r = random.Random(seed)
    texts = {
        i: [
            " ".join("indeed" if r.random() < marker else r.choice(VOCABULARY) for _ in range(30))
            for _ in range(replies_per_prompt)
        ]
        for i in range(count)
    }
    return {key: row[0] if replies_per_prompt == 1 else row for key, row in texts.items()}


def test_the_same_texts_cannot_be_told_apart():
    texts = replies(60, 0)
    assert c2st(texts, texts, seed=0).value == 0.5


def test_interval_holds_one_half_in_95_of_100_studies_where_both_sides_are_drawn_alike():
    held = []
    for k in range(300):
        g = np.random.default_rng(k)
        estimate = c2st_features(g.normal(size=(60, 8)), g.normal(size=(60, 8)), range(60), seed=k, resamples=200)
        held.append(estimate.low <= 0.5 <= estimate.high)
    assert 0.93 <= np.mean(held) <= 0.97 + 0.004


def test_a_habit_in_one_word_of_20_is_found_and_grows_with_it():
    teacher = replies(100, 0)
    little, much = (c2st(teacher, replies(100, 1, marker), seed=0) for marker in (0.02, 0.3))
    assert 0.5 < little.low < little.value < much.value
    assert much.value > 0.99
    assert much.low > 0.9
    assert (little.n, much.n) == (100, 100)


def test_which_side_is_called_teacher_does_not_matter():
    one, two = replies(60, 0), replies(60, 1, 0.03)
    assert c2st(one, two, seed=0).value == pytest.approx(c2st(two, one, seed=0).value, abs=0.01)


def test_what_a_prompt_is_about_does_not_leak():
    # each prompt has its own words, used by both sides alike: a fold that split a prompt would learn them
    r = random.Random(0)

    def about(key):
        return [" ".join(r.choice([f"subject{key}x{j}" for j in range(6)]) for _ in range(20)) for _ in range(3)]

    teacher, student = ({i: about(i) for i in range(60)} for _ in range(2))
    estimate = c2st(teacher, student, seed=0)
    assert estimate.low <= 0.5 <= estimate.high
    assert estimate.n == 60


def test_teacher_replies_to_other_prompts_are_from_the_teachers_distribution():
    texts = replies(60, 0)
    shuffled = {key: texts[(key + 7) % 60] for key in texts}
    estimate = c2st(texts, shuffled, seed=0)
    assert estimate.low <= 0.5 <= estimate.high
    half = {key: shuffled[key] if key < 30 else text for key, text in replies(60, 1).items()}
    mixed = c2st(texts, half, seed=0)
    assert mixed.low <= 0.5 <= mixed.high


def test_one_and_the_same_reply_to_everything_is_found():
    texts = replies(60, 0)
    assert c2st(texts, dict.fromkeys(texts, "I do not know."), seed=0).low > 0.9


def test_white_space_at_the_ends_is_no_style():
    texts = replies(60, 0)
    spaced = {key: f"  \n{text}\n\n" for key, text in texts.items()}
    assert c2st(texts, spaced, seed=0).value == 0.5


def test_teacher_likeness_is_a_verdict_per_prompt():
    teacher, student = replies(60, 0), replies(60, 1)
    student |= {i: text for i, text in replies(60, 2, marker=0.5).items() if i < 30}
    found = two_sample(teacher, student, seed=0)
    marked, plain = ([found.teacher_likeness[i] for i in rows] for rows in (range(30), range(30, 60)))
    assert np.mean(marked) < 0.1
    assert np.mean(plain) > np.mean(marked) + 0.3
    same = two_sample(teacher, teacher, seed=0).teacher_likeness
    assert set(same.values()) == {0.5}


def test_features_that_differ_are_told_apart():
    g = np.random.default_rng(0)
    teacher, student = g.normal(0.5, 1, (80, 6)), g.normal(0.0, 1, (80, 6))
    estimate = c2st_features(teacher, student, [i // 2 for i in range(80)], seed=0)
    assert estimate.n == 40
    assert 0.65 < estimate.value < 0.9
    assert estimate.low > 0.5
    scaled = c2st_features(1000 * teacher, 1000 * student, [i // 2 for i in range(80)], seed=0)
    assert scaled.value == pytest.approx(estimate.value, abs=1e-6)


def test_500_prompts_take_less_than_two_seconds_of_one_core():
    teacher, student = replies(500, 0), replies(500, 1, 0.02)
    c2st(replies(10, 0), replies(10, 1), seed=0)  # imports
    start = time.process_time()
    c2st(teacher, student, seed=0)
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize("text", ["", "   ", "!!!", "\x00", "你好世界", "a" * 100_000])
def test_odd_replies_are_texts_too(text):
    teacher = replies(12, 0)
    assert 0.0 <= c2st(teacher, dict.fromkeys(teacher, text), seed=0).value <= 1.0
    assert c2st(dict.fromkeys(teacher, text), dict.fromkeys(teacher, text), seed=0).value == 0.5


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match="one side only"):
        c2st({1: "a", 2: "b"}, {1: "a", 3: "b"}, seed=0)
    with pytest.raises(ValueError, match="at least 4"):
        c2st({1: "a", 2: "b"}, {1: "a", 2: "b"}, seed=0)
    with pytest.raises(ValueError, match="no replies"):
        c2st({1: []}, {1: ["a"]}, seed=0)
    with pytest.raises(ValueError, match="not finite"):
        c2st_features(np.full((8, 2), np.nan), np.zeros((8, 2)), range(8), seed=0)
    with pytest.raises(ValueError, match="shape"):
        c2st_features(np.zeros((8, 2)), np.zeros((8, 3)), range(8), seed=0)
    with pytest.raises(ValueError, match="groups"):
        c2st_features(np.zeros((8, 2)), np.zeros((8, 2)), range(4), seed=0)
