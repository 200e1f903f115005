"""Two gloo processes against one: the same weights, the bytes that travel, the speed, and twenty runs without a crash.
And what one-step-off replies save where another process samples.

    python -m bench.distributed [--only PART ...] [--runs N] [--out FILE]

Every run is `collect`, the warm-up and five adversarial steps of a tiny model by the command's own code, with the same
global batch. Weights are compared as a whole: the norm of the difference over the norm of the weights, student and
discriminator each; the worst single tensor is given beside it. Writes bench/results/distributed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
from bench import ahead
from bench.ahead import logged
from bench.resume import ROOT, about

from gad import processes

sys.path.insert(0, str(ROOT / "tests"))
RESULTS = ROOT / "bench" / "results" / "distributed.json"
STEPS = 5
TUNINGS = ("lora", "full")
LAYOUTS = ("padded", "tree", "cache")
AHEAD = ("one_step_off", "one_step_off_quickstart")
PARTS = ("equality", "speed", "in_a_row", *AHEAD)
REPLY_TOKENS = 48
"""Of a reply at most: what the figures are of, whatever the tests need."""
AHEAD_STEPS = 6
AHEAD_REPEATS = 3
AHEAD_TOKENS = 12
"""Of a reply at most: the server of ours samples one row at a time, and an update is to take about as long."""
TIMED_SHAPE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "num_attention_heads": 8}


def write_run(folder: Path, tuning: str, *, timed: bool = False, **adversarial: Any) -> Path:
    """A run file of a tiny model; a larger one where steps are timed. adversarial: settings of that stage."""
    from tests.support import runs, tiny

    model = folder / f"model-{timed}"
    if not model.exists():
        tiny.save(model)
        if timed:
            tiny.model(**TIMED_SHAPE, num_key_value_heads=4).save_pretrained(model)
    values = runs.run_config(folder, model).model_dump(mode="json")
    values["adversarial"] |= {"steps": STEPS, "batch_size": 8, "replies_per_prompt": 4 if timed else 3}
    values["adversarial"] |= adversarial
    values["seqkd"] = None
    values["prompt"]["max_reply_tokens"] = AHEAD_TOKENS if "one_step_off" in adversarial else REPLY_TOKENS
    if "one_step_off" in adversarial:
        values["checkpoints"]["every_steps"] = 1000
    if tuning == "full":
        values["student"]["tuning"] = {"kind": "full"}
        values["discriminator"] = {"kind": "own", "model": str(model), "dtype": "float32", "tuning": {"kind": "full"}}
    path = folder / f"{'-'.join([tuning, str(timed), *map(str, adversarial.values())])}.yaml"
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
    return path


def train(run_file: Path, name: str, count: int, **compute: Any) -> tuple[int, float]:
    """The stages in `count` processes forked from this one, which has imported torch; exit code and seconds."""
    extra = [f"compute.{key}={value}" for key, value in compute.items()]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1"}
    started, pids = time.monotonic(), list[int]()
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            os.environ.update(shared, MASTER_PORT=str(port), RANK=str(rank), LOCAL_RANK=str(rank))
            _leave(lambda: child([str(run_file), f"name={name}", *extra]))
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return next((code for code in codes if code), 0), time.monotonic() - started


def _leave(work: Callable[[], None]) -> NoReturn:
    code = 1
    try:
        work()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        os._exit(code)


def child(arguments: list[str]) -> None:
    """Collect, warm-up and the adversarial stage as the command does them; counts what travels in the last."""
    from tests.support.counting import Counting

    from gad.commands import common
    from gad.pipeline import Pipeline

    def stages(pipeline: Pipeline) -> None:
        pipeline.collect()
        pipeline.warmup()
        with Counting() as counted:
            pipeline.adversarial()
        (pipeline.folder / "bytes.json").write_text(json.dumps(counted.bytes), encoding="utf-8")

    common.train(Path(arguments[0]), arguments[1:], stages)


def difference(ours: Path, theirs: Path) -> dict[str, Any]:
    """Of the trained weights after the last step: as a whole, and the tensor that differs most."""
    from safetensors.torch import load_file

    whole, worst = 0.0, ("", 0.0)
    for part in ("student", "discriminator"):
        one, two = (
            {
                name: tensor.double()
                for name, tensor in load_file(run / f"checkpoints/adversarial-{STEPS}/{part}.safetensors").items()
                if name.startswith("weights.")
            }
            for run in (ours, theirs)
        )
        squares = {name: ((two[name] - tensor).square().sum().item()) for name, tensor in one.items()}
        norms = {name: tensor.square().sum().item() for name, tensor in one.items()}
        whole = max(whole, (sum(squares.values()) / sum(norms.values())) ** 0.5)
        for name, square in squares.items():
            relative = (square / norms[name]) ** 0.5 if norms[name] else square**0.5
            worst = max(worst, (f"{part} {name}", relative), key=lambda pair: pair[1])
    replies = [logged(run, "reply/length_mean") for run in (ours, theirs)]
    return {
        "max_relative_difference": whole,
        "worst_tensor": {"name": worst[0], "relative_difference": worst[1]},
        "same_reply_lengths": replies[0] == replies[1],
    }


def equality(folder: Path) -> list[dict[str, Any]]:
    """LoRA and full, every layout, sharded and not."""
    rows = []
    for tuning in TUNINGS:
        run_file = write_run(folder, tuning)
        for layout in LAYOUTS:
            one = f"{tuning}-{layout}-one"
            _must(train(run_file, one, 1, layout=layout))
            for shard in ("all", "none") if layout == "tree" else ("all",):
                two = f"{tuning}-{layout}-{shard}"
                _must(train(run_file, two, 2, layout=layout, shard=shard))
                travelled = json.loads((folder / "runs" / two / "bytes.json").read_text(encoding="utf-8"))
                found = difference(folder / "runs" / one, folder / "runs" / two)
                rows.append({"tuning": tuning, "layout": layout, "shard": shard, **found, "bytes": travelled})
    return rows


def _must(outcome: tuple[int, float]) -> float:
    if outcome[0] != 0:
        raise SystemExit(f"a run ended with {outcome[0]}")
    return outcome[1]


def speed(folder: Path) -> dict[str, Any]:
    """Seconds of an adversarial step, the first left out, one thread a process."""
    run_file = write_run(folder, "lora", timed=True)
    seconds: dict[str, list[float]] = {}
    for repeat in range(2):
        for name, count, shard in (("one", 1, "all"), ("two_sharded", 2, "all"), ("two_whole", 2, "none")):
            _must(train(run_file, f"speed-{name}-{repeat}", count, shard=shard))
            seconds.setdefault(name, []).extend(logged(folder / "runs" / f"speed-{name}-{repeat}", "time/step")[1:])
    return {"seconds": seconds, "median": {name: statistics.median(values) for name, values in seconds.items()}}


def in_a_row(folder: Path, count: int) -> list[dict[str, Any]]:
    """LoRA with FSDP again and again, by the command, from its start to its end: exit code and seconds of each run."""
    run_file = write_run(folder, "lora")
    outcomes = []
    for number in range(count):
        name, started = f"name=row-{number}", time.monotonic()
        _must((processes.start(1, [sys.executable, "-m", "gad", "collect", str(run_file), name]), 0.0))
        code = processes.start(2, [sys.executable, "-m", "gad", "warmup", str(run_file), name])
        outcomes.append({"exit_code": code, "seconds": round(time.monotonic() - started, 1)})
        print(f"run {number + 1} of {count} in a row: exit code {code}", flush=True)
    return outcomes


@contextmanager
def server(model: Path) -> Iterator[str]:
    """The address of a process that samples as a vLLM server does, by our own sampler, on one thread."""
    from gad.models.loading import load_model
    from support.vllm_server import VllmServer

    serving = VllmServer(lambda: load_model(str(model), dtype=torch.float32, device=torch.device("cpu")))
    pid = os.fork()
    if pid == 0:

        def serve() -> None:
            torch.set_num_threads(1)
            with serving.running():
                signal.pause()

        _leave(serve)
    try:
        yield serving.url
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def one_step_off(folder: Path) -> dict[str, Any]:
    """Seconds from one step's end to the next one's where another process samples: waited for, and asked for a step
    ahead; in turns. No checkpoint comes in between, which would wait for the replies that are under way. The update
    alone is what a step takes besides waiting for replies where they are waited for."""
    seconds: dict[str, list[float]] = {"waits": [], "ahead": []}
    parts: dict[str, list[float]] = {"sampling": [], "update": []}
    files = {
        name: write_run(folder, "lora", timed=True, one_step_off=name == "ahead", steps=AHEAD_STEPS) for name in seconds
    }
    with server(folder / "model-True") as url:
        engine = json.dumps({"kind": "vllm_server", "urls": [url], "sync_folder": str(folder)})
        for repeat in range(AHEAD_REPEATS):
            for name, run_file in files.items():
                run = f"off-{name}-{repeat}"
                _must(train(run_file, run, 1, engine=engine, merge_adapters="false"))
                ends = logged(folder / "runs" / run, "time")
                seconds[name] += [later - sooner for sooner, later in pairwise(ends)][:-1]  # the last asks for nothing
                if name == "waits":
                    waited = logged(folder / "runs" / run, "time/sampling")[1:]
                    parts["sampling"] += waited
                    steps = zip(logged(folder / "runs" / run, "time/step")[1:], waited, strict=True)
                    parts["update"] += [whole - sampling for whole, sampling in steps]
    medians = {name: statistics.median(values) for name, values in {**seconds, **parts}.items()}
    return {"seconds": {**seconds, **parts}, "median": medians}


def headline(rows: dict[str, Any]) -> dict[str, Any]:
    """The figures that are looked up, from the rows that there are."""
    found: dict[str, Any] = {}
    if "equality" in rows:
        found["max_relative_difference"] = max(row["max_relative_difference"] for row in rows["equality"])
    if "speed" in rows:
        median = rows["speed"]["median"]
        found["speedup_2_processes"] = median["one"] / median["two_sharded"]
        found["speedup_2_processes_whole_models"] = median["one"] / median["two_whole"]
    for part in (part for part in AHEAD if part in rows):
        median, of = rows[part]["median"], part.removeprefix("one_step_off")
        found[f"step_waiting_over_step_ahead{of}"] = median["waits"] / median["ahead"]
        found[f"step_waiting_over_longer_part{of}"] = median["waits"] / max(median["sampling"], median["update"])
    if "in_a_row" in rows:
        found["runs_in_a_row"] = len(rows["in_a_row"])
        found["crashes"] = sum(row["exit_code"] != 0 for row in rows["in_a_row"])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.distributed", description=__doc__)
    parser.add_argument("--runs", type=int, default=20, help="runs of LoRA with FSDP in a row (default 20)")
    parser.add_argument("--only", choices=PARTS, nargs="+", default=PARTS, help="parts to do; others stay as they are")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked = parser.parse_args()
    import gad.pipeline  # noqa: F401 - with torch, before the first fork

    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    work = {
        "equality": equality,
        "speed": speed,
        "in_a_row": lambda folder: in_a_row(folder, asked.runs),
        "one_step_off": one_step_off,
        "one_step_off_quickstart": ahead.quickstart,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        for part in asked.only:
            done = work[part](Path(name))
            before = json.loads(asked.out.read_text(encoding="utf-8")) if asked.out.exists() else {}
            rows, of = {**before.get("rows", {}), part: done}, before.get("parts", {})
            of[part] = about(f"python -m bench.distributed --only {part}")
            command = "make bench-distributed" if len(rows) == len(PARTS) else f"parts: {', '.join(rows)}"
            results = {**headline(rows), **about(command), "parts": of, "rows": rows}
            asked.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            print(json.dumps(headline(rows), indent=2), flush=True)


if __name__ == "__main__":
    main()
