"""All weights to one vLLM server by vLLM's weight transfer: what is asked of the server, and what travels meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from gad.rollout.background import started
from gad.rollout.completions import Away

if TYPE_CHECKING:
    from gad.rollout.transfer import Link, Parcel

MANAGEMENT_SECONDS = 300.0
"""For a server to take up new weights."""


class Ask(Protocol):
    """A question to the server. Raises Away, Rejected, Unfit."""

    async def __call__(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        seconds: float | None = None,
        reads: bool = True,
    ) -> dict[str, Any]: ...


class Delivery:
    """connect: makes a link to so many processes."""

    def __init__(self, ask: Ask, connect: Callable[[int], Link]) -> None:
        self._ask, self._connect = ask, connect
        self._link: Link | None = None
        self._delivered = ""

    async def deliver(self, parcel: Parcel, label: str) -> None:
        """Through a link that lasts as long as the server; one that was started again is linked anew.

        Raises Away, Rejected, Unfit.
        """
        told = await self._ask("GET", "/weight_info")
        if self._link is None or told.get("weight_version") != self._delivered:
            self._unlink()
            self._link = await self._linked()
        link = self._link
        try:
            await self._begin_update()
            await self._beside("/update_weights", {"update_info": parcel.contents()}, lambda: parcel.send(link))
            await self._ask("POST", "/finish_weight_update", {"weight_version": label}, seconds=MANAGEMENT_SECONDS)
        except BaseException:
            self._unlink()
            raise
        self._delivered = label
        await self._ask("POST", "/reset_prefix_cache", seconds=60.0, reads=False)

    async def _linked(self) -> Link:
        told = await self._ask("GET", "/get_world_size")
        if type(told.get("world_size")) is not int:
            raise Away(f"/get_world_size answers {told}")
        link = self._connect(told["world_size"])
        try:
            await self._beside("/init_weight_transfer_engine", {"init_info": link.invitation()}, link.join)
        except BaseException:
            link.close()
            raise
        return link

    def _unlink(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None

    async def _begin_update(self) -> None:
        """A server whose last update broke off has to be told that it is over."""
        try:
            await self._ask("POST", "/start_weight_update", seconds=60.0, reads=False)
        except Away as error:
            if error.gone:
                raise
            await self._ask("POST", "/finish_weight_update", {}, seconds=60.0, reads=False)
            await self._ask("POST", "/start_weight_update", seconds=60.0, reads=False)

    async def _beside(self, path: str, body: Mapping[str, Any], work: Callable[[], None]) -> None:
        """Ask while the other end of the link works here: each of the two waits for the other."""
        here = asyncio.wrap_future(started(work, "weights"))
        there = asyncio.create_task(self._ask("POST", path, body, seconds=MANAGEMENT_SECONDS, reads=False))
        try:
            async with asyncio.timeout(MANAGEMENT_SECONDS):
                await asyncio.gather(here, there)
        except TimeoutError as error:
            raise Away(f"{path}: the weights were not taken within {MANAGEMENT_SECONDS:g} s") from error
        except (RuntimeError, OSError) as error:
            raise Away(f"{path}: the link for weights broke ({error})") from error
        finally:
            there.cancel()
            await asyncio.gather(there, return_exceptions=True)
