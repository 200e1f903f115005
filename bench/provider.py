"""A chat completions server for benchmarks: latencies spread like a provider's, a limit on tokens a minute, books kept.

    python bench/provider.py PORT LATENCY_SECONDS TOKENS_PER_MINUTE BURST_SECONDS HEADERS CHUNKS

Replies are log-normal: latency with a 95th percentile of about 3 times the median, length with a mean of about 300
tokens. The limit is a bucket that starts full with BURST_SECONDS of tokens; a request takes its prompt's and its
reply's tokens when it comes in, or gets a 429. TOKENS_PER_MINUTE 0 means none. HEADERS 1 tells of the limit in
headers, CHUNKS 1 sends bodies in chunks, without their length.
GET /books answers with what was asked, granted and refused.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time

PROMPT_TOKENS = 75
TEXT = "word " * 4000


class Books:
    """The server's state."""

    def __init__(self, latency: float, per_minute: float, burst: float, headers: bool, chunks: bool) -> None:
        self.latency, self.rate, self.headers, self.chunks = latency, per_minute / 60.0, headers, chunks
        self.capacity = self.level = self.rate * burst
        self.time = time.monotonic()
        self.random = random.Random(0)
        self.granted: list[tuple[float, int]] = []
        self.refused = self.under_way = self.most_under_way = 0

    def take(self, tokens: int) -> bool:
        """Whether the limit lets a request of so many tokens in."""
        now = time.monotonic()
        self.level = min(self.capacity, self.level + self.rate * (now - self.time))
        self.time = now
        if self.rate and self.level < tokens:
            self.refused += 1
            return False
        self.level -= tokens
        self.granted.append((now, tokens))
        return True

    def as_dict(self) -> dict[str, object]:
        times = [at for at, _ in self.granted]
        span = max(times) - min(times) if times else 0.0
        return {
            "granted": len(times),
            "refused": self.refused,
            "seconds": span,
            "tokens": sum(tokens for _, tokens in self.granted),
            "tokens_allowed": self.capacity + self.rate * span,
            "most_under_way": self.most_under_way,
        }


class Connection(asyncio.Protocol):
    """One connection; answers one request after another."""

    books: Books

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport, self.buffer = transport, b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
            if len(self.buffer) < end + 4 + length:
                return
            self.buffer = self.buffer[end + 4 + length :]
            if head.startswith(b"get "):
                self._send(b"200 OK", json.dumps(self.books.as_dict()).encode())
            else:
                self._ask()

    def _ask(self) -> None:
        books = self.books
        words = min(1500, max(5, round(books.random.lognormvariate(5.5, 0.65))))
        if not books.take(PROMPT_TOKENS + words):
            self._send(b"429 Too Many Requests", b'{"error": {"message": "rate limit reached"}}', b"retry-after: 1\r\n")
            return
        books.under_way += 1
        books.most_under_way = max(books.most_under_way, books.under_way)
        latency = books.latency * books.random.lognormvariate(0.0, 0.67)
        asyncio.get_running_loop().call_later(latency, self._reply, words)

    def _reply(self, words: int) -> None:
        books = self.books
        books.under_way -= 1
        usage = b'{"prompt_tokens": %d, "completion_tokens": %d, "total_tokens": %d}' % (
            PROMPT_TOKENS,
            words,
            PROMPT_TOKENS + words,
        )
        body = (
            b'{"id": "chatcmpl-0", "object": "chat.completion", "created": 1, "model": "teacher", "choices": '
            b'[{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "%s"}}], "usage": %s}'
            % (TEXT[: 5 * words].encode(), usage)
        )
        told = b""
        if books.headers:
            told = b"x-ratelimit-limit-tokens: %d\r\nx-ratelimit-remaining-tokens: %d\r\n" % (
                round(books.rate * 60),
                max(0, int(books.level)),
            )
        self._send(b"200 OK", body, told + b"x-request-id: req_0123456789abcdef\r\n")

    def _send(self, status: bytes, body: bytes, headers: bytes = b"") -> None:
        length = b"content-length: %d" % len(body)
        if self.books.chunks and status.startswith(b"200"):
            length, body = b"transfer-encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
        head = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\n%s%s\r\n\r\n" % (status, headers, length)
        if not self.transport.is_closing():
            self.transport.write(head + body)


async def main() -> None:
    port, latency, per_minute, burst, headers, chunks = sys.argv[1:]
    Connection.books = Books(float(latency), float(per_minute), float(burst), headers == "1", chunks == "1")
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", int(port), backlog=1024)
    print("ready", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
