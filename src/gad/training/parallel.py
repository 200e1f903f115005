"""Several processes train one model: FSDP2, HSDP, summed gradients, and calls that all of them make together.

Alone with torch.distributed. Matrices (two dimensions or more) are sharded by `fully_shard`, a group for each layer
and one for what is around them. What is small stays whole in every process and has its gradients summed once a step:
norms and biases, which autocast keeps in float32, LoRA adapters, the discriminator's read-out. Losses are divided by
counts of the whole step, so gradients are summed, never averaged.
"""

from __future__ import annotations

import io
import math
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar
from weakref import WeakKeyDictionary, finalize

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, distribute_tensor

from gad.config.compute import Shard
from gad.crew import Call, finite
from gad.errors import ConfigError
from gad.processes import Seat, reach
from gad.training.watch import END, Watch

R = TypeVar("R")
T = TypeVar("T")
NO_LIMIT = timedelta(days=30)
"""Of collectives: a slow peer is no dead one. `Watch` ends a run whose processes die or hang."""
JOIN = timedelta(minutes=10)
"""All processes must have come by then; the timeout of torch's own rendezvous."""


def mesh_of(shard: Shard, seat: Seat, device_type: str) -> DeviceMesh:
    """All processes in one row, or with `machine` a row for each machine. Raises ConfigError for uneven machines."""
    if shard != "machine":
        return init_device_mesh(device_type, (seat.size,), mesh_dim_names=("shard",))
    if seat.size % seat.here:
        raise ConfigError(
            f"compute.shard=machine: {seat.size} processes are not {seat.here} on every machine; start as many on "
            "each, or use compute.shard=all"
        )
    shape = (seat.size // seat.here, seat.here)
    return init_device_mesh(device_type, shape, mesh_dim_names=("replicate", "shard"))


def shard_model(
    model: nn.Module, layers: Sequence[nn.Module], backbone: nn.Module, mesh: DeviceMesh, dtype: torch.dtype
) -> None:
    """`fully_shard` every layer, then what is around them, then a head that is not the embedding."""
    kept = {parameter for parameter in model.parameters() if parameter.dim() < 2}
    trained = any(parameter.requires_grad for parameter in model.parameters())
    # A layer's trained matrices are gathered in the type they are multiplied in, their gradients summed in float32.
    # Embeddings and head stay float32: the residual stream begins with them.
    plain = MixedPrecisionPolicy()
    mixed = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False) if trained else plain
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    alone = [] if head.weight is model.get_input_embeddings().weight else [head]  # type: ignore[operator]
    for module in (*layers, backbone, *alone):
        layer = any(module is each for each in layers)
        sharded: Any = fully_shard(
            module,
            mesh=mesh,
            reshard_after_forward=layer,
            mp_policy=mixed if layer else plain,
            ignored_params=kept,
        )
        sharded.set_gradient_divide_factor(1.0)
        sharded.set_force_sum_reduction_for_comms(True)


class Team:
    """The processes of a run, as `gad.crew.Crew` says."""

    def __init__(self, seat: Seat, store: Any, mesh: DeviceMesh, shard: Shard, watch: Watch) -> None:
        self.rank, self.size, self.here, self.local = seat.rank, seat.size, seat.here, seat.local
        self._store, self._mesh, self._shard, self._watch = store, mesh, shard, watch
        self._names: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._things: dict[int, Any] = {}
        self._forgotten: list[int] = []
        self._adopted = self._calls = self._depth = 0

    def adopt(self, thing: object) -> None:
        name = self._adopted
        self._adopted += 1
        self._names[thing] = name
        if self.rank == 0:
            finalize(thing, self._forgotten.append, name)
        else:
            self._things[name] = thing

    def call(self, call: Call, work: Callable[[], R]) -> R:
        if self._depth == 0 and self.rank == 0:
            self._announce(call)
        self._depth += 1
        self._watch.begins(call.doing)
        result = work()  # one that fails ends the run, and what was being done then stands in the message
        self._depth -= 1
        self._watch.ends()
        return result

    def serve(self) -> int:
        """Repeat the first process's calls until it ends; the exit code it ends with."""
        while True:
            message = self._next()
            if message is None:
                return int(self._store.get(END))
            name, attribute, arguments, keywords, forgotten = message
            for old in forgotten:
                self._things.pop(old, None)
            found = getattr(self._things[name], attribute)
            if arguments is not None:
                found(*arguments, **keywords)

    def _announce(self, call: Call) -> None:
        forgotten, self._forgotten[:] = list(self._forgotten), []
        buffer = io.BytesIO()
        _Pickler(buffer, self._names).dump(
            (self._names[call.thing], call.name, call.arguments, call.keywords, forgotten)
        )
        payload = torch.frombuffer(buffer.getbuffer(), dtype=torch.uint8).clone()
        self._store.set(f"call/{self._calls}", str(len(payload)))
        self._calls += 1
        dist.broadcast(payload, 0)

    def _next(self) -> Any:
        """The next call; None at the end. Waiting is no collective: the first process may be busy for hours."""
        key = f"call/{self._calls}"
        if self._watch.wait(self._store, [key, END]) == END:
            return None
        size = int(self._store.get(key))
        self._calls += 1
        payload = torch.empty(size, dtype=torch.uint8)
        dist.broadcast(payload, 0)
        return _Unpickler(io.BytesIO(payload.numpy().tobytes()), self._things).load()

    def tick(self) -> None:
        self._watch.tick()

    def shard(self, model: nn.Module, layers: Sequence[nn.Module], backbone: nn.Module, dtype: Any) -> None:
        if self._shard != "none":
            shard_model(model, layers, backbone, self._mesh, dtype)

    def rest(self, backbone: nn.Module) -> None:
        if isinstance(backbone, FSDPModule):
            backbone.reshard()

    @contextmanager
    def whole(self, model: nn.Module) -> Iterator[None]:
        modules = [module for module in model.modules() if isinstance(module, FSDPModule)]
        again = [module for module in modules if type(module).__name__.endswith("Layer")]
        for module in modules:
            module.unshard()
        for module in again:
            module.set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for module in again:
                module.set_reshard_after_forward(True, recurse=False)
            for module in modules:
                module.reshard()

    def full(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        gathered: Tensor = tensor.full_tensor(grad_placements=[Partial()] * tensor.device_mesh.ndim)
        return gathered

    def to_first(self, tensor: Tensor) -> Tensor:
        if not isinstance(tensor, DTensor):
            return tensor
        gathered = self.full(tensor)
        return gathered.cpu() if self.rank == 0 else gathered.new_empty(0)

    def fill(self, tensor: Tensor, source: Tensor | None) -> None:
        with torch.no_grad():
            data = tensor.data
            whole = torch.empty(data.shape, dtype=data.dtype, device=data.device)
            if source is not None:
                whole.copy_(source)
            dist.broadcast(whole, 0)
            if isinstance(data, DTensor):
                part = distribute_tensor(whole, data.device_mesh, data.placements, src_data_rank=None)
                data.to_local().copy_(part.to_local())
            else:
                data.copy_(whole)

    def sum(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor)
        return tensor

    def gather(self, part: list[T]) -> list[list[T]]:
        parts: list[Any] | None = [None] * self.size if self.rank == 0 else None
        dist.gather_object(part, parts, 0)
        return parts or []

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
        shards = [gradient.to_local() for gradient in gradients if isinstance(gradient, DTensor)]
        if whole:
            flat = torch.cat([gradient.flatten() for gradient in whole])
            dist.all_reduce(flat)
            for gradient, summed in zip(whole, flat.split([g.numel() for g in whole]), strict=True):
                gradient.copy_(summed.view_as(gradient))
        square = _square(shards)
        if shards:
            dist.all_reduce(square, group=self._mesh.get_group(self._mesh.ndim - 1))
        norm = math.sqrt((square + _square(whole)).item())
        if math.isfinite(norm) and norm > max_norm:
            for gradient in (*whole, *shards):
                gradient.mul_(max_norm / (norm + 1e-6))
        return norm

    def broken(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        gradients = [parameter.grad for parameter in parameters]
        shares = [each.to_local() if isinstance(each, DTensor) else each for each in gradients]
        counts = self.sum(torch.tensor([not finite(share) for share in shares], dtype=torch.float64))
        return [index for index, count in enumerate(counts.tolist()) if count]


def _square(tensors: Sequence[Tensor]) -> Tensor:
    """Sum of squares, in float64."""
    squares = [tensor.double().square().sum() for tensor in tensors if tensor.numel()]
    return torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64)


class _Pickler(pickle.Pickler):
    """What all processes have travels by its name. Between processes of one run only; files are never pickled."""

    def __init__(self, buffer: io.BytesIO, names: WeakKeyDictionary[Any, int]) -> None:
        super().__init__(buffer)
        self._names = names

    def persistent_id(self, thing: Any) -> int | None:
        try:
            return self._names.get(thing)
        except TypeError:  # neither hashable nor adopted
            return None


class _Unpickler(pickle.Unpickler):
    def __init__(self, buffer: io.BytesIO, things: dict[int, Any]) -> None:
        super().__init__(buffer)
        self._things = things

    def persistent_load(self, name: int) -> Any:
        return self._things[name]


@contextmanager
def joined(seat: Seat, shard: Shard, find_device: Callable[[], torch.device], stall_seconds: float) -> Iterator[Team]:
    """Join the others, and leave together. Raises ConfigError where the address cannot be used."""
    store = _store(seat)
    watch = Watch(seat, store, lambda: _store(seat, client=True), stall_seconds)
    with watch.watching():
        watch.all_here(JOIN.total_seconds())
        device = find_device()
        watch.counts_cpu = device.type == "cpu"
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
            store=dist.PrefixStore("group", store),  # type: ignore[attr-defined]
            rank=seat.rank,
            world_size=seat.size,
            timeout=NO_LIMIT,
        )
        yield Team(seat, store, mesh_of(shard, seat, device.type), shard, watch)
    dist.destroy_process_group()


def _store(seat: Seat, *, client: bool = False) -> Any:
    hosts = seat.rank == 0 and not client and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    if not hosts:
        reach(seat, JOIN.total_seconds())
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps its store when it starts all anew
    try:
        store = dist.TCPStore(  # type: ignore[attr-defined]
            seat.host, seat.port, is_master=hosts, wait_for_workers=False, timeout=JOIN
        )
        return dist.PrefixStore(f"attempt/{attempt}", store)  # type: ignore[attr-defined]
    except (RuntimeError, ValueError) as error:  # torch's DistNetworkError is a RuntimeError
        text = str(error).strip().splitlines()[0]
        if "EADDRINUSE" in str(error) or "in use" in str(error):
            raise ConfigError(
                f"MASTER_PORT={seat.port} on {seat.host} is in use: set MASTER_PORT to a free port, or leave it out "
                "with --nproc"
            ) from error
        raise ConfigError(f"MASTER_ADDR={seat.host} MASTER_PORT={seat.port}: cannot join there ({text})") from error
