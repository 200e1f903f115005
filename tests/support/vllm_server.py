"""An HTTP server that speaks vLLM's API, as observed of vLLM 0.32, with a tiny model of ours behind it and faults.

What vLLM does is done here: token ids in and out, temperatures in log-probabilities only in `processed` mode, replies
cut without a word at the model's length, adapters by name, weights from a folder or through a link, a version that is
told.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from safetensors.torch import load_file
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from gad.config.models import Lora
from gad.config.training import Sampling
from gad.models.network import Member, Network
from gad.records import Prompt
from gad.rollout import engine
from gad.rollout.local import LocalEngine
from support import gloo_link, tiny

ABORT = "abort"
"""A fault: the connection is closed in the middle of the body."""


@dataclass
class Behaviour:
    """How a server is at fault. `completions` answers the next completions, one each; the rest changes all answers."""

    completions: list[Any] = field(default_factory=list)
    context: int = 512
    processed: bool = True
    mangle: Any = None
    """Called with every answer to a completion before it is sent."""
    hangs: bool = False
    missing: tuple[str, ...] = ()
    """Paths that are not there."""
    spelling_shift: int = 0
    names: tuple[str, ...] = ("student",)
    with_adapters: bool = True
    developer: bool = True
    transfers: bool = True
    """Whether it was started with --weight-transfer-config."""
    key: str | None = None


@dataclass(frozen=True)
class Loaded:
    """Weights in memory."""

    network: Network
    member: Member


class VllmServer:
    """One server; `url` while it is `running`. `asked`: prompt and seed of every reply that was given."""

    def __init__(self, make: Callable[[], Any], behaviour: Behaviour | None = None, port: int | None = None) -> None:
        """make: the model that it was started with, anew at each call."""
        self.behaviour = behaviour or Behaviour()
        self._make = make
        self.asked: list[tuple[tuple[int, ...], int]] = []
        self.seen: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.restart()
        self._socket = bound(port or 0)  # from here on nobody else gets the port
        self.port = int(self._socket.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self._lock = threading.Lock()

    def restart(self) -> None:
        """Forget everything that was loaded since the start."""
        self.adapters: dict[str, Path] = {}
        self.version = "default"
        self._weights: dict[str, torch.Tensor] = {}
        self._engines: dict[str, Loaded] = {}
        self._invitation: dict[str, Any] = {}
        self._group: Any = None
        self._arriving: dict[str, torch.Tensor] | None = None

    @contextmanager
    def running(self) -> Iterator[VllmServer]:
        """Serve in a thread."""
        paths = {
            "/health": self._health,
            "/v1/models": self._models,
            "/tokenize": self._tokenize,
            "/v1/completions": self._completions,
            "/v1/load_lora_adapter": self._load_adapter,
            "/v1/unload_lora_adapter": self._unload_adapter,
            "/collective_rpc": self._rpc,
            "/reset_prefix_cache": self._ok,
            "/update_weight_version": self._set_version,
            "/weight_info": self._told_version,
            "/server_info": self._info,
            "/get_world_size": self._size,
            "/init_weight_transfer_engine": self._link,
            "/start_weight_update": self._start_update,
            "/update_weights": self._update,
            "/finish_weight_update": self._finish_update,
        }
        app = Starlette(
            routes=[Route(path, self._guarded(path, call), methods=["GET", "POST"]) for path, call in paths.items()]
        )
        config = uvicorn.Config(app, "127.0.0.1", self.port, log_level="critical", timeout_graceful_shutdown=0)
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, args=([self._socket],), daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), f"the server at {self.url} did not start"
            threading.Event().wait(0.01)
        try:
            yield self
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)

    def _guarded(self, path: str, call: Any) -> Any:
        async def answer(request: Request) -> Response:
            self.paths.append(path)
            if self.behaviour.hangs:
                await asyncio.sleep(3600)
            if path in self.behaviour.missing:
                return self._none()
            key = self.behaviour.key
            if key and path.startswith("/v1") and request.headers.get("authorization") != f"Bearer {key}":
                return JSONResponse({"error": "Unauthorized"}, 401)
            response: Response = await call(request)
            return response

        return answer

    async def _ok(self, request: Request) -> Response:
        return Response() if self.behaviour.developer else self._none()

    async def _health(self, request: Request) -> Response:
        return Response()

    async def _models(self, request: Request) -> Response:
        rows: list[dict[str, Any]] = [
            {"id": name, "parent": None, "max_model_len": self.behaviour.context} for name in self.behaviour.names
        ]
        rows += [{"id": name, "parent": "student", "max_model_len": None} for name in self.adapters]
        return JSONResponse({"object": "list", "data": rows})

    async def _tokenize(self, request: Request) -> Response:
        text = (await request.json())["prompt"]
        ids = tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]
        shift = self.behaviour.spelling_shift
        return JSONResponse({"tokens": [token + shift for token in ids], "count": len(ids)})

    async def _completions(self, request: Request) -> Response:
        body = await request.json()
        fault = self.behaviour.completions.pop(0) if self.behaviour.completions else None
        if fault == ABORT:
            return _broken_off()
        if fault == "hang":
            await asyncio.sleep(3600)
        if isinstance(fault, Response):
            return fault
        if not self._knows(body["model"]):
            return _error(404, f"The model `{body['model']}` does not exist.")
        if len(body["prompt"]) >= self.behaviour.context:
            return _error(400, f"maximum context length is {self.behaviour.context} tokens")
        answer = await asyncio.to_thread(self._sample, body)
        if answer is None:  # started again while this was waiting for its turn
            return _error(404, f"The model `{body['model']}` does not exist.")
        if self.behaviour.mangle is not None:
            self.behaviour.mangle(answer)
        return JSONResponse(answer)

    async def _load_adapter(self, request: Request) -> Response:
        body = await request.json()
        if not self.behaviour.with_adapters:
            return self._none()
        path = Path(body["lora_path"])
        if not (path / "adapter_config.json").exists():
            return _error(404, f"No adapter found for {path}")
        self.adapters[body["lora_name"]] = path
        self._tensors(path)
        return PlainTextResponse("Success")

    async def _unload_adapter(self, request: Request) -> Response:
        name = (await request.json())["lora_name"]
        self._engines.pop(name, None)
        return PlainTextResponse("Success") if self.adapters.pop(name, None) else _error(404, "cannot be found")

    async def _rpc(self, request: Request) -> Response:
        if not self.behaviour.developer:
            return self._none()
        body = await request.json()
        assert body["method"] == "reload_weights"
        path = Path(body["kwargs"]["weights_path"])
        if not path.exists():
            return _error(500, f"Repo id must use alphanumeric chars: '{path}'")
        for file in sorted(path.glob("*.safetensors")):
            self._weights.update(load_file(file))
        self._engines.clear()
        return JSONResponse({"results": [None]})

    async def _set_version(self, request: Request) -> Response:
        self.version = (await request.json())["new_version"]
        return JSONResponse({"success": True})

    async def _told_version(self, request: Request) -> Response:
        return JSONResponse({"weight_version": self.version}) if self.behaviour.developer else self._none()

    async def _info(self, request: Request) -> Response:
        assert request.query_params["config_format"] == "json"
        transfers = {"backend": "nccl"} if self.behaviour.transfers else None
        told = {"vllm_config": {"weight_transfer_config": transfers}}
        return JSONResponse(told) if self.behaviour.developer else self._none()

    async def _size(self, request: Request) -> Response:
        return JSONResponse({"world_size": 1}) if self.behaviour.developer else self._none()

    async def _link(self, request: Request) -> Response:
        self._invitation = (await request.json())["init_info"]
        self._group = await asyncio.to_thread(gloo_link.join, self._invitation)
        return JSONResponse({"message": "Weight transfer initialized"})

    async def _start_update(self, request: Request) -> Response:
        if self._arriving is not None:
            return PlainTextResponse("Internal Server Error", 500)
        self._arriving = {}
        return JSONResponse({"message": "Weight update started"})

    async def _update(self, request: Request) -> Response:
        assert self._arriving is not None
        told = (await request.json())["update_info"]
        try:
            arrived = await asyncio.to_thread(
                lambda: dict(gloo_link.receive(self._group, self._invitation, **told)),
            )
        except RuntimeError:
            self._arriving = None
            return PlainTextResponse("Internal Server Error", 500)
        self._arriving.update(arrived)
        return JSONResponse({"message": "Weights updated"})

    async def _finish_update(self, request: Request) -> Response:
        assert self._arriving is not None
        self._weights.update(self._arriving)
        self._arriving = None
        self._engines.clear()
        self.version = (await request.json()).get("weight_version") or self.version
        return JSONResponse({"message": "Weight update finished"})

    def _none(self) -> Response:
        return JSONResponse({"detail": "Not Found"}, 404)

    def _tensors(self, path: Path) -> dict[str, torch.Tensor]:
        """An adapter's tensors by the names that a member's have."""
        found = load_file(path / "adapter_model.safetensors")
        return {name.removeprefix("base_model.model."): value for name, value in found.items()}

    def _engine(self, name: str) -> Loaded:
        if name not in self._engines:
            self._engines[name] = self._loaded(name)
        return self._engines[name]

    def _loaded(self, name: str) -> Loaded:
        model = self._make()
        model.load_state_dict(self._weights, strict=False)
        adapter = self.adapters.get(name)
        settings = json.loads((adapter / "adapter_config.json").read_text()) if adapter else {"r": 1, "lora_alpha": 1.0}
        network = Network(model, Lora(rank=settings["r"], alpha=settings["lora_alpha"]))
        member = network.member("served")
        if adapter:
            member.load(self._tensors(adapter))
        return Loaded(network, member)

    def _knows(self, name: str) -> bool:
        return name in (*self.behaviour.names, *self.adapters)

    def _sample(self, body: dict[str, Any]) -> dict[str, Any] | None:
        prompt_ids = tuple(body["prompt"])
        limit = min(body["max_tokens"], self.behaviour.context - len(prompt_ids))
        request = engine.Request(Prompt.from_text("x", "x"), prompt_ids, (body["seed"],))
        sampling = Sampling(temperature=body["temperature"], top_p=body["top_p"], top_k=max(0, body["top_k"]))
        with self._lock:
            if not self._knows(body["model"]):
                return None
            loaded = self._engine(body["model"])
            made = LocalEngine(loaded.network, tiny.codec(), max_reply_tokens=limit, rows_per_batch=1, plain=None)
            made.load_weights(loaded.member, version=0)
            reply = made.generate([request], sampling)[0][0]
            self.asked.append((prompt_ids, body["seed"]))
            self.seen.append(body)
        logps = list(reply.logps)
        if not self.behaviour.processed:
            logps = [-1.0] * len(logps)
        top = [{"a": logp} for logp in logps]
        return {
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "text": reply.text,
                    "finish_reason": "stop" if reply.finished else "length",
                    "token_ids": list(reply.token_ids),
                    "prompt_token_ids": list(prompt_ids),
                    "logprobs": {"token_logprobs": logps, "top_logprobs": top},
                }
            ],
        }


def bound(port: int) -> socket.socket:
    """A socket that has this port, or one that is free."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(("127.0.0.1", port))
    return made


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": {"message": text, "code": status}}, status)


def _broken_off() -> Response:
    """Says that more comes than comes."""

    class Broken(Response):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"content-length", b"1000"), (b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": b'{"choices": [', "more_body": True})

    return Broken()
