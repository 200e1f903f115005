"""Pictures of figures with their intervals: dots with whiskers, and preference against C2ST."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from gad.report.svg import Scale, mark, picture, span, tag, tick_text, ticks

WIDTH = 360
ROW = 40
LEFT, RIGHT = 12, 14
PLANE = 330


@dataclass(frozen=True, slots=True)
class Dot:
    """One estimate. `series` gives colour and mark; `hollow` is out of distribution; `faint` rests on few prompts."""

    label: str
    text: str
    value: float
    low: float | None
    high: float | None
    series: int
    hollow: bool = False
    faint: bool = False


@dataclass(frozen=True, slots=True)
class PlanePoint:
    """An arm on a set: preference (up) against C2ST (right)."""

    label: str
    preference: Dot
    c2st: Dot


def dots_picture(label: str, dots: Sequence[Dot], level: float | None, factor: float = 1.0) -> Markup:
    """Rows of dot and whisker; the label stands above its row, so that it reads on a phone.

    factor: tick labels are the values times this (100 for shares in percent).
    """
    bounds = [bound for dot in dots for bound in (dot.value, dot.low, dot.high) if bound is not None]
    low, high = span(bounds, include=() if level is None else (level,))
    height = ROW * len(dots) + 26
    x = Scale(low, high, LEFT + 6, WIDTH - RIGHT - 6)
    marks = [(x(value / factor), value) for value in ticks(low * factor, high * factor, 5)]
    parts = [
        tag("text", tick_text(value), x=at, y=height - 6, class_="tick", text_anchor="middle") for at, value in marks
    ]
    for index, dot in enumerate(dots):
        # Lines run beside the marks only, never through a label.
        centre = 4 + ROW * index + 26
        band = {"y1": centre - 8, "y2": centre + 10}
        parts.extend(tag("line", x1=at, x2=at, class_="grid", **band) for at, _ in marks)
        if level is not None:
            parts.append(tag("line", x1=x(level), x2=x(level), class_="level", **band))
        parts.extend(_row(dot, x, centre))
    return picture(WIDTH, height, label, *parts)


def _row(dot: Dot, x: Scale, centre: float) -> list[Markup]:
    style = f"s{dot.series % 6}" + (" faint" if dot.faint else "")
    parts = [
        tag("text", dot.label, x=LEFT, y=centre - 13, class_="row-name"),
        tag("text", dot.text, x=WIDTH - RIGHT, y=centre - 13, class_="row-value", text_anchor="end"),
    ]
    if dot.low is not None and dot.high is not None:
        parts.append(tag("line", x1=x(dot.low), x2=x(dot.high), y1=centre, y2=centre, class_=f"whisker {style}"))
    parts.append(mark(dot.series, x(dot.value), centre, 5.0, f"mark {style}" + (" hollow" if dot.hollow else "")))
    return parts


def plane_picture(points: Sequence[PlanePoint]) -> Markup:
    """Preference against C2ST. Top left is a student that is preferred and cannot be told from the teacher."""
    left, right, top, bottom = 44, 12, 12, 40
    xs = [v for p in points for v in (p.c2st.value, p.c2st.low, p.c2st.high) if v is not None]
    ys = [v for p in points for v in (p.preference.value, p.preference.low, p.preference.high) if v is not None]
    x = Scale(*span(xs, include=(0.5,), margin=0.1), left, WIDTH - right)
    y = Scale(*span(ys, include=(0.5,), margin=0.1), PLANE - bottom, top)
    parts = []
    for value in ticks(y.low, y.high):
        parts.append(tag("line", x1=left, x2=WIDTH - right, y1=y(value), y2=y(value), class_="grid"))
        parts.append(tag("text", f"{value * 100:.0f}%", x=left - 6, y=y(value) + 4, class_="tick", text_anchor="end"))
    for value in ticks(x.low, x.high):
        parts.append(tag("line", x1=x(value), x2=x(value), y1=top, y2=PLANE - bottom, class_="grid"))
        parts.append(tag("text", tick_text(value), x=x(value), y=PLANE - 24, class_="tick", text_anchor="middle"))
    parts.append(tag("line", x1=left, x2=WIDTH - right, y1=y(0.5), y2=y(0.5), class_="level"))
    parts.append(tag("line", x1=x(0.5), x2=x(0.5), y1=top, y2=PLANE - bottom, class_="level"))
    name = "told apart from the teacher (C2ST AUC) →"
    parts.append(tag("text", name, x=(left + WIDTH - right) / 2, y=PLANE - 6, class_="axis-name", text_anchor="middle"))
    parts.append(mark(3, x(0.5), y(0.5), 5.0, "mark s-teacher"))
    labels = [(x(0.5), y(0.5), "Teacher")]
    for point in points:
        parts.extend(_plane_point(point, x, y))
        labels.append((x(point.c2st.value), y(point.preference.value), point.label))
    parts.extend(_labels(labels, left, WIDTH - right, top, PLANE - bottom))
    said = "; ".join(f"{p.label}: preference {p.preference.text}, C2ST {p.c2st.text}" for p in points)
    return picture(WIDTH, PLANE, f"Preference against C2ST. {said}", *parts)


def _plane_point(point: PlanePoint, x: Scale, y: Scale) -> list[Markup]:
    across, up = x(point.c2st.value), y(point.preference.value)
    style = f"s{point.preference.series % 6}" + (" faint" if point.preference.faint else "")
    parts = []
    if point.c2st.low is not None and point.c2st.high is not None:
        parts.append(tag("line", x1=x(point.c2st.low), x2=x(point.c2st.high), y1=up, y2=up, class_=f"whisker {style}"))
    if point.preference.low is not None and point.preference.high is not None:
        ends = (y(point.preference.low), y(point.preference.high))
        parts.append(tag("line", x1=across, x2=across, y1=ends[0], y2=ends[1], class_=f"whisker {style}"))
    hollow = " hollow" if point.preference.hollow else ""
    parts.append(mark(point.preference.series, across, up, 6.0, f"mark {style}{hollow}"))
    return parts


def _labels(
    points: Sequence[tuple[float, float, str]], left: float, right: float, top: float, bottom: float
) -> list[Markup]:
    """Names beside their points, moved to where they hide neither a point nor each other."""
    taken = [(px - 8, py - 8, px + 8, py + 8) for px, py, _ in points]
    parts = []
    for px, py, name in points:
        width = 6.6 * len(name)
        places = [
            (px + dx if side > 0 else px - dx - width, py + dy)
            for dy in (-6.0, 15.0, -18.0, 27.0, -30.0, 39.0, -42.0)
            for dx in (8.0,)
            for side in (1, -1)
        ]
        inside = [p for p in places if p[0] >= left and p[0] + width <= right and top + 10 <= p[1] <= bottom - 2]
        boxes = [(p[0], p[1] - 10, p[0] + width, p[1] + 3) for p in inside or places[:1]]
        box = min(
            boxes, key=lambda b: (sum(_overlap(b, other) for other in taken), math.hypot(b[0] - px, b[1] - py) * 1e-6)
        )
        taken.append(box)
        parts.append(tag("text", name, x=box[0], y=box[3] - 3, class_="point-name"))
    return parts


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
