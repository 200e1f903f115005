"""Several real processes on a tiny model: the result of one, and the end of all when one fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from gad.config.run import RunConfig
from gad.storage import lock
from support import runs, tiny, warm

pytestmark = [pytest.mark.distributed, pytest.mark.slow]
FAULTY = Path(__file__).parents[1] / "support" / "faulty.py"
FEW = {"max_prompts": 3, "decodings": runs.ONE, "independent": {"epochs": 0.1, "batch_size": 4}}
OPTIMIZER = {"learning_rate": 1e-3, "max_grad_norm": 1e-3}
"""Adam divides a gradient by its size and 1e-8: one that is nothing but rounding becomes a step, another one in every
order of summing. Clipped to so small a norm, rounding stays below the 1e-8, and true gradients far above it: weights
move as far, and two runs differ by a fortieth of what they do with a norm of 1."""
PATIENCE = 240
"""Seconds; a loaded machine needs some only to import torch twice."""


@dataclass
class Setting:
    folder: Path
    config: RunConfig
    file: Path

    def words(self, *arguments: str) -> list[str]:
        return ["-m", "gad", arguments[0], str(self.file), *arguments[1:]]


def setting(folder: Path, **changes: Any) -> Setting:
    folder.mkdir(exist_ok=True)
    model = folder / "model"
    if not model.exists():
        tiny.save(model)
    values = runs.run_config(folder, model, **{"seqkd": None, "evaluation": FEW, **changes}).model_dump()
    for stage in filter(None, (values["warmup"], values["adversarial"])):
        stage |= {"student": OPTIMIZER, "discriminator": OPTIMIZER}
    config = RunConfig.model_validate(values)
    file = folder / f"{config.name}.yaml"
    file.write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    return Setting(folder, config, file)


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """With a further model to be measured, which is loaded once, whatever the number of processes: the others wait."""
    folder = tmp_path_factory.mktemp("lora")
    other = tiny.save(folder / "other", "llama3", seed=3)
    visitor = {"kind": "local", "name": "llama", "model": str(other), "dtype": "float32"}
    return setting(folder, evaluation={**FEW, "models": [visitor]})


@pytest.fixture(scope="module")
def alone(tiny_run: Setting) -> Path:
    """The run of one process that all others are compared with."""
    return runs.run(tiny_run.config.model_copy(update={"name": "alone"}))


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def gad(setting: Setting, *arguments: str, **extra: str) -> subprocess.CompletedProcess[str]:
    return warm.run(setting.words(*arguments), timeout=PATIENCE, env=environment() | extra)


def two(setting: Setting, *arguments: str) -> tuple[int, str]:
    """The exit code of two processes, and what the first one said."""
    with together(setting, 2, *arguments) as started:
        codes = [process.wait(PATIENCE) for process in started]
        assert codes[0] == codes[1]
        # Only the first one speaks.
        assert started[1].stderr.read() == ""
        return codes[0], started[0].stderr.read()


def copied(setting: Setting, run: Path, name: str, *without: str) -> Path:
    """A finished run under another name, without some of its folders."""
    folder = setting.config.folder.parent / name
    shutil.copytree(run, folder)
    config = setting.config.model_copy(update={"name": name}).model_dump(mode="json")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    for each in without:
        shutil.rmtree(folder / each)
    return folder


def weights_differ(ours: Path, theirs: Path, stage: str = "adversarial") -> float:
    """Norm of the difference of all trained weights over their norm; the largest over the parts."""
    name = sorted(path.name for path in (theirs / "checkpoints").glob(f"{stage}-*"))[-1]
    worst = 0.0
    for file in (theirs / "checkpoints" / name).glob("*.safetensors"):
        one, two = load_file(file), load_file(ours / "checkpoints" / name / file.name)
        assert one.keys() == two.keys()
        keys = [key for key in one if key.startswith("weights.")]
        flat = [torch.cat([part[key].flatten().double() for key in keys]) for part in (one, two)]
        worst = max(worst, float((flat[0] - flat[1]).norm() / flat[0].norm()))
    return worst


def same_numbers(ours: Path, theirs: Path) -> None:
    """Replies letter by letter, the log and the figures up to rounding."""
    for file in sorted((theirs / "replies").rglob("*.jsonl")):
        assert (ours / file.relative_to(theirs)).read_bytes() == file.read_bytes()
    for one, two in zip(runs.metrics(ours), runs.metrics(theirs), strict=True):
        assert one.keys() == two.keys()
        # The gap between two computations of one number is itself rounding; padding depends on who computes what.
        apart = ("rollout/logp_gap", "tokens/discriminator", "tokens/student")
        compared = [name for name, value in two.items() if isinstance(value, float) and name not in apart]
        assert {name: one[name] for name in compared} == pytest.approx(
            {n: two[n] for n in compared}, rel=1e-4, abs=1e-6
        )
    figures = [
        {(r["student"], r["set"], r["decoding"], r["name"]): r["value"] for r in runs.figures(run)}
        for run in (ours, theirs)
    ]
    assert figures[0] == pytest.approx(figures[1], rel=1e-4, abs=1e-6)


def test_two_processes_end_as_one(tiny_run: Setting, alone: Path) -> None:
    done = gad(tiny_run, "run", "name=two", "--nproc", "2")
    assert done.returncode == 0, done.stderr
    folder = tiny_run.config.folder.parent / "two"
    assert weights_differ(folder, alone) < 1e-6
    same_numbers(folder, alone)
    assert (folder / "replies" / "llama" / "held_out.jsonl").exists()
    # Only the first process speaks.
    assert done.stderr.count("warmup: 3/3") == 1


def test_adapters_above_a_common_part_end_as_in_one(tmp_path: Path) -> None:
    """A sharded base goes through in two parts: the common one once, the upper one for each member."""
    model = tiny.save(tmp_path / "model", "gemma3")
    made = setting(
        tmp_path,
        student={
            "model": str(model),
            "dtype": "float32",
            "tuning": {"kind": "lora", "rank": 4, "first_layer": 2},
            "gradient_checkpointing": True,
        },
        discriminator={"kind": "shared", "layer": 3},
        seqkd=None,
        warmup=None,
    )
    for verb, name in (("collect", "one"), ("collect", "two"), ("adversarial", "one")):
        done = gad(made, verb, f"name={name}")
        assert done.returncode == 0, done.stderr
    code, said = two(made, "adversarial", "name=two")
    assert code == 0, said
    one, shared = (made.config.folder.parent / name for name in ("one", "two"))
    assert weights_differ(shared, one) < 1e-6
    assert [row["reward/mean"] for row in runs.metrics(shared)] == pytest.approx(
        [row["reward/mean"] for row in runs.metrics(one)], rel=1e-4, abs=1e-6
    )


def test_full_tuning_is_sharded_and_ends_as_in_one(tmp_path: Path) -> None:
    """Embeddings that are tied to the head, a discriminator that stops half-way, weights sampled from in place."""
    full: dict[str, Any] = {"kind": "full"}
    model = tmp_path / "model"
    tiny.save(model, "smollm")
    made = setting(
        tmp_path,
        student={"model": str(model), "dtype": "float32", "tuning": full, "gradient_checkpointing": True},
        discriminator={"kind": "own", "model": str(model), "dtype": "float32", "tuning": full, "layer": 2},
        compute={"device": "cpu", "threads": 1, "layout": "cache", "merge_adapters": False},
    )
    one = runs.run(made.config.model_copy(update={"name": "one"}))
    code, said = two(made, "run", "name=two")
    assert code == 0, said
    shared = made.config.folder.parent / "two"
    assert weights_differ(shared, one) < 1e-6
    same_numbers(shared, one)
    # What one process saved is taken up by two, moments of sharded matrices included.
    left = copied(made, one, "left", "checkpoints/adversarial-3")
    code, said = two(made, "adversarial", "name=left")
    assert code == 0, said
    assert weights_differ(left, one) < 1e-6
    assert "adversarial: 3/3" in said


def test_four_processes_as_two_machines(tiny_run: Setting, alone: Path) -> None:
    """HSDP, as torchrun starts it; more processes than prompts for some of them."""
    settings = ("warmup", "name=four", "compute.shard=machine")
    assert gad(tiny_run, "collect", "name=four").returncode == 0
    with together(tiny_run, 4, *settings, here=2) as started:
        assert [process.wait(PATIENCE) for process in started] == [0] * 4
    assert weights_differ(tiny_run.config.folder.parent / "four", alone, "warmup") < 1e-6


class together:  # noqa: N801 - used as a context
    """Processes as torchrun starts them, with a fault in one of them."""

    def __init__(
        self,
        setting: Setting,
        count: int,
        *arguments: str,
        here: int | None = None,
        fault: tuple[int, str, str] = (0, "", "none"),
        port: int | None = None,
    ) -> None:
        if port is None:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        here = here or count
        shared = {
            "WORLD_SIZE": str(count),
            "LOCAL_WORLD_SIZE": str(here),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        verb, *rest = arguments
        words = [str(FAULTY), *map(str, fault), "--", verb, str(setting.file), *rest]
        self.started = [
            warm.Popen(
                words, quiet=True, env=environment() | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank % here)}
            )
            for rank in range(count)
        ]

    def __enter__(self) -> list[warm.Popen]:
        return self.started

    def __exit__(self, *_: object) -> None:
        for process in self.started:
            process.close()


FAULTS = {
    "killed while it samples": (1, "sampling", "kill"),
    "killed in the student's update": (1, "updating the student", "kill"),
    "killed in the discriminator's update": (1, "updating the discriminator", "kill"),
    "killed while a checkpoint is gathered": (1, "gathering weights", "kill"),
    "killed while models are loaded": (1, "loading models", "kill"),
    "killed in the imitation": (1, "imitating the teacher", "kill"),
    "killed while weights are gathered to sample": (1, "gathering weights to sample", "kill"),
    "killed while it measures likelihoods": (1, "measuring likelihoods", "kill"),
    "killed while it scores": (1, "scoring", "kill"),
    "the first one killed": (0, "updating the student", "kill"),
    "stopped": (1, "sampling", "stop"),
    "hangs": (1, "updating the student", "hang"),
    "out of memory": (1, "updating the student", "memory"),
    "a fault of ours": (1, "sampling", "error"),
}
SAYS = {
    "kill": r"error: rank {rank} .*is lost while ",
    "stop": r"error: rank {rank} \(pid \d+ on .*\) is lost while .*: not heard of for 1\d s",
    "hang": r"error: rank {rank} \(pid \d+ on .*\) hung while updating the student: nothing has moved for \d\d s",
    "memory": r"error: rank {rank} \(pid \d+ on .*\) failed while updating the student: out of memory",
    "error": r"error: rank {rank} \(pid \d+ on .*\) failed while sampling: RuntimeError: a fault of ours",
}


LATE = ("measuring likelihoods", "scoring")
"""Phases that a run comes to when it has trained and sampled: begun from there."""


def run_name(fault: str) -> str:
    return fault.replace(" ", "-").replace("'", "")


@pytest.mark.faults
@pytest.mark.parametrize("name", FAULTS)
def test_one_fails_and_all_end(name: str, tiny_run: Setting, alone: Path) -> None:
    """Within 30 seconds, with one message that names rank, phase and cause."""
    rank, phase, fault = FAULTS[name]
    if phase in LATE:
        copied(tiny_run, alone, run_name(name), "likelihoods", "scores")
    with together(tiny_run, 2, "run", f"name={run_name(name)}", fault=FAULTS[name]) as started:
        failing, other = started[rank], started[1 - rank]
        if fault == "kill":
            failing.wait(PATIENCE)
            began = time.monotonic()
            assert other.wait(PATIENCE) == 1
            assert time.monotonic() - began < 30
        else:
            assert other.wait(PATIENCE) == 1
        said = other.stderr.read()
    assert re.search(SAYS[fault].format(rank=rank), said), said
    assert said.count("error:") == 1
    assert "run the same command again to go on" in said


@pytest.mark.faults
def test_what_a_killed_run_leaves_goes_on_with_another_number(tiny_run: Setting, alone: Path) -> None:
    fault = (1, "updating the student", "kill")
    with together(tiny_run, 2, "run", "name=left", fault=fault) as started:
        assert started[0].wait(PATIENCE) == 1
    folder = runs.run(tiny_run.config.model_copy(update={"name": "left"}))
    assert weights_differ(folder, alone) < 1e-6
    same_numbers(folder, alone)


@pytest.mark.faults
def test_torchrun_starts_all_anew_where_one_is_killed(tiny_run: Setting, alone: Path, tmp_path: Path) -> None:
    """Its store outlives the first attempt: what that one said in it must not end the second."""
    assert gad(tiny_run, "collect", "name=anew").returncode == 0
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1"]
    fault = ["1", "updating the student", "kill", "--", "warmup", str(tiny_run.file), "name=anew"]
    env = environment() | {"PYTHON_EXEC": str(warm.interpreter(tmp_path / "python"))}
    with warm.Popen([*torchrun, str(FAULTY), *fault], quiet=True, env=env) as started:
        code = started.wait(PATIENCE)
        said = started.stderr.read()
    assert code == 0, said
    assert said.count("error: rank 1") <= 1
    assert weights_differ(tiny_run.config.folder.parent / "anew", alone, "warmup") < 1e-6


@pytest.mark.faults
def test_sigterm_to_any_of_them_saves_and_leaves(tiny_run: Setting, alone: Path) -> None:
    assert gad(tiny_run, "collect", "name=stopped").returncode == 0
    with together(tiny_run, 2, "run", "name=stopped", fault=(1, "sampling", "term")) as started:
        assert [process.wait(PATIENCE) for process in started] == [143, 143]
        assert "everything is saved" in started[0].stderr.read()
    code, said = two(tiny_run, "run", "name=stopped")
    assert code == 0, said
    same_numbers(tiny_run.config.folder.parent / "stopped", alone)


@pytest.mark.faults
def test_a_step_that_is_not_finite_is_skipped_by_all(tmp_path: Path) -> None:
    """Each process has a share of the batch, and none of the others' loss: all skip, and one file says why."""
    wild = {"learning_rate": 1e37, "max_grad_norm": 1.0, "weight_decay": 0.0}
    made = setting(tmp_path, seqkd={"epochs": 2, "batch_size": 4, "optimizer": wild, "max_bad_steps": 1})
    assert gad(made, "collect").returncode == 0
    code, said = two(made, "seqkd")
    assert code == 1, said
    assert "the student's loss or gradient was not finite in 2 steps, the last of them step 3" in said
    assert said.count("error:") == 1
    folder = made.config.folder
    assert [path.name for path in sorted((folder / "skipped").iterdir())] == [
        "seqkd-2-student.json",
        "seqkd-3-student.json",
    ]
    noted = json.loads((folder / "skipped/seqkd-2-student.json").read_text())
    assert len(noted["batch"]) == 4
    assert (folder / "checkpoints/seqkd-3/manifest.json").exists()


@pytest.mark.faults
def test_a_second_command_on_the_folder_is_refused_with_the_first_ones_pid(tiny_run: Setting) -> None:
    with lock(tiny_run.config.folder.parent / "held"):
        code, said = two(tiny_run, "warmup", "name=held")
    assert code == 1, said
    assert f"is in use by process {os.getpid()}" in said
    assert said.count("error:") == 1


@pytest.mark.parametrize(
    ("arguments", "extra", "message"),
    [
        (("--nproc", "4096"), {}, "--nproc 4096: this machine lets us use"),
        (("--nproc", "2"), {"WORLD_SIZE": "2", "RANK": "0"}, "LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR.* is not set"),
    ],
)
def test_bad_input_is_one_message(
    arguments: tuple[str, ...], extra: dict[str, str], message: str, tiny_run: Setting
) -> None:
    done = gad(tiny_run, "warmup", "name=bad", *arguments, **extra)
    assert done.returncode == 2, done.stderr
    assert re.search(message, done.stderr), done.stderr
    assert done.stderr.count("error:") == 1
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_said_once(tiny_run: Setting) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with together(tiny_run, 2, "warmup", "name=bad", port=port) as (first, _):
            assert first.wait(PATIENCE) == 2
            said = first.stderr.read()
    assert f"error: MASTER_PORT={port} on 127.0.0.1 is in use" in said
    assert said.count("error:") == 1
    assert "Traceback" not in said


def test_a_device_that_is_not_there_is_said_once(tiny_run: Setting) -> None:
    code, said = two(tiny_run, "warmup", "name=bad", "compute.device=cuda:7")
    assert code == 2, said
    assert "error: compute.device=cuda:7: no such device here" in said
    assert said.count("error:") == 1
    assert "Traceback" not in said


def test_uneven_machines() -> None:
    from gad.errors import ConfigError
    from gad.processes import Seat
    from gad.training.parallel import mesh_of

    with pytest.raises(ConfigError, match="compute.shard=machine: 3 processes are not 2 on every machine"):
        mesh_of("machine", Seat(0, 3, 0, 2, "127.0.0.1", 1), "cpu")
