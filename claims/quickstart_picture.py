"""Preference against C2ST as SVG: each arm has its own mark and its own label, so colour carries nothing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 420, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 400, 50, 300
MARKS = {
    "base": "M-4,-4 L4,4 M-4,4 L4,-4",
    "seqkd": "M-4,-4 H4 V4 H-4 Z",
    "seqkd_equal_time": "M0,-5 L5,4 H-5 Z",
    "gad": "M0,-5 A5,5 0 1,0 0.01,-5 Z",
    "gad_cross_entropy": "M0,-6 L6,0 L0,6 L-6,0 Z",
}


def draw(rows: Sequence[Mapping[str, Any]], arms: Mapping[str, str], sets: Mapping[str, str]) -> str:
    """A panel for each set; small marks are seeds, the large one is their mean. Up is better liked, left is closer."""
    panels = [
        f'<g transform="translate({number * WIDTH},0)">{_panel(rows, set_name, says, arms)}</g>'
        for number, (set_name, says) in enumerate(sets.items())
    ]
    width, legend = WIDTH * len(sets), HEIGHT + 20
    keys = [
        f'<g transform="translate({30 + number * (width - 40) / len(arms):.0f},{legend})">{_mark(arm, 0, 0)}'
        f'<text x="12" y="4">{says}</text></g>'
        for number, (arm, says) in enumerate(arms.items())
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT + 40}" role="img" '
        'font-family="sans-serif" font-size="12"><title>Preference against C2ST</title>'
        f'<rect width="100%" height="100%" fill="#fff"/>{"".join(panels)}{"".join(keys)}</svg>\n'
    )


def _panel(rows: Sequence[Mapping[str, Any]], set_name: str, says: str, arms: Mapping[str, str]) -> str:
    parts = [f'<text x="{(LEFT + RIGHT) / 2}" y="30" text-anchor="middle" font-size="14">{says}</text>']
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _y(tick)
        parts.append(f'<path d="M{LEFT},{y:.1f} H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:.2f}</text>')
    for tick in (0.5, 0.6, 0.7, 0.8, 0.9, 1.0):
        parts.append(f'<text x="{_x(tick):.1f}" y="{BOTTOM + 18}" text-anchor="middle">{tick:.1f}</text>')
    middle = (LEFT + RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{BOTTOM + 36}" text-anchor="middle">C2ST: .5 cannot be told apart</text>')
    parts.append(
        f'<text transform="translate(18,{(TOP + BOTTOM) / 2}) rotate(-90)" text-anchor="middle">'
        "preferred to the teacher</text>"
    )
    for arm in arms:
        across, up = (_values(rows, arm, set_name, name) for name in ("c2st_auc", "preference"))
        parts += [_mark(arm, _x(x), _y(y), small=True) for x, y in zip(across, up, strict=True)]
        parts.append(_mark(arm, _x(statistics.fmean(across)), _y(statistics.fmean(up))))
    return "".join(parts)


def _values(rows: Sequence[Mapping[str, Any]], arm: str, set_name: str, name: str) -> list[float]:
    return [
        float(row["value"])
        for row in rows
        if (row["arm"], row["set"], row["name"], row["decoding"]) == (arm, set_name, name, "t1")
    ]


def _mark(arm: str, x: float, y: float, *, small: bool = False) -> str:
    scale, opacity = (0.7, 0.45) if small else (1.5, 1.0)
    return (
        f'<path d="{MARKS[arm]}" transform="translate({x:.1f},{y:.1f}) scale({scale})" fill="#fff" '
        f'fill-opacity=".6" stroke="#111" stroke-width="1.6" opacity="{opacity}"/>'
    )


def _x(auc: float) -> float:
    return LEFT + (max(auc, 0.45) - 0.45) / 0.55 * (RIGHT - LEFT)


def _y(preference: float) -> float:
    return BOTTOM - preference * (BOTTOM - TOP)
