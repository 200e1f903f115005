"""Training curves as small multiples, from `metrics.jsonl`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from gad.report.svg import Scale, picture, polyline, span, tag, tick_text, ticks
from gad.report.text import one_line

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 14, 30
MOST_POINTS = 240
"""A line has at most so many points: more than the pixels can show, and the file grows for nothing."""
SMOOTH_FROM = 40
TABLE_ROWS = 60

GAME = ("warmup", "adversarial")
"""These stages follow each other on one axis; any other stage is a line of its own that starts at 0."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One metric: what it is called, how it is read, and the value that is a landmark."""

    metric: str
    title: str
    plain: str
    level: float | None = None
    level_name: str = ""


PANELS = (
    Panel(
        "discriminator/accuracy_fresh",
        "Discriminator accuracy on fresh replies",
        "Before its update, on replies it has not seen. Falling towards chance: the student keeps up. Stuck near 1: "
        "the game is lost to the discriminator.",
        0.5,
        "chance",
    ),
    Panel("discriminator/margin", "Margin", "Teacher’s score minus student’s. At 0 the two cannot be told apart.", 0.0),
    Panel(
        "reward/mean",
        "Mean reward",
        "The discriminator’s score of the student’s replies. It wanders by construction and says nothing of quality.",
    ),
    Panel(
        "reply/length_ratio_to_teacher",
        "Reply length against the teacher",
        "Far above 1 and rising: length is being rewarded, not quality.",
        1.0,
        "teacher",
    ),
    Panel(
        "student/kl_to_reference", "KL to the reference", "How far the student has moved since the warm-up, in nats."
    ),
    Panel("student/entropy", "Entropy", "Nats per token. A collapse to 0: the student says one thing only."),
    Panel("discriminator/loss", "Discriminator loss", "ln 2 where teacher and student tie.", math.log(2), "ln 2"),
    Panel("student/loss", "Student loss", "The policy loss; its level means little, jumps mean trouble."),
    Panel("student/cross_entropy", "Cross-entropy", "On the teacher’s replies, nats per token."),
    Panel("reply/repetition", "Repetition", "Share of word sequences that a sampled reply repeats."),
    Panel("reply/truncated", "Cut replies", "Share of sampled replies that hit the length limit."),
    Panel("reward/zero_std_groups", "Groups without a signal", "Share of groups whose rewards are all alike."),
    Panel("student/grad_norm", "Student’s gradient norm", "Before clipping."),
)

Point = tuple[int, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One stage's values of a metric over its steps (already shifted onto the panel's axis)."""

    stage: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Curve:
    """A panel that has data, ready for the page."""

    panel: Panel
    picture: Markup
    stages: tuple[str, ...]
    window: int


def curves(rows: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The panels for which the metrics hold values."""
    offset = max((_position(row, 0) or 0 for row in rows if row.get("stage") == "warmup"), default=0)
    steps = [_position(row, offset) for row in rows if row.get("stage") != "independent"]
    last = max((step for step in steps if step is not None), default=0)
    found = []
    for panel in PANELS:
        lines = _lines(rows, panel.metric, offset)
        if lines:
            window = max(_window(line) for line in lines)
            found.append(Curve(panel, _draw(panel, lines, offset, last), tuple(line.stage for line in lines), window))
    return found


def stage_title(stage: str) -> str:
    """A stage's name for people."""
    return {"seqkd": "SeqKD", "warmup": "Warm-up", "adversarial": "Adversarial"}.get(stage) or one_line(stage)


def sampled_rows(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]], int]:
    """The curves as numbers: header, rows (at most about TABLE_ROWS, evenly spread), and every how-many-th step."""
    kept = [row for row in rows if row.get("stage") != "independent"]
    every = max(1, math.ceil(len(kept) / TABLE_ROWS))
    metrics = [panel for panel in PANELS if any(_value(row, panel.metric) is not None for row in kept)]
    chosen = [row for index, row in enumerate(kept) if index % every == 0 or index == len(kept) - 1]
    body = [
        [stage_title(str(row.get("stage"))), row.get("step"), *[_value(row, panel.metric) for panel in metrics]]
        for row in chosen
    ]
    return ["Stage", "Step", *[panel.title for panel in metrics]], body, every


def _value(row: Mapping[str, Any], metric: str) -> float | None:
    value = row.get(metric)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _position(row: Mapping[str, Any], offset: int) -> int | None:
    """Where a row lies on the common axis."""
    step = row.get("step")
    if not isinstance(step, int):
        return None
    return step + (offset if row.get("stage") == "adversarial" else 0)


def _lines(rows: Sequence[Mapping[str, Any]], metric: str, offset: int) -> list[Line]:
    by_stage: dict[str, list[Point]] = {}
    for row in rows:
        value, stage, position = _value(row, metric), str(row.get("stage")), _position(row, offset)
        if value is not None and position is not None and stage != "independent":
            by_stage.setdefault(stage, []).append((position, value))
    return [Line(stage, tuple(sorted(points))) for stage, points in sorted(by_stage.items(), key=_stage_order)]


def _stage_order(item: tuple[str, Any]) -> tuple[int, str]:
    order = ("seqkd", *GAME)
    return (order.index(item[0]) if item[0] in order else -1, item[0])


def _window(line: Line) -> int:
    return max(3, len(line.points) // 20) if len(line.points) >= SMOOTH_FROM else 1


def smoothed(points: Sequence[Point], window: int) -> list[Point]:
    """Centred moving mean; the window shrinks at the ends."""
    half = window // 2
    values = [value for _, value in points]
    return [
        (step, math.fsum(part) / len(part))
        for index, (step, _) in enumerate(points)
        for part in [values[max(0, index - half) : index + half + 1]]
    ]


def thinned(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points: of every bucket the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most / 2))
    kept: list[Point] = []
    for start in range(0, len(points), size):
        bucket = points[start : start + size]
        ends = {min(bucket, key=lambda point: point[1]), max(bucket, key=lambda point: point[1])}
        kept.extend(sorted(ends))
    return kept


def _draw(panel: Panel, lines: Sequence[Line], offset: int, last: int) -> Markup:
    values = [value for line in lines for _, value in line.points]
    low, high = span(values, include=() if panel.level is None else (panel.level,))
    x = Scale(0.0, float(max(last, 1)), LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [*_axes(x, y), *_landmarks(panel, lines, x, y, offset)]
    for line in lines:
        parts.extend(_trace(line, x, y))
    first, end = lines[-1].points[0], lines[-1].points[-1]
    label = (
        f"{panel.title}: {stage_title(lines[-1].stage)} from {tick_text(round(first[1], 3))} "
        f"to {tick_text(round(end[1], 3))} over {len(lines[-1].points)} steps"
    )
    return picture(WIDTH, HEIGHT, label, *parts)


def _axes(x: Scale, y: Scale) -> list[Markup]:
    parts = []
    for value in ticks(y.low, y.high):
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y(value), y2=y(value), class_="grid"))
        parts.append(tag("text", tick_text(value), x=LEFT - 6, y=y(value) + 4, class_="tick", text_anchor="end"))
    for value in ticks(x.low, x.high, 5):
        if value == int(value):
            parts.append(tag("text", tick_text(value), x=x(value), y=HEIGHT - 12, class_="tick", text_anchor="middle"))
    parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=HEIGHT - BOTTOM, y2=HEIGHT - BOTTOM, class_="axis"))
    return parts


def _landmarks(panel: Panel, lines: Sequence[Line], x: Scale, y: Scale, offset: int) -> list[Markup]:
    parts = []
    if panel.level is not None:
        height = y(panel.level)
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=height, y2=height, class_="level"))
        if panel.level_name:
            lift = height - 4 if height > TOP + 14 else height + 12
            start = min(abs(line.points[0][1] - panel.level) for line in lines)
            end = min(abs(line.points[-1][1] - panel.level) for line in lines)
            at, anchor = (LEFT + 3, "start") if start > end else (WIDTH - RIGHT, "end")
            parts.append(tag("text", panel.level_name, x=at, y=lift, class_="level-name", text_anchor=anchor))
    divider = offset if lines[-1].stage == "adversarial" else 0
    if divider > 0:
        parts.append(tag("line", x1=x(divider), x2=x(divider), y1=TOP, y2=HEIGHT - BOTTOM, class_="divider"))
        over = x(divider) > 0.7 * WIDTH
        where = {"x": x(divider) - 4, "text_anchor": "end"} if over else {"x": x(divider) + 4}
        parts.append(tag("text", "adversarial →", y=TOP - 3, class_="divider-name", **where))
    return parts


def _trace(line: Line, x: Scale, y: Scale) -> list[Markup]:
    name = line.stage if line.stage in ("seqkd", *GAME) else "other"
    window = _window(line)
    raw = [(x(step), y(value)) for step, value in thinned(line.points)]
    if len(raw) == 1:
        return [tag("circle", cx=raw[0][0], cy=raw[0][1], r=3, class_=f"dot line-{name}")]
    if window == 1:
        return [polyline(raw, f"line line-{name}")]
    bold = [(x(step), y(value)) for step, value in thinned(smoothed(line.points, window))]
    return [polyline(raw, f"line thin line-{name}"), polyline(bold, f"line line-{name}")]
