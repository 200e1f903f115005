"""The arena on 127.0.0.1. A token in the link opens it, and nothing but its own page can vote.

Refused: a request whose Host is not this server's (a name that was pointed here), a vote whose Origin is not this
server's (another page), a vote that is not JSON (a form), and everything without a token.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gad.arena.comparisons import Book, book
from gad.arena.page import arena_page, message_page, results_page, server_policy
from gad.arena.results import results
from gad.arena.votes import ARENA, CHOICES, Ballot
from gad.config.arena import ArenaConfig
from gad.errors import GadError, MissingExtra, RunFolderError
from gad.report.gather import gather
from gad.report.summary import read_json
from gad.storage import lock, write_json

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

HOST = "127.0.0.1"
TOKENS = "tokens.json"
RESULTS = "/results"
"""No rater can have this name. Its link opens the results; raters get none of it, since who has seen the names is not
blind any more."""
MOST_BYTES = 4096
"""Of a vote."""


def serve(
    run_folder: Path,
    *,
    port: int | None = None,
    config: ArenaConfig | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the arena of a run until it is stopped. Every vote is on disk before its answer leaves.

    port: instead of the config's; 0 takes a free one. say: gets a link for every rater, and one for the results.
    Raises MissingExtra without starlette and uvicorn, ConfigError for arms or sets that the run lacks,
    RunFolderError for a folder that cannot be used or has an arena running, GadError where the port is taken.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtra("the arena", "arena") from error

    config = config or ArenaConfig()
    comparisons = book(gather(run_folder), config)
    with lock(run_folder / ARENA), _bound(config.port if port is None else port) as listener:
        address = f"{HOST}:{listener.getsockname()[1]}"
        tokens = _tokens(run_folder / ARENA / TOKENS, config.raters)
        ballot = Ballot(run_folder, comparisons)
        try:
            for line in _welcome(comparisons, address, tokens):
                say(line)
            app = application(Arena(run_folder, comparisons, ballot, tokens, address))
            settings = uvicorn.Config(
                app, log_level="warning", access_log=False, server_header=False, ws="none", lifespan="off"
            )
            uvicorn.Server(settings).run(sockets=[listener])
        finally:
            ballot.close()


@dataclass(frozen=True, slots=True)
class Arena:
    """What the server serves. tokens: by rater, and under RESULTS the one that opens the results."""

    folder: Path
    book: Book
    ballot: Ballot
    tokens: dict[str, str]
    address: str

    def rater(self, token: str) -> str | None:
        """Whose token this is."""
        found = [
            name for name, known in self.tokens.items() if hmac.compare_digest(known.encode(), token.encode("utf-8"))
        ]
        return found[0] if found else None

    def state(self, rater: str) -> dict[str, Any]:
        """What the page shows: how far a rater is, the next comparison, and what an undo would take back."""
        votes = self.ballot.votes(rater)
        following = self.ballot.open_comparison(rater)
        return {
            "done": len(votes),
            "total": len(self.book.comparisons),
            "comparison": following.shown(rater) if following is not None else None,
            "last": next(reversed(list(votes)), None),
        }


def application(arena: Arena) -> Starlette:
    """The server's routes."""
    from starlette.applications import Starlette
    from starlette.routing import Route

    def page(request: Request) -> Response:
        rater = arena.rater(request.query_params.get("token", ""))
        if rater is None or rater == RESULTS:
            return _html(message_page("This link is not valid", "Use the link that gad arena printed, whole."), 403)
        return _html(arena_page({"rater": rater}))

    def result(request: Request) -> Response:
        if arena.rater(request.query_params.get("token", "")) != RESULTS:
            return _html(message_page("This link is not valid", "The results have a link of their own."), 403)
        return _html(results_page(results(arena.folder)))

    # Votes are handled one at a time, on the event loop: two of them cannot pass each other.
    async def state(request: Request) -> Response:
        rater = arena.rater(request.headers.get("x-gad-token", ""))
        return _refused() if rater in (None, RESULTS) else _json(arena.state(str(rater)))

    async def vote(request: Request) -> Response:
        rater = arena.rater(request.headers.get("x-gad-token", ""))
        if rater is None or rater == RESULTS:
            return _refused()
        sent = await _sent(request)
        comparison = arena.book.find(str(sent.get("comparison")))
        if comparison is None or sent.get("choice") not in CHOICES:
            return _json({"error": "no such comparison or choice; reload the page"}, 400)
        arena.ballot.vote(rater, comparison, sent["choice"])
        return _json(arena.state(rater))

    async def undo(request: Request) -> Response:
        rater = arena.rater(request.headers.get("x-gad-token", ""))
        if rater is None or rater == RESULTS:
            return _refused()
        sent = await _sent(request)
        arena.ballot.undo(rater, str(sent.get("comparison")))
        return _json(arena.state(rater))

    routes = [
        Route("/", page),
        Route("/results", result),
        Route("/state", state),
        Route("/vote", vote, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(_guard(arena.address))
    return app


def _guard(address: str) -> Any:
    """Middleware that lets in our own page only, and sets the headers that keep it so."""
    port = address.rsplit(":", 1)[1]
    hosts = {address, f"localhost:{port}"}

    class Guard:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                return
            problem = _problem(scope, hosts)
            if problem is not None:
                await _json({"error": problem}, 403)(scope, receive, _with_headers(send))
                return
            await self.app(scope, receive, _with_headers(send))

    return Guard


def _problem(scope: Any, hosts: set[str]) -> str | None:
    """Why a request is refused, or None."""
    headers: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
    host = headers.get("host", [])
    if len(host) != 1 or host[0].lower() not in hosts:
        return "this server answers to 127.0.0.1 and localhost only"
    origin = headers.get("origin")
    if origin is not None and origin != [f"http://{host[0].lower()}"]:
        return "another page cannot use this server"
    if scope["method"] == "POST":
        if origin is None:
            return "a vote must come from the arena's own page"
        kind = headers.get("content-type", [""])[0].split(";")[0].strip().lower()
        if kind != "application/json":
            return "a vote must be JSON"
    site = headers.get("sec-fetch-site", ["none"])[0]
    if site not in ("same-origin", "none") and scope["path"] not in ("/", "/results"):
        return "another page cannot use this server"
    return None


def _with_headers(send: Any) -> Any:
    extra = {
        "content-security-policy": server_policy(),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-store",
        "cross-origin-opener-policy": "same-origin",
        "cross-origin-resource-policy": "same-origin",
    }

    async def sending(message: Any) -> None:
        if message["type"] == "http.response.start":
            pairs = [(name.encode(), value.encode()) for name, value in extra.items()]
            message = {**message, "headers": [*message["headers"], *pairs]}
        await send(message)

    return sending


async def _sent(request: Request) -> dict[str, Any]:
    """The body of a vote; anything else than a small JSON object is as good as empty."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            return {}
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _json(value: Any, status: int = 200) -> Response:
    from starlette.responses import Response

    return Response(json.dumps(value), status, media_type="application/json")


def _html(text: str, status: int = 200) -> Response:
    from starlette.responses import HTMLResponse

    return HTMLResponse(text, status)


def _refused() -> Response:
    return _json({"error": "this link is not valid; use the one that gad arena printed"}, 403)


def _bound(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise GadError(
            f"port {port} on {HOST}: {error.strerror}; take another (arena port, 0 for any free one)"
        ) from error
    return listener


def _tokens(path: Path, raters: tuple[str, ...]) -> dict[str, str]:
    """The links' tokens; a link goes on working when the server is started again. Readable by the owner alone."""
    known = read_json(path) if path.exists() else {}
    if not isinstance(known, dict) or not all(isinstance(value, str) and len(value) >= 22 for value in known.values()):
        raise RunFolderError(f"{path}: not tokens; delete the file, and everyone gets a new link")
    tokens = {name: known.get(name) or secrets.token_urlsafe(24) for name in (RESULTS, *raters)}
    if not tokens.keys() <= known.keys():
        before = os.umask(0o077)
        try:
            write_json(path, {**known, **tokens})
        finally:
            os.umask(before)
    return tokens


def _welcome(comparisons: Book, address: str, tokens: dict[str, str]) -> list[str]:
    lines = [
        f"{len(comparisons.comparisons)} comparisons of run {comparisons.name}, on this machine only (Ctrl-C stops)"
    ]
    if comparisons.identical:
        lines.append(f"left out: {comparisons.identical} prompts on which both arms gave the same reply")
    if comparisons.incomplete:
        lines.append(f"left out: {comparisons.incomplete} prompts to which one arm has no reply")
    for name, token in tokens.items():
        if name != RESULTS:
            lines.append(f"{name}: http://{address}/?token={token}")
    return [*lines, f"results: http://{address}/results?token={tokens[RESULTS]}"]
