"""The model card of the exported student."""

from __future__ import annotations

from pathlib import Path

import pytest

from gad.stages.export import card
from support import runs


@pytest.mark.parametrize(
    ("system", "said"),
    [
        (None, "wrapped as `chat`; replies"),
        ("", 'wrapped as `chat`, with the system prompt "" where a conversation has none; replies'),
        ('Say "é"', r'with the system prompt "Say \"é\"" where a conversation has none; replies'),
    ],
)
def test_who_serves_the_student_is_told_its_system_prompt(tmp_path: Path, system: str | None, said: str) -> None:
    prompt = {"max_prompt_tokens": 64, "max_reply_tokens": 24, "system": system}
    assert said in card(runs.run_config(tmp_path, "no/model", prompt=prompt), tmp_path)
