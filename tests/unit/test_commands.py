"""The command line as a user meets it: real processes, exit codes, messages."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from support import runs, tiny, warm

GAD = ["-m", "gad"]
VERBS = ("init", "plan", "run", "collect", "seqkd", "warmup", "adversarial", "generate", "evaluate", "report", "export")


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


@pytest.mark.parametrize("module", ["torch", "transformers", "sklearn", "openai", "pyarrow", "numpy"])
def test_help_imports_nothing_heavy(module: str) -> None:
    code = "import sys; sys.argv = ['gad', '--help']\nfrom gad.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += f"sys.exit({module!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself_with_an_example(verb: str) -> None:
    done = gad(verb, "--help")
    assert done.returncode == 0
    assert f"gad {verb}" in done.stdout


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
    gad("init", str(file))
    done = gad("plan", str(file), override)
    assert done.returncode == 2
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


@pytest.mark.parametrize(
    ("break_it", "said"),
    [
        (lambda model: (model / "config.json").unlink(), "no config.json"),
        (lambda model: [file.unlink() for file in model.glob("tokenizer*")], "no usable tokenizer"),
        (lambda model: (model / "model.safetensors").unlink(), "safetensors"),
        (lambda model: (model / "chat_template.jinja").unlink(), "no chat template"),
    ],
)
def test_a_model_folder_that_cannot_be_used(break_it: object, said: str, tmp_path: Path) -> None:
    file = run_file(tmp_path)
    assert callable(break_it)
    break_it(tmp_path / "model")
    done = gad("run", str(file))
    assert done.returncode == 1
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs/tiny/teacher.jsonl").exists()


@pytest.mark.parametrize(
    ("override", "code", "said"),
    [
        ("compute.device=cuda:7", 2, "no such device"),
        ("discriminator.layer=9", 1, "the model has 4 layers"),
        ("prompt.max_reply_tokens=600", 2, "leave room for the prompt"),
        ("compute.tokens_per_micro_batch=16", 2, "or more"),
    ],
)
def test_what_only_the_model_can_tell(override: str, code: int, said: str, tmp_path: Path) -> None:
    done = gad("run", str(run_file(tmp_path)), override)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_read_only_place_and_a_file_in_the_way(tmp_path: Path) -> None:
    file = run_file(tmp_path)
    (tmp_path / "blocked").write_text("x", encoding="utf-8")
    done = gad("collect", str(file), f"runs_dir={tmp_path / 'blocked'}")
    assert done.returncode == 1
    assert "not a folder" in done.stderr
    assert "Traceback" not in done.stderr
