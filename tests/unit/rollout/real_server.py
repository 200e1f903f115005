"""vLLM's own server, in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

TESTS = Path(__file__).resolve().parents[2]
SWITCHES = (
    "--host 127.0.0.1 --dtype float32 --enforce-eager --max-model-len 256 --max-num-seqs 16 "
    "--no-enable-chunked-prefill "
    "--served-model-name student --logprobs-mode processed_logprobs --enable-lora --max-lora-rank 16 "
    '--worker-extension-cls support.vllm_gloo.Extension --weight-transfer-config {"backend":"gloo"}'
)
ENVIRONMENT = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}


class RealServer:
    """It can be killed and started again at its address."""

    def __init__(self, folder: Path, log: Path) -> None:
        self._folder, self._log = folder, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Does not wait until it answers."""
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(self._folder)]
        path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--port", str(self._port), *SWITCHES.split()],
                env={**os.environ, **ENVIRONMENT, "PYTHONPATH": path},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def wait(self) -> None:
        """Until it answers."""
        for _ in range(600):
            assert self._process.poll() is None, self._log.read_text(encoding="utf-8")[-3000:]
            try:
                httpx2.get(f"{self.url}/health")
                return
            except httpx2.HTTPError:
                time.sleep(0.5)
        raise AssertionError("vLLM's server does not answer")

    def kill(self) -> None:
        """SIGKILL to all its processes."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(60)

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.terminate()
            self._process.wait(60)


@contextmanager
def started(folder: Path, log: Path) -> Iterator[RealServer]:
    """A server of a saved model that answers."""
    server = RealServer(folder, log)
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.stop()
