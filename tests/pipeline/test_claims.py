"""The claims on the quickstart's model: figures over seeds, tables, the picture, and what is committed."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from claims import arms, brief, game, layers, quickstart, short_forms, short_game  # noqa: E402
from claims.quickstart_picture import draw  # noqa: E402

from gad.config.run import RunConfig  # noqa: E402
from gad.storage import write_jsonl  # noqa: E402
from support import runs, tiny  # noqa: E402

COMMITTED = ROOT / quickstart.WRITTEN


def rows(seed: int, decoding: str = "t1") -> list[dict[str, Any]]:
    """Made-up figures: a tenth of arm number + set number / 10 + seed / 100."""
    return [
        {
            "seed": seed,
            "arm": arm,
            "set": name,
            "decoding": decoding,
            "name": figure,
            "value": (a + s / 10 + seed / 100) / 10,
        }
        for a, arm in enumerate(quickstart.ARMS)
        for s, name in enumerate(quickstart.SETS)
        for figure in ("preference", "c2st_auc")
    ]


def test_means_and_differences_are_over_seeds() -> None:
    found = quickstart.summarized([*rows(1), *rows(3), *rows(2, "greedy")], "t1")
    gad = found["gad"]["out_of_distribution"]["preference"]
    assert (gad["mean"], gad["seeds"]) == (pytest.approx((3 + 0.1 + 0.02) / 10), 2)
    assert gad["high"] - gad["mean"] == pytest.approx(12.706 * 0.001, rel=1e-3)  # t of one degree of freedom
    paired = found["paired"]["gad_minus_base"]["held_out"]["preference"]
    assert paired == pytest.approx({"mean": 0.3, "low": 0.3, "high": 0.3, "seeds": 2})
    assert found["paired"]["gad_minus_gad_cross_entropy"]["held_out"]["c2st_auc"]["mean"] == pytest.approx(-0.1)


def test_an_interval_of_a_share_stays_between_0_and_1() -> None:
    found = quickstart.summarized([*rows(1), *rows(90)], "t1")
    base = found["base"]["held_out"]["preference"]
    assert base["low"] == 0.0 < base["mean"] < base["high"] < 1.0
    difference = [*rows(1), *(row | {"value": row["value"] / 2} for row in rows(90))]
    assert quickstart.summarized(difference, "t1")["paired"]["gad_minus_base"]["held_out"]["preference"]["low"] < 0


def test_the_table_has_every_arm_and_every_difference() -> None:
    both = [*rows(1), *rows(2), *rows(1, "greedy"), *rows(2, "greedy")]
    greedy = quickstart.summarized(both, "greedy")
    text = quickstart.table({**quickstart.summarized(both, "t1"), "greedy": greedy})
    for title in quickstart.ARMS.values():
        assert text.count(f"\n| {title} |") == 4
    assert text.count("*GAD less ") == 16
    assert "*GAD less SeqKD, 3 epochs* | +0.20 (+0.20 to +0.20)" in text


def test_the_picture_has_a_mark_for_every_seed_and_arm() -> None:
    svg = draw([*rows(1), *rows(2)], quickstart.ARMS, quickstart.SETS)
    marks = [e for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}path") if "opacity" in e.attrib]
    assert len(marks) == 2 * 5 * (2 + 1) + 5


def tiny_recipe(folder: Path) -> Path:
    """In place of the quickstart's."""
    config = runs.run_config(folder, tiny.save(folder / "model"))
    recipe = folder / "recipe.yaml"
    recipe.write_text(json.dumps(config.model_dump(mode="json", exclude={"name"}) | {"name": "x"}), encoding="utf-8")
    return recipe


@pytest.mark.slow
def test_a_seed_of_a_tiny_model_gives_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(quickstart, "RECIPE", tiny_recipe(tmp_path))
    quickstart.run_seed(7, tmp_path / "work", ())
    found = json.loads((tmp_path / "work" / "seed7.json").read_text(encoding="utf-8"))
    assert found["seqkd_epochs_at_equal_time"] > 1
    figures = quickstart.summarized(found["rows"], "t1")
    for arm in quickstart.ARMS:
        for name in quickstart.SETS:
            assert {"preference", "c2st_auc", "style", "length_ratio"} <= figures[arm][name].keys()
    assert figures["gad"]["held_out"] != figures["gad_cross_entropy"]["held_out"]
    assert figures["seqkd"]["held_out"] != figures["seqkd_equal_time"]["held_out"]


def test_the_page_shows_what_is_committed() -> None:
    results = json.loads(COMMITTED.read_text(encoding="utf-8"))
    assert quickstart.table(results) in (ROOT / quickstart.PAGE).read_text(encoding="utf-8")
    again = quickstart.summarized(results["rows"], "t1")
    assert all(results[arm] == again[arm] for arm in (*quickstart.ARMS, "paired"))
    assert draw(results["rows"], quickstart.ARMS, quickstart.SETS) == (ROOT / quickstart.PICTURE).read_text("utf-8")
    assert all(results[arm][name]["preference"]["seeds"] >= 3 for arm in quickstart.ARMS for name in quickstart.SETS)


SHORT_FORMS = {"brief": brief.FORM, "game": game.FORM, "short-game": short_game.FORM}


@pytest.mark.slow
def test_a_seed_of_a_short_form_gives_every_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    form = brief.FORM
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(short_forms, "RECIPE", tiny_recipe(tmp_path))
    phases = "warmup.phases=[{train: student, epochs: 1}, {train: discriminator, steps: 1}]"
    monkeypatch.setattr(short_forms, "OF_DEMO", {form.of_demo: ("seqkd.start_from=warmup", phases)})
    short_forms.run_seed(form, 7, tmp_path / "work", ())
    found = json.loads((tmp_path / "work" / "seed7.json").read_text(encoding="utf-8"))
    short_forms.write_results(form, [found], tmp_path / "out.json", "x")
    results = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert all("preference" in results[arm][name] for arm in form.arms for name in ("held_out", "out_of_distribution"))
    assert results["gad"]["held_out"] != results["gad_one_step_off"]["held_out"]
    checkpoints = tmp_path / "work" / "seed7-gad-one-step-off" / "checkpoints"
    assert {path.name.partition("-")[0] for path in checkpoints.iterdir()} >= {"seqkd", "warmup", "adversarial"}


@pytest.mark.parametrize(
    ("name", "control_epochs"),
    [("brief", 0.5 * 50 / 4 - 0.5), ("game", 4 * 50 / 4 - 4), ("short-game", 3 * 50 / 4 - 3)],
)
def test_imitation_of_the_same_time_counts_all_of_the_games_warm_up(
    name: str, control_epochs: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imitation took 4 s of the warm-up's 20; warm-up and game took 50."""
    form, made = SHORT_FORMS[name], []

    def measured(config: RunConfig) -> dict[str, Any]:
        made.append(config)
        return {"seconds": {"seqkd": 1.0, "warmup": 20.0, "adversarial": 30.0}, "figures": []}

    monkeypatch.setattr(short_forms, "evaluated", measured)
    monkeypatch.setattr(short_forms, "forked", lambda source, config: measured(config))
    (tmp_path / "seed7").mkdir()
    logged = [("seqkd", "student", 9.0), ("warmup", "student", 3.0), ("warmup", "student", 1.0)]
    logged.append(("warmup", "discriminator", 16.0))
    rows = [
        {"stage": stage, f"{player}/{'cross_entropy' if player == 'student' else 'loss'}": 1.0, "time/step": seconds}
        for stage, player, seconds in logged
    ]
    write_jsonl(tmp_path / "seed7" / "metrics.jsonl", rows)
    short_forms.run_seed(form, 7, tmp_path, ())
    own, longer, *others = (config.model_dump() for config in made)
    assert longer["seqkd"]["epochs"] == pytest.approx(control_epochs, abs=1e-2)
    assert longer == own | {"name": longer["name"], "seqkd": own["seqkd"] | {"epochs": longer["seqkd"]["epochs"]}}
    changed = own["adversarial"] | {"one_step_off": True}
    assert others == [own | {"name": other["name"], "adversarial": changed} for other in others]
    assert len(others) == (form.other is not None)


@pytest.mark.parametrize("name", SHORT_FORMS)
def test_the_page_shows_the_short_form_that_is_committed(name: str) -> None:
    form = SHORT_FORMS[name]
    results = json.loads((ROOT / form.written).read_text(encoding="utf-8"))
    assert short_forms.table(form, results) in (ROOT / short_forms.PAGE).read_text(encoding="utf-8")
    assert set(results["settings"]["form"]) == set(form.changes)
    again = arms.summarized(results["rows"], "t1", form.against)
    assert all(results[arm] == again[arm] for arm in (*form.arms, "paired"))


def judged(layer: int, cost: float, right: list[list[float]]) -> dict[str, Any]:
    sets = {name: {"right": right, "margin": 0.5} for name in ("held_out", "out_of_distribution")}
    return {"layer": layer, "cpu_seconds": cost, "flops": 2 * cost, **sets}


def test_a_layer_is_compared_with_the_deepest_prompt_by_prompt() -> None:
    found = layers.summarized(
        [judged(4, 8.0, [[1.0], [1.0], [0.0], [1.0]]), judged(2, 2.0, [[1.0], [0.0], [0.0], [0.5]])]
    )
    assert (found["4"]["held_out"]["value"], found["2"]["held_out"]["value"]) == (0.75, 0.375)
    assert found["2"]["held_out_minus_deepest"]["value"] == pytest.approx(-0.375)
    assert found["2"]["cpu_seconds_over_deepest"] == found["2"]["flops_over_deepest"] == 0.25
    assert "held_out_minus_deepest" not in found["4"]
    assert layers.table(found).count("\n| 2 | 0.38 (") == 1


def test_each_layer_learns_from_the_same_replies(tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model")
    config = runs.run_config(tmp_path, model, seqkd=None, adversarial=None)
    phases = [{"train": "student", "steps": 1}]
    config = RunConfig.model_validate(
        {**config.model_dump(), "warmup": {**config.model_dump()["warmup"], "phases": phases}}
    )
    deep, shallow = layers.measured(config, [1, 4], steps=2, replies=2)
    assert (deep["layer"], shallow["layer"]) == (4, 1)
    assert shallow["flops"] < 0.5 * deep["flops"]
    assert [len(deep[name]["right"]) for name in ("held_out", "out_of_distribution")] == [5, 4]
    assert {len(row) for row in deep["held_out"]["right"]} == {2}
    assert deep["held_out"]["margin"] != shallow["held_out"]["margin"]


def test_the_page_shows_the_layers_that_are_committed() -> None:
    results = json.loads((ROOT / layers.WRITTEN).read_text(encoding="utf-8"))
    assert layers.table(results["summary"]) in (ROOT / layers.PAGE).read_text(encoding="utf-8")
    assert layers.summarized(results["rows"]) == results["summary"]
    assert results["changed"] == []
