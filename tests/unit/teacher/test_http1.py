"""One connection of HTTP/1.1: what is read here is read as h11 reads it, whatever the pieces in which it comes."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gad.teacher.failures import TooLarge
from gad.teacher.http1 import Connection, plain_head

Whole = tuple[int, list[tuple[bytes, bytes]], bytes]


class _Wire(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent, self.aborted = b"", False

    def write(self, data: Any) -> None:
        self.sent += bytes(data)

    def abort(self) -> None:
        self.aborted = True


async def _exchange(parts: list[bytes], *, end: bool, max_bytes: int = 10**6) -> tuple[Whole | str, bool, bytes]:
    """What comes of an exchange (an error by its class), whether the connection may go on, and what was sent."""
    wire, connection = _Wire(), Connection()
    connection.connection_made(wire)
    task = asyncio.ensure_future(connection.exchange(b"POST /v1 HTTP/1.1\r\nHost: a\r\n", b"{}", max_bytes))
    await asyncio.sleep(0)
    for part in parts:
        connection.data_received(part)
    if end:
        connection.eof_received()
    if not task.done():
        await asyncio.sleep(0)
    try:
        return await asyncio.wait_for(task, 0.5), connection.may_go_on, wire.sent
    except (httpx2.HTTPError, TooLarge) as error:
        return type(error).__name__, connection.may_go_on, wire.sent


def exchange(*parts: bytes, end: bool = False, max_bytes: int = 10**6) -> tuple[Whole | str, bool, bytes]:
    return asyncio.run(_exchange(list(parts), end=end, max_bytes=max_bytes))


def by_h11(data: bytes) -> tuple[Whole, bool] | None:
    """The same by h11 alone; None where it refuses, or waits for more."""
    http = h11.Connection(h11.CLIENT)
    http.send(h11.Request(method="POST", target="/v1", headers=[("host", "a"), ("content-length", "2")]))
    http.send(h11.Data(data=b"{}"))
    http.send(h11.EndOfMessage())
    http.receive_data(data)
    body, head = b"", None
    try:
        while True:
            event = http.next_event()
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            elif event is h11.NEED_DATA:
                return None
    except h11.RemoteProtocolError:
        return None
    assert head is not None
    again = http.our_state is h11.DONE and http.their_state is h11.DONE and not http.trailing_data[0]
    return (head.status_code, list(head.headers), body), again


NAMES = st.sampled_from(
    [*["Connection"] * 3, "X-One", "content-type", "Set-Cookie", "retry-after", "x_y", "A b", "", "é"]
)
VALUES = st.sampled_from(["a", "", "close", "keep-alive", " Keep-Alive\t", "x\ty", "caf\xe9", "\x01", "1", "a\x7f"])
FRAMES = st.sampled_from(
    [
        *[("Content-Length: {n}", "{body}")] * 6,
        ("content-length:{n} ", "{body}"),
        ("content-length: {n}\r\nContent-Length: {n}", "{body}"),
        ("content-length: {n}\r\nContent-Length: 1", "{body}"),
        ("content-length: {n}, {n}", "{body}"),
        ("content-length: +{n}", "{body}"),
        ("content-length: -1", "{body}"),
        ("content-length: {n}", "{body}more"),
        ("transfer-encoding: chunked", "{n:x}\r\n{body}\r\n0\r\n\r\n"),
        ("transfer-encoding: chunked\r\ncontent-length: 3", "{n:x};x=1\r\n{body}\r\n0\r\nT: 1\r\n\r\n"),
        ("transfer-encoding: gzip, chunked\r\ncontent-length: 2", "{n:x}\r\n{body}\r\n0\r\n\r\n"),
    ]
)
FIRST = st.sampled_from(
    [
        *["HTTP/1.1 200 OK"] * 8,
        "HTTP/1.1 429",
        "HTTP/1.1 404 ",
        "HTTP/1.0 200 OK",
        "HTTP/1.1 204 No",
        "HTTP/1.1 20 OK",
        "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
        "http/1.1 200 OK",
        "HTTP/1.1  200 OK",
        "HTTP/1.1 304 Not",
        "x",
    ]
)


@settings(max_examples=600, deadline=None)
@given(FIRST, st.lists(st.tuples(NAMES, VALUES), max_size=4), FRAMES, st.binary(max_size=40), st.data())
def test_every_response_is_read_as_h11_reads_it(
    first: str, headers: list[tuple[str, str]], frame: tuple[str, str], body: bytes, data: st.DataObject
) -> None:
    lines = [first, *(f"{name}: {value}" for name, value in headers)]
    place = data.draw(st.integers(1, len(lines)))
    lines.insert(place, frame[0].format(n=len(body)))
    head = "\r\n".join(lines) + "\r\n\r\n" + frame[1].format(n=len(body), body=body.decode("latin-1"))
    sent = head.encode("latin-1")
    cuts = sorted(data.draw(st.lists(st.integers(1, len(sent)), max_size=data.draw(st.sampled_from([0, 0, 3])))))
    parts = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True) if a < b]
    wanted = by_h11(sent)
    found, again, _ = exchange(*parts, end=wanted is None)
    if wanted is None:
        assert isinstance(found, str)
    else:
        assert found == wanted[0]
        assert again <= wanted[1]


def test_the_usual_form_is_read_without_h11_and_a_request_states_its_length() -> None:
    assert plain_head(b"HTTP/1.1 200 OK\r\nX-Y: a b \r\ncontent-length: 2\r\n\r\n{}") == (
        200,
        [(b"x-y", b"a b"), (b"content-length", b"2")],
        2,
        49,
    )
    found, again, sent = exchange(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n{", b" ", b" }")
    assert (found, again) == ((200, [(b"content-length", b"4")], b"{  }"), True)
    assert sent == b"POST /v1 HTTP/1.1\r\nHost: a\r\ncontent-length: 2\r\n\r\n{}"


def test_bytes_beyond_a_body_end_the_connection() -> None:
    for parts in (
        [b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200"],
        [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nHTTP"],
    ):
        found, again, _ = exchange(*parts)
        assert isinstance(found, tuple)
        assert not again


@pytest.mark.parametrize(
    ("parts", "end", "error"),
    [
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{",), True, "RemoteProtocolError"),
        ((b"HTTP/1.1 200 OK\r\nconte",), True, "ReadError"),
        ((), True, "ReadError"),
        ((b"HTTP/1.1 200 OK\r\ncontent-length: 1001\r\n\r\n",), False, "TooLarge"),
        ((b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 16\r\n\r\n",), False, "TooLarge"),
        ((b"HTTP/1.1 200 OK\r\n\r\n", b" " * 1001), False, "TooLarge"),
    ],
)
def test_what_is_cut_or_too_long(parts: tuple[bytes, ...], end: bool, error: str) -> None:
    assert exchange(*parts, end=end, max_bytes=1000)[0] == error
