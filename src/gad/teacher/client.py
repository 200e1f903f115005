"""The official `openai` client as a way to exchange one request for one response. The one file that imports it.

Three things are done here because the client does not: a deadline for the whole exchange (a reply that drips in is
late all the same), a bound on the bytes of a response, and connections that cost little CPU time
(`gad.teacher.transport`; through a proxy, a pool that finds a free connection at once).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from gad.config.teacher import ApiConfig, AzureEndpoint
from gad.errors import ConfigError
from gad.teacher.failures import UNREACHABLE, Failure, Next, TooLarge, of_status
from gad.teacher.wire import PATHS

_STATISTICS = tuple(
    f"X-Stainless-{name}"
    for name in (
        "Lang",
        "Package-Version",
        "OS",
        "Arch",
        "Runtime",
        "Runtime-Version",
        "Async",
        "Retry-Count",
        "Read-Timeout",
    )
)
"""Headers about this machine that the client adds; a request costs less CPU without them."""


@dataclass(frozen=True, slots=True)
class Response:
    """A success: its headers (names in lower case) and its whole body."""

    headers: Mapping[str, str]
    content: bytes


class Exchange(Protocol):
    """Sends bodies to an endpoint. Raises Failure for everything but a success; safe to use many times at once."""

    async def post(self, body: bytes) -> Response: ...

    async def close(self) -> None: ...


def key_in(variable: str | None) -> str | None:
    """The key in an environment variable; None where there is none."""
    return (os.environ.get(variable, "").strip() or None) if variable is not None else None


def needed_key(variable: str | None) -> str | None:
    """As `key_in`. Raises ConfigError where one is needed and not set."""
    key = key_in(variable)
    if variable is None:
        return None
    if key is None:
        raise ConfigError(
            f"the API key is expected in the environment variable {variable}, which is not set: export it, or set "
            "endpoint.api_key_env to null for an endpoint that needs none"
        )
    if not key.isascii() or any(character.isspace() for character in key):
        raise ConfigError(f"the environment variable {variable} holds no API key: it has spaces or non-ASCII letters")
    return key


def new_client(config: ApiConfig, key: str | None, http_client: Any) -> Any:
    """An `AsyncOpenAI` that leaves retries to us, and tells other hosts nothing of the user's OpenAI account."""
    from openai import AsyncAzureOpenAI, AsyncOpenAI, Omit, Timeout

    from gad.teacher.transport import CONNECT_SECONDS

    timeout = Timeout(None, connect=min(CONNECT_SECONDS, config.limits.timeout_seconds / 2))
    settings: dict[str, Any] = {"max_retries": 0, "timeout": timeout, "http_client": http_client}
    endpoint = config.endpoint
    if isinstance(endpoint, AzureEndpoint):
        return AsyncAzureOpenAI(
            azure_endpoint=endpoint.azure_endpoint,
            api_version=endpoint.api_version,
            azure_deployment=config.model,
            api_key=key,
            **settings,
        )
    headers: dict[str, Any] = {"Accept-Encoding": "identity", **dict.fromkeys(_STATISTICS, Omit()), **endpoint.headers}
    if urlsplit(endpoint.base_url).hostname != "api.openai.com":
        headers |= {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
    return AsyncOpenAI(base_url=endpoint.base_url, api_key=key or "none", default_headers=headers, **settings)


def proxy_for(url: str) -> str | None:
    """The proxy that the environment asks for (HTTPS_PROXY, NO_PROXY, ...)."""
    parts = urlsplit(url)
    if proxy_bypass(parts.hostname or ""):
        return None
    proxies = getproxies()
    return proxies.get(parts.scheme) or proxies.get("all")


Another = Callable[[Any, bytes], Any]
"""A request like an earlier one, with another body."""


def _with_headers_again(first: Any, content: bytes) -> Any:
    import httpx2

    headers = [(name, value) for name, value in first.headers.raw if name.lower() != b"content-length"]
    return httpx2.Request(first.method, first.url, headers=headers, content=content, extensions=first.extensions)


def _repeat_first(client: Any, another: Another) -> None:
    """Let the client build one request; later ones take over its address and headers, key included, and differ by
    their bodies. Parsing the same address and merging the same headers again is a third of its CPU time."""
    build = client._build_request
    first: Any = None

    def build_another(options: Any, **more: Any) -> Any:
        nonlocal first
        if first is None:
            first = build(options, **more)
            first.headers.encoding = "iso-8859-1"
            return first
        request = another(first, options.content)
        request.headers.encoding = "iso-8859-1"
        return request

    client._build_request = build_another


class OpenAIExchange:
    """`Exchange` over the `openai` package."""

    def __init__(self, config: ApiConfig, key: str | None) -> None:
        self._config = config
        from openai import Omit
        from openai._models import FinalRequestOptions
        from sniffio import current_async_library_cvar

        from gad.teacher.transport import DirectClient, pooled_client

        # Told once a task, the client need not find it out at every read: a tenth of its CPU time on Python 3.11.
        self._library = current_async_library_cvar
        limits, proxy = config.limits, proxy_for(address(config))
        http: Any
        another: Another = DirectClient.another
        if proxy is None:
            http = DirectClient(limits.max_reply_bytes, limits.timeout_seconds / 2)
        else:
            another = _with_headers_again
            # One more than may be under way: a connection is given back just after its request is done.
            http = pooled_client(limits.concurrency + 1, limits.max_reply_bytes, proxy)
        self._client = new_client(config, key, http)
        headers: dict[str, Any] = {"Content-Type": "application/json", "X-Stainless-Retry-Count": Omit()}
        url = PATHS[config.api]
        if not isinstance(config.endpoint, AzureEndpoint):
            url = config.endpoint.base_url + url
        self._options = FinalRequestOptions.construct(method="post", url=url, headers=headers)
        _repeat_first(self._client, another)

    async def post(self, body: bytes) -> Response:
        """Send one request."""
        self._library.set("asyncio")
        try:
            async with asyncio.timeout(self._config.limits.timeout_seconds):
                return await self._post(body)
        except TimeoutError:
            seconds = self._config.limits.timeout_seconds
            raise Failure("timeout", f"no whole reply within {seconds:g} s", Next.RETRY, maybe_paid=True) from None
        except TooLarge:
            text = f"the response has more than limits.max_reply_bytes={self._config.limits.max_reply_bytes} bytes"
            raise Failure("too large", text, Next.GIVE_UP, maybe_paid=True) from None

    async def _post(self, body: bytes) -> Response:
        import httpx2
        import openai

        try:
            options = self._options.model_copy(update={"content": body})
            response = await self._client.request(httpx2.Response, options)
        except openai.APIStatusError as error:
            raise of_status(
                error.response.status_code, error.response.headers, error.response.content, time.time()
            ) from None
        except openai.APIConnectionError as error:
            raise _lost(error.__cause__ or error, self._config) from None
        except httpx2.HTTPError as error:
            raise _lost(error, self._config) from None
        # A plain mapping: httpx2's own looks through all its names at each question, and a dozen are asked.
        headers = {name.decode("ascii").lower(): value.decode("latin-1") for name, value in response.headers.raw}
        return Response(headers, response.content)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()


def _lost(error: BaseException, config: ApiConfig) -> Failure:
    import httpx2

    if isinstance(error, TooLarge):
        raise error
    text = " ".join(str(error).split())[:300] or type(error).__name__
    never_sent = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError)
    if isinstance(error, never_sent):
        return Failure(UNREACHABLE, f"{address(config)} cannot be reached ({text})", Next.RETRY)
    if isinstance(error, httpx2.UnsupportedProtocol | httpx2.LocalProtocolError):
        return Failure("bad request", text, Next.STOP)
    return Failure("connection lost", f"{type(error).__name__}: {text}", Next.RETRY, maybe_paid=True)


def address(config: ApiConfig) -> str:
    """Where the endpoint is, for people."""
    endpoint = config.endpoint
    return endpoint.azure_endpoint if isinstance(endpoint, AzureEndpoint) else endpoint.base_url
