"""What the doctor finds."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from gad import doctor


def found(environment: dict[str, str] | None = None) -> dict[str, doctor.Finding]:
    return {finding.topic: finding for finding in doctor.findings(environment or {})}


def with_versions(monkeypatch: pytest.MonkeyPatch, **versions: str | None) -> None:
    real = metadata.version

    def version(name: str) -> str:
        if name not in versions:
            return real(name)
        given = versions[name]
        if given is None:
            raise metadata.PackageNotFoundError(name)
        return given

    monkeypatch.setattr("gad.doctor.metadata.version", version)


def test_declared_requirements_are_read_with_their_extras() -> None:
    by_name = {requirement.name.lower(): requirement for requirement in doctor.requirements()}
    assert by_name["pydantic"] == doctor.Requirement("pydantic", "2.11", "")
    assert by_name["torch"].extra == "train"
    assert by_name["torch"].at_least
    assert {requirement.extra for requirement in by_name.values()} >= {"", "train", "hub", "arena"}


def test_what_is_missing_comes_with_the_command_that_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with_versions(monkeypatch, torch=None, peft="0.1.0", datasets=None)
    findings = found()
    assert findings["extra train"].advice == (
        f"missing: torch; too old: peft 0.1.0 (needs {_least('peft')}): pip install --upgrade 'gad[train]'"
    )
    assert "torch missing" in findings["extra train"].text
    assert findings["extra hub"].advice == "missing: datasets: pip install --upgrade 'gad[hub]'"
    assert findings["packages"].advice == ""


def _least(name: str) -> str:
    return next(requirement.at_least for requirement in doctor.requirements() if requirement.name == name)


@pytest.mark.parametrize(
    ("version", "least", "older"),
    [
        ("2.9.0", "2.9", False),
        ("2.13.0+cpu", "2.9", False),
        ("2.8.9", "2.9", True),
        ("10.0", "9.1", False),
        ("0.6", "0.6.1", True),
        ("5.0.0rc1", "5.0", False),
        ("1.0", "", False),
    ],
)
def test_versions_are_compared_as_numbers(
    version: str, least: str, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gad.doctor.requirements", lambda: [doctor.Requirement("torch", least, "train")])
    with_versions(monkeypatch, torch=version)
    assert ("too old" in found()["extra train"].advice) is older


def test_caches_are_where_the_environment_puts_them(tmp_path: Path) -> None:
    findings = found({"GAD_CACHE": str(tmp_path / "gad"), "HF_HOME": str(tmp_path)})
    assert findings["models, converted"].text.startswith(f"{tmp_path / 'gad' / 'models'}, not made yet, ")
    assert findings["models, hub"].text.startswith(f"{tmp_path}, ")
    assert findings["models, hub"].text.endswith("GiB free")


def test_keys_are_named_and_never_shown() -> None:
    findings = found({"OPENAI_API_KEY": "sk-very-secret"})
    assert findings["keys"].text.startswith("OPENAI_API_KEY set, HF_TOKEN not set")
    assert not any("sk-very-secret" in finding.text + finding.advice for finding in findings.values())


def test_memory_is_that_of_the_control_group_where_it_is_less(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit = tmp_path / "memory.max"
    monkeypatch.setattr("gad.doctor._CGROUP_LIMIT", limit)
    for text, said in ((str(doctor.GIB), True), ("max", False), (str(2**60), False)):
        limit.write_text(text, encoding="ascii")
        assert ("limited to 1.0 GiB" in found()["memory"].text) is said


def _nvidia(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setattr("gad.doctor.shutil.which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr("gad.doctor.subprocess.run", run)


def test_cards_are_listed_and_a_torch_without_cuda_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "0, NVIDIA H100, 81559 MiB, 80000 MiB, 570.1\n"
    _nvidia(monkeypatch, lambda *_, **__: subprocess.CompletedProcess([], 0, answer, ""))
    with_versions(monkeypatch, torch="2.13.0+cpu")
    findings = found()
    assert findings["device"].text == "cuda:0, NVIDIA H100, 81559 MiB, 80000 MiB, 570.1"
    assert findings["torch"].advice.startswith("install a CUDA build of torch")
    with_versions(monkeypatch, torch="2.13.0+cu128")
    assert "torch" not in found()


def test_a_driver_that_hangs_or_fails_does_not_stop_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(command: list[str], **options: Any) -> None:
        raise subprocess.TimeoutExpired(command, options["timeout"])

    _nvidia(monkeypatch, hang)
    assert found()["device"].text == "nvidia-smi is here but fails: TimeoutExpired"


def test_advice_is_shown_below_its_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    finding = doctor.Finding("thing", "is [bold]missing", "get it")
    monkeypatch.setattr("gad.doctor.findings", lambda: [finding])
    doctor.show()
    assert [line.strip() for line in capsys.readouterr().out.splitlines()] == ["thing  is [bold]missing", "get it"]


def test_this_python_is_named() -> None:
    assert f"{sys.version_info.major}.{sys.version_info.minor}" in found()["python"].text
