"""The verbs: what they import, what they say, how they end."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from gad import __version__
from gad.cli import VERBS, app
from support import runs

HEAVY = ("torch", "transformers", "peft", "openai", "sklearn", "pyarrow", "numpy", "plotly", "jinja2", "yaml")


def gad(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def run_file(folder: Path, **changes: Any) -> Path:
    """A run that has data but no model."""
    config = runs.run_config(folder, "no/model", **changes).model_dump(mode="json")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def imported_by(*words: object) -> set[str]:
    """Modules that are loaded when a command has ended."""
    code = (
        "import json, sys\nfrom gad.cli import main\n"
        "try: main()\nexcept SystemExit as end: assert not end.code, end.code\n"
        "print('\\n' + json.dumps(sorted(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=True, timeout=120
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("run", "--help"), ("init", "--list")])
def test_what_only_speaks_imports_nothing_heavy(words: tuple[str, ...]) -> None:
    assert imported_by(*words).isdisjoint(HEAVY)


def test_the_overview_needs_neither_the_run_file_s_types_nor_rich() -> None:
    assert imported_by("--help").isdisjoint({"pydantic", "rich"})


def test_the_overview_says_every_verb_s_first_sentence_to_its_end() -> None:
    said = " ".join(gad("--help").stdout.split())
    for verb in VERBS:
        assert f" {verb.__name__} {' '.join((verb.__doc__ or '').split(chr(10) * 2)[0].split())}" in said


def test_a_plan_s_own_arithmetic_imports_no_numpy() -> None:
    code = "import json, sys, gad.plan; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    imported = set(json.loads(done.stdout))
    assert "gad.plan" in imported
    assert "numpy" not in imported


def test_verbs_without_models_do_not_import_torch(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    for words in (("init", tmp_path / "new.yaml"), ("plan", file), ("collect", file), ("report", file), ("doctor",)):
        assert imported_by(*words).isdisjoint({"torch", "transformers", "peft"}), words


@pytest.mark.parametrize("verb", [verb.__name__ for verb in VERBS])
def test_every_verb_has_help_with_an_example(verb: str) -> None:
    done = gad(verb, "--help")
    assert done.exit_code == 0
    assert f"gad {verb}" in done.stdout.split("Example")[1]


def test_each_example_of_a_list_has_a_line_of_its_own() -> None:
    lines = gad("run", "--help").stdout.splitlines()
    first = lines.index("    gad run run.yaml")
    assert lines[first + 1] == "    gad run recipes/quickstart.yaml name=short adversarial.steps=4"


def test_version_and_no_words_at_all() -> None:
    assert gad("--version").stdout == f"gad {__version__}\n"
    nothing = gad()
    assert (nothing.exit_code, nothing.stdout, nothing.stderr) == (2, gad("--help").stdout, "")


@pytest.mark.parametrize("words", [("fly",), ("run",), ("plan", "run.yaml", "--fast"), ("init", "--preset")])
def test_words_that_are_no_command_end_with_2(words: tuple[str, ...]) -> None:
    done = gad(*words)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_init_writes_once_and_says_what_comes_next(tmp_path: Path) -> None:
    file = tmp_path / "new" / "run.yaml"
    done = gad("init", file)
    assert (done.exit_code, done.stdout) == (0, f"wrote {file}; next: gad plan {file}\n")
    written = file.read_text(encoding="utf-8")
    again = gad("init", file, "--preset", "quickstart")
    assert again.exit_code == 2
    assert again.stderr == f"error: {file} exists: give another name, or --force to overwrite it\n"
    assert file.read_text(encoding="utf-8") == written
    assert gad("init", file, "--preset", "single-gpu-lora", "--force").exit_code == 0
    assert "single-gpu-lora" in file.read_text(encoding="utf-8")


def test_init_refuses_a_folder_and_an_unknown_preset(tmp_path: Path) -> None:
    assert gad("init", tmp_path).stderr.startswith(f"error: {tmp_path} is a folder: give the name of a file")
    done = gad("init", tmp_path / "x.yaml", "--preset", "paper-qwen2.5-7")
    assert done.exit_code == 2
    assert "did you mean paper-qwen2.5-7b?" in done.stderr
    assert not (tmp_path / "x.yaml").exists()


@pytest.mark.parametrize("preset", ["quickstart", "quickstart-long"])
def test_a_preset_with_texts_of_its_own_runs_from_anywhere(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = gad("init", "sub/run.yaml", "--preset", preset)
    assert "and 5 files in sub/quickstart" in done.stdout
    planned = gad("plan", "sub/run.yaml")
    assert planned.exit_code == 0, planned.stderr
    assert "300 prompts" in planned.stdout
    (tmp_path / "sub/quickstart/train.jsonl").write_text("my own\n", encoding="utf-8")
    refused = gad("init", "sub/run.yaml", "--preset", preset, "--force")
    assert refused.exit_code == 2
    assert "differs" in refused.stderr
    assert (tmp_path / "sub/quickstart/train.jsonl").read_text(encoding="utf-8") == "my own\n"


def test_every_line_of_a_message_is_marked_and_nothing_is_made(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    done = gad("collect", file, "adversarial.batch=1", "seed=x")
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        "error: override seed should be a whole number (got 'x')",
        "error: override adversarial.batch: unknown key adversarial.batch; did you mean batch_size?",
    ]
    assert not (tmp_path / "runs").exists()


def test_collect_writes_the_texts_once(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    done = gad("collect", file)
    assert done.exit_code == 0
    assert "train: 12 prompts, 0 rows left out" in done.stderr
    folder = tmp_path / "runs/tiny"
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.is_file()}
    assert {"teacher.jsonl", "data.json", "config.json"} <= set(before)
    again = gad("collect", file)
    assert (again.exit_code, again.stderr) == (0, "")
    assert {
        path.name: path.stat().st_mtime_ns for path in folder.iterdir() if path.name != ".lock" and path.is_file()
    } == ({name: time for name, time in before.items() if name != ".lock"})


def test_report_before_and_after_there_is_a_folder(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    done = gad("report", file)
    assert done.exit_code == 1
    assert done.stderr == f"error: {tmp_path}/runs/tiny: no such run folder; `gad run {file}` makes it\n"
    gad("collect", file)
    done = gad("report", file)
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path}/runs/tiny/report.html\n")
    assert "</html>" in (tmp_path / "runs/tiny/report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("stage", ["seqkd", "warmup", "adversarial"])
def test_a_stage_that_the_run_file_does_not_have(stage: str, tmp_path: Path) -> None:
    file = run_file(tmp_path)
    done = gad(stage, file, f"{stage}=null")
    assert done.exit_code == 2
    assert done.stderr == f"error: {file} has no {stage}: add the section `{stage}:`, or leave this stage out\n"


def test_export_is_refused_before_anything_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    file = run_file(tmp_path)
    assert "exists: give a folder that does not" in gad("export", file, tmp_path).stderr
    assert "is written OWNER/NAME" in gad("export", file, tmp_path / "out", "--push", "name").stderr
    done = gad("export", file, tmp_path / "out", "--push", "me/name")
    assert done.exit_code == 2
    assert "HF_TOKEN" in done.stderr
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out").exists()


def test_a_token_is_not_in_the_message_of_a_failed_upload(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from gad.errors import GadError
    from gad.publish import upload

    def refuse(self: Any, *_: Any, **__: Any) -> None:
        raise ConnectionError(f"bad token {self.token}\nsecond line")

    monkeypatch.setenv("HF_TOKEN", "hf_very_secret")
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(GadError) as caught:
        upload(tmp_path, "me/name")
    assert str(caught.value).startswith(f"me/name was not uploaded (bad token ***); {tmp_path} is complete")
    assert caught.value.exit_code == 1


def test_an_upload_sends_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    from gad.publish import upload

    calls: list[tuple[Any, ...]] = []
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    monkeypatch.setattr(
        huggingface_hub.HfApi, "create_repo", lambda self, name, exist_ok: calls.append((self.token, name, exist_ok))
    )
    monkeypatch.setattr(
        huggingface_hub.HfApi, "upload_folder", lambda _, repo_id, folder_path: calls.append((repo_id, folder_path))
    )
    assert upload(tmp_path, "me/name").endswith("/me/name")
    assert calls == [("hf_x", "me/name", True), ("me/name", tmp_path)]
