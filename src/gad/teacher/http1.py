"""One connection that speaks HTTP/1.1, one exchange after another.

Nearly every response has one form: a head in one piece, and a body of a stated length. That is read here, strictly;
whatever differs (chunks, other versions, interim responses, a head in pieces, nonsense) is left to `h11` from its
first byte on, which takes three times the CPU time.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

import h11
import httpx2

from gad.teacher.failures import TooLarge

COMPRESSED = 64
"""A compressed response may grow so many times; it was asked for uncompressed."""
Headers = list[tuple[bytes, bytes]]
_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-5]\d\d)(?: [\t\x20-\x7e\x80-\xff]*)?\r\n((?:[\w!#$%&'*+.^`|~-]+:[\t\x20-\x7e\x80-\xff]*\r\n)+)\r\n"
)
_LENGTH = re.compile(rb"\d{1,12}")
_NO_BODY = (204, 304)


def head_of(request: httpx2.Request) -> bytes:
    """A request's first line and headers, without the body's length. Not validated."""
    lines = [b"%s: %s\r\n" % each for each in request.headers.raw if each[0].lower() != b"content-length"]
    return b"%s %s HTTP/1.1\r\n%s" % (request.method.encode(), request.url.raw_path, b"".join(lines))


def validate(request: httpx2.Request) -> None:
    """Raise LocalProtocolError where a request cannot be said in HTTP/1.1."""
    try:
        h11.Request(method=request.method, target=request.url.raw_path, headers=request.headers.raw)
    except h11.LocalProtocolError as error:
        raise httpx2.LocalProtocolError(str(error)) from error


def plain_head(data: bytes) -> tuple[int, Headers, int, int] | None:
    """Status, headers (names in lower case), the body's length and where it begins; None for every other form."""
    found = _HEAD.match(data)
    if found is None:
        return None
    status, headers, length = int(found[1]), [], None
    for line in found[2].split(b"\r\n")[:-1]:
        name, _, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" \t")
        if name == b"content-length":
            if length is not None or _LENGTH.fullmatch(value) is None:
                return None
            length = int(value)
        elif name == b"transfer-encoding" or (name == b"connection" and value.lower() != b"keep-alive"):
            return None
        headers.append((name, value))
    return None if length is None or status in _NO_BODY else (status, headers, length, found.end())


class Connection(asyncio.Protocol):
    """One connection. Raises httpx2's errors, and TooLarge."""

    idle_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._waiting: asyncio.Future[tuple[int, Headers, bytes]] | None = None
        self.may_go_on = True
        """Whether another request can be sent."""

    async def exchange(self, head: bytes, body: bytes, max_bytes: int) -> tuple[int, Headers, bytes]:
        """Send a POST of this head; the status of the response, its headers and its body."""
        self._plain: tuple[int, Headers] | None = None
        self._http: h11.Connection | None = None
        self._response: h11.Response | None = None
        self._parts: list[bytes] = []
        self._max_bytes = self._missing = max_bytes
        self._waiting = asyncio.get_running_loop().create_future()
        self._transport.write(b"%scontent-length: %d\r\n\r\n%s" % (head, len(body), body))
        try:
            return await self._waiting
        finally:
            self._waiting = None

    def data_received(self, data: bytes) -> None:
        if self._waiting is None or self._waiting.done():
            # Nothing was asked: whatever this is, the connection is of no more use.
            self.abort()
        elif self._http is not None:
            self._read_with_h11(data)
        elif self._plain is not None:
            self._take(data)
        else:
            self._begin(data)

    def eof_received(self) -> None:
        if self._waiting is None or self._waiting.done():
            self.abort()
        elif self._http is not None and self._response is not None:
            self._read_with_h11(b"")
        elif self._plain is not None:
            self._fail(httpx2.RemoteProtocolError(f"the server closed the connection {self._missing} bytes too early"))
        else:
            self._fail(httpx2.ReadError("the server closed the connection without an answer"))

    def connection_lost(self, error: Exception | None) -> None:
        self.may_go_on = False
        self._fail(httpx2.ReadError(str(error) if error else "the server closed the connection"))

    def _begin(self, data: bytes) -> None:
        """The first bytes of a response."""
        head = plain_head(data)
        if head is None:
            self._http = h11.Connection(h11.CLIENT)
            # It reads no response without a request; of that, the method alone matters.
            self._http.send(h11.Request(method="POST", target="/", headers=[("host", "-"), ("content-length", "0")]))
            self._http.send(h11.EndOfMessage())
            self._read_with_h11(data)
            return
        status, headers, self._missing, begin = head
        self._plain = status, headers
        if self._missing > self._bound(headers):
            self._fail(TooLarge())
            self.abort()
        else:
            self._take(data[begin:])

    def _take(self, data: bytes) -> None:
        """More of a body whose length is known."""
        self._parts.append(data)
        self._missing -= len(data)
        if self._missing > 0:
            return
        # More than was announced: nobody knows what that is the answer to.
        self.may_go_on = self.may_go_on and self._missing == 0
        body = b"".join(self._parts)
        assert self._plain is not None
        self._finish(*self._plain, body[: len(body) + self._missing])

    def _bound(self, headers: Headers) -> int:
        """The most bytes that a body with these headers may have."""
        encoded = any(name == b"content-encoding" and value != b"identity" for name, value in headers)
        return self._max_bytes // COMPRESSED if encoded else self._max_bytes

    def _read_with_h11(self, data: bytes) -> None:
        """Take in bytes, or (empty) the end of the stream, which ends a body without a length."""
        assert self._http is not None
        try:
            self._http.receive_data(data)
            while self._take_event(self._http.next_event()):
                pass
        except h11.RemoteProtocolError as error:
            self._fail(httpx2.RemoteProtocolError(str(error)))

    def _take_event(self, event: Any) -> bool:
        """Whether there may be more."""
        if isinstance(event, h11.Data):
            self._parts.append(bytes(event.data))
            self._missing -= len(event.data)
            if self._missing < 0:
                self._fail(TooLarge())
                self.abort()
        elif isinstance(event, h11.Response):
            self._response = event
            self._missing = self._bound(list(event.headers))
        elif isinstance(event, h11.EndOfMessage):
            self._end_with_h11()
            return False
        return event is not h11.NEED_DATA and self.may_go_on

    def _end_with_h11(self) -> None:
        http = self._http
        assert http is not None
        assert self._response is not None
        again = http.our_state is h11.DONE and http.their_state is h11.DONE and not http.trailing_data[0]
        self.may_go_on = self.may_go_on and again
        self._finish(self._response.status_code, list(self._response.headers), b"".join(self._parts))

    def _finish(self, status: int, headers: Headers, body: bytes) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result((status, headers, body))

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def abort(self) -> None:
        """Close at once."""
        self.may_go_on = False
        self._transport.abort()
