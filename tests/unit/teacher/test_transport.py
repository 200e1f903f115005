"""HTTP/1.1 over asyncio: what servers may do with a connection."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx2
import pytest

from gad.teacher.failures import TooLarge
from gad.teacher.transport import DirectClient

OK = b"HTTP/1.1 200 OK\r\nX-One: a\r\ncontent-length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def ask(
    answer: Answer, times: int = 1, *, pause: float = 0.0, max_bytes: int = 1000
) -> tuple[list[httpx2.Response], int]:
    """So many requests one after another; the responses, and how many connections the server saw."""
    writers: list[asyncio.StreamWriter] = []

    async def main() -> list[httpx2.Response]:
        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    assert head.startswith(b"POST /v1/x?a=1 HTTP/1.1\r\n")
                    await reader.readexactly(5)
                    await answer(reader, writer)
            except (asyncio.IncompleteReadError, ConnectionError):
                pass

        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/x"
        client = DirectClient(1000)
        try:
            found = []
            for _ in range(times):
                request = client.build_request("POST", url, content=b"hello", params={"a": "1"})
                found.append(await client.send(request))
                for _ in range(50 if pause else 0):
                    await asyncio.sleep(pause)
            return found
        finally:
            await client.aclose()
            await ended(server, writers)

    return asyncio.run(main()), len(writers)


async def ended(server: asyncio.Server, writers: list[asyncio.StreamWriter]) -> None:
    """No socket is left open."""
    server.close()
    for writer in writers:
        writer.transport.abort()
    await asyncio.sleep(0.02)


def answer(*parts: bytes, close: bool = False) -> Answer:
    async def send(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.001)
        if close:
            writer.close()

    return send


def test_one_connection_serves_one_request_after_another() -> None:
    found, connections = ask(answer(OK), 5)
    assert connections == 1
    assert [(each.status_code, each.content, each.headers["x-one"]) for each in found] == [(200, b"{}", "a")] * 5


@pytest.mark.parametrize(
    ("parts", "close"),
    [
        ((b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", b'4\r\n{"a"\r\n', b"3\r\n:1}\r\n0\r\n\r\n"), False),
        ((b'HTTP/1.1 200 OK\r\n\r\n{"a"', b":1}"), True),
        ((b"HTTP/1.1 100 Continue\r\n\r\n", b'HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n{"a":1}'), False),
        ((b'HTTP/1.0 200 OK\r\ncontent-length: 7\r\n\r\n{"a":1}',), True),
    ],
)
def test_bodies_of_every_form(parts: tuple[bytes, ...], close: bool) -> None:
    found, _ = ask(answer(*parts, close=close), 3, pause=0.001)
    assert [each.json() for each in found] == [{"a": 1}] * 3


def test_a_connection_that_the_server_closed_meanwhile_is_not_used_again() -> None:
    found, connections = ask(answer(OK, close=True), 3, pause=0.001)
    assert (len(found), connections) == (3, 3)


def test_errors_are_httpx2s() -> None:
    with pytest.raises(httpx2.ReadError, match="closed"):
        ask(answer(close=True))
    with pytest.raises(httpx2.RemoteProtocolError):
        ask(answer(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{", close=True))
    with pytest.raises(httpx2.RemoteProtocolError):
        ask(answer(b"nonsense\r\n\r\n"))
    with pytest.raises(TooLarge):
        ask(answer(b"HTTP/1.1 200 OK\r\ncontent-length: 9000\r\n\r\n" + b" " * 2000))
    with pytest.raises(TooLarge):
        ask(answer(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 90\r\n\r\n" + b" " * 90))
    client = DirectClient(1000)
    with pytest.raises(httpx2.ConnectError):
        asyncio.run(client.send(client.build_request("POST", "http://127.0.0.1:9/", content=b"x")))


def test_a_certificate_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl makes the certificate")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    words = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    subprocess.run([openssl, *words.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)

    async def once() -> int:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)

        writers: list[asyncio.StreamWriter] = []

        async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)

        server = await asyncio.start_server(connected, "localhost", 0, ssl=context)
        client = DirectClient(1000)
        try:
            url = f"https://localhost:{server.sockets[0].getsockname()[1]}/"
            return (await client.send(client.build_request("POST", url, content=b""))).status_code
        finally:
            await client.aclose()
            await ended(server, writers)

    with pytest.raises(httpx2.ConnectError, match="certificate verify failed"):
        asyncio.run(once())
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    assert asyncio.run(once()) == 200
