"""What a rollout engine promises, whichever it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from gad.config.training import Sampling
from gad.models.network import Member
from gad.records import Prompt, Rollout


@dataclass(frozen=True, slots=True)
class Request:
    """`seeds`: one for each reply wanted; a reply depends on its prompt, its seed and the weights alone."""

    prompt: Prompt
    prompt_ids: tuple[int, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.seeds:
            raise ValueError(f"request for prompt {self.prompt.id}: no replies wanted")


class Engine(Protocol):
    """Contract: replies come back in the order of the requests and their seeds; ids are those that were sampled, with
    end-of-text last exactly where `finished`; log-probabilities are the policy's at the sampling temperature, or none
    where an engine does not know them; `policy_version` is that of the weights that sampled."""

    def load_weights(self, member: Member, *, version: int) -> None:
        """Sample from these weights from now on."""
        ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Rollout]]:
        """The replies of each request. Raises RolloutError where they cannot be had."""
        ...

    def begin(self, requests: Sequence[Request], sampling: Sampling) -> Callable[[], list[list[Rollout]]]:
        """As `generate`; the function that comes back waits for the replies. Where another machine samples, it does so
        while this one goes on. The replies are to be waited for before the next `load_weights`."""
        ...

    def counts(self) -> dict[str, float]:
        """What went wrong on the way since the last time that this was asked, by names of metrics."""
        ...
