"""A model behind an HTTP endpoint, by a script: it writes replies, judges pairs and scores, and can be difficult."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SHOWN = re.compile(r"=== Reply A ===\n(.*?)\n\n=== Reply B ===\n(.*?)\n\n=== Your task ===", re.DOTALL)
Say = Callable[[dict[str, Any]], "str | tuple[int, str]"]
"""A request's body -> what is answered, or a status and the words of an error."""


def shorter_is_better(body: dict[str, Any]) -> str:
    """A reply, or a verdict: the shorter one is better, and 7 against 6 for whoever stands second."""
    question = body["messages"][0]["content"]
    shown = SHOWN.search(question)
    if shown:
        a, b = (len(text) for text in shown.groups())
        return f"{'A' if a < b else 'B' if b < a else 'T'}\nIt says the same in fewer words."
    if "Reply of assistant 1" in question:
        return "6 7\nThe second one is more to the point."
    return f"A reply of the endpoint to: {body['messages'][-1]['content'][:60]}"


@dataclass
class Voice:
    """odds: whether it gives log-probabilities (for one letter, nearly certain), leaves them out or refuses them."""

    say: Say = shorter_is_better
    odds: str = "left out"
    delay: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    @property
    def questions(self) -> int:
        """How many requests were made."""
        return len(self.bodies)

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        self.bodies.append(body)
        time.sleep(self.delay)
        if body.get("logprobs") and self.odds == "refused":
            return 400, {"error": {"message": "logprobs are not supported by this model"}}
        said = self.say(body)
        if not isinstance(said, str):
            return said[0], {"error": {"message": said[1]}}
        choice: dict[str, Any] = {
            "index": 0,
            "message": {"role": "assistant", "content": said},
            "finish_reason": "stop",
        }
        if body.get("logprobs") and self.odds == "given":
            likely = [
                {"token": said[0], "logprob": -0.05, "bytes": None},
                {"token": "T", "logprob": -3.0, "bytes": None},
            ]
            first = {**likely[0], "top_logprobs": likely}
            choice["logprobs"] = {"content": [first], "refusal": None}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        return 200, {"id": "x", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice],
                     "usage": usage}  # fmt: skip


@contextmanager
def speaking(voice: Voice | None = None) -> Iterator[Voice]:
    """Serve it on 127.0.0.1 while the block lasts."""
    found = voice or Voice()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            status, answer = found.answer(body)
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    found.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def api(url: str, **more: Any) -> dict[str, Any]:
    """An `api:` section for it."""
    limits = {"max_attempts": 2, "first_pause_seconds": 0.01, "concurrency": 4}
    prices = {"usd_per_million_input": 1.0, "usd_per_million_output": 10.0}
    endpoint = {"base_url": url, "api_key_env": None}
    return {"model": "voice", "endpoint": endpoint, "limits": limits, "prices": prices, **more}
