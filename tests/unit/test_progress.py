"""What a person sees."""

from __future__ import annotations

import io
import re
from itertools import pairwise

import pytest

from gad import progress
from gad.progress import SECONDS_BETWEEN_LINES, Bars, Lines


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 5000.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_lines_for_a_log(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """The first and the last line always, in between one every ten seconds; what is left is by the pace so far."""
    with Lines().task("warmup", 40) as task:
        for _ in range(39):
            clock.now += 2.5
            task.advance(note="loss 0.5")
        clock.now += 0.25
        task.advance(note="loss 0.25")
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "warmup: 1/40  loss 0.5  (1:38 left)"
    assert lines[1] == "warmup: 5/40  loss 0.5  (1:28 left)"
    assert lines[-1] == "warmup: 40/40  loss 0.25  (in 1:38)"
    done = [int(re.findall(r": (\d+)/40", line)[0]) for line in lines]
    assert done[:-1] == list(range(1, 40, 4))
    assert all((b - a) * 2.5 >= SECONDS_BETWEEN_LINES for a, b in pairwise(done[:-1]))


def test_the_pace_is_that_of_this_start(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """Steps of an earlier start took none of this one's time."""
    with Lines().task("warmup", 100, done=90) as task:
        clock.now += 60
        task.advance()
    assert capsys.readouterr().err == "warmup: 91/100    (9:00 left)\n"


def test_no_time_is_made_up_before_the_first_step(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Lines().task("collect", 20, done=8) as task:
        clock.now += 5
        task.advance(0, "4 under way")
    assert capsys.readouterr().err == "collect: 8/20  4 under way\n"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.4, "0:59"), (59.6, "1:00"), (3599, "59:59"), (3600, "1:00:00"), (90061, "25:01:01")],
)
def test_the_clock(clock: Clock, capsys: pytest.CaptureFixture[str], seconds: float, shown: str) -> None:
    with Lines().task("x", 1) as task:
        clock.now += seconds
        task.advance()
    assert capsys.readouterr().err == f"x: 1/1    (in {shown})\n"


def test_several_steps_at_once(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with Lines().task("x", 10) as task:
        clock.now += 1
        task.advance(7)
        task.advance(3)
    assert capsys.readouterr().err.splitlines() == ["x: 7/10    (0:00 left)", "x: 10/10    (in 0:01)"]


def test_saying_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    Lines().say("[bold]as it is[/bold]")
    Bars().say("[bold]as it is[/bold] :smile:")
    captured = capsys.readouterr()
    assert captured.err == "[bold]as it is[/bold]\n[bold]as it is[/bold] :smile:\n"
    assert captured.out == ""


def test_bars_show_counts_and_the_note_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    with Bars().task("[red]warmup", 4, done=1) as task:
        task.advance(2, note="[loss] 0.5")
    shown = capsys.readouterr().err
    assert "[red]warmup" in shown
    assert "3/4" in shown
    assert "[loss] 0.5" in shown


@pytest.mark.parametrize(("terminal", "kind"), [(True, Bars), (False, Lines)])
def test_bars_on_a_terminal_only(terminal: bool, kind: type, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal)
    monkeypatch.setattr(progress.sys, "stderr", stream)
    progress.progress().say("hello")
    assert type(progress.progress()) is kind
    assert "hello" in stream.getvalue()
