from __future__ import annotations

import base64
import io
import json
import random
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from gad.errors import RunFolderError
from gad.report import headline_table, write_report
from gad.report.explorer import extremes, headline_margins, pack
from gad.report.figures import decoding_tables, differences, series_of
from gad.report.gather import gather
from gad.report.judges import agreement_rows, win_rows
from gad.report.page import asset, policy
from gad.report.story import duration, effort, findings, flat, missing, pull_apart, skipped, uneven, when
from support.hostile import PAYLOADS
from support.report_runs import STUDENTS, write_json, write_jsonl, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "quickstart", prompts=24)


def edit(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def unpacked(data: str) -> Any:
    return json.loads(zlib.decompress(base64.b64decode(data)))


def test_a_finished_run_misses_nothing_but_judges(run: Path) -> None:
    page = write_report(run).read_text()
    assert missing(gather(run)) == [
        "Verdicts of a judge: optional (gad judge). Until then preference is a discriminator’s word."
    ]
    for heading in ("Result", "Differences between the arms", "Preference against C2ST", "Training", "All replies"):
        assert re.search(rf"<h2 [^>]*>{heading}", page), heading
    assert "The two need not agree" in page


def test_the_same_folder_gives_the_same_page(run: Path) -> None:
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_headline_table_holds_the_figures_of_the_summary(run: Path) -> None:
    table = decoding_tables(gather(run))[0].headline[0]
    assert [row.name for row in table.rows] == ["Base", "SeqKD", "GAD", "Teacher"]
    gad = {cell.title: (cell.text, cell.small) for cell in table.rows[2].cells}
    assert gad["Preferred to the teacher"][0] == "54%"
    assert gad["Preferred to the teacher"][1].endswith("· n 24")
    teacher = {cell.title: (cell.text, cell.small) for cell in table.rows[3].cells}
    assert teacher["Preferred to the teacher"] == ("50%", "by definition")
    assert teacher["House style kept"][0] == "100%"


def test_few_prompts_say_so_and_show_no_interval(tmp_path: Path) -> None:
    run = gather(write_run(tmp_path / "few", prompts=12))
    cell = decoding_tables(run)[0].headline[0].rows[2].cells[0]
    assert (cell.text, cell.small) == ("≈ 50%", "too few prompts: 12")
    assert all("too few" in line for line in findings(run))
    assert {row.verdict for row in differences(run)} == {"only 12 prompts: too few to say"}
    assert {row.value for row in differences(run)} == {"–"}


def test_p_values_are_corrected_for_how_many_are_shown(run: Path) -> None:
    rows = differences(gather(run))
    clear = [row for row in rows if row.p_value == "< .001"]
    assert len(rows) == 12
    assert len(clear) == 10
    assert {row.corrected for row in clear if row.figure != "House style kept"} == {".002"}  # 4 x .0004
    assert {row.corrected for row in clear if row.figure == "House style kept"} == {".002"}
    assert {row.verdict for row in rows if row.figure == "House style kept" and row.pair == "GAD − SeqKD"} == {
        "no clear difference"
    }


def test_a_correction_made_by_the_summary_is_kept(run: Path) -> None:
    edit(run / "summary.json", lambda s: [pair.update(p_value_corrected=0.4) for pair in s["paired"]])
    rows = differences(gather(run))
    assert {row.corrected for row in rows} == {".400"}
    verdicts = {row.verdict for row in rows}
    assert "no clear difference by the corrected p-value" in verdicts
    assert verdicts <= {"no clear difference by the corrected p-value", "no clear difference"}


def test_checkpoints_that_were_not_chosen_are_counted_not_shown(run: Path) -> None:
    shutil.copytree(run / "replies/gad", run / "replies/gad-10")
    shutil.copytree(run / "replies/gad", run / "replies/other")
    gathered = gather(run)
    assert gathered.students == ["base", "seqkd", "gad", "other"]
    assert re.search(r"replies/gad-10</th><td>[^<]*not chosen</td><td class=\"n\">96<", write_report(run).read_text())


def test_a_summary_without_a_choice_and_with_judges_that_cost(run: Path) -> None:
    edit(run / "summary.json", lambda s: s.update(checkpoint={}))
    write_json(run / "judging.json", {"format": 1, "figures": [], "cost_usd": 3.5})
    assert ("judge", "$3.50") in effort(gather(run))[2]
    write_report(run)


def test_a_judge_with_its_own_reference_gives_scores(run: Path) -> None:
    rows = [verdict(n, "first", 0.489, second="reference") for n in range(24)]
    write_jsonl(run / "verdicts/paper/gad-vs-reference@held_out.jsonl", rows)
    row = win_rows(gather(run))[0]
    assert (row.pair, row.rate, row.controlled) == ("GAD against Judge’s reference", "48.9", "–")


@pytest.mark.parametrize(("corrected", "level"), [(0.04, 0.95), (0.083, 0.95), (0.083, 0.9)])
def test_a_finding_and_its_row_of_the_table_say_the_same(corrected: float, level: float, run: Path) -> None:
    """Both by the p-value after correction, at the level of the run's intervals."""
    edit(
        run / "summary.json",
        lambda s: [pair.update(p_value=0.01, p_value_corrected=corrected) for pair in s["paired"]],
    )
    edit(run / "config.json", lambda c: c["evaluation"].update(confidence=level))
    gathered = gather(run)
    rows = [row for row in differences(gathered) if row.pair == "GAD − SeqKD" and row.figure.startswith("Preferred")]
    said = next(line for line in findings(gathered) if line.startswith("Against SeqKD"))
    clear = corrected < 1 - level
    assert [row.verdict == "no clear difference by the corrected p-value" for row in rows] == [not clear] * 2
    assert said.count("no clear difference by the corrected p-value") == (0 if clear else 2)


def test_findings_name_the_headline_on_every_set_and_every_opponent(run: Path) -> None:
    said = findings(gather(run))
    assert [line.split(":")[0] for line in said] == ["Held-out", "Out of distribution", "Against Base", "Against SeqKD"]
    assert "54% of 24 prompts" in said[0]


@pytest.mark.parametrize(
    ("leave", "expected"),
    [
        (["config.json"], "SeqKD, the control"),
        (["config.json", "metrics.jsonl"], "Figures: summary.json is not there yet"),
        (["config.json", "metrics.jsonl", "replies"], "Figures: summary.json is not there yet"),
        (["summary.json"], "Training curves"),
        (["metrics.jsonl"], "config.json"),
        (["replies"], "Training curves"),
    ],
)
def test_a_run_that_is_not_done_shows_what_there_is(run: Path, leave: list[str], expected: str) -> None:
    for path in run.iterdir():
        if path.name not in leave:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    if leave == ["config.json"]:
        edit(run / "config.json", lambda config: config.update(seqkd=None))
    page = write_report(run).read_text()
    assert any(expected in line for line in missing(gather(run)))
    assert "Not there yet" in page


def test_warm_up_only(run: Path) -> None:
    for name in ("summary.json", "replies", "scores"):
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    write_jsonl(run / "metrics.jsonl", [row for row in rows if row["stage"] == "warmup"])
    assert "The adversarial stage has not begun (gad adversarial)." in missing(gather(run))
    seconds, tokens, _ = effort(gather(run))
    assert seconds == [("warmup", "38 s")]
    assert tokens == [("sampled", "65,600")]
    assert "Margin" in write_report(run).read_text()


def test_a_torn_last_line_of_a_running_stage_is_no_damage(run: Path) -> None:
    whole = write_report(run).read_text()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"stage": "adversarial", "ste')
    assert write_report(run).read_text() == whole


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("summary.json", "{", r"summary\.json: not JSON"),
        ("summary.json", '{"format": 2}', "format 2, this version of gad reads 1"),
        ("summary.json", '{"figures": [{"student": "gad"}]}', r"figures\.0\.set"),
        ("config.json", "\x00", r"config\.json: not JSON"),
        ("metrics.jsonl", "not json\n{}\n", r"metrics\.jsonl:1: not JSON"),
        ("replies/gad/held_out.jsonl", '{"id": "a"}\n', r"held_out\.jsonl:1: not a reply .*gad generate"),
        ("scores/gad/held_out@t1.jsonl", '{"id": "a"}\n', r"held_out@t1\.jsonl: not scores"),
        ("verdicts/alpha/gad-vs-teacher.jsonl", "[]\n", r"gad-vs-teacher\.jsonl:1: not a verdict"),
    ],
)
def test_damage_names_file_and_way_out(run: Path, name: str, text: str, message: str) -> None:
    path = run / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    with pytest.raises(RunFolderError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="no such run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match="holds neither"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_explorer_holds_every_reply_of_everyone(run: Path) -> None:
    packed = pack(gather(run))
    data = unpacked(packed.data)
    assert (packed.prompts, packed.replies, packed.cut) == (48, 48 * 3 * 2, None)
    assert [arm["name"] for arm in data["arms"]] == ["Base", "SeqKD", "GAD", "Teacher"]
    first = data["prompts"][0]
    rows = [json.loads(line) for line in (run / "replies/gad/held_out@greedy.jsonl").read_text().splitlines()]
    assert first["replies"][1][2][:3] == [rows[0]["completion"], rows[0]["tokens"], int(rows[0]["finished"])]
    assert first["teacher"][3] is None


def test_a_page_that_would_grow_too_large_cuts_replies_and_says_so(tmp_path: Path, monkeypatch: Any) -> None:
    draw = random.Random(0)
    folder = write_run(tmp_path / "long", prompts=3, text=lambda *_: draw.randbytes(15_000).hex())
    gathered = gather(folder)
    whole = pack(gathered)
    assert whole.cut is None
    packed = pack(gathered, most_bytes=len(whole.data) - 1)
    assert packed.cut == 20_000
    assert {len(p["teacher"][0]) for p in unpacked(packed.data)["prompts"]} == {20_004}
    monkeypatch.setattr("gad.report.explorer.MOST_BYTES", 500_000)
    assert "replies are cut after 8000 characters" in write_report(folder).read_text()


def test_best_and_worst_are_the_ends_of_the_margins(run: Path) -> None:
    gathered = gather(run)
    margins = headline_margins(gathered)
    wins, losses = extremes(gathered)
    held_out = margins.by_set["held_out"]
    assert margins.source == "discriminator"
    assert wins[0].id == max(held_out, key=held_out.__getitem__)
    assert losses[0].id == min(held_out, key=held_out.__getitem__)
    assert [reply.name for reply in wins[0].replies] == ["GAD", "Teacher", "Base", "SeqKD"]
    assert wins[0].replies[0].standing == "above"
    assert losses[0].replies[0].standing == "below"


def test_judges_rank_where_they_judged_every_set(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "judged", prompts=24, verdicts=True)
    assert headline_margins(gather(folder)).source == "discriminator"
    shutil.rmtree(folder / "scores")
    assert headline_margins(gather(folder)).source == "judges"


def verdict(number: int, order: str, preference: float | None, **more: Any) -> dict[str, Any]:
    head = {"prompt_id": f"held_out-{number}", "set": "held_out", "first": "gad", "second": "teacher"}
    return head | {"order": order, "preference": preference, "raw": "because"} | more


def test_judges_are_added_up(run: Path) -> None:
    always_first = [verdict(n, order, float(order == "first")) for n in range(24) for order in ("first", "second")]
    wins = [verdict(n, "both", 1.0) for n in range(24)] + [verdict(0, "both", None)]
    write_jsonl(run / "verdicts/left/gad-vs-teacher.jsonl", always_first)
    write_jsonl(run / "verdicts/right/gad-vs-teacher.jsonl", wins)
    left, right = win_rows(gather(run))
    assert (left.judge, left.pair, left.rate, left.n) == ("left", "GAD against Teacher", "50%", 24)
    assert left.shown_first.startswith("100%")
    assert (right.rate, right.failed, right.shown_first) == ("100%", 1, "–")
    both = agreement_rows(gather(run))
    assert [(row.judges, row.opposed, row.n) for row in both] == [("left and right", 0, 24)]
    assert both[0].agree.startswith("0%")


def test_a_pair_is_read_from_the_file_name_where_rows_do_not_name_it(run: Path) -> None:
    rows = [{"id": f"held_out-{n}", "preference": 0.0, "order": "both"} for n in range(24)]
    write_jsonl(run / "verdicts/j/gad-vs-seqkd@held_out.jsonl", rows)
    row = win_rows(gather(run))[0]
    assert (row.pair, row.set, row.rate) == ("GAD against SeqKD", "Held-out", "0%")


def test_preference_and_c2st_pulling_apart_is_said_only_where_it_happened(run: Path) -> None:
    said = pull_apart(gather(run))
    assert "held-out against SeqKD, out of distribution against SeqKD" in said
    assert "Base" not in said  # base is both less preferred and easier to tell apart

    def only_preference(summary: Any) -> None:
        summary["paired"] = [pair for pair in summary["paired"] if pair["name"] == "preference"]

    edit(run / "summary.json", only_preference)
    assert pull_apart(gather(run)) == said  # C2ST has no paired difference: the figures tell

    def closer(summary: Any) -> None:
        for figure in summary["figures"]:
            if (figure["student"], figure["name"]) == ("gad", "c2st_auc"):
                figure["value"] = 0.55

    edit(run / "summary.json", closer)
    assert pull_apart(gather(run)) == ""


def test_moments_in_words() -> None:
    assert when("2026-01-31T12:00:00Z") == "31 January 2026, 12:00 UTC"
    assert when("yesterday") == "yesterday"


def test_uneven_arms_and_repeated_ids_are_said(run: Path) -> None:
    path = run / "replies/seqkd/held_out.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:20] + lines[:1]))
    assert uneven(gather(run)) == ["SeqKD has 20 of 24 replies to Held-out (t1)."]
    page = write_report(run).read_text()
    assert "row repeats an id" in page
    assert "SeqKD has 20 of 24 replies" in page


def test_updates_that_were_skipped_are_said(run: Path) -> None:
    assert skipped(gather(run)) == []
    rows = [
        {"stage": "warmup", "step": step, "student/skipped": float(step in (2, 3)), "discriminator/skipped": 0.0}
        for step in range(1, 6)
    ]
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    said = "Warm-up: 2 of the student’s 5 updates were skipped, because loss or gradient was not finite; "
    assert [line.startswith(said) for line in skipped(gather(run))] == [True]
    assert said in write_report(run).read_text(encoding="utf-8")


def test_what_the_data_stage_dropped_is_shown_before_there_is_a_summary(run: Path) -> None:
    (run / "summary.json").unlink()
    write_json(run / "data.json", {"sets": {"train": {"dropped": [{"reason": "refused", "count": 7}]}}, "leaks": []})
    write_json(run / "tokens.json", {"train": {"prompt too long": 3, "reply cut at the limit": 0}})
    page = write_report(run).read_text()
    assert re.search(r"refused</td><td class=\"n\">7<", page)
    assert re.search(r"prompt too long</td><td class=\"n\">3<", page)
    assert "reply cut at the limit" not in page


def test_settings_hide_what_looks_like_a_key(run: Path) -> None:
    edit(
        run / "config.json",
        lambda config: config.update(judge={"url": "https://me:pw@host/", "note": "sk-" + "a1" * 20}),
    )
    page = write_report(run).read_text()
    assert "sk-a1a1" not in page
    assert "me:pw" not in page
    assert ">https://[hidden]@host/<" in page
    assert ">[hidden]<" in page


def test_the_policy_admits_our_style_and_script_only(run: Path) -> None:
    page = write_report(run).read_text()
    allowed = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert allowed is not None
    assert allowed[1].replace("&#39;", "'") == policy(asset("report.css"), asset("explorer.js"))
    assert "unsafe" not in allowed[1]
    assert "default-src &#39;none&#39;" in allowed[1]
    assert not re.search(r"\s(?:src|on\w+|style)=", page.split("<script>")[0].split("</style>")[1])
    assert not re.search(r"https?://", page.replace("http://www.w3.org/2000/svg", ""))


def test_hostile_texts_are_escaped_everywhere(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "hostile", prompts=len(PAYLOADS), text=lambda _who, _set, n: PAYLOADS[n] or ".")
    edit(folder / "summary.json", lambda s: s.update(name=PAYLOADS[0], machine={PAYLOADS[1]: PAYLOADS[2]}))
    page = write_report(folder).read_text(encoding="utf-8")
    assert "<script>window" not in page
    assert page.count("<script") == 2
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b\x00-\x08\x0e-\x1f]", page)
    assert len(page) < 10_000_000


def test_terminal_table(run: Path) -> None:
    from rich.console import Console

    summary = json.loads((run / "summary.json").read_text())
    summary["students"] = [*STUDENTS, "[bold]x\x1b[2J"]
    summary["figures"].append(summary["figures"][0] | {"student": "[bold]x\x1b[2J", "note": "[red]note"})
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(headline_table(summary))
    text = console.export_text()
    assert "54%" in text
    assert "by definition" in text
    assert "[bold]x⟨U+001B⟩[2J" in text
    assert "\x1b" not in text


def test_terminal_table_without_figures() -> None:
    assert "no figures yet" in str(headline_table({"name": "young"}).title)
    with pytest.raises(RunFolderError, match="format"):
        headline_table({"format": 9})


def test_marks_are_the_same_in_every_report(run: Path) -> None:
    assert series_of(gather(run)) == {"base": 0, "seqkd": 1, "gad": 2}
    edit(run / "summary.json", lambda s: s.update(students=["base", "seqkd", "a", "b", "c", "d", "e", "f", "gad"]))
    assert series_of(gather(run)) == {
        "base": 0, "seqkd": 1, "a": 4, "b": 5, "c": 10, "d": 11, "e": 16, "f": 17, "gad": 2
    }  # fmt: skip
    write_report(run)


def test_durations_and_flat_settings() -> None:
    assert [duration(s) for s in (0.44, 59.2, 725, 11_235)] == ["0.4 s", "59 s", "12 min 05 s", "3 h 07 min"]
    assert flat({"a": {"b": 1, "c": [1, 2]}, "d": [{"e": None}], "f": {}}) == [
        ("a.b", "1"), ("a.c", "[1, 2]"), ("d[0].e", "null"), ("f", "{}")
    ]  # fmt: skip


def test_two_thousand_prompts_of_four_models_stay_small(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "large", prompts=1000, words=180, decodings=({"name": "t1", "temperature": 1.0},))
    path = write_report(folder)
    page = path.read_text()
    assert pack(gather(folder)).prompts == 2000
    assert path.stat().st_size < 25_000_000
    assert page.count("<") < 12_000  # the page as delivered stays light: replies become elements ten prompts at a time


def test_importing_the_report_is_light() -> None:
    heavy = "('torch', 'openai', 'sklearn', 'plotly', 'jinja2', 'numpy')"
    code = f"import sys, gad.report; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
