"""A collector killed at any moment, two at once, a disk that fills up."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.teacher.collecting import (
    KEY_VARIABLE,
    check_no_key,
    check_nothing_lost,
    config_for,
    events,
    prompts,
    rows,
    run,
)
from faults.teacher.provider import KEY, Provider
from gad.errors import RunFolderError
from gad.teacher.ledger import LEDGER, Ledger
from support import warm

pytestmark = pytest.mark.faults

COLLECT = """
import sys
from pathlib import Path
from faults.teacher.collecting import config_for, prompts, run
run(config_for(sys.argv[1]), prompts(int(sys.argv[3])), Path(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY_VARIABLE, KEY)


def collector(provider: Provider, folder: Path, count: int) -> warm.Popen:
    return warm.Popen(["-c", COLLECT, provider.url, str(folder), str(count)])


@pytest.mark.slow
def test_killed_at_twenty_random_moments(tmp_path: Path) -> None:
    draw = random.Random(20)
    count = 2000
    with Provider(delay=0.05) as provider:
        for _ in range(20):
            had = sum(provider.books.asked.values())
            process = collector(provider, tmp_path, count)
            while process.poll() is None and sum(provider.books.asked.values()) == had:
                time.sleep(0.01)
            time.sleep(draw.uniform(0.0, 0.3))
            process.send_signal(signal.SIGKILL)
            process.communicate()
        while provider.books.under_way:
            time.sleep(0.01)
        summary, _ = run(config_for(provider.url), prompts(count), tmp_path)
        lost = [row["event"] for row in events(tmp_path)].count("lost")
        check_nothing_lost(provider, tmp_path, prompts(count))
        assert summary.kept == count
        assert 0 < lost <= 20 * config_for(provider.url).limits.concurrency
        assert summary.spent_usd <= provider.books.usd + 1e-9
        assert provider.books.usd <= summary.spent_usd + summary.maybe_usd


def test_a_torn_last_line_is_cut_and_its_request_asked_again(tmp_path: Path) -> None:
    with Provider() as provider:
        run(config_for(provider.url), prompts(20), tmp_path)
        path = tmp_path / "teacher" / LEDGER
        whole = path.read_bytes()
        path.write_bytes(whole[:-30])
        summary, progress = run(config_for(provider.url), prompts(20), tmp_path)
    assert summary.kept == 20
    assert summary.lost == 1
    assert sum(provider.books.asked.values()) == 21
    assert any("1 requests were under way" in line and "possibly paid" in line for line in progress.lines)


def test_a_second_collector_is_refused(tmp_path: Path) -> None:
    with Provider() as provider:
        provider.gate.clear()
        process = collector(provider, tmp_path, 200)
        while not provider.books.asked:
            time.sleep(0.01)
        with pytest.raises(RunFolderError, match=f"in use by process {process.pid}"):
            run(config_for(provider.url), prompts(200), tmp_path)
        provider.gate.set()
        assert process.communicate()[1] == ""
        assert process.returncode == 0
        check_nothing_lost(provider, tmp_path, prompts(200))


def test_a_stop_waits_for_what_is_under_way(tmp_path: Path) -> None:
    with Provider() as provider:

        def enough() -> bool:
            """Asked for while requests are under way, which are answered after that."""
            if sum(provider.books.bought.values()) >= 40 and provider.gate.is_set():
                provider.gate.clear()
                threading.Timer(0.3, provider.gate.set).start()
                return True
            return sum(provider.books.bought.values()) >= 40

        summary, _ = run(config_for(provider.url), prompts(200), tmp_path, stop=enough)
        assert summary.stopped
        assert 0 < summary.kept == sum(provider.books.bought.values()) < 200
        assert summary.maybe_usd == 0.0
        done, _ = run(config_for(provider.url), prompts(200), tmp_path)
        assert done.kept == 200
        assert max(provider.books.bought.values()) == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_loses_no_reply_that_is_under_way(small_disk: Path) -> None:
    with Provider(delay=0.02) as provider:
        config = config_for(provider.url, limits={"concurrency": 64})
        with pytest.raises(RunFolderError, match=r"No space left.*safe"):
            run(config, prompts(1600), small_disk)
        bought = sum(provider.books.bought.values())
        assert bought > 200
        check_no_key(small_disk)
        text = (small_disk / "teacher" / LEDGER).read_text(encoding="utf-8")
        assert text.endswith("\n")
        assert text.count('"event":"reply"') == bought

        subprocess.run(["mount", "-o", "remount,size=30m", str(small_disk)], check=True)
        summary, _ = run(config, prompts(1600), small_disk)
        assert summary.kept == 1600
        assert max(provider.books.bought.values()) == 1


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(b"x" * (2**20 - 3 * 4096))
    with Provider() as provider:
        with pytest.raises(RunFolderError, match="No space left"):
            run(config_for(provider.url), prompts(10), small_disk)
        assert not provider.books.asked


def test_damage_in_the_middle_is_named_with_its_line(tmp_path: Path) -> None:
    with Provider() as provider:
        run(config_for(provider.url), prompts(5), tmp_path)
    path = tmp_path / "teacher" / LEDGER
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:3], b"garbage\n", *lines[3:]]))
    with pytest.raises(RunFolderError, match=rf"{LEDGER}:4: no line of a ledger"):
        Ledger(tmp_path / "teacher")


def test_a_ledger_of_another_version_is_refused(tmp_path: Path) -> None:
    with Provider() as provider:
        run(config_for(provider.url), prompts(5), tmp_path)
        path = tmp_path / "teacher" / LEDGER
        path.write_bytes(path.read_bytes().replace(b'"gad_ledger": 1', b'"gad_ledger": 2'))
        with pytest.raises(RunFolderError, match="format 2, and this gad reads format 1"):
            run(config_for(provider.url), prompts(5), tmp_path)
    assert len(rows(tmp_path / "teacher.jsonl")) == 5
