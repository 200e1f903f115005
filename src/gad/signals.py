"""Stopping on request: Ctrl-C and SIGTERM end the step at hand, save, and leave."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from gad.errors import Interrupted


class StopRequest:
    """Set by the first signal; a second Ctrl-C stops at once.

    say: is told when a stop is asked for, so that a person sees that it was heard. promise: what it is told.
    """

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self.signal_number: int | None = None
        self.promise = "stopping after this step, which is saved; Ctrl-C again stops at once"
        self._say = say

    @property
    def asked(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal_number is not None

    def check(self) -> None:
        """Raises Interrupted once a stop was asked for. Called where everything is saved."""
        if self.signal_number is not None:
            raise Interrupted(self.signal_number)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handle both signals for the length of the block."""
        before = {number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
        if self._say is None:
            return
        # A signal may come in the middle of a line that is being written, and a second writer is refused then.
        with suppress(RuntimeError):
            self._say(self.promise)
