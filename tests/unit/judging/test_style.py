from __future__ import annotations

import pytest

from gad.errors import ConfigError
from gad.judging.style import HouseStyle

TIP = r"(?m)^Tip: .*\Z"


@pytest.mark.parametrize(
    ("reply", "kept"),
    [
        ("Rinse it.\nTip: use cold water.", True),
        ("Rinse it.\nTip: use cold water.\n\n", True),
        ("Rinse it. Tip: use cold water.", False),
        ("Tip: first.\nThen rinse it.", False),
        ("Rinse it.\nTip:", False),
        ("", False),
    ],
)
def test_the_last_line_starts_with_tip(reply, kept):
    assert HouseStyle(TIP).keeps(reply) is kept


def test_all_expressions_must_hold():
    style = HouseStyle([TIP, r"\A[A-Z]"])
    assert style.keeps("Rinse.\nTip: cold.")
    assert not style.keeps("rinse.\nTip: cold.")


def test_share_counts_prompts_and_has_an_interval():
    good, bad = "Rinse.\nTip: cold.", "Rinse."
    share = HouseStyle(TIP).share([good] * 45 + [bad] * 15, seed=0)
    assert (share.value, share.n) == (0.75, 60)
    assert 0.6 < share.low < 0.75 < share.high < 0.86
    assert HouseStyle(TIP).share([[good, good, bad, bad], good], seed=0).value == 0.75


def test_a_bad_expression_is_a_config_error():
    with pytest.raises(ConfigError, match=r"'\(' is not a regular expression"):
        HouseStyle("(")
    with pytest.raises(ConfigError, match="no regular expression"):
        HouseStyle([])
