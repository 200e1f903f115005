"""The seam for all who buy replies. See the package's docstring for what it promises."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from gad.config.teacher import ApiConfig
from gad.errors import TeacherError
from gad.teacher.client import Exchange, OpenAIExchange, key_in, needed_key
from gad.teacher.desk import Desk
from gad.teacher.dispatch import Dispatch
from gad.teacher.entry import Totals
from gad.teacher.gathering import run
from gad.teacher.ledger import Ledger
from gad.teacher.ledger_file import disk_errors
from gad.teacher.money import Bill, PriceList, Purse, prices_of
from gad.teacher.requests import ApiRequest, Outcome
from gad.teacher.secrets import Scrubber
from gad.teacher.watching import Snapshot

_BYTES_PER_TOKEN = 8
_BYTES_PER_REPLY = 2048
_PARCEL = 10
_MOST_RESERVE = 64 * 2**20


def never() -> bool:
    """A stop that is not asked for."""
    return False


def ignore(_: Snapshot) -> None:
    """Nobody watches."""


@dataclass(frozen=True, slots=True)
class _End:
    error: BaseException | None


class ApiCaller:
    """Buys replies, each once. Owns `folder` from its making until `close`, which a `with` block calls.

    read_also, lock_also: as for `Ledger`. share: of max_cost_usd that is this caller's, where several share it.
    """

    def __init__(
        self,
        config: ApiConfig,
        folder: Path,
        *,
        stop: Callable[[], bool] = never,
        watch: Callable[[Snapshot], None] = ignore,
        exchange: Exchange | None = None,
        read_also: Sequence[Path] = (),
        lock_also: Sequence[Path] = (),
        share: float = 1.0,
    ) -> None:
        self.config = config
        self.prices: PriceList = prices_of(config)
        self._key = key_in(config.endpoint.api_key_env)
        self._exchange = exchange
        self._stop, self._watch = stop, watch
        self.scrub = Scrubber(self._key)
        per_reply = _BYTES_PER_REPLY + _BYTES_PER_TOKEN * config.sampling.max_tokens
        reserve = min(_MOST_RESERVE, config.limits.concurrency * per_reply)
        with disk_errors(folder):
            self.ledger = Ledger(folder, reserve=reserve, read_also=read_also, lock_also=lock_also)
        totals = self.ledger.totals
        cap = None if config.max_cost_usd is None else config.max_cost_usd * share
        self.purse = Purse(cap, totals.spent, totals.maybe)

    @property
    def bill(self) -> Bill:
        """Of the whole ledger, and of what is under way."""
        return self.purse.bill

    @property
    def found(self) -> Totals:
        """What the ledger held when it was opened."""
        return self.ledger.totals

    @property
    def key(self) -> str | None:
        """The API key; not to be shown or written."""
        return self._key

    def outcomes(self, requests: Iterable[ApiRequest], *, retry_failed: bool = False) -> Iterator[Outcome]:
        """Outcomes as they come. Requests are taken, and sent, in a thread of their own.

        Leaving the loop early is a stop: what is under way is awaited. An interrupt (Ctrl-C) abandons it instead; it is
        then possibly paid.
        """
        arrived: queue.SimpleQueue[list[Outcome] | _End] = queue.SimpleQueue()
        halt, abandon = threading.Event(), threading.Event()
        stop = self._stop
        desk = Desk(
            config=self.config,
            ledger=self.ledger,
            purse=self.purse,
            prices=self.prices,
            exchange=self._exchange or OpenAIExchange(self.config, needed_key(self.config.endpoint.api_key_env)),
            scrub=self.scrub,
            emit=arrived.put,
            backlog=lambda: _PARCEL * arrived.qsize(),
            stop=lambda: halt.is_set() or stop(),
            watch=self._watch,
        )

        def work() -> None:
            try:
                with disk_errors(self.ledger.folder):
                    run(_run(desk, requests, retry_failed, abandon, close=self._exchange is None))
            except BaseException as error:
                arrived.put(_End(error))
            else:
                arrived.put(_End(None))

        thread = threading.Thread(target=work, name="gad-teacher", daemon=True)
        thread.start()
        try:
            while True:
                item = arrived.get()
                if isinstance(item, _End):
                    if item.error is not None:
                        raise item.error
                    return
                yield from item
        except KeyboardInterrupt:
            abandon.set()
            raise
        finally:
            halt.set()
            thread.join()

    def close(self) -> None:
        """Give the folder back."""
        self.ledger.close()

    def __enter__(self) -> ApiCaller:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


async def _run(
    desk: Desk, requests: Iterable[ApiRequest], retry_failed: bool, abandon: threading.Event, *, close: bool
) -> None:
    running = asyncio.ensure_future(Dispatch(desk, requests, retry_failed=retry_failed).run())

    async def until_abandoned() -> None:
        while not abandon.is_set():
            await asyncio.sleep(0.2)
        running.cancel()

    watching = asyncio.ensure_future(until_abandoned())
    try:
        await running
    except asyncio.CancelledError:
        raise TeacherError("abandoned: replies that were under way may have been paid") from None
    finally:
        watching.cancel()
        if close:
            await desk.exchange.close()
