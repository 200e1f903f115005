"""An API provider on 127.0.0.1 that fails in many ways, and keeps books of its own."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

KEY = "test-KEY-0123456789abcdef"
PRICE_IN, PRICE_OUT = 2.5, 10.0
Plan = Callable[[str, int], "str | None"]
"""The user's text and how often it was asked before -> a fault, or None for a reply."""


@dataclass
class Books:
    """bought: whole replies by the user's text. asked: requests by it. usd: of whole replies, at the prices above."""

    bought: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    usd: float = 0.0
    most_under_way: int = 0
    under_way: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    routes: set[str] = field(default_factory=set)


class Provider:
    """A server in a thread. `with Provider(plan) as provider:`, then `provider.url`.

    gate: while it is cleared, requests that have come in are not answered.
    """

    def __init__(self, plan: Plan | None = None, *, delay: float = 0.0, port: int = 0) -> None:
        self.plan: Plan = plan or (lambda *_: None)
        self.delay = delay
        self.books = Books()
        self.gate = threading.Event()
        self.gate.set()
        self._port = port
        self._loop = asyncio.new_event_loop()
        self._lock = threading.Lock()
        self._attempts: defaultdict[str, int] = defaultdict(int)

    def __enter__(self) -> Provider:
        started = threading.Event()
        self._thread = threading.Thread(target=self._serve, args=(started,), daemon=True)
        self._thread.start()
        assert started.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def _serve(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)

        async def main() -> None:
            self._stopping = asyncio.Event()
            self._connections: set[asyncio.Task[None]] = set()
            server = await asyncio.start_server(self._connected, "127.0.0.1", self._port, backlog=1024)
            self._port = server.sockets[0].getsockname()[1]
            started.set()
            await self._stopping.wait()
            server.close()
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

        self._loop.run_until_complete(main())
        self._loop.close()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip("\r\n").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        content = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = first.split(" ")
        self.books.under_way += 1
        self.books.most_under_way = max(self.books.most_under_way, self.books.under_way)
        try:
            return await self.answer(f"{method} {path}", headers, content, writer)
        finally:
            self.books.under_way -= 1

    async def answer(self, route: str, headers: dict[str, str], content: bytes, writer: asyncio.StreamWriter) -> bool:
        """One request; false closes the connection."""
        assert route.startswith("POST ")
        body = json.loads(content)
        text = last_text(body)
        with self._lock:
            before = self._attempts[text]
            self._attempts[text] += 1
            self.books.asked[text] += 1
            self.books.bodies.append(body)
            self.books.headers.append(headers)
            self.books.routes.add(route)
            fault = self.plan(text, before)
        if self.delay:
            await asyncio.sleep(self.delay)
        while not self.gate.is_set():
            await asyncio.sleep(0.01)
        if fault is None:
            await self.reply(writer, text, body)
            return True
        self.books.faults[fault] += 1
        return await FAULTS[fault](Asked(self, writer, text, body))

    async def reply(self, writer: asyncio.StreamWriter, text: str, body: dict[str, Any], **changes: Any) -> None:
        """A whole reply, with books kept."""
        whole = {**completion(text, body), **changes} if "messages" in body else response(text, body)
        data = json.dumps(whole).encode()
        with self._lock:
            self.books.bought[text] += 1
            if whole.get("usage"):
                self.books.usd += price(whole["usage"])
        await send(writer, 200, data, {"x-request-id": f"req-{text[:20]}".replace(" ", "-")})


def price(usage: dict[str, int]) -> float:
    return (usage["prompt_tokens"] * PRICE_IN + usage["completion_tokens"] * PRICE_OUT) / 1e6


def last_text(body: dict[str, Any]) -> str:
    return str((body.get("messages") or body["input"])[-1]["content"])


def completion(text: str, body: dict[str, Any]) -> dict[str, Any]:
    words = f"Here is a reply to: {text}"
    prompt = sum(len(message["content"].split()) + 4 for message in body.get("messages") or body["input"])
    return {
        "id": "x",
        "object": "chat.completion",
        "model": body["model"],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": words}}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": len(words.split()), "total_tokens": 0},
    }


def response(text: str, body: dict[str, Any]) -> dict[str, Any]:
    """As the Responses API answers."""
    chat = completion(text, body)
    part = {"type": "output_text", "text": chat["choices"][0]["message"]["content"]}
    usage = {"input_tokens": chat["usage"]["prompt_tokens"], "output_tokens": chat["usage"]["completion_tokens"]}
    output = [{"type": "message", "content": [part]}]
    return {"model": body["model"], "status": "completed", "output": output, "usage": {**chat["usage"], **usage}}


async def send(
    writer: asyncio.StreamWriter,
    status: int,
    data: bytes,
    headers: dict[str, str] | None = None,
    length: int | None = None,
) -> None:
    lines = [f"HTTP/1.1 {status} X", f"content-length: {len(data) if length is None else length}"]
    lines += [f"{name}: {value}" for name, value in {"content-type": "application/json", **(headers or {})}.items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    await writer.drain()


def error(message: str, code: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": "x", "code": code}}).encode()


@dataclass(frozen=True)
class Asked:
    """A request, and where its answer goes."""

    provider: Provider
    writer: asyncio.StreamWriter
    text: str
    body: dict[str, Any]


Fault = Callable[[Asked], Any]
FAULTS: dict[str, Fault] = {}


def fault(name: str) -> Callable[[Fault], Fault]:
    def add(function: Fault) -> Fault:
        FAULTS[name] = function
        return function

    return add


def _status(name: str, status: int, data: bytes, headers: dict[str, str] | None = None) -> None:
    async def answer(at: Asked) -> bool:
        await send(at.writer, status, data, headers)
        return True

    FAULTS[name] = answer


def _date() -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)


_status("429 with seconds", 429, error("slow down"), {"retry-after": "0.05"})
_status("429 without", 429, error("slow down"))
_status("429 with nonsense", 429, error("slow down"), {"retry-after": "soon, I hope"})
_status("429 with a negative", 429, error("slow down"), {"retry-after": "-5"})
_status("500", 500, error("boom"))
_status("502 as HTML", 502, b"<html><body>Bad gateway</body></html>", {"content-type": "text/html"})
_status("503", 503, error("busy"), {"retry-after": "0.02"})
_status("529", 529, error("overloaded"))
_status("invalid JSON", 200, b"{'choices': oops")
_status("a web page", 200, b"<html>Welcome</html>", {"content-type": "text/html"})
_status("empty body", 200, b"")
_status("a JSON list", 200, b"[1, 2]")
_status("empty choices", 200, json.dumps({"model": "m", "choices": []}).encode())
_status("error in a success", 200, error("upstream failed"))
_status("temporary redirect", 307, b"", {"location": "http://127.0.0.1:1/elsewhere"})
_status("key echoed in a 500", 500, error(f"cannot handle Authorization: Bearer {KEY} today"))
_status("400 on this prompt", 400, error(f"this prompt is bad, {KEY}"))
_status("content filter", 400, error("The response was filtered by the content management policy", "content_filter"))
_status("prompt too long", 400, error("maximum context length is 10 tokens", "context_length_exceeded"))
_status("permanent redirect", 301, b"", {"location": "http://127.0.0.1:1/elsewhere"})
_status("401", 401, error(f"Incorrect API key provided: {KEY}", "invalid_api_key"))
_status("403", 403, error("this project may not use the model"))
_status("404", 404, error("The model `m-9000` does not exist", "model_not_found"))
_status("out of credit", 429, error("You exceeded your current quota", "insufficient_quota"))


@fault("429 with a date")
async def _with_date(at: Asked) -> bool:
    await send(at.writer, 429, error("slow down"), {"retry-after": _date()})
    return True


@fault("timeout before headers")
async def _hang(_: Asked) -> bool:
    await asyncio.sleep(600)
    return False


@fault("closed without a word")
async def _closed(_: Asked) -> bool:
    return False


@fault("connection reset")
async def _reset(at: Asked) -> bool:
    sock = at.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    at.writer.transport.abort()
    return False


@fault("closed in the body")
async def _half(at: Asked) -> bool:
    data = json.dumps(completion(at.text, at.body)).encode()
    await send(at.writer, 200, data[: len(data) // 2], length=len(data))
    return False


@fault("stalls in the body")
async def _stall(at: Asked) -> bool:
    data = json.dumps(completion(at.text, at.body)).encode()
    await send(at.writer, 200, data[: len(data) // 2], length=len(data))
    await asyncio.sleep(600)
    return False


@fault("slow drip")
async def _drip(at: Asked) -> bool:
    data = json.dumps(completion(at.text, at.body)).encode()
    await send(at.writer, 200, b"", length=len(data))
    for byte in data:
        at.writer.write(bytes([byte]))
        await at.writer.drain()
        await asyncio.sleep(0.5)
    return True


@fault("truncated JSON")
async def _truncated(at: Asked) -> bool:
    data = json.dumps(completion(at.text, at.body)).encode()
    await send(at.writer, 200, data[: len(data) // 2])
    return True


@fault("gigantic body")
async def _gigantic(at: Asked) -> bool:
    size = 200_000_000
    await send(at.writer, 200, b"{", length=size)
    for _ in range(size // 1_000_000):
        at.writer.write(b" " * 1_000_000)
        await at.writer.drain()
    return False


@fault("missing usage")
async def _no_usage(at: Asked) -> bool:
    await at.provider.reply(at.writer, at.text, at.body, usage=None)
    return True


@fault("null content")
async def _null(at: Asked) -> bool:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None}}
    await at.provider.reply(at.writer, at.text, at.body, choices=[choice])
    return True


@fault("cut by the filter")
async def _filtered(at: Asked) -> bool:
    choice = {"index": 0, "finish_reason": "content_filter", "message": {"role": "assistant", "content": "I"}}
    await at.provider.reply(at.writer, at.text, at.body, choices=[choice])
    return True


@fault("half a character")
async def _half_a_character(at: Asked) -> bool:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "So \ud83d it goes"}}
    await at.provider.reply(at.writer, at.text, at.body, choices=[choice])
    return True


@fault("wrong model")
async def _wrong(at: Asked) -> bool:
    await at.provider.reply(at.writer, at.text, at.body, model="cheap-model")
    return True


@fault("key in the reply")
async def _leak(at: Asked) -> bool:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": f"Your key is {KEY}."}}
    await at.provider.reply(at.writer, at.text, at.body, choices=[choice])
    return True


TIMED_OUT = ("timeout before headers", "stalls in the body", "slow drip")
MENDS_ITSELF = (
    *TIMED_OUT,
    "429 with seconds",
    "429 with a date",
    "429 without",
    "429 with nonsense",
    "429 with a negative",
    "500",
    "502 as HTML",
    "503",
    "529",
    "closed without a word",
    "connection reset",
    "closed in the body",
    "invalid JSON",
    "truncated JSON",
    "empty body",
    "a web page",
    "a JSON list",
    "empty choices",
    "error in a success",
    "temporary redirect",
    "key echoed in a 500",
)
"""Tried again, and then answered."""
IS_A_REPLY = ("missing usage", "null content", "cut by the filter", "wrong model", "key in the reply")
"""Paid for: kept, never bought again."""
GIVEN_UP = ("400 on this prompt", "content filter", "prompt too long", "permanent redirect", "gigantic body")
"""Listed with a reason, asked again on request."""
STOPS = ("401", "403", "404", "out of credit")
"""No later request would escape."""
