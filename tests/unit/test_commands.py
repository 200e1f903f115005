"""The command line as a user meets it: real processes, exit codes, messages."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from gad.cli import app
from support import runs, tiny, warm

GAD = ["-m", "gad"]


def gad(*words: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """One command, to its end."""
    return warm.run([*GAD, *words], cwd=cwd, timeout=120)


def run_file(folder: Path, **changes: object) -> Path:
    """A small run as YAML."""
    model = tiny.save(folder / "model")
    config = runs.run_config(folder, model, **changes).model_dump(mode="json", exclude_none=True)
    config["adversarial"]["epochs"] = None
    config["data"]["leak_check"] = None
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_a_mistyped_key_names_the_line_and_the_nearest(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("name: x\ndata: {train: a.jsonl}\nstudent:\n  modle: y\n", encoding="utf-8")
    done = gad("plan", str(file))
    assert done.returncode == 2
    assert f"{file}:4: unknown key student.modle; did you mean model?" in done.stderr
    assert "student.model is missing" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("adversarial.replies_per_prompt=1", "one reply has no baseline"),
        ("warmup.student.learning_rate=.nan", "finite number"),
        ("student.tuning.kind=ful", "student.tuning"),
        ("student={model: m, tuning: {kind: full}}", "discriminator.kind=shared needs"),
        ("evaluation.style=(", "not a regular expression"),
        ("nonsense", "key.path=value"),
        ("adversarial.stepz=3", "did you mean steps?"),
    ],
)
def test_a_bad_value_is_one_message_and_exit_2(override: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    CliRunner().invoke(app, ["init", str(file)])
    done = CliRunner().invoke(app, ["plan", str(file), override])
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_plan_prints_what_follows_from_the_file(tmp_path: Path) -> None:
    done = gad("plan", str(run_file(tmp_path)))
    assert done.returncode == 0
    assert "3 x 3 = 9" in done.stdout
    assert "discriminator 1 steps, both 2 steps" in done.stdout
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    command = [*GAD, "run", str(file), "adversarial.steps=400", "seqkd=null"]
    process = warm.Popen(command)
    log = tmp_path / "runs/tiny/metrics.jsonl"
    while not (log.exists() and log.read_text(encoding="utf-8").count('"stage": "adversarial"') >= 3):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert "run the same command again" in said
    steps = [json.loads(line)["step"] for line in log.read_text(encoding="utf-8").splitlines() if "adversarial" in line]
    assert (tmp_path / f"runs/tiny/checkpoints/adversarial-{steps[-1]}").is_dir()
    other = gad("run", str(file), "seqkd=null")
    assert other.returncode == 1
    assert "adversarial.steps changed" in other.stderr


@pytest.mark.slow
def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    with warm.Popen([*GAD, "run", str(file), "adversarial.steps=400"]) as first:
        while not (tmp_path / "runs/tiny/metrics.jsonl").exists():
            assert first.poll() is None
            time.sleep(0.05)
        second = gad("run", str(file), "adversarial.steps=400")
        assert second.returncode == 1
        assert f"in use by process {first.pid}" in second.stderr


def test_a_stage_before_its_time_says_which_comes_first(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    done = gad("adversarial", str(file))
    assert done.returncode == 1
    assert "gad collect" in done.stderr
    assert gad("collect", str(file)).returncode == 0
    done = gad("adversarial", str(file))
    assert done.returncode == 1
    assert "gad warmup" in done.stderr


def test_a_read_only_place_and_a_file_in_the_way(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    (tmp_path / "blocked").write_text("x", encoding="utf-8")
    done = gad("collect", str(file), f"runs_dir={tmp_path / 'blocked'}")
    assert done.returncode == 1
    assert "not a folder" in done.stderr
    assert "Traceback" not in done.stderr
