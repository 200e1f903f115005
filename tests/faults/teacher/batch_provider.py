"""A Provider with /v1/files and /v1/batches."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from typing import Any

from faults.teacher.provider import Provider, completion, error, last_text, price, send


class BatchProvider(Provider):
    """A batch goes through `statuses`, one at each look; the last one stays.

    fates: what becomes of a request of the user's text, the first time: "server error", "bad request", "expired",
    "missing", "no choices" (which is paid for), "nonsense".
    without: "files" or "batches", which this provider has not. list_status: of listing batches.
    lose: POST /v1/batches creates a batch and answers nothing, so many times.
    """

    def __init__(self, statuses: tuple[str, ...] = ("validating", "in_progress", "completed"), **more: Any) -> None:
        super().__init__(**more)
        self.statuses = statuses
        self.fates: dict[str, str] = {}
        self.lose = 0
        self.reject: str | None = None
        self.without: str | None = None
        self.list_status = 200
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks: Counter[str] = Counter()
        self.submitted: Counter[str] = Counter()

    async def answer(self, route: str, headers: dict[str, str], content: bytes, writer: asyncio.StreamWriter) -> bool:
        method, path = route.split(" ")
        name = path.split("?")[0].removeprefix("/v1/")
        if name == self.without:
            await send(writer, 404, error("no such route"))
            return True
        if name == "files":
            boundary = re.search("boundary=(.*)", headers["content-type"]).group(1).encode()  # type: ignore[union-attr]
            part = next(p for p in content.split(b"--" + boundary) if b'name="file"' in p)
            identity = f"file-{len(self.files)}"
            self.files[identity] = part.split(b"\r\n\r\n", 1)[1].rstrip(b"\r\n")
            body: Any = {
                "id": identity,
                "object": "file",
                "bytes": 1,
                "created_at": 1,
                "filename": "x",
                "purpose": "batch",
            }
            body["status"] = "processed"
        elif name.startswith("files/"):
            await send(writer, 200, self.files[name.split("/")[1]], {"content-type": "application/octet-stream"})
            return True
        elif method == "POST":
            body = self._create(json.loads(content))
            if self.lose:
                self.lose -= 1
                return False
        elif name == "batches" and self.list_status != 200:
            await send(writer, self.list_status, error("busy"))
            return True
        elif name == "batches":
            body = {"object": "list", "data": list(reversed(self.batches.values())), "has_more": False}
        elif name.removeprefix("batches/") in self.batches:
            body = self._look(name.removeprefix("batches/"))
        else:
            await send(writer, 404, error("no such batch"))
            return True
        await send(writer, 200, json.dumps(body).encode())
        return True

    def _create(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["completion_window"] == "24h"
        identity = f"batch-{len(self.batches)}"
        for line in self.files[asked["input_file_id"]].splitlines():
            row = json.loads(line)
            assert row["url"] == asked["endpoint"] == "/v1/chat/completions"
            self.submitted[row["custom_id"]] += 1
        self.batches[identity] = {
            "id": identity,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "input_file_id": asked["input_file_id"],
            "completion_window": "24h",
            "status": self.statuses[0],
            "created_at": int(time.time()),
            "metadata": asked["metadata"],
        }
        return self.batches[identity]

    def _look(self, identity: str) -> dict[str, Any]:
        batch = self.batches[identity]
        self.looks[identity] += 1
        batch["status"] = self.statuses[min(self.looks[identity], len(self.statuses) - 1)]
        if self.reject is not None:
            batch["status"] = "failed"
            batch["errors"] = {
                "object": "list",
                "data": [{"code": self.reject, "message": "Enqueued token limit reached"}],
            }
        elif batch["status"] in ("completed", "expired", "cancelled") and "output_file_id" not in batch:
            self._finish(batch)
        return batch

    def _finish(self, batch: dict[str, Any]) -> None:
        good, bad = [], []
        for line in self.files[batch["input_file_id"]].splitlines():
            row = json.loads(line)
            text = last_text(row["body"])
            fate = self.fates.pop(text, None)
            if fate == "missing":
                continue
            answer: dict[str, Any] = {"id": "x", "custom_id": row["custom_id"], "response": None, "error": None}
            if fate == "nonsense":
                answer["response"] = {"status_code": "none", "body": [[]]}
                good.append(answer)
                continue
            if fate == "no choices":
                whole = {**completion(text, row["body"]), "choices": []}
                self.books.usd += price(whole["usage"]) / 2
                answer["response"] = {"status_code": 200, "request_id": "req-b", "body": whole}
                good.append(answer)
                continue
            if fate is None:
                whole = completion(text, row["body"])
                self.books.bought[text] += 1
                self.books.usd += price(whole["usage"]) / 2
                answer["response"] = {"status_code": 200, "request_id": "req-b", "body": whole}
                good.append(answer)
                continue
            if fate == "expired":
                answer["error"] = {"code": "batch_expired", "message": "This request could not be executed in time."}
            else:
                status = 500 if fate == "server error" else 400
                answer["response"] = {"status_code": status, "request_id": "r", "body": json.loads(error(fate))}
            bad.append(answer)
        for name, rows in (("output_file_id", good), ("error_file_id", bad)):
            batch[name] = None
            if rows:
                batch[name] = f"file-{len(self.files)}"
                self.files[batch[name]] = b"\n".join(json.dumps(row).encode() for row in rows) + b"\n"
