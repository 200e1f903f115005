"""A `VllmServer` in a process of its own: python serve.py MODEL PORT. Says when it listens and when it has replied."""

from __future__ import annotations

import signal
import sys

import torch

from gad.models.loading import load_model
from support.vllm_server import VllmServer


def main() -> None:
    folder, port = sys.argv[1:]
    torch.set_num_threads(1)
    server = VllmServer(lambda: load_model(folder, dtype=torch.float32, device=torch.device("cpu")), port=int(port))
    server.behaviour.mangle = lambda answer: print(answer["choices"][0]["finish_reason"], flush=True)
    with server.running():
        print("listens", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
