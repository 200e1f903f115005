"""HTTP/1.1 straight over asyncio, for many small exchanges: half the CPU time of the client's own way.

`httpx2` builds and reads a request through layers that serve redirects, cookies, authentication, pools and several
event loops, none of which is used here. This puts a client of its own beneath the `openai` package: requests and
responses are httpx2's, `gad.teacher.http1` makes bytes of them, and the connection that was used last is used first.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import httpx2

from gad.teacher.failures import TooLarge
from gad.teacher.http1 import COMPRESSED, Connection, Headers, head_of, validate

CONNECT_SECONDS = 15.0
"""For a name to be found and a connection to be made; what fails here was not sent, and cost nothing."""
_KEEP_SECONDS = 20.0
"""An idle connection is closed before the usual servers do (60 s and more), so that no request meets its end."""
_HAPPY_EYEBALLS_SECONDS = 0.25
"""RFC 8305's pause before another address is tried."""
_ENCODING = "iso-8859-1"
"""Of headers, in which every byte has a meaning; left to guess, httpx2 tries others at every question."""


def pooled_client(connections: int, max_bytes: int, proxy: str | None) -> httpx2.AsyncClient:
    """An HTTP client that follows no redirects (a key is not carried elsewhere) and bounds what it reads."""
    fan = _Fan(connections, max_bytes, proxy)
    return httpx2.AsyncClient(transport=fan, timeout=None, follow_redirects=False)


class DirectClient(httpx2.AsyncClient):
    """An HTTP client for requests with whole bodies to one server. Follows no redirects: no key is carried elsewhere.

    Raises httpx2's errors, and TooLarge for a response above `max_bytes`.
    """

    def __init__(self, max_bytes: int, connect_seconds: float = CONNECT_SECONDS) -> None:
        super().__init__(transport=httpx2.AsyncBaseTransport(), timeout=None, follow_redirects=False)
        self._max_bytes, self._connect_seconds = max_bytes, min(CONNECT_SECONDS, connect_seconds)
        self._tls = ssl.create_default_context()
        self._tls.set_alpn_protocols(["http/1.1"])
        self._urls: dict[tuple[str, str], httpx2.URL] = {}
        self._free: list[Connection] = []
        self._validated: bytes | None = None

    @staticmethod
    def another(first: httpx2.Request, content: bytes) -> httpx2.Request:
        """A request that differs from `first` by its body; the body's length is stated when it is sent."""
        return httpx2.Request(first.method, first.url, headers=first.headers, stream=httpx2.ByteStream(content))

    def build_request(
        self, method: str, url: Any, *, content: Any = None, headers: Any = None, params: Any = None, **_: Any
    ) -> httpx2.Request:
        """As httpx2's, of a whole body; a URL is parsed once."""
        place = (str(url), str(params or ""))
        parsed = self._urls.get(place)
        if parsed is None:
            parsed = self._urls[place] = httpx2.URL(url, params=params) if params else httpx2.URL(url)
        return httpx2.Request(method, parsed, content=content, headers=headers)

    async def send(self, request: httpx2.Request, **_: Any) -> httpx2.Response:
        """Send a POST and read the whole response."""
        start = head_of(request)
        if start != self._validated:
            validate(request)
            self._validated = start
        connection = self._idle() or await self._connect(request.url)
        try:
            status, headers, body = await connection.exchange(start, request.read(), self._max_bytes)
        except BaseException:
            connection.abort()
            raise
        if connection.may_go_on:
            connection.idle_since = time.monotonic()
            self._free.append(connection)
        else:
            connection.abort()
        return _response(status, headers, body, request)

    def _idle(self) -> Connection | None:
        while self._free:
            connection = self._free.pop()
            if connection.may_go_on and time.monotonic() < connection.idle_since + _KEEP_SECONDS:
                return connection
            connection.abort()
        return None

    async def _connect(self, url: httpx2.URL) -> Connection:
        tls = self._tls if url.scheme == "https" else None
        port = url.port or (80 if tls is None else 443)
        loop, delay = asyncio.get_running_loop(), _HAPPY_EYEBALLS_SECONDS
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(
                    Connection, url.host, port, ssl=tls, happy_eyeballs_delay=delay
                )
        except TimeoutError as error:
            raise httpx2.ConnectTimeout(f"no connection within {self._connect_seconds:g} s") from error
        except (OSError, UnicodeError) as error:
            raise httpx2.ConnectError(str(error)) from error
        return connection

    async def aclose(self) -> None:
        """Close all connections that are idle; those in use are closed by their requests."""
        for connection in self._free:
            connection.abort()
        self._free.clear()
        await asyncio.sleep(0)  # the loop closes their sockets
        await super().aclose()


class _Read(httpx2.Response):
    """A response whose whole body is here, as it was sent. httpx2's own takes it through decoders and iterators."""

    def __init__(self, status: int, headers: Headers, body: bytes, request: httpx2.Request) -> None:
        super().__init__(status, headers=headers, stream=httpx2.ByteStream(body), request=request)
        self._body = body

    @property
    def content(self) -> bytes:
        return self._body

    def read(self) -> bytes:
        return self._body

    async def aread(self) -> bytes:
        return self._body


def _response(status: int, headers: Headers, body: bytes, request: httpx2.Request) -> httpx2.Response:
    if all(name != b"content-encoding" for name, _ in headers):
        response: httpx2.Response = _Read(status, headers, body, request)
    else:
        try:
            response = httpx2.Response(status, headers=headers, content=body, request=request)
        except httpx2.DecodingError as error:
            raise httpx2.RemoteProtocolError(str(error), request=request) from error
    response.headers.encoding = _ENCODING
    return response


class _Body(httpx2.AsyncByteStream):
    """A response's body, bounded."""

    def __init__(self, stream: Any, limit: int, done: Callable[[], None]) -> None:
        self._stream, self._left, self._done = stream, limit, done

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for chunk in self._stream:
            self._left -= len(chunk)
            if self._left < 0:
                raise TooLarge
            yield chunk

    async def aclose(self) -> None:
        try:
            await self._stream.aclose()
        finally:
            self._done()


class _Fan(httpx2.AsyncBaseTransport):
    """A transport of one-connection transports; the one that was used last is used first. httpx2's own pool looks at
    all of them: 0.4 ms of CPU a request where there are 256."""

    def __init__(self, connections: int, max_bytes: int, proxy: str | None) -> None:
        one = httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=_KEEP_SECONDS)
        tls = ssl.create_default_context()
        self._all = [httpx2.AsyncHTTPTransport(verify=tls, limits=one, proxy=proxy) for _ in range(connections)]
        self._free = list(self._all)
        self._max_bytes = max_bytes

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        transport = self._free.pop()
        try:
            response = await transport.handle_async_request(request)
        except BaseException:
            self._free.append(transport)
            raise
        plain = response.headers.get("content-encoding", "identity") == "identity"
        limit = self._max_bytes if plain else self._max_bytes // COMPRESSED
        response.stream = _Body(response.stream, limit, partial(self._free.append, transport))
        return response

    async def aclose(self) -> None:
        for transport in self._all:
            await transport.aclose()
