"""Answers of judges: what counts as a verdict, and the many forms that do not."""

from __future__ import annotations

import math

import pytest

from gad.judging.asking import Answer, Malformed
from gad.judging.pairwise import read_verdict
from gad.judging.paper import paper_score, read_scores

MALFORMED_SCORES = {
    "": "empty",
    "  \n\n ": "empty",
    "Both replies are good.": "no number",
    "I'm sorry, but I can't help with that request.": "no number",
    "As an AI, I do not compare assistants.": "no number",
    "8": "one number",
    "Score: 8": "one number",
    "eight nine": "no number",
    "Beide Antworten sind gut: acht und neun.": "no number",
    "两个回答都很好。八分和九分。": "no number",
    "8 9 7": "more than two numbers",
    "8, 9, 7": "more than two numbers",
    "Assistant 1: 8, Assistant 2: 9": "more than two numbers",
    "8/10 9/10": "more than two numbers",
    "8 out of 10, 9 out of 10": "more than two numbers",
    "8/9": "numbers and other text",
    "8-9": "numbers and other text",
    "8 and 9": "numbers and other text",
    "8 : 9": "numbers and other text",
    "Scores: 8 9": "numbers and other text",
    "**8 9**": "numbers and other text",
    "`8 9`": "numbers and other text",
    "# 8 9": "numbers and other text",
    "| 8 | 9 |": "numbers and other text",
    "```\n8 9\n```": "no number",
    '{"assistant_1": 8, "assistant_2": 9}': "more than two numbers",
    "[8, 9]": "numbers and other text",
    "<score>8</score><score>9</score>": "numbers and other text",
    "0 9": "score out of range",
    "8 11": "score out of range",
    "-8 9": "score out of range",
    "80 90": "score out of range",
    "8 1e1": "more than two numbers",
    "٨ ٩": "no number",
    "8\n9": "one number",
    "Explanation first.\n8 9": "no number",
    "nan nan": "no number",
    "8 9 (assistant 2 is better)": "more than two numbers",
    "<think>8 9": "numbers and other text",
}


@pytest.mark.parametrize("text", MALFORMED_SCORES)
def test_an_answer_that_is_no_pair_of_scores_is_malformed_and_said_to_be_which(text):
    assert read_scores(Answer("k", text)) == Malformed(MALFORMED_SCORES[text])


@pytest.mark.parametrize(
    ("text", "scores"),
    [
        ("8 9", (8.0, 9.0)),
        ("8 9\nAssistant 2 is more detailed. 10 out of 10.", (8.0, 9.0)),
        ("8, 9", (8.0, 9.0)),
        ("8.5\t9", (8.5, 9.0)),
        ("  10 1  \n", (10.0, 1.0)),
        ("<think>maybe 3 4?</think>\n7 8\nbecause", (7.0, 8.0)),
    ],
)
def test_two_numbers_on_the_first_line_are_scores(text, scores):
    assert read_scores(Answer("k", text)) == scores


def test_the_papers_formula():
    assert paper_score(8.0, 8.0) == 50.0
    assert paper_score(9.0, 8.0) == pytest.approx(52.941176)
    assert paper_score(1.0, 10.0) == pytest.approx(9.090909)
    assert paper_score(7.0, 9.0) + paper_score(9.0, 7.0) == pytest.approx(100.0)


MALFORMED_VERDICTS = [
    "Reply A is better.",
    "A is better because it is correct.",
    "A good reply must be short.",
    "Answer: A",
    "a",
    "b",
    "C",
    "AB",
    "A B",
    "A or B",
    "**A**",
    "`A`",
    '{"verdict": "A"}',
    "| A |",
    "# A",
    "Both are fine.",
    "Tie",
    "T/B",
    "I cannot judge this.",
    "Je préfère la réponse A.",
    "回答A更好",
    "А",  # Cyrillic
    "1",
    "A, B",
    "A\u200b",
    "```\nA\n```",
    "Reason first.\nA",
    "<think>A",
    "...",
    "[[A]] [[B]]",
    "A A",
]


@pytest.mark.parametrize("text", MALFORMED_VERDICTS)
def test_an_answer_that_is_no_letter_is_malformed_whatever_the_odds_say(text):
    sure = {"A": math.log(0.99), "B": math.log(0.01)}
    assert read_verdict(Answer("k", text, logprobs=sure)) == Malformed("no letter on the first line")


@pytest.mark.parametrize(
    ("text", "preference"),
    [("A", 1.0), ("B\nIt is correct.", 0.0), ("T.", 0.5), ("[[A]]", 1.0), (" B ", 0.0), ("<think>A?</think>B", 0.0)],
)
def test_a_letter_alone_is_a_verdict(text, preference):
    shown = read_verdict(Answer("k", text))
    assert (shown.preference, shown.by) == (preference, "parsed")


def test_odds_of_the_letter_are_the_preference():
    odds = {"A": math.log(0.6), " A": math.log(0.1), "B": math.log(0.1), "T": math.log(0.2)}
    shown = read_verdict(Answer("k", "A\nbecause", logprobs=odds))
    assert shown.preference == pytest.approx((0.7 + 0.1) / 1.0)
    assert shown.by == "probability"


def test_odds_that_are_about_something_else_are_not_taken():
    odds = {"Well": math.log(0.9), "A": math.log(0.05), "B": math.log(0.04)}
    assert read_verdict(Answer("k", "A", logprobs=odds)).by == "parsed"
    thought = {"A": math.log(0.9)}
    shown = read_verdict(Answer("k", "<think>hm</think>B", logprobs=thought))
    assert (shown.preference, shown.by) == (0.0, "parsed")
