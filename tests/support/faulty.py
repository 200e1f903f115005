"""`gad` with one fault in one of its processes: python faulty.py RANK PHASE FAULT -- ARGUMENTS.

PHASE is what a call does, as `gad.crew.everywhere` was told; the fault comes at its second time, or first where there
is no second, and not again where torchrun has started all anew. FAULT: kill, stop (SIGSTOP), hang, memory, error, term
(SIGTERM), or none.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any


def fail(fault: str) -> None:
    match fault:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "hang":
            time.sleep(3600)
        case "memory":
            raise MemoryError
        case "error":
            raise RuntimeError("a fault of ours")
        case "term":
            os.kill(os.getpid(), signal.SIGTERM)


def main() -> None:
    rank, phase, fault, _, *arguments = sys.argv[1:]
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    if os.environ["RANK"] == rank and fault != "none" and not again:
        from gad.training import watch

        begins, seen = watch.Watch.begins, [0]

        def faulty(self: Any, doing: str) -> None:
            begins(self, doing)
            seen[0] += doing == phase
            if doing == phase and seen[0] == 2:
                fail(fault)

        watch.Watch.begins = faulty  # type: ignore[method-assign]
    from gad import cli

    sys.argv = ["gad", *arguments]
    cli.main()


if __name__ == "__main__":
    main()
