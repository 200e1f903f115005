from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from gad.report.curves import MOST_POINTS, curves, sampled_rows, smoothed, thinned
from gad.report.intervals import Dot, PlanePoint, dots_picture, plane_picture
from gad.report.svg import Scale, span, tag, tick_text, ticks


def parsed(markup: object) -> ElementTree.Element:
    return ElementTree.fromstring(str(markup))


def dot(**changed: object) -> Dot:
    values: dict[str, object] = {"label": "GAD", "text": "54%", "value": 0.54, "low": 0.47, "high": 0.59, "series": 2}
    return Dot(**(values | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (0, 40, [0, 10, 20, 30, 40]), (-0.4, 0.3, [-0.4, -0.2, 0, 0.2])],
)
def test_ticks_are_round_and_inside(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_tick_texts() -> None:
    assert [tick_text(v) for v in (0.0, 0.25, -0.5, 12345.0, 0.00002)] == ["0", "0.25", "−0.5", "1e4", "2e−5"]


def test_scale_maps_ends_and_clamps() -> None:
    scale = Scale(0.0, 2.0, 10.0, 110.0)
    assert [scale(v) for v in (0.0, 1.0, 2.0, 9.0)] == [10.0, 60.0, 110.0, 110.0]
    with pytest.raises(ValueError, match="a scale from"):
        Scale(1.0, 1.0, 0.0, 1.0)


def test_span_has_width_and_does_not_go_below_zero_for_air() -> None:
    assert span([3.0, 3.0]) == pytest.approx((2.7, 3.3))
    assert span([0.0, 0.0]) == (0.0, 0.05)
    assert span([0.0, 1.0])[0] == 0.0
    assert span([-1.0, 1.0])[0] < -1.0
    assert span([0.8, 0.9], include=(0.5,))[0] < 0.5 + 1e-12


def test_elements_escape_text_and_attributes() -> None:
    assert tag("text", "<b>", class_='"><script>') == '<text class="&#34;&gt;&lt;script&gt;">&lt;b&gt;</text>'


def test_dots_stand_where_their_values_are() -> None:
    root = parsed(dots_picture("label", [dot(value=0.25, low=0.2, high=0.3), dot(value=0.75, low=0.7, high=0.8)], 0.5))
    whiskers = [line for line in root.iter("line") if "whisker" in line.attrib["class"]]
    first, second = ((float(w.attrib["x1"]) + float(w.attrib["x2"])) / 2 for w in whiskers)
    level = next(float(line.attrib["x1"]) for line in root.iter("line") if line.attrib["class"] == "level")
    assert first < level < second
    assert level == pytest.approx((first + second) / 2, abs=0.1)


def test_out_of_distribution_is_hollow_and_few_prompts_are_faint() -> None:
    root = parsed(dots_picture("label", [dot(hollow=True, faint=True, low=None, high=None)], None))
    assert [e.attrib["class"] for e in root.iter("polygon")] == ["mark s2 faint hollow"]
    assert not [line for line in root.iter("line") if "whisker" in line.attrib["class"]]


def test_plane_labels_do_not_overlap() -> None:
    points = [
        PlanePoint(f"Arm number {n}", dot(value=0.5 + 0.001 * n), dot(value=0.8, low=0.7, high=0.9)) for n in range(4)
    ]
    root = parsed(plane_picture(points))
    labels = [
        (float(e.attrib["x"]), float(e.attrib["y"]), e.text or "")
        for e in root.iter("text")
        if e.attrib["class"] == "point-name"
    ]
    assert len(labels) == 5
    for index, (x, y, text) in enumerate(labels):
        for other_x, other_y, other in labels[index + 1 :]:
            apart = x + 5 * len(text) < other_x or other_x + 5 * len(other) < x or abs(y - other_y) >= 10
            assert apart, (text, other)


def test_thinning_keeps_spikes_and_ends() -> None:
    points = [(step, math.sin(step / 50)) for step in range(5000)]
    points[2345] = (2345, 99.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS + 2
    assert (2345, 99.0) in kept
    assert kept == sorted(kept)
    assert thinned(points[:10]) == points[:10]


def test_smoothing_is_a_centred_mean() -> None:
    assert smoothed([(1, 0.0), (2, 3.0), (3, 6.0), (4, 0.0)], 3) == [(1, 1.5), (2, 3.0), (3, 3.0), (4, 3.0)]


def rows(stage: str, metric: str, values: list[float | None]) -> list[dict[str, object]]:
    return [{"stage": stage, "step": step, metric: value} for step, value in enumerate(values, start=1)]


def test_adversarial_follows_the_warm_up_on_one_axis() -> None:
    metric = "discriminator/margin"
    found = curves([*rows("warmup", metric, [0.0, 1.0]), *rows("adversarial", metric, [1.0, 0.0])])
    assert [(curve.panel.metric, curve.stages) for curve in found] == [(metric, ("warmup", "adversarial"))]
    traces = [e.attrib["points"] for e in parsed(found[0].picture).iter("polyline")]
    ends = [[float(pair.split(",")[0]) for pair in trace.split()] for trace in traces]
    assert ends[0][-1] < ends[1][0]
    assert ends[1][-1] == pytest.approx(348.0)


def test_null_and_strange_values_are_left_out_of_a_curve() -> None:
    values: list[object] = [1.0, None, "x", True, float("nan"), 2.0]
    found = curves(rows("adversarial", "reward/mean", values))  # type: ignore[arg-type]
    trace = next(parsed(found[0].picture).iter("polyline")).attrib["points"]
    assert len(trace.split()) == 2


def test_long_runs_stay_small_and_say_what_is_smoothed() -> None:
    found = curves(rows("adversarial", "reward/mean", [math.sin(s) for s in range(3000)]))
    assert found[0].window == 150
    assert len(str(found[0].picture)) < 12_000
    _, body, every = sampled_rows(rows("adversarial", "reward/mean", [0.0] * 3000))
    assert every == 50
    assert len(body) <= 61
    assert body[-1][1] == 3000


def test_the_independent_discriminator_is_not_mixed_into_the_game() -> None:
    assert curves(rows("independent", "discriminator/margin", [0.0, 1.0])) == []


def test_pictures_have_a_name_and_no_inline_style() -> None:
    found = curves(rows("adversarial", "reward/mean", [0.25, 0.5]))
    root = parsed(found[0].picture)
    assert root.attrib["aria-label"] == "Mean reward: Adversarial from 0.25 to 0.5 over 2 steps"
    assert not re.search(r"style=|on[a-z]+=", str(found[0].picture))


def test_a_landmark_is_named_where_the_curve_is_not() -> None:
    def anchor(values: list[float | None]) -> str:
        root = parsed(curves(rows("adversarial", "discriminator/loss", values))[0].picture)
        return next(e.attrib["text-anchor"] for e in root.iter("text") if e.attrib["class"] == "level-name")

    assert anchor([0.69, 0.4, 0.1]) == "end"
    assert anchor([0.1, 0.4, 0.69]) == "start"
