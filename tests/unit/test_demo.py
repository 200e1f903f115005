"""The demo takes the longest form of the quickstart that fits the machine, and goes on in the form it began with."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from gad.config.loading import load
from gad.schedule import steps_for

ROOT = Path(__file__).parents[2]
MADE = runpy.run_path(str(ROOT / "scripts" / "demo.py"))
RECIPE = MADE["QUICKSTART"]


@pytest.fixture(autouse=True)
def _in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that would be run."""
    commands: list[list[str]] = []
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setitem(MADE["main"].__globals__, "gad", lambda: commands.append(sys.argv))
    return commands


def on_a_machine(monkeypatch: pytest.MonkeyPatch, seconds: float, arithmetic: str = "float32") -> None:
    monkeypatch.setitem(MADE["main"].__globals__, "_step_seconds", lambda _: (seconds, arithmetic))


def work(name: str, arithmetic: str = "float32") -> float:
    steps: float = MADE["steps_of_work"](load(Path(RECIPE), MADE["FORMS"][name]), MADE["COSTS"][arithmetic])
    return steps


@pytest.mark.parametrize("arithmetic", MADE["COSTS"])
def test_every_form_is_less_than_the_one_before(arithmetic: str) -> None:
    sizes = [work(name, arithmetic) for name in MADE["FORMS"]]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 5 * sizes[-1]


@pytest.mark.parametrize("form", [name for name in MADE["FORMS"] if name != "full"])
def test_both_arms_of_a_short_form_learn_from_as_many_replies_of_the_teacher(form: str) -> None:
    config = load(Path(RECIPE), MADE["FORMS"][form])
    assert config.seqkd is not None
    assert config.adversarial is not None
    imitated = steps_for(config.seqkd.epochs, 300, config.seqkd.batch_size) * config.seqkd.batch_size
    assert imitated == (config.adversarial.steps or 0) * config.adversarial.batch_size
    keys = [change.partition("=")[0] for change in MADE["FORMS"][form]]
    assert len(set(keys)) == len(keys)


def test_the_work_of_the_full_form_by_hand() -> None:
    """5 epochs of 300 prompts in 16s are 93.75 steps of imitation; the rest from the constants. Replies for the 19
    lessons are sampled 64 at a time."""
    lessons = 10 * 0.4 + 19 * (32 * 0.025 + 48 * 0.0165)
    step = 0.4 + 64 * 0.025 + 64 * 0.07 + 80 * 0.0165
    judging = 2 * (5 * 0.4 + 300 * 0.025) + 900 * 0.029
    measured = 12 * (0.4 + 60 * 0.025) + 2 * 7 * 60 * 0.0135 + 6 * 60 * 0.03
    assert work("full") == pytest.approx(93.75 + lessons + 20 * step + judging + measured + 9.0)


def test_the_work_of_a_game_form_by_hand() -> None:
    """Of a brief one below, two epochs of imitation instead of half of one, 12 lessons, and 64 rows that the student
    learns from under a reference policy."""
    lessons = 56 / 64 * (3 * 0.4 + 384 * 0.025) + 12 * 40 * 0.0165
    step = 56 / 64 * (0.4 + 64 * 0.025) + 64 * (0.05 + 0.02) + 80 * 0.0165
    judging = 2 * 56 / 64 * (0.4 + 36 * 0.025) + 108 * 0.029
    measured = 6 * 56 / 64 * (0.4 + 24 * 0.025) + 2 * 4 * 24 * 0.0135 + 6 * 24 * 0.03
    imitated = 0.85 * 2.48 * 18.75
    assert work("game-9") == pytest.approx(imitated + lessons + 9 * step + judging + measured + 9.0, abs=1e-2)


def test_the_work_of_a_brief_form_by_hand() -> None:
    """Rows without a system prompt, replies of 56 tokens at most, no reference policy, one decoding; of 64 replies the
    student learns from 16; the 192 for six lessons are sampled 128 at a time."""
    lessons = 56 / 64 * (2 * 0.4 + 192 * 0.025) + 6 * 40 * 0.0165
    step = 56 / 64 * (0.4 + 64 * 0.025) + 16 * 0.05 + 72 * 0.0165
    mixed = 8 / 16 * 0.85
    judging = 2 * 56 / 64 * (0.4 + 36 * 0.025) + 108 * 0.029
    measured = 6 * 56 / 64 * (0.4 + 24 * 0.025) + 2 * 4 * 24 * 0.0135 + 6 * 24 * 0.03
    imitated = 0.85 * 0.66 * 18.75
    assert work("brief-6") == pytest.approx(imitated + lessons + 6 * (step + mixed) + judging + measured + 9.0)


@pytest.mark.parametrize(
    ("share", "form"),
    [
        (0.99, "full"),
        (1.01, "game-18"),
        (2.5, "game-9"),
        (3.0, "brief-16"),
        (3.25, "brief-14"),
        (4.4, "brief-9"),
        (20.0, "least"),
    ],
)
def test_the_longest_form_that_fits_is_run(
    share: float, form: str, started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    on_a_machine(monkeypatch, share * MADE["MINUTES"] * 60 / work("full"))
    MADE["main"](RECIPE, [f"runs_dir={tmp_path}"])
    assert started[0] == ["gad", "run", RECIPE, *MADE["FORMS"][form], f"runs_dir={tmp_path}"]
    assert (f"its {form} form" in capsys.readouterr().out) == (form != "full")


@pytest.mark.parametrize("form", ["full", "game-9", "brief-9", "least"])
def test_a_run_goes_on_in_the_form_it_began_with(
    form: str, started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [f"runs_dir={tmp_path}", "compute.threads=1"]
    config = load(Path(RECIPE), [*MADE["FORMS"][form], *own])
    config.folder.mkdir(parents=True)
    (config.folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    on_a_machine(monkeypatch, 1e9)
    MADE["main"](RECIPE, own)
    assert started[0][3:] == [*MADE["FORMS"][form], *own]


def test_another_run_file_is_run_as_it_is(started: list[list[str]]) -> None:
    MADE["main"]("recipes/quickstart-long.yaml", ["name=x"])
    assert started[0] == ["gad", "run", "recipes/quickstart-long.yaml", "name=x"]
