"""The arena in a process of its own, as a user runs it, so that it can be killed."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

_PROGRAM = """
import sys
from pathlib import Path
from gad.arena import serve
from gad.config.arena import ArenaConfig
config = ArenaConfig.model_validate_json(sys.argv[3])
serve(Path(sys.argv[1]), port=int(sys.argv[2]), config=config, say=lambda line: print(line, flush=True))
"""


class ArenaProcess:
    """A running arena. links: by rater, and under `results`."""

    def __init__(self, folder: Path, *, port: int = 0, **config: Any) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(folder), str(port), json.dumps(config)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.links: dict[str, str] = {}
        while "results" not in self.links:
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError(self._process.communicate()[1])
            name, found, link = line.strip().partition(": http://")
            if found:
                self.links[name] = f"http://{link}"
        self.port = int(self.links["results"].split(":")[2].split("/")[0])
        self._wait()

    def _wait(self) -> None:
        for _ in range(200):
            try:
                self.ask("GET", "/")
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise RuntimeError("the arena does not answer")

    def token(self, rater: str) -> str:
        return self.links[rater].split("token=")[1]

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, dict[str, str], str]:
        """Status, headers (lower case), body. Header names take _ for -; `Host` can be set too."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            sent = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
            connection.request(method, path, sent, named)
            answer = connection.getresponse()
            text = answer.read().decode()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, text
        finally:
            connection.close()

    def post(self, path: str, body: Any, rater: str = "me", **headers: str) -> tuple[int, Any]:
        """As the page does it."""
        given = {
            "Origin": f"http://127.0.0.1:{self.port}",
            "Content_Type": "application/json",
            "X_Gad_Token": self.token(rater),
        }
        status, _, text = self.ask("POST", path, body, **(given | headers))
        return status, json.loads(text)

    def state(self, rater: str = "me") -> Any:
        return json.loads(self.ask("GET", "/state", X_Gad_Token=self.token(rater))[2])

    def kill(self) -> None:
        """As the kernel does it: no goodbye."""
        self._process.kill()
        self._close()

    def stop(self) -> int:
        """As Ctrl-C does it."""
        if self._process.poll() is None:
            self._process.send_signal(2)
        return self._close()

    def _close(self) -> int:
        self._process.communicate(timeout=20)
        return self._process.returncode
