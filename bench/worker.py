"""One contestant in a process of its own: makes a step when told to, and says what it cost.

    python -m bench.worker NAME FOLDER

Protocol: a line on stdin asks for a step; a JSON line on stdout answers. Waiting costs no CPU time, so contestants can
take turns on one machine. Costs are CPU seconds of the process, all threads, collection of garbage included.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any


class Turns:
    """Hands out steps. `begin` waits for the word, `end` reports."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")  # libraries print to stdout; the protocol has a copy of its own
        os.dup2(2, 1)
        self._started = 0.0
        self._say({"ready": True, "peak_mb": peak_mb()})

    def begin(self) -> None:
        """Raises SystemExit where no step is wanted any more."""
        if not sys.stdin.readline():
            raise SystemExit(0)
        self._started = time.process_time()

    def end(self, **facts: Any) -> None:
        self._say({"cpu_seconds": time.process_time() - self._started, "peak_mb": peak_mb(), **facts})

    def _say(self, facts: dict[str, Any]) -> None:
        self._out.write(json.dumps(facts) + "\n")
        self._out.flush()


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    name, folder = sys.argv[1], Path(sys.argv[2])
    import torch
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer reads every Qwen2 folder as Qwen's own byte-level tokenizer; the bench's is one letter a token
    AutoTokenizer.from_pretrained = PreTrainedTokenizerFast.from_pretrained
    torch.set_num_threads(1)
    turns = Turns()
    if name.startswith("ours"):
        from bench.ours import play
    else:
        from bench.peers import play
    play(name, folder, turns)


if __name__ == "__main__":
    main()
