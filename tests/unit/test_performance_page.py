"""The page and the pictures on performance are what the committed results say."""

from __future__ import annotations

import json
import re
import runpy
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = runpy.run_path(str(ROOT / "scripts" / "performance_page.py"))
RESULT = json.loads((ROOT / "bench" / "results" / "step.json").read_text(encoding="utf-8"))
WRITTEN = MADE["written"](RESULT)


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_what_is_on_disk_is_what_the_script_writes(path: Path) -> None:
    assert path.read_text(encoding="utf-8") == WRITTEN[path], "run `python scripts/performance_page.py`"


def test_pictures_are_whole_and_the_page_shows_them() -> None:
    pictures = {path.name for path in WRITTEN if path.suffix == ".svg"}
    for path, text in WRITTEN.items():
        if path.suffix == ".svg":
            assert ElementTree.fromstring(text).get("aria-label")
            assert "nan" not in text
        else:
            assert set(re.findall(r"images/(\w+\.svg)", text)) == pictures


def test_every_figure_of_the_contract_is_there_for_what_was_measured() -> None:
    for workload in ("short", "long"):
        for key in (
            "gad_on_trl_naive_over_ours",
            "gad_on_trl_fused_over_ours",
            "ours_over_trl_grpo_frozen",
            "ours_over_our_grpo_frozen",
        ):
            assert RESULT[workload][key] > 0
    keys = {
        "sampling": ("transformers_generate_over_our_sampling",),
        "real": ("gemm_share_fp32",),
        "memory": ("memory_one_base_over_three_models",),
    }
    for part, names in keys.items():
        assert (part in RESULT["parts"]) == all(RESULT.get(name, 0) > 0 for name in names), part
    if "real" in RESULT["parts"]:
        assert RESULT["gemm_share_bf16"] is not None or RESULT["gemm_share_bf16_reason"]


def test_ratios_are_those_of_the_rows() -> None:
    """Of the medians of what each contestant took in each round."""
    for workload in ("short", "long"):
        rows = RESULT[workload]["rows"]
        middle = {}
        for name in RESULT[workload]["contestants"]:
            seconds = sorted(row["cpu_seconds"] for row in rows if row["contestant"] == name)
            half = len(seconds) // 2
            middle[name] = (seconds[half] + seconds[-1 - half]) / 2
        assert RESULT[workload]["gad_on_trl_naive_over_ours"] == pytest.approx(middle["trl_naive"] / middle["ours"])
        assert RESULT[workload]["ours_over_trl_grpo_frozen"] == pytest.approx(middle["ours"] / middle["trl_grpo"])
