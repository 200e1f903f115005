"""What is said to one vLLM server over HTTP. Imports neither vLLM nor torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2

from gad.config.training import Sampling
from gad.rollout.completions import Away, Rejected, Reply, Unfit, Wanted, question, read_reply
from gad.rollout.delivery import MANAGEMENT_SECONDS, Delivery

if TYPE_CHECKING:
    from gad.rollout.transfer import Link, Parcel

PROBE_TEXT = "The quick brown fox jumps, 0123456789 times: naïve café — 你好 🎈\n\tdef f(x): return x"
"""Spelled alike by two tokenizers only where they are the same, for all that a student can say."""
_WAYS = {
    "adapter": "--enable-lora, --max-lora-rank at least the student's and VLLM_ALLOW_RUNTIME_LORA_UPDATING=1",
    "weights": "VLLM_SERVER_DEV_MODE=1, vLLM 0.32 or newer",
    "link": """VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config '{"backend": "nccl"}', vLLM 0.32 or newer""",
}
"""How a server is started that takes up weights."""


@dataclass(frozen=True, slots=True)
class Handover:
    """Weights for servers: a folder with an adapter or with all weights, or all weights in memory. `label` names them
    among all versions."""

    label: str
    version: int
    weights: Path | Parcel
    adapter: bool


@dataclass(frozen=True, slots=True)
class Expected:
    """What a server must be like. probe_ids: `PROBE_TEXT` as the student's tokenizer spells it; transfers: weights come
    through a link."""

    model: str | None
    student: str
    probe_ids: tuple[int, ...]
    stop_ids: frozenset[int]
    key: str | None
    request_seconds: float
    health_seconds: float
    transfers: bool = False


class Server:
    """One server. `trouble`: what was last wrong with it; `dropped`: for good."""

    def __init__(self, url: str, expected: Expected, connect: Callable[[int], Link] | None = None) -> None:
        """connect: makes a link to so many processes, for weights in memory."""
        self.url = url
        self.trouble = ""
        self.dropped = False
        self.compared = False
        self._expected = expected
        self._model = ""
        self._context = 0
        self._label = ""
        self._delivery = None if connect is None else Delivery(self._ask, connect)
        self._http: httpx2.AsyncClient | None = None

    def open(self, connections: int) -> httpx2.AsyncClient:
        """Connections for one event loop; use it as a context."""
        headers = {"Authorization": f"Bearer {self._expected.key}"} if self._expected.key else {}
        secure = self.url.startswith("https")  # certificates take a tenth of a second to read
        limits = httpx2.Limits(max_connections=connections + 2, max_keepalive_connections=connections + 2)
        timeout = httpx2.Timeout(self._expected.request_seconds, connect=self._expected.health_seconds)
        self._http = httpx2.AsyncClient(
            base_url=self.url, headers=headers, limits=limits, timeout=timeout, trust_env=False, verify=secure
        )
        return self._http

    async def alive(self) -> None:
        """Raises Away where the server does not answer in time or says that it is not well."""
        try:
            await self._ask("GET", "/health", seconds=self._expected.health_seconds, reads=False)
        except Rejected as error:
            raise self._stranger("/health", error) from error

    async def inspect(self) -> None:
        """Raises Away, or Unfit where the model, the vocabulary or the way it was started will not do."""
        await self.alive()
        rows = await self._listed()
        bases = {row["id"]: row for row in rows if not row.get("parent")}
        wanted = self._expected.model
        if (wanted is None and len(bases) != 1) or (wanted is not None and wanted not in bases):
            asked = "one model" if wanted is None else repr(wanted)
            raise Unfit(f"offers {', '.join(sorted(bases)) or 'no model'}, not {asked}: set compute.engine.model")
        self._model = wanted or next(iter(bases))
        self._context = int(bases[self._model].get("max_model_len") or 0)
        await self._check_vocabulary()
        await self._check_logps()
        if self._expected.transfers:
            await self._check_transfer()

    async def take(self, handover: Handover) -> None:
        """Sample from these weights from now on. Raises Away, or Unfit where the server was not started for it."""
        self._label = ""
        if handover.adapter:
            way, taking = "adapter", self._take_adapter(handover)
        elif isinstance(handover.weights, Path):
            way, taking = "weights", self._take_weights(handover)
        else:
            assert self._delivery is not None, "weights in memory need a link"
            way, taking = "link", self._delivery.deliver(handover.weights, handover.label)
        try:
            await taking
        except Rejected as error:
            seen = "" if way == "link" else ", and check that it sees compute.engine.sync_folder under the same name"
            of = "" if way == "link" else f" from {handover.weights}"
            raise Unfit(
                f"does not take up weights{of} ({error.status}: {error}); start it with {_WAYS[way]}{seen}"
            ) from error
        self._label = handover.label

    async def holds(self, handover: Handover) -> bool:
        """Whether it samples from these weights; a server that was started again does not."""
        if self._label != handover.label:
            return False
        if handover.adapter:
            return any(row["id"] == handover.label for row in await self._listed())
        try:
            told = await self._ask("GET", "/weight_info", seconds=self._expected.health_seconds)
        except Rejected as error:
            raise self._stranger("/weight_info", error) from error
        return bool(told.get("weight_version") == handover.label)

    async def complete(self, wanted: Wanted, handover: Handover) -> Reply:
        """One reply. Raises Away, Unfit where the answer is not what was asked for, Rejected."""
        if len(wanted.prompt_ids) + wanted.limit > self._context:
            raise Unfit(
                f"has room for {self._context} tokens, a prompt of {len(wanted.prompt_ids)} and a reply of "
                f"{wanted.limit} need more: start it with a larger --max-model-len, or lower prompt.max_prompt_tokens"
            )
        name = handover.label if handover.adapter else self._model
        try:
            answer = await self._ask("POST", "/v1/completions", question(name, wanted, self._expected.stop_ids))
        except Rejected as error:
            if error.status == 404:
                raise Away(f"no longer knows {name}: it was started again", gone=True) from error
            raise
        return read_reply(answer, name, wanted, self._expected.stop_ids)

    async def _listed(self) -> list[dict[str, Any]]:
        try:
            rows = (await self._ask("GET", "/v1/models", seconds=self._expected.health_seconds)).get("data")
        except Rejected as error:
            raise self._stranger("/v1/models", error) from error
        if not isinstance(rows, list) or not all(
            isinstance(row, dict) and isinstance(row.get("id"), str) for row in rows
        ):
            raise Unfit("does not list its models as vLLM does at /v1/models: is it a vLLM server?")
        return rows

    def _stranger(self, path: str, error: Rejected) -> Away | Unfit:
        """A server that was fit before may be away behind a proxy that answers for it; another one is no vLLM."""
        said = f"answers {error.status} at {path}"
        return Away(said, gone=True) if self.compared else Unfit(f"{said}: is it a vLLM server?")

    async def _check_vocabulary(self) -> None:
        body = {"model": self._model, "prompt": PROBE_TEXT, "add_special_tokens": False}
        try:
            spelled = (await self._ask("POST", "/tokenize", body, seconds=60.0)).get("tokens")
        except Rejected as error:
            raise Unfit(f"cannot be asked for its vocabulary ({error.status} at /tokenize): is it vLLM?") from error
        if spelled != list(self._expected.probe_ids):
            raise Unfit(
                f"has another vocabulary than student.model={self._expected.student}: it spells a test sentence in "
                "other tokens; it must serve the student's own model"
            )

    async def _check_logps(self) -> None:
        """At temperature 2 the likeliest token is less likely than at 1, unless temperature is left out."""
        highest = []
        for temperature in (1.0, 2.0):
            wanted = Wanted(self._expected.probe_ids[:8], 0, 1, Sampling(temperature=temperature), 0)
            body = {**question(self._model, wanted, frozenset()), "logprobs": 1}
            try:
                answer = await self._ask("POST", "/v1/completions", body)
                highest.append(max(answer["choices"][0]["logprobs"]["top_logprobs"][0].values()))
            except Rejected as error:
                raise Unfit(f"refuses a test question ({error.status}: {error})") from error
            except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
                raise Unfit("gives no log-probabilities: was it started with --max-logprobs 0?") from error
        if abs(highest[0] - highest[1]) < 1e-6:
            raise Unfit(
                "gives log-probabilities that leave out the temperature: start it with "
                "--logprobs-mode processed_logprobs"
            )

    async def _check_transfer(self) -> None:
        try:
            told = await self._ask("GET", "/server_info?config_format=json", seconds=60.0)
        except Rejected as error:
            raise Unfit(f"takes up no weights from memory ({error.status}); start it with {_WAYS['link']}") from error
        config = told.get("vllm_config")
        if not isinstance(config, dict) or not config.get("weight_transfer_config"):
            raise Unfit(f"takes up no weights from memory; start it with {_WAYS['link']}")

    async def _take_adapter(self, handover: Handover) -> None:
        old = [row["id"] for row in await self._listed() if row.get("parent") and _is_ours(row["id"], handover.label)]
        if handover.label not in old:
            body = {"lora_name": handover.label, "lora_path": str(handover.weights)}
            await self._ask("POST", "/v1/load_lora_adapter", body, seconds=MANAGEMENT_SECONDS, reads=False)
        for name in set(old) - {handover.label}:
            await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": name}, reads=False)

    async def _take_weights(self, handover: Handover) -> None:
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(handover.weights)}}
        await self._ask("POST", "/collective_rpc", body, seconds=MANAGEMENT_SECONDS, reads=False)
        await self._ask("POST", "/reset_prefix_cache", seconds=60.0, reads=False)
        await self._ask("POST", "/update_weight_version", {"new_version": handover.label}, seconds=60.0)

    async def _ask(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float | None = None,
        reads: bool = True,
    ) -> dict[str, Any]:
        """The answer as an object. Raises Away, Rejected (4xx) and, for a key that is refused, Unfit."""
        assert self._http is not None, "open() comes first"
        limit = seconds or self._expected.request_seconds
        timeout = httpx2.Timeout(limit, connect=min(limit, self._expected.health_seconds))
        try:
            response = await self._http.request(method, path, json=body, timeout=timeout)
        except httpx2.TimeoutException as error:
            raise Away(
                f"no answer from {path} in {limit:g} s", gone=isinstance(error, httpx2.ConnectTimeout)
            ) from error
        except httpx2.HTTPError as error:
            raise Away(f"{path}: {type(error).__name__} {error}".rstrip(), gone=True) from error
        if response.status_code in (401, 403):
            raise Unfit("refuses the key: name the variable that holds it in compute.engine.api_key_env")
        if response.status_code >= 500 or response.status_code in (408, 425, 429):
            raise Away(f"{path} answers {response.status_code}: {_said(response)}")
        if response.status_code >= 300:
            raise Rejected(response.status_code, _said(response))
        if not reads:
            return {}
        try:
            answer = response.json()
        except ValueError as error:
            raise Away(f"{path} answers something that is no JSON") from error
        if not isinstance(answer, dict):
            raise Away(f"{path} answers JSON that is no object")
        return answer


def _is_ours(name: str, label: str) -> bool:
    return name.rpartition("-")[0] == label.rpartition("-")[0]


def _said(response: httpx2.Response) -> str:
    try:
        told = response.json()
        text = told["error"]["message"] if isinstance(told["error"], dict) else told["error"]
    except (ValueError, KeyError, TypeError):
        text = response.text
    return " ".join(str(text).split())[:300]
