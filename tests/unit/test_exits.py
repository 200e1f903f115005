"""Every end is one message and a code."""

from __future__ import annotations

import errno
import os
import signal
import time
from pathlib import Path

import pytest

from gad.errors import CheckpointError, ConfigError, Interrupted, MissingExtra
from gad.exits import errors_as_messages


class OutOfMemoryError(RuntimeError):
    """As torch calls its own."""


ENDS = {
    "the input": (ConfigError("seed=x"), 2, "error: seed=x\n"),
    "two mistakes": (ConfigError("one\ntwo"), 2, "error: one\nerror: two\n"),
    "an extra": (MissingExtra("training", "train"), 2, "pip install 'gad[train]'"),
    "at run time": (CheckpointError("c is damaged"), 1, "error: c is damaged\n"),
    "Ctrl-C": (KeyboardInterrupt(), 130, "stopped; what was saved before is safe; run the same command again to go on"),
    "Ctrl-C, saved": (Interrupted(signal.SIGINT), 130, "everything is saved"),
    "SIGTERM, saved": (Interrupted(signal.SIGTERM), 143, "everything is saved"),
    "disk": (OSError(errno.ENOSPC, "x", "/a/b"), 1, "error: the disk is full at /a/b: free some space"),
    "quota": (OSError(errno.EDQUOT, "x"), 1, "error: the disk is full: free some space"),
    "disk, by a library": (RuntimeError("I/O error: No space left on device (os error 28)"), 1, "the disk is full: "),
    "rights": (PermissionError(errno.EACCES, "x", "/a"), 1, "error: not permitted at /a: Permission denied; "),
    "read-only": (OSError(errno.EROFS, "x", "/a"), 1, "error: not permitted at /a: Read-only file system; "),
    "memory": (MemoryError(), 1, "error: out of memory: lower compute.tokens_per_micro_batch"),
    "memory of a device": (OutOfMemoryError("CUDA out of memory"), 1, "error: out of memory: lower compute."),
    "memory, by torch": (RuntimeError("DefaultCPUAllocator: can't allocate memory: x"), 1, "error: out of memory: "),
}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_has_a_message_and_a_code(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    error, code, said = ENDS[name]
    with pytest.raises(SystemExit) as caught, errors_as_messages():
        raise error
    assert caught.value.code == code
    output = capsys.readouterr()
    assert said in output.err
    assert output.out == ""
    assert "Traceback" not in output.err


def fail(error: Exception, folder: Path) -> None:
    with errors_as_messages() as scene:
        scene.folder = folder
        raise error


def be_terminated_where_errors_are_caught() -> None:
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    except Exception:
        pytest.fail("swallowed")


def test_a_fault_of_ours_leaves_its_traceback_in_the_run_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        fail(IndexError("list index\nsecond line"), tmp_path)
    assert caught.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: unexpected IndexError: list index; this is a fault of gad's. What was saved")
    assert said.count("\n") == 1
    assert f"the traceback is in {tmp_path / 'error.txt'}" in said
    kept = (tmp_path / "error.txt").read_text(encoding="utf-8")
    assert "Traceback (most recent call last)" in kept
    assert "second line" in kept


def test_without_a_run_folder_the_traceback_is_among_the_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(SystemExit):
        fail(ZeroDivisionError(), tmp_path / "not there")
    kept = tmp_path / f"gad-{os.getpid()}-error.txt"
    assert "error: unexpected ZeroDivisionError; this is a fault of gad's" in capsys.readouterr().err
    assert "ZeroDivisionError" in kept.read_text(encoding="utf-8")


def test_sigterm_before_the_stages_listen_ends_with_143_whatever_catches_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, errors_as_messages():
        be_terminated_where_errors_are_caught()
    assert caught.value.code == 143
    assert capsys.readouterr().err == (
        "stopped on request; what was saved before is safe; run the same command again to go on\n"
    )
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_reader_that_went_away_is_not_our_fault() -> None:
    with pytest.raises(BrokenPipeError), errors_as_messages():
        raise BrokenPipeError(errno.EPIPE, "x")


def test_no_error_no_word(capsys: pytest.CaptureFixture[str]) -> None:
    with errors_as_messages():
        pass
    assert capsys.readouterr().err == ""
