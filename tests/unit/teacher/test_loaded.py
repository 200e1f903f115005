"""What is loaded of ledgers and what changes afterwards, against a dictionary that goes through line by line."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import IO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gad.errors import RunFolderError
from gad.teacher import loaded as loaded_module
from gad.teacher import scan as scan_module
from gad.teacher.entry import ASKED, FILE, Entry, State, Totals
from gad.teacher.index import Index, Wanted
from gad.teacher.ledger import LEDGER, Ledger
from gad.teacher.ledger_file import disk_errors
from gad.teacher.loaded import Events
from gad.teacher.scan import Scan

HEADER = b'{"gad_ledger":1,"created":1.0}\n'
EVENTS = {
    "sent": State.UNDER_WAY,
    "batched": State.IN_BATCH,
    "reply": State.REPLY,
    "failed": State.OPEN,
    "lost": State.OPEN,
    "givenup": State.GIVEN_UP,
}
# Keys that differ in their first byte, in their last alone, that hold each other's bytes, and that look like places.
KEYS = [f"{first:02x}" + "00" * 14 + f"{last:02x}" for first in (0, 1, 255) for last in (0, 1, 255)]
keys = st.sampled_from(KEYS)
lines = st.lists(st.tuples(keys, st.sampled_from(list(EVENTS))), max_size=60)


def line(key: str, event: str, usd: float = 0.25, maybe: float = 0.5) -> bytes:
    model = b'"model":"m \\"1\\"",' if event == "reply" else b""
    head = b'{"key":"%s","event":"%s","attempt":1,' % (key.encode(), event.encode())
    return head + b'"usd":%r,"maybe_usd":%r,%s"rest":"x"}\n' % (usd, maybe, model)


def after(known: Entry | None, state: State, place: int) -> Entry:
    """One line more, by the rules as they are written down."""
    known = known or Entry(State.OPEN, -1, -1)
    if known.state is State.REPLY:
        return known
    asked = place if state in ASKED and known.asked < 0 else known.asked
    return Entry(state, asked, known.outcome if state in ASKED else place)


def model_of(files: Iterable[Iterable[tuple[str, str]]]) -> dict[str, Entry]:
    found: dict[str, Entry] = {}
    for number, rows in enumerate(files):
        place = number * FILE + len(HEADER)
        for key, event in rows:
            found[key] = after(found.get(key), EVENTS[event], place)
            place += len(line(key, event))
    return found


def load(folder: Path, files: Iterable[Iterable[tuple[str, str]]]) -> tuple[Index, Totals]:
    events, totals = Events(folder), Totals()
    scan = Scan(events, totals)
    for number, rows in enumerate(files):
        path = folder / f"{number}.jsonl"
        path.write_bytes(HEADER + b"".join(line(*row) for row in rows) + b'{"key":"torn' * (number % 2))
        scan.read(number, path)
    return Index(folder, events.fold()), totals


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes at which a few lines are many blocks, chunks and pages."""
    monkeypatch.setattr(scan_module, "_BLOCK", 300)
    monkeypatch.setattr(scan_module, "_CHUNK", 7)
    monkeypatch.setattr(loaded_module, "_PAGE", 2)
    monkeypatch.setattr(loaded_module, "_PAGE_BYTES", 2 * loaded_module._RECORD.itemsize)


@settings(deadline=None)
@given(st.lists(lines, max_size=3), st.lists(st.tuples(keys, st.sampled_from(State)), max_size=20), st.sets(keys))
def test_index_agrees_with_a_dictionary(
    files: list[list[tuple[str, str]]], changes: list[tuple[str, State]], asked_for: set[str]
) -> None:
    with tempfile.TemporaryDirectory() as name:
        index, totals = load(Path(name), files)
        model = model_of(files)
        events = Counter(event for rows in files for _, event in rows)
        with_outcome = sum(n for event, n in events.items() if EVENTS[event] not in ASKED)
        assert (totals.spent, totals.maybe) == (0.25 * with_outcome, 0.5 * with_outcome)
        assert (totals.replies, totals.models['m "1"']) == (events["reply"], events["reply"])
        for number, (key, state) in enumerate(changes):
            place = len(files) * FILE + number
            index.put(key, state, *((place, -1) if state in ASKED else (-1, place)))
            model[key] = after(model.get(key), state, place)
        index.want(Wanted(key, "train", key[:4], 0, False) for key in sorted(asked_for, reverse=True))
        assert {key: index.get(key) for key in KEYS} == {key: model.get(key) for key in KEYS}
        for state in State:
            assert list(index.in_state(state)) == [(k, e) for k, e in sorted(model.items()) if e.state is state]
        assert [(w.key, e) for w, e in index.wanted("train")] == [
            (key, model.get(key)) for key in sorted(asked_for, reverse=True)
        ]
        assert index.wanted_counts() == Counter(model[k].state if k in model else None for k in asked_for)
        unwanted = [(k, e) for k, e in sorted(model.items()) if e.state is State.REPLY and k not in asked_for]
        assert list(index.unwanted()) == unwanted
        index.close()


@pytest.mark.parametrize(
    ("bad", "what"),
    [
        (line("g" * 32, "sent"), "no line of a ledger"),
        (line("0" * 32, "sent")[:-2] + b"\n", "no line of a ledger"),
        (b"\n", "no line of a ledger"),
        (line("0" * 32, "reply").replace(b"0.25", b"0.2.5"), "no line of a ledger"),
        (line("0" * 32, "reply").replace(b"m ", b"\\q"), "no line of a ledger"),
        (line("0" * 31, "sent"), "no line of a ledger"),
        (line("0" * 32, "moved"), "'moved'"),
    ],
)
@pytest.mark.parametrize("before", [0, 1, 6, 50])
def test_a_damaged_line_is_named_wherever_it_is(bad: bytes, what: str, before: int, tmp_path: Path) -> None:
    good = [line(key, "sent") for key in KEYS for _ in range(6)]
    (tmp_path / LEDGER).write_bytes(HEADER + b"".join(good[:before]) + bad + b"".join(good[before:]))
    with pytest.raises(RunFolderError, match=f":{before + 2}: .*{what}"):
        Ledger(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {LEDGER, ".lock"}


def test_memory_holds_a_key_a_page_and_disk_what_the_page_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded_module, "_PAGE", 128)
    monkeypatch.setattr(loaded_module, "_PAGE_BYTES", 128 * loaded_module._RECORD.itemsize)
    count = 20_000
    some_keys = np.random.default_rng(0).bytes(16 * count)
    events = Events(tmp_path)
    for start in range(0, count, 5_000):
        places = np.arange(start, start + 5_000)
        events.add(some_keys[16 * start : 16 * (start + 5_000)], bytes([State.UNDER_WAY]) * 5_000, places)
    assert events._file.seek(0, 2) == count * 25
    loaded = events.fold()
    assert len(loaded._first) == -(-count // 128)
    assert loaded._first == sorted(loaded._first)
    assert loaded._file.seek(0, 2) == count * 33
    for number in range(0, count, 997):
        key = some_keys[16 * number : 16 * number + 16]
        assert loaded.get(key) == (key, State.UNDER_WAY, number, -1)
    assert loaded.get(b"\0" * 16) is None
    assert loaded.get(b"\xff" * 16) is None
    assert sum(map(len, loaded.in_state(State.UNDER_WAY))) == count
    index = Index(tmp_path, loaded)
    each = (some_keys[at : at + 16].hex() for at in range(0, len(some_keys), 16))
    index.want(Wanted(key, "train", f"prompt-{number:08d}", 0, False) for number, key in enumerate(each))
    ((size,),) = index._db.execute("select page_count * page_size from pragma_page_count, pragma_page_size")
    assert size / count == pytest.approx(84, rel=0.02)
    index.close()


@pytest.mark.parametrize("file", ["events", "records", "tables"])
def test_a_disk_that_is_full_when_a_ledger_is_opened(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said with the folder and the way out; no file stays, open or by name, and the next opening goes well."""
    (tmp_path / LEDGER).write_bytes(HEADER + line(KEYS[0], "reply"))
    opened: list[IO[bytes]] = []
    nameless = loaded_module.nameless

    def full_or_not(folder: Path) -> IO[bytes]:
        is_full = file == ("events", "records")[len(opened)]
        opened.append(os.fdopen(os.open("/dev/full", os.O_RDWR), "w+b") if is_full else nameless(folder))
        return opened[-1]

    def no_tables(*_: object, **__: object) -> sqlite3.Connection:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(loaded_module, "nameless", full_or_not)
        if file == "tables":
            patch.setattr(sqlite3, "connect", no_tables)
        with pytest.raises(RunFolderError) as caught, disk_errors(tmp_path):
            Ledger(tmp_path)
    assert f"{tmp_path}: " in str(caught.value)
    assert "full" in str(caught.value) or "No space left on device" in str(caught.value)
    assert "run the same command again" in str(caught.value)
    assert [each.closed for each in opened] == [True, True]
    assert {path.name for path in tmp_path.iterdir()} == {LEDGER, ".lock"}
    again = Ledger(tmp_path)
    assert again.index.get(KEYS[0]) == Entry(State.REPLY, -1, len(HEADER))
    again.close()
