"""A stop is heard once, said once, and obeyed where everything is saved."""

from __future__ import annotations

import os
import signal

import pytest

from gad.errors import Interrupted
from gad.signals import StopRequest


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_is_noted_and_said(number: signal.Signals, code: int) -> None:
    said: list[str] = []
    stop = StopRequest(said.append)
    before = signal.getsignal(number)
    with stop.listening():
        stop.check()
        os.kill(os.getpid(), number)
        assert stop.signal_number == number
        with pytest.raises(Interrupted) as caught:
            stop.check()
    assert caught.value.exit_code == code
    assert len(said) == 1
    assert "Ctrl-C again stops at once" in said[0]
    assert signal.getsignal(number) == before


def test_a_second_ctrl_c_stops_at_once_and_a_second_sigterm_does_not() -> None:
    stop = StopRequest()
    with stop.listening():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_line_that_is_being_written_does_not_hinder_the_stop() -> None:
    def busy(_: str) -> None:
        raise RuntimeError("reentrant call inside <_io.BufferedWriter name='<stderr>'>")

    stop = StopRequest(busy)
    with stop.listening():
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.signal_number == signal.SIGINT
