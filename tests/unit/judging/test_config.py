"""The judging section: kinds by their name, and what cannot be meant."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from gad.config.judging import JudgingConfig, Pair, PairwiseJudge, PaperJudge, PublishedSet

MODEL = {"model": "gpt-4o"}


def test_judges_sets_and_pairs_from_plain_values():
    config = JudgingConfig.model_validate(
        {
            "judges": [{"kind": "paper", "api": MODEL}, {"kind": "pairwise", "api": MODEL, "orders": "one"}],
            "pairs": [{"first": "gad"}, {"first": "gad", "second": "seqkd"}],
            "sets": [{"kind": "published", "name": "vicuna"}, {"kind": "own", "name": "mine", "source": "mine.jsonl"}],
        }
    )
    assert [type(judge) for judge in config.judges] == [PaperJudge, PairwiseJudge]
    assert [(pair.first, pair.second) for pair in config.pairs] == [("gad", "teacher"), ("gad", "seqkd")]
    assert config.sets[0] == PublishedSet(name="vicuna")
    assert config.sets[1].source.path == "mine.jsonl"
    assert config.judges[0].api.sampling.temperature == 0.0
    assert JudgingConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"judges": []}, "at least 1 item"),
        ({"judges": [{"kind": "paper", "api": MODEL}] * 2}, "two judges are called 'paper'"),
        ({"sets": [{"kind": "published", "name": "vicuna"}] * 2}, "two sets are called 'vicuna'"),
        ({"sets": [{"kind": "published", "name": "mtbench"}]}, "'lmsys', 'dolly', 'selfinst' or 'vicuna'"),
        ({"pairs": [{"first": "gad", "second": "gad"}]}, "with itself"),
        ({"judges": [{"kind": "paper", "name": "../x", "api": MODEL}]}, "pattern"),
        ({"judges": [{"kind": "paper", "api": {}}]}, "model"),
        ({"judges": [{"kind": "paper", "api": MODEL, "rubric": "r"}]}, "not permitted"),
        ({"max_prompts": 0}, "greater than 0"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, words):
    values = {"judges": [{"kind": "pairwise", "api": MODEL}], **changes}
    with pytest.raises(ValidationError, match=words):
        JudgingConfig.model_validate(values)


def test_a_pair_is_against_the_teacher_if_not_said_otherwise():
    assert Pair(first="gad").second == "teacher"
