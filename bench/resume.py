"""Killed at any moment, the same command ends with the same bits: SIGKILLs over all stages and inside saving.

    python -m bench.resume [--chains N] [--modes MODE ...] [--out FILE]

A tiny model goes through every stage once without a stop. Then runs of the same config are killed again and again, in
each stage once at a random moment of it and once inside its act of saving or writing, and each time the same command
goes on. When a run has come to its end, what it left is compared with the run that never stopped, byte by byte: the log
without times, checkpoints, replies, scores, likelihoods, figures, the exported student. So in every mode that computes
in another way. Writes bench/results/resume.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "resume.json"
STAGES = ("collect", "seqkd", "warmup", "adversarial", "generate", "evaluate", "export", "report")
SAVING = ("seqkd", "warmup", "adversarial", "evaluate")
"""Stages that save checkpoints; the evaluation trains its own discriminator."""
MOST_OF_A_STAGE = 0.6
"""Of what the stage takes in one go: kills before have left less of it to do."""
SEED = 20
LEFT_OUT = {"time", "created", "hours"}
FILES = ("checkpoints/*/*.safetensors", "replies/**/*.jsonl", "scores/**/*.jsonl", "likelihoods/**/*.jsonl")
MORE_FILES = ("student/*", "teacher.jsonl", "sets/*.jsonl", "choice.json", "tokens.json", "data.json", "config.json")


@dataclass(frozen=True)
class Kill:
    """Where a run is killed: a share of the stage's time after its start, or at the n-th file operation of a save."""

    stage: str
    share: float = 0.0
    operation: int | None = None


def plan(dice: random.Random) -> Iterator[Kill]:
    """The kills of one run, in the order of its stages."""
    for stage in STAGES:
        yield Kill(stage, dice.uniform(0.0, MOST_OF_A_STAGE))
        yield Kill(stage, operation=dice.randint(1, 40 if stage in SAVING else 12))


@dataclass(frozen=True)
class Mode:
    """A way to compute. chains: runs that are killed; changes: keys of the run file's sections; count: processes."""

    chains: int
    changes: Mapping[str, Mapping[str, Any]]
    count: int = 1


FULL = {"dtype": "float32", "tuning": {"kind": "full"}}
MODES = {
    "lora": Mode(4, {}),
    "full": Mode(1, {"student": FULL, "discriminator": {**FULL, "kind": "own"}}),
    "in_background": Mode(1, {"checkpoints": {"in_background": True, "keep_last": 2}}),
    "one_step_off": Mode(1, {"adversarial": {"one_step_off": True}}),
    "two_processes": Mode(1, {}, count=2),
    "two_processes_full": Mode(1, {"student": FULL, "discriminator": {**FULL, "kind": "own"}}, count=2),
}


def write_run(folder: Path, mode: Mode) -> Path:
    """A tiny model, a few texts and their run file."""
    from tests.support import runs, tiny

    folder.mkdir()
    model = tiny.save(folder / "model")
    values = runs.run_config(folder, model).model_dump(mode="json")
    values["evaluation"]["decodings"] = runs.BOTH
    for section, changes in mode.changes.items():
        values[section] = {**({} if "kind" in changes else values[section]), **changes}
    if values["discriminator"]["kind"] == "own":
        values["discriminator"]["model"] = str(model)
    path = folder / "run.yaml"
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")  # JSON is YAML
    return path


def launch(run_file: Path, name: str, kill: Kill | None, seconds: float, notes: Path, count: int = 1) -> int:
    """The command in processes of its own; the first one's exit code, negative for a signal. That one is killed: it has
    the checkpoints; the others are killed in tests/distributed.

    They are forked from this one, which has imported torch and nothing more of a run: that saves the seconds that
    importing takes, some hundred times.
    """
    order = {"kill": None if kill is None else kill.__dict__, "seconds": seconds, "notes": str(notes)}
    said = notes.with_suffix(".txt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        seats = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    seats |= {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    processes = list[int]()
    for rank in range(count):
        process = os.fork()
        if process == 0:
            descriptor = os.open(f"{said}{rank or ''}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            if count > 1:
                os.environ.update(seats, RANK=str(rank), LOCAL_RANK=str(rank))
            code = 1
            try:
                child(order, [str(run_file), f"name={name}"])
                code = 0
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                os._exit(code)
        processes.append(process)
    code, *_ = (os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in processes)
    if code not in (0, -signal.SIGKILL):
        raise SystemExit(f"{name} ended with {code}:\n{said.read_text(encoding='utf-8')}")
    return code


def child(order: dict[str, Any], arguments: list[str]) -> None:
    """`gad run` that notes when its stages begin, and kills itself where it is told to."""
    from gad import cli
    from gad.pipeline import Pipeline

    kill = None if order["kill"] is None else Kill(**order["kill"])
    notes = Path(order["notes"])

    def begins(stage: str) -> None:
        with notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"stage": stage, "time": time.monotonic()}) + "\n")
        if kill is not None and kill.stage == stage and kill.operation is None:
            wait = kill.share * order["seconds"]
            threading.Timer(wait, os.kill, (os.getpid(), signal.SIGKILL)).start()
        if kill is not None and kill.stage == stage and kill.operation is not None:
            _kill_in_save(kill.operation, "checkpoints/." if stage in SAVING else "/runs/")

    for stage in STAGES:
        setattr(Pipeline, stage, _noted(getattr(Pipeline, stage), stage, begins))
    sys.argv = ["gad", "run", *arguments]
    cli.main()


def _noted(method: Any, stage: str, begins: Any) -> Any:
    def noted(self: Any, *arguments: Any) -> Any:
        begins(stage)
        return method(self, *arguments)

    return noted


def _kill_in_save(operation: int, where: str) -> None:
    """SIGKILL at the n-th file operation inside a checkpoint that is being written or pruned, or on the run folder."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        paths = [str(part) for part in arguments if isinstance(part, str | os.PathLike)]
        if event.startswith(("open", "os.", "shutil.")) and any(where in path for path in paths):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def durations(notes: Path) -> dict[str, float]:
    """Seconds of each stage of the run that was never stopped."""
    rows = [json.loads(line) for line in notes.read_text(encoding="utf-8").splitlines()]
    ends = [row["time"] for row in rows[1:]] + [rows[-1]["time"] + 0.2]
    return {row["stage"]: end - row["time"] for row, end in zip(rows, ends, strict=True)}


def contents(folder: Path) -> dict[str, Any]:
    """What a run left, by what it is called."""
    found: dict[str, Any] = {"metrics": _metrics(folder)}
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    found["figures"] = (summary["figures"], summary["paired"], summary["tokens"])
    for pattern in (*FILES, *MORE_FILES):
        for path in sorted(folder.glob(pattern)):
            found[str(path.relative_to(folder))] = _bytes(path, folder.name)
    return found


def _bytes(path: Path, name: str) -> bytes:
    """The file's bytes; out of texts are taken the run's own name and when a row was read, which differ."""
    data = path.read_bytes()
    if path.suffix == ".safetensors":
        return data
    return re.sub(rb'"created": ?[0-9.e+]+', b'"created": 0', data.replace(name.encode(), b"NAME"))


def _metrics(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    kept = [{k: v for k, v in row.items() if k not in LEFT_OUT and not k.startswith("time/")} for row in rows]
    return sorted(kept, key=lambda row: (row["stage"], row["step"]))


def differing(ours: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """Names of what differs."""
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def chain(
    run_file: Path, mode: str, number: int, seconds: dict[str, float], whole: dict[str, Any]
) -> list[dict[str, Any]]:
    """One run, killed in every stage and save, then brought to its end; a row for each kill."""
    name, count, rows = f"killed-{number:02d}", MODES[mode].count, list[dict[str, Any]]()
    for kill in plan(random.Random(SEED + number)):
        notes = run_file.parent / f"{name}-{len(rows)}.jsonl"
        code = launch(run_file, name, kill, seconds[kill.stage], notes, count)
        if code == 0:
            continue  # it was done before the moment came
        reached = json.loads(notes.read_text(encoding="utf-8").splitlines()[-1])["stage"]
        rows.append({"mode": mode, "run": name, "stage": reached, "in_save": kill.operation is not None})
        rows[-1]["aimed"] = kill.__dict__
    launch(run_file, name, None, 0.0, run_file.parent / f"{name}-last.jsonl", count)
    differs = differing(contents(run_file.parent / "runs" / name), whole)
    return [{**row, "equal": not differs, "differs": differs[:5]} for row in rows]


def about(command: str) -> dict[str, Any]:
    """Where and of what these figures are."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    text = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    cpu = next((line.split(":")[1].strip() for line in text.splitlines() if line.startswith("model name")), "unknown")
    return {
        "commit": commit,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{cpu}, {os.cpu_count()} cores, Python {platform.python_version()}, {platform.system()}",
        "command": command,
    }


def results(rows: list[dict[str, Any]], whole: dict[str, Any], command: str) -> dict[str, Any]:
    """What is written."""
    counted = Counter(row["stage"] for row in rows)
    return {
        "kills": len(rows),
        "equal": sum(row["equal"] for row in rows),
        "by_stage": {stage: counted[stage] for stage in STAGES},
        "by_mode": dict(Counter(row["mode"] for row in rows)),
        "inside_saving": sum(row["in_save"] for row in rows),
        **about(command),
        "compared": sorted(whole),
        "rows": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.resume", description=__doc__)
    parser.add_argument("--chains", type=int, help="runs to kill in each mode, up to 16 times each")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=list(MODES))
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    import gad.pipeline  # noqa: F401 - with torch, before the first fork

    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    own = f" --chains {asked.chains}" if asked.chains else ""
    own += f" --modes {' '.join(asked.modes)}" if asked.modes != list(MODES) else ""
    command = f"python -m bench.resume{own}" if own else "make bench-resume"
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        for mode in asked.modes:
            run_file = write_run(Path(name) / mode, MODES[mode])
            notes = run_file.parent / "whole.jsonl"
            launch(run_file, "whole", None, 0.0, notes, MODES[mode].count)
            whole, seconds = contents(run_file.parent / "runs" / "whole"), durations(notes)
            for number in range(asked.chains or MODES[mode].chains):
                rows += chain(run_file, mode, number, seconds, whole)
                found = results(rows, whole, command)
                asked.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
                print(f"{mode}, run {number + 1}: kills {found['kills']}, equal {found['equal']}", flush=True)


if __name__ == "__main__":
    main()
