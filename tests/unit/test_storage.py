"""What is on disk after a crash, a kill, a full disk and a second process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gad.errors import RunFolderError
from gad.storage import (
    JsonlWriter,
    atomic_directory,
    keep_rows,
    lock,
    read_jsonl,
    remove_leftovers,
    write_json,
    write_jsonl,
    write_text,
)

ROWS = [{"n": 1, "text": "né\u2028🎈\n"}, {"n": 2, "text": ""}, {"n": 3, "text": "z" * 200_000}]


def write(path: Path, rows: list[dict[str, Any]], **options: bool) -> None:
    with JsonlWriter(path, **options) as writer:
        for row in rows:
            writer.append(row)


@pytest.mark.parametrize("durable", [False, True])
def test_rows_come_back_as_they_went(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "deep" / "rows.jsonl"
    write(path, ROWS[:2], durable=durable)
    write(path, ROWS[2:], durable=durable)
    assert list(read_jsonl(path)) == ROWS
    assert path.read_bytes().count(b"\n") == 3


def test_a_row_is_on_disk_when_append_returns(tmp_path: Path) -> None:
    with JsonlWriter(tmp_path / "rows.jsonl") as writer:
        writer.append(ROWS[0])
        assert list(read_jsonl(tmp_path / "rows.jsonl")) == ROWS[:1]


def test_durable_rows_are_synced_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    write(tmp_path / "a.jsonl", ROWS, durable=False)
    assert synced == []
    write(tmp_path / "b.jsonl", ROWS, durable=True)
    assert len(synced) == 3


def test_half_a_character_comes_back_as_it_went(tmp_path: Path) -> None:
    """It has no UTF-8, and models write it all the same."""
    row = {"raw": "so \ud83d it goes \udc00"}
    with JsonlWriter(tmp_path / "appended.jsonl") as writer:
        writer.append(row)
    write_jsonl(tmp_path / "whole.jsonl", [row])
    for name in ("appended", "whole"):
        (tmp_path / f"{name}.jsonl").read_text(encoding="utf-8")
        assert list(read_jsonl(tmp_path / f"{name}.jsonl")) == [row]
    write_json(tmp_path / "one.json", row)
    assert json.loads((tmp_path / "one.json").read_text(encoding="utf-8")) == row


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert list(read_jsonl(tmp_path / "absent.jsonl")) == []


def test_a_file_torn_at_any_byte_loses_its_last_row_alone(tmp_path: Path) -> None:
    rows = [{"n": 1, "t": "né"}, {"n": 22}, {"n": 333, "t": "🎈"}]
    path = tmp_path / "rows.jsonl"
    write(path, rows)
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        kept = whole[:cut].count(b"\n")
        assert list(read_jsonl(path)) == rows[:kept]
        write(path, [{"new": cut}])
        assert list(read_jsonl(path)) == [*rows[:kept], {"new": cut}]


@pytest.mark.parametrize("length", [1, 65_535, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("before", [0, 1])
def test_a_long_torn_line_is_cut_off_whole(tmp_path: Path, length: int, before: int) -> None:
    """Longer than the block in which the end is searched."""
    path = tmp_path / "rows.jsonl"
    write(path, ROWS[:before])
    with path.open("ab") as file:
        file.write(b"x" * length)
    write(path, ROWS[1:2])
    assert list(read_jsonl(path)) == [*ROWS[:before], ROWS[1]]


@pytest.mark.parametrize("damage", [b"{nope", b"\xff\xfe", b"", b'{"n": 1}{"n": 2}', b"\x00\x00"])
def test_damage_in_the_middle_is_named(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"n": 1}\n' + damage + b'\n{"n": 3}\n')
    rows = read_jsonl(path)
    assert next(rows) == {"n": 1}
    with pytest.raises(RunFolderError, match=r"rows\.jsonl:2: not JSON \(.*\); remove the line to go on"):
        next(rows)


@given(st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.integers() | st.none()), max_size=5))
def test_any_row_survives(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    write(folder / "a.jsonl", rows)
    write_jsonl(folder / "b.jsonl", rows)
    assert list(read_jsonl(folder / "a.jsonl")) == list(read_jsonl(folder / "b.jsonl")) == rows


def test_keeping_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, [{"n": n} for n in range(5)])
    before = path.stat().st_ino
    assert keep_rows(path, lambda _: True) == 0
    assert path.stat().st_ino == before
    assert keep_rows(path, lambda row: row["n"] % 2 == 0) == 2
    assert list(read_jsonl(path)) == [{"n": 0}, {"n": 2}, {"n": 4}]
    assert keep_rows(tmp_path / "absent.jsonl", lambda _: True) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl"]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("broken", ["fsync", "replace"])
def test_replacing_a_file_is_all_or_nothing(tmp_path: Path, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"n": 1, "text": "né"})
    with monkeypatch.context() as patch:
        if broken == "fsync":
            patch.setattr(os, "fsync", full_disk)
        else:
            patch.setattr(Path, "replace", full_disk)
        with pytest.raises(OSError, match="No space left"):
            write_json(path, {"n": 2})
    assert json.loads(path.read_text()) == {"n": 1, "text": "né"}
    assert [p.name for p in tmp_path.iterdir()] == ["state.json"]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_rows_that_fail_half_way_leave_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_jsonl(path, ROWS[:1])

    def rows() -> Iterator[dict[str, Any]]:
        yield ROWS[1]
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_jsonl(path, rows())
    assert list(read_jsonl(path)) == ROWS[:1]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_reader_of_the_old_file_is_not_disturbed(tmp_path: Path) -> None:
    write_text(tmp_path / "a", "old")
    with (tmp_path / "a").open() as reader:
        write_text(tmp_path / "a", "new")
        assert reader.read() == "old"


def fill(folder: Path, content: str) -> None:
    (folder / "deep").mkdir()
    (folder / "deep" / "a").write_text(content)


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "parent" / "folder"
    with atomic_directory(target) as temporary:
        fill(temporary, "one")
        assert not target.exists()
    assert (target / "deep" / "a").read_text() == "one"
    with atomic_directory(target) as temporary:
        (temporary / "b").write_text("two")
    assert [p.name for p in target.iterdir()] == ["b"]
    assert [p.name for p in target.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("had_one", [True, False])
def test_a_folder_that_is_not_finished_is_absent(tmp_path: Path, stop: type[BaseException], had_one: bool) -> None:
    target = tmp_path / "folder"
    if had_one:
        with atomic_directory(target) as temporary:
            fill(temporary, "old")

    def fill_and_stop() -> None:
        with atomic_directory(target) as temporary:
            fill(temporary, "new")
            raise stop

    with pytest.raises(stop):
        fill_and_stop()
    assert [p.name for p in tmp_path.iterdir()] == ["folder"] * had_one
    assert not had_one or (target / "deep" / "a").read_text() == "old"


@pytest.mark.parametrize("which", [1, 2, 3, 4])
@pytest.mark.parametrize("broken", ["fsync", "rename"])
def test_any_failing_call_leaves_the_old_folder(
    tmp_path: Path, broken: str, which: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills at the first, second ... sync or rename."""
    target = tmp_path / "folder"
    with atomic_directory(target) as temporary:
        fill(temporary, "old")
    calls = 0
    real = {"fsync": os.fsync, "rename": Path.rename}[broken]

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        return full_disk() if calls == which else real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(*((os, "fsync") if broken == "fsync" else (Path, "rename")), failing)
        try:
            with atomic_directory(target) as temporary:
                fill(temporary, "new")
        except OSError:
            failed = True
        else:
            failed = False
    # a sync of each file and folder, one of the whole, two renames, one sync of the parent, when all is in its place
    assert failed == (which <= {"fsync": 4, "rename": 2}[broken])
    kept_old = failed and (broken, which) != ("fsync", 4)
    assert (target / "deep" / "a").read_text() == ("old" if kept_old else "new")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_leftovers_go_and_nothing_else(tmp_path: Path) -> None:
    for name in (".a.tmp-12", ".b.tmp-pruned", ".c.tmp-old-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x").write_text("x")
    (tmp_path / ".rows.jsonl.tmp-77").write_text("x")
    for name in ("a.tmp-12", ".lock", ".hidden", "rows.jsonl"):
        (tmp_path / name).write_text("x")
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".hidden", ".lock", "a.tmp-12", "rows.jsonl"]
    remove_leftovers(tmp_path / "absent")


HOLD = """
import sys
from pathlib import Path
from gad.storage import lock
with lock(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Another process that owns the folder until its standard input closes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_live_owner_is_named_by_its_pid(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        message = f"run is in use by process {process.pid}: wait for it, stop it, or give this run another name"
        for _ in range(2):
            with pytest.raises(RunFolderError, match=message), lock(tmp_path / "run"):
                pytest.fail("two owners")
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait() == 0
    with lock(tmp_path / "run"):
        pass


def test_a_dead_owner_is_not_in_the_way(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / ".lock").read_text() == str(process.pid)
        with lock(tmp_path):
            assert (tmp_path / ".lock").read_text() == str(os.getpid())
            with pytest.raises(RunFolderError, match=f"in use by process {os.getpid()}:"), lock(tmp_path):
                pytest.fail("two owners")


def test_an_owner_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), lock(tmp_path):
        raise RuntimeError("boom")
    with lock(tmp_path):
        assert (tmp_path / ".lock").read_text() == str(os.getpid())
