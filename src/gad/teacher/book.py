"""What happens to a request, written into the ledger and then into its index."""

from __future__ import annotations

import time

from gad.config.teacher import ApiConfig
from gad.teacher.entry import State
from gad.teacher.failures import Failure
from gad.teacher.journal import Journal
from gad.teacher.ledger import Ledger
from gad.teacher.lines import failed_line, reply_line, sent_line
from gad.teacher.reading import Work
from gad.teacher.requests import Reply
from gad.teacher.secrets import Scrubber
from gad.teacher.wire import sampling_of


class Book:
    """Each method returns when its line is on disk. Raises OSError where the disk does not take it."""

    def __init__(self, config: ApiConfig, ledger: Ledger, scrub: Scrubber) -> None:
        self._config = config
        self._ledger = ledger
        self._journal = Journal(ledger.file, scrub)

    async def sent(self, work: Work) -> None:
        """An attempt is about to be sent; the first line of a key holds the request."""
        asked = None
        if work.first_time:
            asked = {"model": self._config.model, "sampling": sampling_of(self._config, work.request)}
        line = sent_line(work.key, work.request, work.sent, work.hold, time.time(), asked)
        offset = await self._journal.record(line)
        work.first_time = False
        self._ledger.note(work.key, State.UNDER_WAY, asked=offset)

    async def reply(self, work: Work, reply: Reply, maybe: float) -> None:
        """A reply arrived; it counts as had once this returns."""
        offset = await self._journal.record(reply_line(reply, work.sent, maybe), paid=True)
        self._ledger.note(work.key, State.REPLY, outcome=offset)
        self._ledger.totals.replies += 1
        self._ledger.totals.models[reply.model or "unknown"] += 1

    async def failure(self, work: Work, failure: Failure, usd: float, maybe: float, *, lasting: bool) -> None:
        """An attempt failed; lasting: it is not to be asked again."""
        line = failed_line(
            "givenup" if lasting else "failed",
            work.key,
            work.request,
            work.sent,
            usd,
            maybe,
            failure.reason,
            failure.message,
            time.time(),
        )
        offset = await self._journal.record(line, paid=True)
        self._ledger.note(work.key, State.GIVEN_UP if lasting else State.OPEN, outcome=offset)
