from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gad.report import write_report
from gad.report.text import visible
from support.hostile import MEGABYTE, PAYLOADS
from support.judged_runs import REASON, STUDENTS, write_judged_run
from support.report_runs import write_json, write_jsonl, write_run

SIZES = [(width, scheme) for width in (360, 768, 1600) for scheme in ("light", "dark")]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = write_run(tmp_path_factory.mktemp("runs") / "quickstart", prompts=30, verdicts=True)
    return write_report(folder).as_uri()


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_report(write_judged_run(tmp_path_factory.mktemp("runs") / "judged")).as_uri()


@pytest.fixture
def opened(report: str, open_page: Callable[..., Any]) -> Any:
    watched = open_page(report)
    ready(watched)
    return watched


def ready(watched: Any) -> None:
    watched.page.wait_for_selector("html[data-ready]", timeout=20_000)


CONTRAST_AT = 768
"""The width at which the contrast of every text is measured, in both schemes; others must have none of its own."""
CONTRASTS = """[...new Set([...document.querySelectorAll('body *')].filter((one) => one.checkVisibility()
    && [...one.childNodes].some((child) => child.nodeType === 3 && child.data.trim())).map((one) => {
  const style = getComputedStyle(one), size = parseFloat(style.fontSize);
  const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
  let ground = '', opacity = 1;
  for (let each = one; each; each = each.parentElement) {
    const { backgroundColor: colour, backgroundImage: image, opacity: own } = getComputedStyle(each);
    if (!ground && (colour !== 'rgba(0, 0, 0, 0)' || image !== 'none')) ground = colour + image;
    opacity *= own;
  }
  return [one instanceof SVGElement ? style.fill : style.color, ground, opacity, large].join();
}))]"""
"""What decides on the contrast of a text: its colour, what lies behind, its size. Once for all texts alike."""


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_reads_on_every_screen(judged: str, open_page: Callable[..., Any], width: int, scheme: str) -> None:
    watched = open_page(judged, width=width, scheme=scheme)
    ready(watched)
    watched.page.evaluate("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    assert not watched.scrolls_sideways()
    assert watched.axe(contrast=width == CONTRAST_AT) == []
    contrasts = watched.page.evaluate(CONTRASTS)
    watched.page.set_viewport_size({"width": CONTRAST_AT, "height": 900})
    assert set(contrasts) <= set(watched.page.evaluate(CONTRASTS))
    assert watched.errors == []
    assert watched.requests == [judged]


TABLES = """[...document.querySelector('.tables').querySelectorAll('table')].map((table) => {
  const own = table.getBoundingClientRect(), around = table.closest('.tables').getBoundingClientRect();
  return [own.left, own.top, own.right, own.bottom, around.left, around.right];
})"""


@pytest.mark.parametrize("prompts", [10, 30])
@pytest.mark.parametrize("width", [1200, 1345, 1400, 1600, 1920])
def test_tables_side_by_side_leave_each_other_room(
    width: int, prompts: int, open_page: Callable[..., Any], tmp_path: Path
) -> None:
    """With few prompts the words in the cells are longer than figures."""
    watched = open_page(write_report(write_run(tmp_path / "run", prompts=prompts)).as_uri(), width=width)
    ready(watched)
    places = watched.page.evaluate(TABLES)
    assert len(places) == 2
    (left, top, right, bottom, *_), (left2, top2, right2, bottom2, *_) = places
    assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top
    assert all(start - 1 <= own_left and own_right <= end + 1 for own_left, _, own_right, _, start, end in places)


def test_judges_people_and_their_words(judged: str, open_page: Callable[..., Any]) -> None:
    watched = open_page(judged)
    ready(watched)
    page = watched.page
    said = page.inner_text("#judges")
    assert "Every model against every other" in said
    assert page.locator("#judges .matrix").count() == 4  # two judges of pairs, two sets
    cells = page.locator("#judges .matrix").first.locator("tbody tr").all_inner_texts()
    shares = {row.split("\t")[0]: row.split("\t")[1:] for row in cells}
    names = list(shares)
    there, back = shares["GAD"][names.index("Teacher")], shares["Teacher"][names.index("GAD")]
    assert abs(int(there.split("%")[0]) + int(back.split("%")[0]) - 100) <= 1  # the same verdicts, from either side
    assert "gpt-4o and people (arena)" in said
    assert "of like length, n " in said
    page.locator("#judges summary", has_text="farthest apart").click()
    assert REASON in page.inner_text("#judges")
    extremes = page.inner_text("#extremes")
    assert "gpt-4o: prefers GAD (GAD shown first, Teacher second)" in extremes
    assert "for GAD (Judge’s reference shown first, GAD second)" in extremes
    assert "GAD against Base" not in extremes
    assert "The set vicuna overlaps with the training data." in page.inner_text("#left-out")
    assert watched.errors == []


def test_a_run_with_nothing_but_a_config_opens_too(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    write_json(tmp_path / "young" / "config.json", {"name": "young", "seqkd": None})
    watched = open_page(write_report(tmp_path / "young").as_uri(), width=360)
    assert "Not there yet" in watched.page.inner_text("main")
    assert watched.axe() == []
    assert watched.errors == []


def test_filters(opened: Any) -> None:
    page = opened.page
    assert page.inner_text("#count") == "Prompts 1 to 10 of 60"
    page.select_option("#set", label="Out of distribution")
    assert page.inner_text("#count") == "Prompts 1 to 10 of 30"
    assert set(page.locator("#list .badge").all_inner_texts()) == {"Out of distribution"}
    page.select_option("#set", label="all sets")
    page.fill("#search", "out_of_distribution-17")
    page.locator("#count", has_text="1 to 1 of 1").wait_for()
    assert page.inner_text("#list mark") == "out_of_distribution-17"
    page.fill("#search", "no such words anywhere")
    page.locator("#count", has_text="No prompt matches.").wait_for()
    page.fill("#search", "")
    page.locator("#count", has_text="of 60").wait_for()
    assert page.locator("#list .prompt").first.locator(".reply").count() == 4
    page.uncheck("#arms label:has-text('Base') input")
    assert page.locator("#list .prompt").first.locator(".reply").count() == 3
    before = page.locator("#list .reply:has-text('GAD') .text").first.inner_text()
    page.select_option("#decoding", label="greedy")
    assert page.locator("#list .reply:has-text('GAD') .text").first.inner_text() != before
    assert opened.errors == []


def test_order_by_margin(opened: Any) -> None:
    def margins(order: str) -> list[float]:
        opened.page.select_option("#order", value=order)
        texts = opened.page.locator("#list .prompt > header .small").all_inner_texts()
        return [float(text.split()[1].replace("−", "-")) for text in texts]

    best, worst = margins("best"), margins("worst")
    assert best == sorted(best, reverse=True)
    assert worst == sorted(worst)
    assert worst[0] < 0 < best[0]


def test_prompts_on_which_judges_disagree(opened: Any) -> None:
    opened.page.select_option("#only", value="opposed")
    count = int(opened.page.inner_text("#count").split()[-1])
    assert 0 < count < 30
    said = opened.page.inner_text("#judges")
    assert f"\t{count}\t30" in said


def test_keyboard_alone(opened: Any) -> None:
    page = opened.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    seen = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"search", "set", "decoding", "order", "only", "next", "SUMMARY"} <= seen
    page.focus("#next")
    page.keyboard.press("Enter")
    assert page.inner_text("#count") == "Prompts 11 to 20 of 60"
    assert page.evaluate("document.activeElement.className") == "prompt"


def test_without_script_the_result_is_there(report: str, browser: Any) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(report)
    assert "54%" in page.inner_text("#result")
    assert "needs JavaScript" in page.inner_text("#replies")
    assert not page.is_visible("#filters")
    context.close()


def test_print_shows_the_result_and_hides_the_controls(opened: Any) -> None:
    opened.page.emulate_media(media="print")
    assert opened.page.is_visible("#result")
    assert opened.page.is_visible("#extremes")
    assert not opened.page.is_visible("#filters")
    assert not opened.page.is_visible("nav.contents")
    assert len(opened.page.pdf()) > 10_000


def test_hostile_texts_run_nothing_and_are_all_to_be_seen(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    count = len(PAYLOADS)

    def text(who: str, _: str, number: int) -> str:
        shift = {"prompt": 0, "teacher": 1, "base": 2, "seqkd": 3, "gad": 4}[who]
        found = PAYLOADS[(number + shift) % count]
        # A megabyte takes Chromium seconds to lay out: one of the five places shows that it can.
        return "." if found is MEGABYTE and who != "gad" else found or "."

    folder = write_run(tmp_path / "hostile", prompts=count, text=text, decodings=({"name": "t1", "temperature": 1.0},))
    rows = [
        {"id": f"held_out-{n}", "first": payload or "gad", "second": "teacher", "preference": 0.5, "raw": payload}
        for n, payload in enumerate(PAYLOADS)
        if payload is not MEGABYTE
    ]
    write_jsonl(folder / "verdicts" / "judge" / "gad-vs-teacher.jsonl", rows)
    watched = open_page(write_report(folder).as_uri())
    ready(watched)
    page = watched.page
    shown = set()
    while True:
        page.evaluate("document.querySelectorAll('#list details').forEach((d) => (d.open = true))")
        while page.locator("#list .expand").count():
            page.locator("#list .expand").first.evaluate("(button) => button.click()")
        shown.update(page.locator("#list .text").evaluate_all("(all) => all.map((one) => one.textContent)"))
        if page.is_disabled("#next"):
            break
        page.click("#next")
    assert {visible(payload or ".") for payload in PAYLOADS} <= shown
    assert page.evaluate("window.__pwned") is None
    assert page.evaluate("document.querySelectorAll('#main img, #main iframe, #main object, #main embed').length") == 0
    assert not watched.scrolls_sideways()
    assert watched.errors == []
    assert len(watched.requests) == 1


def test_eight_thousand_replies_open_without_flooding_the_page(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    decodings = ({"name": "t1", "temperature": 1.0},)
    path = write_report(write_run(tmp_path / "large", prompts=1000, words=180, students=STUDENTS, decodings=decodings))
    assert path.stat().st_size < 25_000_000
    watched = open_page(path.as_uri())
    ready(watched)
    assert watched.page.inner_text("#count") == "Prompts 1 to 10 of 2000"
    assert watched.page.evaluate("document.querySelectorAll('*').length") < 6_000
    assert watched.errors == []
