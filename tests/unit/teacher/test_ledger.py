from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import pytest

from gad.errors import RunFolderError
from gad.records import Message
from gad.teacher.entry import Entry, State
from gad.teacher.index import Wanted
from gad.teacher.journal import Journal
from gad.teacher.ledger import LEDGER, Ledger
from gad.teacher.lines import failed_line, reply_line, sent_line
from gad.teacher.requests import ApiRequest, Reply, Usage, request_key
from gad.teacher.secrets import Scrubber


def request(number: int) -> ApiRequest:
    return ApiRequest(f"p{number}", (Message("user", f"Question {number} “quoted” \n {number}"),), sample=number % 2)


def key(number: int) -> str:
    return request_key("m", request(number).messages, {}, number % 2)


def sent(number: int, *, first: bool = True, held: float = 0.5) -> bytes:
    return sent_line(key(number), request(number), 1, held, 1.5, {"model": "m", "sampling": {}} if first else None)


def replied(number: int, text: str = "Fine.", usd: float = 0.25, model: str | None = "m") -> Reply:
    return Reply(
        key(number),
        f"p{number}",
        number % 2,
        text,
        model,
        "stop",
        Usage(3, 4, 1, 2),
        usd,
        12.5,
        "req",
        "hm",
        None,
        True,
        {"a": -1.0},
    )


def failed(number: int, event: str = "failed", maybe: float = 0.125) -> bytes:
    return failed_line(event, key(number), request(number), 1, 0.0, maybe, "timeout", "too slow", 2.5)


def write(folder: Path, *lines: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LEDGER
    path.write_bytes(b'{"gad_ledger":1,"created":1.0}\n' + b"".join(lines))
    return path


def states(folder: Path) -> dict[str, State]:
    ledger = Ledger(folder)
    found = {k: state for state in State for k, _ in ledger.index.in_state(state)}
    ledger.close()
    return found


def test_every_event_leads_to_its_state_and_sum(tmp_path: Path) -> None:
    write(
        tmp_path,
        *(sent(n) for n in range(5)),
        reply_line(replied(0), 1, 0.0),
        failed(1),
        failed(2, "givenup", 0.0),
        sent_line(key(5), request(5), 1, 0.5, 1.0, {"model": "m"}, batch="b"),
        failed(3),
        sent(3, first=False),
        reply_line(replied(3, model=None), 2, 0.0625),
    )
    ledger = Ledger(tmp_path)
    assert {n: ledger.index.get(key(n)).state for n in range(6)} == {  # type: ignore[union-attr]
        0: State.REPLY,
        1: State.OPEN,
        2: State.GIVEN_UP,
        3: State.REPLY,
        4: State.OPEN,
        5: State.IN_BATCH,
    }
    totals = ledger.totals
    assert (totals.spent, totals.maybe, totals.replies) == (0.5, 0.125 * 2 + 0.0625 + 0.5, 2)
    assert (totals.lost, totals.lost_usd, dict(totals.models)) == (1, 0.5, {"m": 1, "unknown": 1})
    ledger.close()
    again = Ledger(tmp_path)
    assert (again.totals.lost, again.totals.maybe) == (0, totals.maybe)
    again.close()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    odd = 'Quotes " and \\ and \u2028 and 日本 and a half \ud83d, {"key":"x"}\nnew line'
    write(tmp_path, sent(7), reply_line(replied(7, odd), 1, 0.0))
    ledger = Ledger(tmp_path)
    entry = ledger.index.get(key(7))
    assert entry is not None
    reply = ledger.reply(entry)
    assert reply == Reply(**{**{name: getattr(replied(7, odd), name) for name in Reply.__slots__}, "known": True})
    assert ledger.request(entry) == request(7)
    ledger.close()


def test_the_first_reply_stays(tmp_path: Path) -> None:
    write(tmp_path, sent(1), reply_line(replied(1, "first"), 1, 0.0), sent(1), reply_line(replied(1, "second"), 1, 0.0))
    ledger = Ledger(tmp_path)
    entry = ledger.index.get(key(1))
    assert entry is not None
    assert ledger.reply(entry).text == "first"
    ledger.close()


@pytest.mark.parametrize("cut", [1, 10, 200])
def test_a_torn_end_is_cut_off(cut: int, tmp_path: Path) -> None:
    path = write(tmp_path, sent(1), reply_line(replied(1), 1, 0.0))
    path.write_bytes(path.read_bytes()[:-cut])
    assert states(tmp_path) == {key(1): State.OPEN}
    assert path.read_bytes().endswith(b"}\n")


def test_a_ledger_torn_in_its_first_line_begins_anew(tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(b'{"gad_led')
    assert states(tmp_path) == {}
    assert (tmp_path / LEDGER).read_bytes().startswith(b'{"gad_ledger": 1')


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello\n", "does not begin as a ledger does"),
        (b'{"gad_ledger":7}\n', "format 7"),
        (b'{"gad_ledger":1}\ngarbage\n' + b"x" * 10 + b"\n", ":2: no line of a ledger"),
        (
            b'{"gad_ledger":1}\n' + b'{"key":"%s","event":"moved","attempt":1,"usd":0,"maybe_usd":0}\n' % (b"0" * 32),
            "'moved'",
        ),
    ],
)
def test_what_is_no_ledger_is_refused_and_left_alone(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / LEDGER).write_bytes(content)
    with pytest.raises(RunFolderError, match=message):
        Ledger(tmp_path)
    assert (tmp_path / LEDGER).read_bytes() == content


def test_ledgers_of_other_parts_are_read_with_it(tmp_path: Path) -> None:
    other = write(tmp_path / "shard-1-of-2", sent(1), reply_line(replied(1), 1, 0.0), sent(2), b'{"key":"torn')
    write(tmp_path, sent(3))
    reading = Ledger(tmp_path, read_also=[other])
    assert reading.index.get(key(1)).state is State.REPLY  # type: ignore[union-attr]
    assert reading.index.get(key(2)).state is State.UNDER_WAY  # type: ignore[union-attr]
    assert reading.totals.lost == 1
    reading.close()
    owning = Ledger(tmp_path, read_also=[other], lock_also=[other.parent])
    assert owning.index.get(key(2)).state is State.OPEN  # type: ignore[union-attr]
    with pytest.raises(RunFolderError, match="in use"):
        Ledger(other.parent)
    owning.close()
    assert other.read_bytes().endswith(b"torn")


def test_the_prompt_set_in_its_order_with_what_is_missing_and_what_is_not_asked_for(tmp_path: Path) -> None:
    write(tmp_path, sent(1), reply_line(replied(1), 1, 0.0), sent(2), reply_line(replied(2), 1, 0.0))
    ledger = Ledger(tmp_path)
    ledger.index.want(
        [
            Wanted(key(9), "train", "p9", 0, False),
            Wanted(key(2), "train", "p2", 0, True),
            Wanted(key(9), "train", "twice", 0, False),
            Wanted(key(9), "held_out", "h9", 0, False),
        ]
    )
    found = [(wanted.id, wanted.system_added, entry and entry.state) for wanted, entry in ledger.index.wanted("train")]
    assert found == [("p9", False, None), ("p2", True, State.REPLY)]
    assert [wanted.id for wanted, _ in ledger.index.wanted("held_out")] == ["h9"]
    assert ledger.index.wanted_counts() == {None: 1, State.REPLY: 1}
    assert [k for k, _ in ledger.index.unwanted()] == [key(1)]
    ledger.close()


def test_no_file_of_the_index_is_left(tmp_path: Path) -> None:
    write(tmp_path, sent(1))
    ledger = Ledger(tmp_path, reserve=4096)
    assert (tmp_path / ".reserve").stat().st_size == 4096
    assert not list(tmp_path.glob(".index*"))
    ledger.close()
    assert {path.name for path in tmp_path.iterdir()} == {LEDGER, ".lock"}


def test_a_failed_write_leaves_the_file_as_it_was_and_replies_get_the_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(tmp_path, reserve=4096)
    real, full = os.write, True

    def write_half(descriptor: int, data: bytes) -> int:
        nonlocal full
        if not full:
            return real(descriptor, data)
        if len(data) > 100:
            return real(descriptor, bytes(data)[:100])
        full = (tmp_path / ".reserve").exists()
        raise OSError(errno.ENOSPC, "No space left on device")

    async def both() -> list[int | BaseException]:
        journal = Journal(ledger.file, Scrubber(None))
        paid = journal.record(reply_line(replied(1), 1, 0.0), paid=True)
        return await asyncio.gather(journal.record(sent(2)), paid, return_exceptions=True)

    monkeypatch.setattr(os, "write", write_half)
    before = (tmp_path / LEDGER).read_bytes()
    refused, offset = asyncio.run(both())
    assert isinstance(refused, OSError)
    assert offset == len(before)
    assert (tmp_path / LEDGER).read_bytes() == before + reply_line(replied(1), 1, 0.0)
    ledger.close()


def test_the_key_never_reaches_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    secret = 'sk-"odd"\\key-0123456789'
    scrub = Scrubber(secret)

    async def write_it() -> None:
        await Journal(ledger.file, scrub).record(reply_line(replied(1, f"It is {secret}!"), 1, 0.0))

    asyncio.run(write_it())
    ledger.close()
    text = (tmp_path / LEDGER).read_text(encoding="utf-8")
    assert "odd" not in text
    assert "It is [key]!" in text
    assert scrub.text("Incorrect API key provided: sk-abcdef*****wxyz.") == "Incorrect API key provided: [key]"
    assert scrub.text("Authorization: Bearer abcdefghijklmnop") == "Authorization: [key]"
    assert scrub.text("ask-me-anything is fine") == "ask-me-anything is fine"


def test_entries_keep_their_places(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.note(key(1), State.UNDER_WAY, asked=10)
    ledger.note(key(1), State.OPEN, outcome=20)
    ledger.note(key(1), State.UNDER_WAY, asked=30)
    assert ledger.index.get(key(1)) == Entry(State.UNDER_WAY, 10, 20)
    ledger.note(key(1), State.REPLY, outcome=40)
    ledger.note(key(1), State.OPEN, outcome=50)
    assert ledger.index.get(key(1)) == Entry(State.REPLY, 10, 40)
    ledger.close()
