"""Two gloo processes against one: the same weights, the bytes that travel, the speed, and twenty runs without a crash.

    python -m bench.distributed [--runs N] [--out FILE]

Every run is `collect`, the warm-up and five adversarial steps of a tiny model by the command's own code, with the same
global batch. Weights are compared as a whole: the norm of the difference over the norm of the weights, student and
discriminator each; the worst single tensor is given beside it. Writes bench/results/distributed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.resume import ROOT, about

from gad import processes

RESULTS = ROOT / "bench" / "results" / "distributed.json"
STEPS = 5
TUNINGS = ("lora", "full")
LAYOUTS = ("padded", "tree", "cache")
TIMED_SHAPE = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 32, "num_attention_heads": 8}


def write_run(folder: Path, tuning: str, *, timed: bool = False) -> Path:
    """A run file of a tiny model; a larger one where steps are timed."""
    from tests.support import runs, tiny

    model = folder / f"model-{timed}"
    if not model.exists():
        tiny.save(model)
        if timed:
            tiny.model(**TIMED_SHAPE, num_key_value_heads=4).save_pretrained(model)
    values = runs.run_config(folder, model).model_dump(mode="json")
    values["adversarial"] |= {"steps": STEPS, "batch_size": 8, "replies_per_prompt": 4 if timed else 3}
    values["seqkd"] = None
    if tuning == "full":
        values["student"]["tuning"] = {"kind": "full"}
        values["discriminator"] = {"kind": "own", "model": str(model), "dtype": "float32", "tuning": {"kind": "full"}}
    path = folder / f"{tuning}-{timed}.yaml"
    path.write_text(json.dumps(values, indent=1), encoding="utf-8")
    return path


def train(run_file: Path, name: str, count: int, **compute: Any) -> tuple[int, float]:
    """The stages in `count` processes; exit code and seconds."""
    extra = [f"compute.{key}={value}" for key, value in compute.items()]
    command = [sys.executable, "-m", "bench.distributed", "--child", str(run_file), f"name={name}", *extra]
    started = time.monotonic()
    return processes.start(count, command), time.monotonic() - started


def child(arguments: list[str]) -> None:
    """Collect, warm-up and the adversarial stage as the command does them; counts what travels."""
    from gad.commands import common
    from gad.pipeline import Pipeline

    counted = _count_bytes() if "RANK" in os.environ and int(os.environ["WORLD_SIZE"]) > 1 else {}

    def stages(pipeline: Pipeline) -> None:
        pipeline.collect()
        pipeline.warmup()
        before = dict(counted)
        pipeline.adversarial()
        travelled = {key: value - before.get(key, 0) for key, value in counted.items()}
        (pipeline.folder / "bytes.json").write_text(json.dumps(travelled), encoding="utf-8")

    common.train(Path(arguments[0]), arguments[1:], stages)


def _count_bytes() -> dict[str, int]:
    """Bytes of the whole tensors that FSDP gathers and scatters, by kind of collective, as they happen."""
    import torch.distributed as dist

    counted: dict[str, int] = {}
    for kind, place, names in (
        ("all_gather", 0, ("all_gather_single", "all_gather_into_tensor")),
        ("reduce_scatter", 1, ("reduce_scatter_single", "reduce_scatter_tensor")),
    ):
        name = next(name for name in names if hasattr(dist, name))  # renamed in torch 2.13
        setattr(dist, name, _counting(getattr(dist, name), kind, place, counted))
    return counted


def _counting(function: Any, kind: str, place: int, counted: dict[str, int]) -> Any:
    def count(*arguments: Any, **keywords: Any) -> Any:
        tensor = arguments[place] if len(arguments) > place else keywords["input"]
        counted[kind] = counted.get(kind, 0) + tensor.numel() * tensor.element_size()
        return function(*arguments, **keywords)

    return count


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
    replies = [_metric(run, "reply/length_mean") for run in (ours, theirs)]
    return {
        "max_relative_difference": whole,
        "worst_tensor": {"name": worst[0], "relative_difference": worst[1]},
        "same_reply_lengths": replies[0] == replies[1],
    }


def _metric(run: Path, name: str) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row[name] for row in rows if row["stage"] == "adversarial"]


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
            seconds.setdefault(name, []).extend(_metric(folder / "runs" / f"speed-{name}-{repeat}", "time/step")[1:])
    return {"seconds": seconds, "median": {name: statistics.median(values) for name, values in seconds.items()}}


def in_a_row(folder: Path, count: int) -> list[dict[str, Any]]:
    """LoRA with FSDP again and again: exit code and seconds of each run."""
    run_file = write_run(folder, "lora")
    outcomes = [train(run_file, f"row-{number}", 2) for number in range(count)]
    return [{"exit_code": code, "seconds": round(seconds, 1)} for code, seconds in outcomes]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.distributed", description=__doc__)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=20, help="runs of LoRA with FSDP in a row (default 20)")
    parser.add_argument("--out", type=Path, default=RESULTS)
    asked, rest = parser.parse_known_args()
    if asked.child:
        child(rest)
        return
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        compared, timed, repeated = equality(folder), speed(folder), in_a_row(folder, asked.runs)
    results = {
        "max_relative_difference": max(row["max_relative_difference"] for row in compared),
        "speedup_2_processes": timed["median"]["one"] / timed["median"]["two_sharded"],
        "speedup_2_processes_whole_models": timed["median"]["one"] / timed["median"]["two_whole"],
        "runs_in_a_row": len(repeated),
        "crashes": sum(row["exit_code"] != 0 for row in repeated),
        **about("make bench-distributed" if asked.runs == 20 else f"python -m bench.distributed --runs {asked.runs}"),
        "rows": {"equality": compared, "speed": timed, "in_a_row": repeated},
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({key: value for key, value in results.items() if key != "rows"}, indent=2))


if __name__ == "__main__":
    main()
