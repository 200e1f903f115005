"""The demo takes the longest form of the quickstart that fits the machine, and goes on in the form it began with."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from gad.config.loading import load
from gad.folder import differences
from gad.schedule import steps_for
from gad.storage import write_jsonl

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


def work(name: str, arithmetic: str = "float32") -> Any:
    return MADE["work_of"](load(Path(RECIPE), MADE["FORMS"][name]), MADE["COSTS"][arithmetic])


@pytest.mark.parametrize("arithmetic", MADE["COSTS"])
def test_every_form_is_less_than_the_one_before(arithmetic: str) -> None:
    sizes = [work(name, arithmetic).total for name in MADE["FORMS"]]
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
    """Two epochs of 300 prompts in 16s are 37.5 steps of imitation, three are 56.25; the rest from the constants.
    Replies for the 19 lessons are sampled 64 at a time."""
    lessons = 10 * 0.4 + 19 * (32 * 0.02 + 48 * 0.015)
    step = 0.4 + 64 * 0.02 + 64 * 0.063 + 80 * 0.015
    judging = 2 * (5 * 0.4 + 300 * 0.02) + 900 * 0.027
    measured = 12 * (0.4 + 60 * 0.02) + 2 * 7 * 60 * 0.0135 + 6 * 60 * 0.03
    found = work("full")
    assert (found.before, found.steps) == (0.0, 20)
    assert found.warmup == pytest.approx(37.5 + lessons)
    assert found.step == pytest.approx(step)
    assert found.rest == pytest.approx(56.25 + judging + measured + 9.0)
    assert found.total == pytest.approx(found.warmup + 20 * step + found.rest)


def test_the_work_of_a_game_form_by_hand() -> None:
    """Of 30 layers and a head like five the student passes 15 forward and back, and the others once for four epochs;
    the discriminator 20 forward and 5 back, the independent one 25 and 10. 64 rows are learned from under a reference
    policy."""
    lessons = 56 / 64 * (2 * 0.4 + 256 * 0.02) + 8 * 40 * 0.015 * 25 / 30
    student, lower = 20 / 35, 15 / 70
    step = 56 / 64 * (0.4 + 64 * 0.02) + 64 * 0.063 * student + 80 * 0.015 * 25 / 30
    judging = 2 * 56 / 64 * (0.4 + 36 * 0.02) + 108 * 0.027 * 35 / 40
    measured = 6 * 56 / 64 * (0.4 + 24 * 0.02) + 2 * 4 * 24 * 0.0135 * 25 / 20 + 6 * 24 * 0.03
    epoch = 0.85 * 18.75
    found = work("game-4+10")
    assert found.before == pytest.approx(epoch * lower)
    assert found.warmup == pytest.approx(4 * epoch * student + lessons)
    assert found.step == pytest.approx(step)
    control = 0.5333 * epoch * (student + lower)  # less than an epoch: nothing comes again
    assert found.rest == pytest.approx(control + judging + measured + 9.0, abs=1e-2)
    assert found.total == pytest.approx(found.before + found.warmup + 10 * step + found.rest)


def test_the_work_of_a_brief_form_by_hand() -> None:
    """Rows without a system prompt, replies of 56 tokens at most, no reference policy, one decoding; of 64 replies the
    student learns from 16; the 192 for six lessons are sampled 128 at a time."""
    lessons = 56 / 64 * (2 * 0.4 + 192 * 0.02) + 6 * 40 * 0.015
    step = 56 / 64 * (0.4 + 64 * 0.02) + 16 * 0.043 + 72 * 0.015 + 8 / 16 * 0.85
    judging = 2 * 56 / 64 * (0.4 + 36 * 0.02) + 108 * 0.027
    measured = 6 * 56 / 64 * (0.4 + 24 * 0.02) + 2 * 4 * 24 * 0.0135 + 6 * 24 * 0.03
    epoch = 0.85 * 18.75
    assert work("brief-6").warmup == pytest.approx(0.5 * epoch + lessons)
    assert work("brief-6").total == pytest.approx(0.66 * epoch + lessons + 6 * step + judging + measured + 9.0, abs=0.1)


def warmed(folder: Path, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """`gad warmup` leaves a log of so many seconds behind."""
    plain = MADE["main"].__globals__["gad"]

    def gad() -> None:
        plain()
        if sys.argv[1] == "warmup":
            folder.mkdir(parents=True)
            rows = [("warmup", 0.25 * seconds), ("warmup", 0.75 * seconds), ("seqkd", 1e6)]
            write_jsonl(folder / "metrics.jsonl", [{"stage": stage, "time/step": each} for stage, each in rows])
        raise SystemExit(0)

    monkeypatch.setitem(MADE["main"].__globals__, "gad", gad)


@pytest.mark.parametrize(
    ("share", "form"),
    [(0.99, "full"), (1.01, "game-4+16"), (2.7, "game-4+10"), (3.5, "game-3+6"), (4.4, "brief-9"), (20.0, "least")],
)
def test_the_longest_form_that_fits_is_run(
    share: float, form: str, started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Its warm-up first; which takes as long as was reckoned, so that the form stays."""
    seconds = share * MADE["MINUTES"] * 60 / work("full").total
    on_a_machine(monkeypatch, seconds)
    warmed(tmp_path / "quickstart", 0.99 * seconds * work(form).warmup, monkeypatch)
    MADE["main"](RECIPE, [f"runs_dir={tmp_path}"])
    own = [RECIPE, *MADE["FORMS"][form], f"runs_dir={tmp_path}"]
    verbs = ["run"] if form == "full" else ["collect", "warmup", "run"]
    assert started == [["gad", verb, *own] for verb in verbs]
    assert (f"its {form} form" in capsys.readouterr().out) == (form != "full")


@pytest.mark.parametrize(("slower", "steps"), [(1.0, 16), (1.1, 14), (1.25, 11), (3.0, 5)])
def test_a_machine_that_became_slower_plays_fewer_steps(
    slower: float, steps: int, started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """In no time at all, by the clock of this test: so all the minutes are left for what comes after the warm-up."""
    found = work("game-4+16")
    seconds = MADE["MINUTES"] * 60 / found.after
    on_a_machine(monkeypatch, MADE["MINUTES"] * 60 / found.total)
    warmed(tmp_path / "quickstart", slower * seconds * found.warmup * 0.99, monkeypatch)
    MADE["main"](RECIPE, [f"runs_dir={tmp_path}"])
    before, after = (load(Path(RECIPE), command[3:]) for command in started[1:])
    assert after.adversarial is not None
    assert after.seqkd is not None
    assert after.adversarial.steps == steps
    assert steps_for(after.seqkd.epochs, 300, after.seqkd.batch_size) == 2 * steps
    assert (f"there is time for {steps} steps" in capsys.readouterr().out) == (steps < 16)
    changed = differences(before.model_dump(), after.model_dump())
    assert changed == (["adversarial.steps", "seqkd.epochs"] if steps < 16 else [])
    fits = found.rest + steps * found.step <= found.after / slower / 0.99
    assert fits or steps == MADE["LEAST_STEPS"]


@pytest.mark.parametrize("form", ["full", "game-4+10", "game-3+6", "brief-9", "least"])
@pytest.mark.parametrize("fewer", [0, 3])
def test_a_run_goes_on_as_it_was_begun(
    form: str, fewer: int, started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [f"runs_dir={tmp_path}", "compute.threads=1"]
    changes = MADE["FORMS"][form]
    if fewer and form != "full":
        changes = MADE["_with_steps"](changes, 7)
    config = load(Path(RECIPE), [*changes, *own])
    config.folder.mkdir(parents=True)
    (config.folder / "config.json").write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
    on_a_machine(monkeypatch, 1e9)
    MADE["main"](RECIPE, own)
    assert len(started) == 1
    assert load(Path(RECIPE), started[0][3:]) == config


def test_a_warm_up_that_fails_ends_the_demo(
    started: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        started.append(sys.argv)
        raise SystemExit(2)

    on_a_machine(monkeypatch, 1e9)
    monkeypatch.setitem(MADE["main"].__globals__, "gad", fails)
    with pytest.raises(SystemExit) as end:
        MADE["main"](RECIPE, [f"runs_dir={tmp_path}"])
    assert end.value.code == 2
    assert [command[1] for command in started] == ["collect"]


def test_another_run_file_is_run_as_it_is(started: list[list[str]]) -> None:
    MADE["main"]("recipes/quickstart-long.yaml", ["name=x"])
    assert started[0] == ["gad", "run", "recipes/quickstart-long.yaml", "name=x"]
