"""Several processes that train one model: the first runs the stages, the others repeat what it calls.

Only the first process knows stages, files and steps. Where it comes to a method that is marked `everywhere`, the
others run that method too, on objects that were made alike, so that they compute and communicate in lockstep. One
process alone is the same program with nothing to share: `ALONE`. What several share and how: `gad.training.parallel`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property, partial, wraps
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

if TYPE_CHECKING:
    from torch import Tensor, nn

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class Crew(Protocol):
    """The processes of a run. `rank` counts from 0; the first runs the stages. All but `rank`, `size`, `tick` and
    `adopt` are called by all processes at the same point."""

    @property
    def rank(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def here(self) -> int:
        """How many of them share this machine."""
        ...

    @property
    def local(self) -> int | None:
        """This one's number among those here; None for one that is alone."""
        ...

    def adopt(self, thing: object) -> None:
        """Make an object known by the same name in all processes."""
        ...

    def call(self, call: Call, work: Callable[[], R]) -> R:
        """Have the others make this call too, and do the work here."""
        ...

    def serve(self) -> int:
        """Repeat the first process's calls until it ends; the exit code it ends with. Not for the first one."""
        ...

    def tick(self) -> None:
        """A sign of life: something was done."""
        ...

    def shard(self, model: nn.Module, layers: Sequence[nn.Module], backbone: nn.Module, dtype: Any) -> None:
        """Keep only a share of a model's matrices in each process; `dtype`: the type it computes in."""
        ...

    def rest(self, backbone: nn.Module) -> None:
        """Let go of gathered weights: the next pass must not see those from before an update."""
        ...

    def whole(self, model: nn.Module) -> AbstractContextManager[None]:
        """Every weight in every process for the length of the block, so that passes need no lockstep."""
        ...

    def full(self, tensor: Tensor) -> Tensor:
        """A sharded tensor in one piece, with gradients flowing back to the shards; any other as it is."""
        ...

    def to_first(self, tensor: Tensor) -> Tensor:
        """In the first process the tensor in one piece; of no meaning in the others."""
        ...

    def fill(self, tensor: Tensor, source: Tensor | None) -> None:
        """Write the first process's `source` into everybody's tensor, or share of it."""
        ...

    def sum(self, tensor: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        ...

    def gather(self, part: list[T]) -> list[list[T]]:
        """Everybody's list, by rank, in the first process; nothing in the others."""
        ...

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Sum the gradients that are not summed yet, scale them down to `max_norm`; the norm before."""
        ...

    def broken(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        """Places of the parameters whose gradient is not finite, in whoever's share of it."""
        ...


class Member(Protocol):
    """What `everywhere` and `shared` need of the objects whose methods they mark."""

    @property
    def crew(self) -> Crew: ...


@dataclass(frozen=True, slots=True)
class Call:
    """A method of an adopted object, or with `arguments` None a property. `doing` stands in messages."""

    thing: Any
    name: str
    doing: str
    arguments: tuple[Any, ...] | None = None
    keywords: dict[str, Any] | None = None


class Alone:
    """One process: nothing to share, nobody to wait for."""

    rank = 0
    size = 1
    here = 1
    local = None

    def adopt(self, thing: object) -> None:
        pass

    def call(self, call: Call, work: Callable[[], R]) -> R:  # noqa: ARG002
        return work()

    def serve(self) -> int:
        raise AssertionError("one process alone serves nobody")

    def tick(self) -> None:
        pass

    def shard(self, model: nn.Module, layers: Sequence[nn.Module], backbone: nn.Module, dtype: Any) -> None:
        pass

    def rest(self, backbone: nn.Module) -> None:
        pass

    def whole(self, model: nn.Module) -> AbstractContextManager[None]:  # noqa: ARG002
        return nullcontext()

    def full(self, tensor: Tensor) -> Tensor:
        return tensor

    def to_first(self, tensor: Tensor) -> Tensor:
        return tensor

    def fill(self, tensor: Tensor, source: Tensor | None) -> None:
        assert source is not None
        tensor.data.copy_(source)

    def sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def gather(self, part: list[T]) -> list[list[T]]:
        return [part]

    def clip(self, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        from torch.nn.utils import clip_grad_norm_

        return float(clip_grad_norm_(parameters, max_norm))

    def broken(self, parameters: Sequence[nn.Parameter]) -> list[int]:
        return [index for index, parameter in enumerate(parameters) if not finite(parameter.grad)]


ALONE = Alone()


def finite(tensor: Tensor | None) -> bool:
    """Whether there is nothing in it that is not finite."""
    return tensor is None or bool(tensor.isfinite().all())


S = TypeVar("S", bound=Member)


def everywhere(
    doing: str,
) -> Callable[[Callable[Concatenate[S, P], R]], Callable[Concatenate[S, P], R]]:
    """Mark a method that all processes run together; its arguments travel. `doing` says what it does, in messages."""

    def mark(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
        @wraps(method)
        def call(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
            made = Call(self, method.__name__, doing, args, kwargs)
            return self.crew.call(made, lambda: method(self, *args, **kwargs))

        return call

    return mark


class shared(cached_property[R]):  # noqa: N801 - used as a decorator, as `cached_property` is
    """A cached property whose object is made in all processes."""

    @overload
    def __get__(self, instance: None, owner: type[Any] | None = None) -> shared[R]: ...

    @overload
    def __get__(self, instance: object, owner: type[Any] | None = None) -> R: ...

    def __get__(self, instance: Any, owner: type[Any] | None = None) -> Any:
        if instance is None or self.attrname in instance.__dict__:
            return super().__get__(instance, owner)
        assert self.attrname is not None
        call = Call(instance, self.attrname, "loading models")
        return instance.crew.call(call, partial(super().__get__, instance, owner))


@dataclass(frozen=True)
class Here(Generic[T]):
    """An argument that stays in the first process; the others find None."""

    value: T | None

    def __reduce__(self) -> tuple[Any, ...]:
        return Here, (None,)


def deal(costs: Sequence[float], size: int) -> list[list[int]]:
    """Indices for each of `size` processes: the dearest first, each to whom has least so far."""
    shares: list[list[int]] = [[] for _ in range(size)]
    loads = [0.0] * size
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        least = min(range(size), key=lambda rank: (loads[rank], rank))
        shares[least].append(index)
        loads[least] += costs[index]
    return [sorted(share) for share in shares]
