from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gad.arena import export, import_votes, results
from gad.arena.votes import ARENA, VOTES
from gad.config.arena import ArenaConfig, ArenaPair
from gad.report.text import visible
from support.arena_server import ArenaProcess
from support.hostile import MEGABYTE, PAYLOADS
from support.report_runs import write_run

pytest.importorskip("starlette", reason="needs gad[arena]")
pytest.importorskip("uvicorn", reason="needs gad[arena]")
SIZES = [(width, scheme) for width in (360, 768, 1600) for scheme in ("light", "dark")]
KEYS = ("ArrowLeft", "ArrowRight", "t", "b", "s")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_run(tmp_path / "quickstart", prompts=60)


@pytest.fixture
def started(folder: Path) -> Iterator[list[ArenaProcess]]:
    """The running arena, last in the list; a test may kill it and append another."""
    processes = [ArenaProcess(folder)]
    yield processes
    processes[-1].stop()


def written(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / ARENA / VOTES).read_text().splitlines()]


def waits_for(page: Any, done: int) -> None:
    page.locator("#where", has_text=f"{done} of ").wait_for(timeout=30_000)


@pytest.mark.parametrize(("width", "scheme"), SIZES)
def test_reads_on_every_screen(
    started: list[ArenaProcess], open_page: Callable[..., Any], width: int, scheme: str
) -> None:
    arena = started[-1]
    watched = open_page(arena.links["me"], width=width, scheme=scheme)
    waits_for(watched.page, 0)
    assert not watched.scrolls_sideways()
    assert watched.axe() == []
    box = watched.page.locator("[data-choice=right]").bounding_box()
    assert box["y"] + box["height"] <= 900
    assert box["height"] >= 44
    assert watched.errors == []
    assert {url.split("?")[0] for url in watched.requests} == {
        f"http://127.0.0.1:{arena.port}/{path}" for path in ("", "state")
    }
    watched.page.goto(arena.links["results"])
    assert not watched.scrolls_sideways()
    assert watched.axe() == []
    assert watched.errors == []


def test_a_hundred_votes_with_a_reload_and_a_killed_server(
    folder: Path, started: list[ArenaProcess], open_page: Callable[..., Any]
) -> None:
    watched = open_page(started[-1].links["me"])
    page = watched.page
    cast: list[str] = []
    waits_for(page, 0)
    for number in range(100):
        if number == 35:
            page.reload()
            waits_for(page, 35)
        if number == 65:
            port = started[-1].port
            started[-1].kill()
            page.keyboard.press("t")
            page.locator("#problem", has_text="Not saved").wait_for()
            assert page.inner_text("#where") == "65 of 100"
            started.append(ArenaProcess(folder, port=port))
            watched.errors.clear()
        cast.append(page.evaluate("document.documentElement.dataset.comparison"))
        page.keyboard.press(KEYS[number % len(KEYS)])
        waits_for(page, number + 1)
    rows = written(folder)
    assert [row["comparison"] for row in rows] == cast
    assert len(set(cast)) == 100
    wanted = ["left", "right", "tie", "both_bad", "skip"]
    assert [row["choice"] for row in rows] == [wanted[n % 5] for n in range(100)]
    assert "Thank you" in page.inner_text("#done")
    assert page.is_disabled("[data-choice=left]")
    assert results(folder).raters == {"me": 100}
    assert watched.errors == []


def test_undo_by_key_and_button(folder: Path, started: list[ArenaProcess], open_page: Callable[..., Any]) -> None:
    page = open_page(started[-1].links["me"]).page
    waits_for(page, 0)
    first = page.evaluate("document.documentElement.dataset.comparison")
    assert page.is_disabled("#undo")
    page.click("[data-choice=left]")
    waits_for(page, 1)
    page.keyboard.press("u")
    waits_for(page, 0)
    assert page.evaluate("document.documentElement.dataset.comparison") == first
    page.click("[data-choice=right]")
    waits_for(page, 1)
    page.click("#undo")
    waits_for(page, 0)
    assert [row.get("choice", "undo") for row in written(folder)] == ["left", "undo", "right", "undo"]
    assert results(folder).pairs == ()


def test_two_pages_of_one_rater_never_double_a_vote(
    folder: Path, started: list[ArenaProcess], open_page: Callable[..., Any]
) -> None:
    one, two = (open_page(started[-1].links["me"]).page for _ in range(2))
    for page in (one, two):
        waits_for(page, 0)
    one.keyboard.press("ArrowLeft")
    waits_for(one, 1)
    two.keyboard.press("ArrowRight")
    waits_for(two, 1)
    assert [row["choice"] for row in written(folder)] == ["left"]


def test_keyboard_alone(started: list[ArenaProcess], open_page: Callable[..., Any]) -> None:
    page = open_page(started[-1].links["me"]).page
    waits_for(page, 0)
    seen = set()
    for _ in range(9):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("document.activeElement.id || document.activeElement.dataset.choice"))
    assert {"left", "right", "tie", "both_bad", "skip"} <= seen
    page.focus("[data-choice=tie]")
    page.keyboard.press("Enter")
    waits_for(page, 1)


@pytest.mark.slow
def test_hostile_texts_stay_texts(tmp_path: Path, open_page: Callable[..., Any]) -> None:
    def text(who: str, _: str, number: int) -> str:
        return (PAYLOADS[number] or ".") + ("" if who != "gad" else " and more")

    folder = write_run(tmp_path / "hostile", prompts=len(PAYLOADS), text=text)
    arena = ArenaProcess(
        folder,
        pairs=[{"first": "gad", "second": "teacher"}],
        sets=["held_out"],
        comparisons=500,
    )
    try:
        watched = open_page(arena.links["me"])
        page, shown = watched.page, set()
        total = len(PAYLOADS)
        for done in range(total):
            waits_for(page, done)
            shown.update(page.locator(".text").evaluate_all("(all) => all.map((one) => one.textContent)"))
            page.keyboard.press("s")
        waits_for(page, total)
        assert {visible(payload or ".") for payload in PAYLOADS} <= shown
        assert visible(MEGABYTE) in shown
        assert page.evaluate("window.__pwned") is None
        assert watched.errors == []
        assert {url.split("/")[2] for url in watched.requests} == {f"127.0.0.1:{arena.port}"}
    finally:
        arena.stop()


def test_a_sheet_is_filled_offline_and_taken_back(folder: Path, tmp_path: Path, open_page: Callable[..., Any]) -> None:
    config = ArenaConfig(pairs=(ArenaPair(first="gad", second="teacher"),), comparisons=12)
    path = export(folder, tmp_path / "sheet.html", config=config)
    watched = open_page(path.as_uri(), width=360)
    page = watched.page
    assert watched.axe() == []
    page.fill("#name", "Ann B.")
    page.keyboard.press("Enter")
    for done in range(5):
        waits_for(page, done)
        page.keyboard.press("ArrowLeft")
    waits_for(page, 5)
    page.reload()
    waits_for(page, 5)
    page.keyboard.press("u")
    waits_for(page, 4)
    for done in range(4, 12):
        waits_for(page, done)
        page.keyboard.press("ArrowRight")
    waits_for(page, 12)
    assert watched.axe() == []
    assert not watched.scrolls_sideways()
    with page.expect_download() as download:
        page.click("#save")
    assert download.value.suggested_filename == "votes-Ann-B-.json"
    file = tmp_path / "votes.json"
    download.value.save_as(file)
    assert import_votes(folder, file).added == 12
    assert results(folder).raters == {"Ann B.": 12}
    assert [row["choice"] for row in written(folder)] == ["left"] * 4 + ["right"] * 8
    assert watched.errors == []
    assert {url for url in watched.requests if not url.startswith("blob:")} == {path.as_uri()}
