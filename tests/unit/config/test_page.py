"""The page of the run file's keys is what the types say."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

ROOT = Path(__file__).parents[3]
MADE = runpy.run_path(str(ROOT / "scripts" / "config_page.py"))


def test_the_page_is_up_to_date() -> None:
    on_disk = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert on_disk == MADE["page"](), "run `python scripts/config_page.py`"


def test_every_key_says_what_it_means_and_links_lead_somewhere() -> None:
    lines = MADE["page"]().splitlines()
    silent = [line for line in lines if line.startswith("| `") and line.endswith("|  |")]
    assert [line for line in silent if not line.startswith("| `kind`")] == []
    anchors = {re.sub(r"[^\w\- ]", "", line[3:].lower()).replace(" ", "-") for line in lines if line.startswith("## ")}
    links = {anchor for line in lines for anchor in re.findall(r"\(#([^)]+)\)", line)}
    assert len(links) > 30
    assert links <= anchors


def test_defaults_stand_as_in_a_run_file() -> None:
    page = MADE["page"]()
    for row in (
        "| `student` | [section](#optimizer) | `{learning_rate: 1e-06, schedule: linear}` | A linear decay",
        "| `betas` | list of 2: number >= 0, < 1, number >= 0, < 1 | `[0.9, 0.999]` |",
        "| `discriminator` | [shared](#discriminator-kind-shared) or [own](#discriminator-kind-own) | `{kind: sh",
        "| `fraction` | number > 0, < 1 or null | `null` |",
        "| `dtype` | `auto`, `bfloat16`, `float32` | `auto` |",
    ):
        assert row in page, row
