from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

import pytest

from gad.arena.comparisons import Comparison, book
from gad.arena.results import results
from gad.arena.sheet import export, import_votes
from gad.arena.votes import ARENA, VOTES, Ballot, Choice
from gad.config.arena import ArenaConfig, ArenaPair
from gad.errors import ConfigError, DataError, RunFolderError
from gad.report.gather import gather
from support.report_runs import write_json, write_jsonl, write_run

TEACHER_ONLY = ArenaConfig(pairs=(ArenaPair(first="gad", second="teacher"),), sets=("held_out",))


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "quickstart", prompts=40)


def cast_all(run: Path, config: ArenaConfig, choose: Any, rater: str = "me") -> None:
    comparisons = book(gather(run), config)
    ballot = Ballot(run, comparisons)
    for comparison in comparisons.comparisons:
        ballot.vote(rater, comparison, choose(comparison, *comparison.sides(rater)))
    ballot.close()


def prefers(arm: str) -> Any:
    def choose(_: Comparison, left: str, right: str) -> Choice:
        return "left" if left == arm else "right" if right == arm else "tie"

    return choose


def test_the_same_run_gives_the_same_book(run: Path) -> None:
    one, two = book(gather(run), ArenaConfig()), book(gather(run), ArenaConfig())
    assert one == two
    assert len(one.comparisons) == 100
    pairs = {(item.first, item.second) for item in one.comparisons}
    assert pairs == {("gad", "seqkd"), ("gad", "teacher")}


def test_sides_are_even_differ_by_rater_and_do_not_show_in_what_the_page_gets(run: Path) -> None:
    comparisons = book(gather(run), ArenaConfig(comparisons=160)).comparisons
    mine = [item.swapped("me") for item in comparisons]
    assert 50 < sum(mine) < 110
    assert mine != [item.swapped("you") for item in comparisons]
    for item in comparisons[:20]:
        shown = item.shown("me")
        assert set(shown) == {"id", "turns", "left", "right"}
        texts = (item.second_text, item.first_text) if item.swapped("me") else (item.first_text, item.second_text)
        assert (shown["left"], shown["right"]) == texts
        assert item.sides("me")[0] == (item.second if item.swapped("me") else item.first)


def test_another_reply_is_another_comparison(run: Path) -> None:
    before = {item.prompt_id: item.id for item in book(gather(run), TEACHER_ONLY).comparisons}
    path = run / "replies/gad/held_out.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[3]["completion"] += " Changed."
    write_jsonl(path, rows)
    after = {item.prompt_id: item.id for item in book(gather(run), TEACHER_ONLY).comparisons}
    assert {id for id in before if before[id] != after[id]} == {rows[3]["id"]}


def test_identical_and_missing_replies_are_left_out_and_counted(run: Path) -> None:
    teacher = [json.loads(line) for line in (run / "replies/teacher/held_out.jsonl").read_text().splitlines()]
    path = run / "replies/gad/held_out.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["completion"] = teacher[0]["completion"] + "\n"
    write_jsonl(path, rows[:-2])
    found = book(gather(run), TEACHER_ONLY)
    assert (len(found.comparisons), found.identical, found.incomplete) == (37, 1, 2)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            ArenaConfig(pairs=(ArenaPair(first="gad", second="gda"),)),
            "no arm 'gda' in this run; it has base",
        ),
        (ArenaConfig(sets=("heldout",)), "no set 'heldout'"),
        (ArenaConfig(decoding="hot"), "no 'hot' in this run; it has t1, greedy"),
    ],
)
def test_unknown_names_are_refused_with_what_there_is(run: Path, config: ArenaConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        book(gather(run), config)


def test_nothing_to_compare_is_an_error(tmp_path: Path) -> None:
    write_json(tmp_path / "config.json", {"name": "young"})
    with pytest.raises(RunFolderError, match="no two different replies"):
        book(gather(tmp_path), ArenaConfig())


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be compared with itself"):
        ArenaPair(first="gad", second="gad")
    with pytest.raises(ValueError, match="different names"):
        ArenaConfig(raters=("a", "a"))
    with pytest.raises(ValueError, match="raters"):
        ArenaConfig(raters=("../x",))


def test_a_vote_counts_once_and_can_be_taken_back(run: Path) -> None:
    comparisons = book(gather(run), TEACHER_ONLY)
    first, second = comparisons.comparisons[:2]
    ballot = Ballot(run, comparisons)
    assert ballot.vote("me", first, "left")
    assert not ballot.vote("me", first, "right")
    assert ballot.vote("me", second, "tie")
    assert not ballot.undo("me", first.id)
    assert ballot.undo("me", second.id)
    assert not ballot.undo("me", second.id)
    assert ballot.open_comparison("me") == second
    assert ballot.open_comparison("you") == first
    ballot.close()
    again = Ballot(run, comparisons)
    assert [vote.choice for vote in again.votes("me").values()] == ["left"]
    again.close()
    rows = [json.loads(line) for line in (run / ARENA / VOTES).read_text().splitlines()]
    assert [row.get("choice", "undo") for row in rows] == ["left", "tie", "undo"]


def test_a_torn_last_vote_is_cut_and_the_rest_stands(run: Path) -> None:
    cast_all(run, TEACHER_ONLY, prefers("gad"))
    with (run / ARENA / VOTES).open("a") as file:
        file.write('{"run": "')
    assert results(run).raters == {"me": 40}
    comparisons = book(gather(run), TEACHER_ONLY)
    Ballot(run, comparisons).close()
    assert (run / ARENA / VOTES).read_text().endswith("}\n")


def test_a_damaged_vote_names_its_line(run: Path) -> None:
    write_jsonl(run / ARENA / VOTES, [{"choice": "left"}])
    with pytest.raises(RunFolderError, match=r"votes\.jsonl:1: not a vote"):
        results(run)


def test_a_rater_who_prefers_one_arm_gives_it_every_win(run: Path) -> None:
    cast_all(run, TEACHER_ONLY, prefers("gad"))
    (pair,) = results(run).pairs
    assert (pair.first, pair.second, pair.wins, pair.losses) == ("gad", "teacher", 40, 0)
    assert pair.preference is not None
    assert (pair.preference.value, pair.preference.n) == (1.0, 40)
    assert pair.preference.low < 1.0


def test_a_rater_who_always_takes_left_prefers_nobody(run: Path) -> None:
    cast_all(run, ArenaConfig(comparisons=160), lambda *_: "left")
    wins = sum(pair.wins for pair in results(run).pairs)
    assert 60 <= wins <= 100  # of 160 by a fair coin: 99.8%


def test_ties_count_half_and_skips_not_at_all(run: Path) -> None:
    choices = iter(["tie"] * 10 + ["both_bad"] * 10 + ["skip"] * 20)
    cast_all(run, TEACHER_ONLY, lambda *_: next(choices))
    (pair,) = results(run).pairs
    assert (pair.ties, pair.both_bad, pair.skipped) == (10, 10, 20)
    assert pair.preference is not None
    assert (pair.preference.value, pair.preference.n) == (0.5, 20)


def test_raters_of_one_prompt_are_averaged_and_their_agreement_shown(run: Path) -> None:
    cast_all(run, TEACHER_ONLY, prefers("gad"), "ann")
    cast_all(run, TEACHER_ONLY, prefers("teacher"), "bob")
    found = results(run)
    (pair,) = found.pairs
    assert pair.preference is not None
    assert (pair.preference.value, pair.preference.n) == (0.5, 40)
    people = [each for each in found.agreements if {each.one, each.other} == {"ann", "bob"}]
    assert people[0].agreement.raw.value == 0.0
    machine = {each.one: each.agreement.raw.value for each in found.agreements if "discriminator" in each.other}
    assert machine["ann"] + machine["bob"] == pytest.approx(1.0)


def test_agreement_with_a_judge_is_by_pair_and_set(run: Path) -> None:
    rows = [
        {"prompt_id": f"held_out-{n}", "set": "held_out", "first": "teacher", "second": "gad", "preference": 0.0}
        for n in range(40)
    ]
    write_jsonl(run / "verdicts/alpha/teacher-vs-gad@held_out.jsonl", rows)
    cast_all(run, TEACHER_ONLY, prefers("gad"))
    (judged,) = [each for each in results(run).agreements if each.other == "judge alpha"]
    assert judged.agreement.raw.value == 1.0


def test_votes_on_replies_that_are_gone_are_kept_but_not_counted(run: Path) -> None:
    cast_all(run, TEACHER_ONLY, prefers("gad"))
    path = run / "replies/gad/held_out.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["completion"] = "New."
    write_jsonl(path, rows)
    found = results(run)
    assert (found.pairs, found.foreign) == ((), 40)


def votes_file(folder: Path, tmp_path: Path, **changed: Any) -> Path:
    export(folder, tmp_path / "sheet.html", config=TEACHER_ONLY)
    sheet = json.loads((folder / ARENA / "sheets.jsonl").read_text().splitlines()[-1])
    comparisons = book(gather(folder), TEACHER_ONLY).comparisons
    votes = [{"comparison": item.id, "choice": "left", "created": 1.0} for item in comparisons]
    value = {"format": 1, "kind": "gad-arena-votes", "run": sheet["run"], "sheet": sheet["sheet"], "rater": "ann"}
    path = tmp_path / "votes.json"
    write_json(path, value | {"votes": votes} | changed)
    return path


def test_a_sheet_tells_nothing_and_its_votes_come_back(run: Path, tmp_path: Path) -> None:
    path = votes_file(run, tmp_path)
    page = (tmp_path / "sheet.html").read_text().split("</style>")[1]
    packed = re.search(r'id="packed">([^<]*)<', page)
    assert packed is not None
    texts = zlib.decompress(base64.b64decode(packed[1])).decode() + page
    assert not any(name in texts for name in ("seqkd", "SeqKD", "teacher", "held_out"))
    assert texts.count('"left": "') == 40
    assert import_votes(run, path).added == 40
    again = import_votes(run, path)
    assert (again.added, again.already) == (0, 40)
    sheet = json.loads(path.read_text())["sheet"]
    comparisons = book(gather(run), TEACHER_ONLY).comparisons
    won = sum(item.sides(sheet)[0] == "gad" for item in comparisons)
    (pair,) = results(run).pairs
    assert (pair.wins, pair.losses) == (won, 40 - won)
    assert 0 < won < 40


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"run": "0" * 64}, "another run's replies"),
        ({"sheet": "unknown"}, "sheet 'unknown' was not exported from"),
        ({"format": 2}, "format"),
        ({"kind": "x"}, "kind"),
        ({"rater": "../../x"}, "rater"),
        ({"votes": [{"comparison": "nope", "choice": "left", "created": 1.0}]}, "'nope', which is not on the sheet"),
        ({"votes": [{"comparison": "x", "choice": "middle", "created": 1.0}]}, r"votes\.0\.choice"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_votes_file_that_does_not_belong_is_refused_whole(
    run: Path, tmp_path: Path, changed: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        import_votes(run, votes_file(run, tmp_path, **changed))
    assert not (run / ARENA / VOTES).exists()


def test_two_votes_on_one_comparison_are_refused(run: Path, tmp_path: Path) -> None:
    path = votes_file(run, tmp_path)
    value = json.loads(path.read_text())
    value["votes"].append(value["votes"][0])
    write_json(path, value)
    with pytest.raises(DataError, match="two votes on"):
        import_votes(run, path)


@pytest.mark.parametrize("content", [b"", b"\x00\xff", b"[]", b"<html>", b'{"votes":'])
def test_what_is_no_votes_file_is_refused(run: Path, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "votes.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match="not a votes file"):
        import_votes(run, path)
    with pytest.raises(DataError, match="No such file"):
        import_votes(run, tmp_path / "none.json")


def test_a_sheet_that_cannot_be_written_says_where(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="give a path that can be written"):
        export(run, tmp_path / "file" / "sheet.html")
