"""What vLLM servers must be like, and a look at them before anything is computed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

from gad.config.rollout import VllmServers
from gad.errors import ConfigError, RolloutError
from gad.models.tokens import Codec
from gad.rollout.completions import Away, Unfit
from gad.rollout.dispatch import troubles
from gad.rollout.wire import PROBE_TEXT, Expected, Server

_GRACE_SECONDS = 5.0
"""Once a server is found fit, so long the others are waited for; they are looked at again before they work."""


def expected(config: VllmServers, codec: Codec, student: str) -> Expected:
    """What every server must be like. Raises ConfigError where the key is not in the environment."""
    key = None if config.api_key_env is None else os.environ.get(config.api_key_env)
    if config.api_key_env is not None and not key:
        raise ConfigError(f"compute.engine.api_key_env={config.api_key_env}: this variable is not set")
    return Expected(
        model=config.model,
        student=student,
        probe_ids=codec.ids(PROBE_TEXT),
        stop_ids=codec.stop_ids,
        key=key,
        request_seconds=config.request_seconds,
        health_seconds=config.health_seconds,
        transfers=config.sync == "nccl",
    )


def check(config: VllmServers, wants: Expected) -> None:
    """Look at every server before anything is computed; one that is starting is waited for.

    Raises ConfigError where one is unfit, RolloutError where none answers in time.
    """
    asyncio.run(_check([Server(url, wants) for url in config.urls], config.patience_seconds))


async def _check(servers: Sequence[Server], patience: float) -> None:
    async def look(server: Server) -> None:
        async with server.open(1):
            while True:
                try:
                    return await server.inspect()
                except Away as error:
                    server.trouble = str(error)
                    await asyncio.sleep(0.5)

    tasks = [asyncio.create_task(look(server)) for server in servers]
    await asyncio.wait(tasks, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
    done, waiting = await asyncio.wait(tasks, timeout=min(_GRACE_SECONDS, patience))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    for task, server in zip(tasks, servers, strict=True):
        if task in done and isinstance(error := task.exception(), Unfit):
            raise ConfigError(f"compute.engine.urls: {server.url} {error}") from error
        if task in done and (other := task.exception()) is not None:
            raise other
    if not done:
        raise RolloutError(
            f"no vLLM server in {patience:g} s (compute.engine.patience_seconds): {troubles(servers)}; start one, and "
            "run the same command again"
        )
