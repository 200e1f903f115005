"""Pictures as inline SVG: sharp on every screen and in print, no script, no file beside it, the page's own colours.

Colour is never alone: every series also has its own mark, dash and label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

MARKS = ("circle", "square", "triangle", "diamond", "wedge", "cross")


def tag(name: str, *children: str | Markup, **attributes: object) -> Markup:
    """One element; `class_` and `text_anchor` become `class` and `text-anchor`, children that are not Markup are
    escaped, attributes that are None are left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = Markup("").join(escape(child) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def _number(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def picture(width: int, height: int, label: str, *children: Markup) -> Markup:
    """An SVG that scales with its column; `label` is what a screen reader says."""
    return tag("svg", *children, class_="chart", viewBox=f"0 0 {width} {height}", role="img", aria_label=label)


def mark(shape: int, x: float, y: float, size: float, class_: str) -> Markup:
    """The mark of the series number `shape`, centred on (x, y)."""
    r = size
    match MARKS[shape % len(MARKS)]:
        case "circle":
            return tag("circle", cx=x, cy=y, r=r, class_=class_)
        case "square":
            return tag("rect", x=x - r * 0.9, y=y - r * 0.9, width=r * 1.8, height=r * 1.8, class_=class_)
        case "triangle":
            corners = [(0.0, -1.2), (1.15, 0.85), (-1.15, 0.85)]
        case "diamond":
            corners = [(0.0, -1.3), (1.3, 0.0), (0.0, 1.3), (-1.3, 0.0)]
        case "wedge":
            corners = [(0.0, 1.2), (1.15, -0.85), (-1.15, -0.85)]
        case _:
            a, b = 0.4, 1.15
            arm = [(-a, -a), (-a, -b), (a, -b), (a, -a)]
            corners = [*arm, (b, -a), (b, a), *((-cx, -cy) for cx, cy in arm), (-b, a), (-b, -a)]
    points = " ".join(f"{x + dx * r:.1f},{y + dy * r:.1f}" for dx, dy in corners)
    return tag("polygon", points=points, class_=class_)


def polyline(points: Iterable[tuple[float, float]], class_: str) -> Markup:
    """A line through the points (pixels)."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


@dataclass(frozen=True, slots=True)
class Scale:
    """Values to pixels, linear: `low` lands on `start`, `high` on `end`."""

    low: float
    high: float
    start: float
    end: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"a scale from {self.low} to {self.high}")

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + min(1.0, max(0.0, share)) * (self.end - self.start)


def span(values: Sequence[float], *, include: Sequence[float] = (), margin: float = 0.06) -> tuple[float, float]:
    """A range that holds all the values with a little air; never of width 0, never below 0 for the air alone."""
    all_values = [*values, *include]
    low, high = min(all_values), max(all_values)
    flat = high - low < 1e-9 * max(1.0, abs(high))
    air = max(abs(high) * 0.1, 0.05) if flat else (high - low) * margin
    return (max(0.0, low - air) if low >= 0.0 else low - air), high + air


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers inside the range, about `count` of them."""
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next((factor * power for factor in (1.0, 2.0, 2.5, 5.0) if factor * power >= raw * 0.999), 10.0 * power)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(index * step, 12) + 0.0 for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's label, short."""
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        mantissa, exponent = f"{value:.0e}".split("e")
        return f"{mantissa}e{int(exponent)}".replace("-", "−")
    return f"{value:.3f}".rstrip("0").rstrip(".").replace("-", "−")
