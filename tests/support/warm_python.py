"""What a launcher runs in the place of `python`, so that its processes are warm: ADDRESS of the server, [-u] WORDS.

It lives as long as the process that the server forks for it, hands signals on to it, and ends as it has ended.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from pathlib import Path


def main() -> None:
    address, *words = (word for word in sys.argv[1:] if word != "-u")
    with socket.socket(socket.AF_UNIX) as line:
        line.connect(address)
        socket.send_fds(line, [b"."], [0, 1, 2])
        line.sendall(json.dumps({"words": words, "env": dict(os.environ), "cwd": str(Path.cwd())}).encode() + b"\n")
        with line.makefile("r") as answers:
            pid = int(answers.readline())
            signal.signal(signal.SIGTERM, lambda number, _: os.kill(pid, number))
            code = int(answers.readline())
    if code < 0:
        os.kill(os.getpid(), -code)
        signal.pause()
    sys.exit(code)


if __name__ == "__main__":
    main()
