"""The number type where the run file leaves it open."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from gad.build import Workshop
from gad.errors import RunFolderError
from gad.models import arithmetic
from support import runs, tiny

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, "float32"),
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, "bfloat16"),
        ({"avx512_bf16": False, "amx_bf16": True}, "bfloat16"),
        ({}, "float32"),
    ],
)
def test_a_cpu_computes_in_bfloat16_only_where_it_has_the_instructions(
    capabilities: dict[str, bool], chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert arithmetic.fastest(CPU) == chosen


def test_a_torch_that_does_not_know_the_cpu_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert arithmetic.fastest(CPU) == "float32"


@pytest.mark.parametrize("here", ["float32", "bfloat16"])
def test_a_run_keeps_what_it_began_with(here: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"float32": "bfloat16", "bfloat16": "float32"}[here]
    monkeypatch.setattr(arithmetic, "fastest", lambda _: here)
    assert arithmetic.settled(tmp_path, CPU) == (here, True)
    monkeypatch.setattr(arithmetic, "fastest", lambda _: other)
    assert arithmetic.settled(tmp_path, CPU) == (here, False)


@pytest.mark.parametrize("text", ["", "[]", '{"auto": "float8"}', '{"auto": null}', "{}"])
def test_a_damaged_record_is_named_with_what_to_write(text: str, tmp_path: Path) -> None:
    (tmp_path / arithmetic.FILE).write_text(text, encoding="utf-8")
    with pytest.raises(RunFolderError, match=r'arithmetic.json is damaged: write .*"float32"'):
        arithmetic.settled(tmp_path, CPU)
    assert (tmp_path / arithmetic.FILE).read_text(encoding="utf-8") == text


def test_the_type_is_that_of_the_loaded_model(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    config = runs.run_config(tmp_path, model, student={"model": str(model)})
    for name in ("float32", "bfloat16"):
        shop = Workshop(config)
        shop.compute_in(name)  # type: ignore[arg-type]
        assert shop.student.network.dtype is arithmetic.TYPES[name]


def test_a_run_says_and_records_its_arithmetic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny.save(tmp_path / "model")
    config = runs.run_config(tmp_path, model, student={"model": str(model)}, adversarial=None, warmup=None, seqkd=None)
    folder = runs.run(config)
    chosen = arithmetic.fastest(CPU)
    assert f"arithmetic: {chosen} on cpu (student.dtype: auto)" in "".join(capsys.readouterr())
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    assert summary["machine"]["arithmetic"] == chosen


def test_the_record_is_json_that_people_read(tmp_path: Path) -> None:
    chosen, _ = arithmetic.settled(tmp_path, CPU)
    assert json.loads((tmp_path / arithmetic.FILE).read_text(encoding="utf-8")) == {"auto": chosen}
