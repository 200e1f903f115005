"""HTTP/1.1 straight over asyncio, for many small exchanges: half the CPU time of the client's own way.

`httpx2` builds and reads a request through layers that serve redirects, cookies, authentication, pools and several
event loops, none of which is used here. This puts a client of its own beneath the `openai` package: requests and
responses are httpx2's, `h11` reads and writes the bytes, and the connection that was used last is used first.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import h11
import httpx2

from gad.teacher.failures import TooLarge

CONNECT_SECONDS = 15.0
"""For a name to be found and a connection to be made; what fails here was not sent, and cost nothing."""
_KEEP_SECONDS = 20.0
"""An idle connection is closed before the usual servers do (60 s and more), so that no request meets its end."""
_HAPPY_EYEBALLS_SECONDS = 0.25
"""RFC 8305's pause before another address is tried."""
_COMPRESSED = 64
"""A compressed response may grow so many times; it was asked for uncompressed."""


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
        self._free: list[_Connection] = []

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
        """Send a request and read the whole response."""
        connection = self._idle() or await self._connect(request.url)
        try:
            head, body = await connection.exchange(request, self._max_bytes)
        except BaseException:
            connection.abort()
            raise
        if connection.may_go_on:
            connection.idle_since = time.monotonic()
            self._free.append(connection)
        else:
            connection.abort()
        try:
            return httpx2.Response(head.status_code, headers=list(head.headers), content=body, request=request)
        except httpx2.DecodingError as error:
            raise httpx2.RemoteProtocolError(str(error), request=request) from error

    def _idle(self) -> _Connection | None:
        while self._free:
            connection = self._free.pop()
            if connection.may_go_on and time.monotonic() < connection.idle_since + _KEEP_SECONDS:
                return connection
            connection.abort()
        return None

    async def _connect(self, url: httpx2.URL) -> _Connection:
        tls = self._tls if url.scheme == "https" else None
        port = url.port or (80 if tls is None else 443)
        loop, delay = asyncio.get_running_loop(), _HAPPY_EYEBALLS_SECONDS
        try:
            async with asyncio.timeout(self._connect_seconds):
                _, connection = await loop.create_connection(
                    _Connection, url.host, port, ssl=tls, happy_eyeballs_delay=delay
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


class _Connection(asyncio.Protocol):
    """One connection, one exchange after another."""

    idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._http = h11.Connection(h11.CLIENT)
        self._waiting: asyncio.Future[tuple[h11.Response, bytes]] | None = None
        self._open = True

    @property
    def may_go_on(self) -> bool:
        """Whether another request can be sent."""
        return self._open and self._http.our_state is h11.IDLE

    async def exchange(self, request: httpx2.Request, max_bytes: int) -> tuple[h11.Response, bytes]:
        """Send a request; the head of the response and its body."""
        http = self._http
        self._head: h11.Response | None = None
        self._body: list[bytes] = []
        self._left = max_bytes
        self._waiting = asyncio.get_running_loop().create_future()
        try:
            head = h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
            sent = [http.send(head), http.send(h11.Data(data=request.content)), http.send(h11.EndOfMessage())]
        except h11.LocalProtocolError as error:
            raise httpx2.LocalProtocolError(str(error)) from error
        self._transport.write(b"".join(part for part in sent if part))
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def data_received(self, data: bytes) -> None:
        self._receive(data)

    def eof_received(self) -> None:
        self._receive(b"")

    def connection_lost(self, error: Exception | None) -> None:
        self._open = False
        self._fail(httpx2.ReadError(str(error) if error else "the server closed the connection"))

    def _receive(self, data: bytes) -> None:
        """Take in bytes, or (empty) the end of the stream, which ends a body without a length."""
        if self._waiting is None:
            # Nothing was asked: whatever this is, the connection is of no more use.
            self.abort()
            return
        if not data and self._head is None:
            self._fail(httpx2.ReadError("the server closed the connection without an answer"))
            return
        try:
            self._http.receive_data(data)
            while self._take(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            self._fail(httpx2.RemoteProtocolError(str(error)))

    def _take(self, event: Any) -> bool:
        """Whether there may be more."""
        if isinstance(event, h11.Data):
            self._body.append(bytes(event.data))
            self._left -= len(event.data)
            if self._left < 0:
                self._fail(TooLarge())
                self.abort()
        elif isinstance(event, h11.Response):
            self._head = event
            encoded = any(name == b"content-encoding" and value != b"identity" for name, value in event.headers)
            self._left //= _COMPRESSED if encoded else 1
        elif isinstance(event, h11.EndOfMessage):
            self._done()
            return False
        return event is not h11.NEED_DATA and self._open

    def _done(self) -> None:
        if self._http.our_state is h11.DONE and self._http.their_state is h11.DONE:
            self._http.start_next_cycle()
        if self._waiting is not None and not self._waiting.done():
            assert self._head is not None
            self._waiting.set_result((self._head, b"".join(self._body)))

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def abort(self) -> None:
        """Close at once."""
        self._open = False
        self._transport.abort()


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
        limit = self._max_bytes if plain else self._max_bytes // _COMPRESSED
        response.stream = _Body(response.stream, limit, partial(self._free.append, transport))
        return response

    async def aclose(self) -> None:
        for transport in self._all:
            await transport.aclose()
