"""Sampling by vLLM servers, on this machine or others.

After each update the servers are handed the new weights: the adapter alone, or all weights, through a folder that
all of them see, or all weights from memory to memory (`transfer.py`). A reply is taken only from a server that holds
those weights, so a reply's version is what it says.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from weakref import finalize

import torch
from safetensors import SafetensorError

from gad.config.rollout import VllmServers
from gad.config.training import Sampling
from gad.crew import Here, everywhere
from gad.errors import ConfigError, RolloutError
from gad.layouts import TokenGroup, build, to_device
from gad.models.forward import hidden_states, reply_logps
from gad.models.network import Member, Network
from gad.models.tokens import Codec
from gad.records import Prompt, Rollout
from gad.rollout.background import in_background
from gad.rollout.completions import Away, Rejected, Unfit, Wanted
from gad.rollout.dispatch import Counts, Dispatcher, Job
from gad.rollout.engine import Request
from gad.rollout.handover import write_adapter, write_weights
from gad.rollout.nccl import NcclLink, library
from gad.rollout.transfer import Link, Parcel
from gad.rollout.wire import Expected, Handover, Server

LARGEST_GAP = 0.25
"""Nats a token. A server's log-probabilities of a test reply differ by less from the trained model's where it serves
that model: rounding in bfloat16 makes a tenth of it."""
_TEST_PROMPT = Prompt.from_text("test", "Say in one sentence what you can do.")
_TEST_TOKENS = 16


class ServerEngine:
    """See `Engine`. The first of several processes asks; all gather weights."""

    def __init__(
        self,
        network: Network,
        codec: Codec,
        config: VllmServers,
        wants: Expected,
        *,
        max_reply_tokens: int,
        connect: Callable[[int], Link] | None = None,
    ) -> None:
        """connect: makes a link to so many processes of a server. Raises ConfigError where there is none to be had."""
        self._network, self._codec, self._config = network, codec, config
        self._limit, self._vocabulary = max_reply_tokens, int(network.config.vocab_size)
        if connect is None and config.sync == "nccl" and network.crew.rank == 0:
            nccl = library()
            connect = lambda workers: NcclLink(nccl, workers, network.device)  # noqa: E731
        self._servers = [Server(url, wants, connect) for url in config.urls]
        self._handover: Handover | None = None
        self._test_logps: Callable[[tuple[int, ...]], list[float]] | None = None
        self._counts, self._loads = Counts(), 0
        self._may_compare = True
        self._name = f"gad-{uuid.uuid4().hex[:8]}"
        self._folder: Path | None = None
        self.crew = network.crew
        self.crew.adopt(self)

    def counts(self) -> dict[str, float]:
        """Replies asked for again, outages of servers, servers left out for good."""
        counts, self._counts = self._counts, Counts()
        return {
            "rollout/retried": float(counts.retried),
            "rollout/outages": float(counts.outages),
            "rollout/servers": float(sum(not server.dropped for server in self._servers)),
        }

    def load_weights(self, member: Member, *, version: int) -> None:
        """Write the weights where servers find them; each takes them up before its next reply.

        Raises ConfigError where the folder cannot be used, RolloutError where it cannot be written.
        """
        self._loads += 1  # stages count their versions anew, and every arm of an evaluation is version 0
        label = f"{self._name}-{self._loads}"
        self._test_logps = lambda reply_ids: self._own_logps(member, reply_ids)
        if self._config.sync_folder is None:
            parcel = self._pack(member)
            assert parcel is not None, "the first process alone asks"
            self._handover = Handover(label, version, parcel, adapter=False)
            return
        path = self._place(self._config.sync_folder) / label
        try:
            path.mkdir(exist_ok=True)
            self._write(member, Here(path))
        except (OSError, SafetensorError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise RolloutError(
                f"compute.engine.sync_folder={self._config.sync_folder}: weights could not be written ({why}); make "
                "room there or name another folder, and run the same command again"
            ) from error
        old, self._handover = self._handover, Handover(label, version, path, self._config.sync == "adapter")
        if old is not None and isinstance(old.weights, Path):
            shutil.rmtree(old.weights, ignore_errors=True)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """Raises RolloutError where no weights were loaded, or no server can give the replies."""
        if self._handover is None:
            raise RolloutError("no weights: call load_weights before generate")
        jobs = [
            [Job(self._wanted(request.prompt_ids, seed, sampling), request.prompt.id) for seed in request.seeds]
            for request in requests
        ]
        dispatcher = Dispatcher(
            self._servers,
            [job for row in jobs for job in row],
            self._handover,
            self._ready,
            width=self._config.requests_per_server,
            health_seconds=self._config.health_seconds,
            patience_seconds=self._config.patience_seconds,
        )
        try:
            asyncio.run(dispatcher.run())
        finally:
            for name in Counts.__slots__:
                setattr(self._counts, name, getattr(self._counts, name) + getattr(dispatcher.counts, name))
        version = self._handover.version
        return [
            [self._rollout(request, job, version) for job in row] for request, row in zip(requests, jobs, strict=True)
        ]

    def begin(self, requests: Sequence[Request], sampling: Sampling) -> Callable[[], list[list[Rollout]]]:
        """The servers sample while this process goes on. What `generate` raises comes with the wait."""
        self._compare_new()
        self._may_compare = False  # that takes the model that is trained meanwhile
        replies = in_background(lambda: self.generate(requests, sampling))

        def wait() -> list[list[Rollout]]:
            try:
                return replies()
            finally:
                self._may_compare = True

        return wait

    def _compare_new(self) -> None:
        """Look at servers that were never compared with the student; one that is away is looked at the next time."""
        new = [server for server in self._servers if not (server.compared or server.dropped)]
        if new:
            asyncio.run(self._looked_at(new))

    async def _looked_at(self, servers: Sequence[Server]) -> None:
        async def look(server: Server) -> None:
            async with server.open(1):
                try:
                    await self._ready(server)
                except Unfit as error:
                    server.dropped, server.trouble = True, str(error)
                    self._counts.dropped += 1
                except Away as error:
                    server.trouble = str(error)

        await asyncio.gather(*(look(server) for server in servers))

    async def _ready(self, server: Server) -> None:
        """Raises Away, Unfit."""
        handover = self._handover
        assert handover is not None
        if await server.holds(handover):
            return
        await server.inspect()
        await server.take(handover)
        if not server.compared:
            if not self._may_compare:
                raise Away("has come up since the step began and is compared with the student at the next one")
            await self._compare(server, handover)

    async def _compare(self, server: Server, handover: Handover) -> None:
        """Raises Unfit where a server's log-probabilities of its own test reply are not those of the trained model."""
        wanted = self._wanted(self._codec.prompt_ids(_TEST_PROMPT), 0, Sampling(temperature=0))
        wanted = replace(wanted, limit=min(_TEST_TOKENS, self._limit))
        try:
            reply = await server.complete(wanted, handover)
        except Rejected as error:
            raise Unfit(f"refuses a test question ({error.status}: {error})") from error
        assert self._test_logps is not None
        own = self._test_logps(reply.token_ids)
        gap = sum(abs(here - there) for here, there in zip(own, reply.logps, strict=True)) / len(own)
        if not gap <= LARGEST_GAP:
            raise Unfit(
                f"serves another model than the one that is trained: log-probabilities of a test reply differ by "
                f"{gap:.2f} nats a token (at most {LARGEST_GAP} is rounding); serve student.model with the same weights"
            )
        server.compared = True

    def _wanted(self, prompt_ids: tuple[int, ...], seed: int, sampling: Sampling) -> Wanted:
        return Wanted(prompt_ids, seed, self._limit, sampling, self._vocabulary)

    @everywhere("comparing a server's model with the student")
    def _own_logps(self, member: Member, reply_ids: tuple[int, ...]) -> list[float]:
        group = TokenGroup(self._codec.prompt_ids(_TEST_PROMPT), (reply_ids,))
        batch = to_device(build([group], "padded"), self._network.device)
        with torch.no_grad(), self._network.sampling(member.name) as (backbone, head_VH):
            states_MH = hidden_states(backbone, batch)
            logps_BL, _ = reply_logps(states_MH, batch.readout, head_VH, softcap=self._network.softcap)
        values: list[float] = logps_BL[0].tolist()
        return values

    def _place(self, shared: Path) -> Path:
        if self._folder is None:
            try:
                within = shared.expanduser().absolute()
                self._folder = Path(tempfile.mkdtemp(prefix=f"{self._name}-", dir=within))
            except OSError as error:
                raise ConfigError(
                    f"compute.engine.sync_folder={shared}: {error.strerror}; name a folder that "
                    "exists, that can be written here and that all servers see"
                ) from error
            self._folder.chmod(0o755)  # servers may run as another user
            finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    @everywhere("gathering weights to sample")
    def _write(self, member: Member, path: Here[Path]) -> None:
        if self._config.sync == "adapter":
            state = member.state()
            if path.value is not None:
                write_adapter(path.value, state, self._network.adapter_config())
            return
        with torch.no_grad():
            weights = self._network.everything(member.name)
            if path.value is not None:
                write_weights(path.value, weights)
            else:
                deque(weights, maxlen=0)

    @everywhere("gathering weights to sample")
    def _pack(self, member: Member) -> Parcel | None:
        with torch.no_grad():
            weights = self._network.everything(member.name)
            if self.crew.rank == 0:
                return Parcel.of(weights)
            deque(weights, maxlen=0)
            return None

    def _rollout(self, request: Request, job: Job, version: int) -> Rollout:
        assert job.reply is not None
        ids = job.reply.token_ids
        return Rollout(request.prompt.id, ids, self._codec.text(ids), job.reply.finished, job.reply.logps, version)
