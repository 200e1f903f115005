"""The picture of `toy.py` as SVG: every curve has its own dashes and its own label, so colour carries nothing."""

import math
from collections.abc import Mapping, Sequence

LEFT, RIGHT, TOP, BOTTOM = 50, 690, 70, 330
DASHES = {"SeqKD": "9 5", "GAD": "none"}
LABEL_AT, LABEL_CLEARS = {"SeqKD": -0.25, "GAD": 0.6}, 0.12


def draw(points: Sequence[float], teacher: Sequence[float], students: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Densities from log-probabilities at equally spaced points: the teacher as an area, students one line per seed."""
    step = points[1] - points[0]
    teacher_density = [math.exp(log_prob) / step for log_prob in teacher]
    densities = {name: [[math.exp(p) / step for p in row] for row in rows] for name, rows in students.items()}
    top = max(max(teacher_density), *(max(row) for rows in densities.values() for row in rows))

    def x_of(x: float) -> float:
        return LEFT + (x - points[0]) / (points[-1] - points[0]) * (RIGHT - LEFT)

    def y_of(density: float) -> float:
        return BOTTOM - density / top * (BOTTOM - TOP)

    def corners(density: Sequence[float]) -> str:
        return " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in zip(points, density, strict=True))

    def label(text: str, x: float, density: float) -> str:
        return f'<text x="{x_of(x):.1f}" y="{y_of(density) - 9:.1f}" text-anchor="middle">{text}</text>'

    first_peak = max(range(len(points) // 2), key=teacher_density.__getitem__)
    parts = [
        f'<polygon points="{LEFT},{BOTTOM} {corners(teacher_density)} {RIGHT},{BOTTOM}" fill="#ccc" stroke="#777"/>',
        label("teacher", points[first_peak], teacher_density[first_peak]),
    ]
    for name, rows in densities.items():
        pen = f'fill="none" stroke="#111" stroke-width="2" stroke-opacity=".75" stroke-dasharray="{DASHES[name]}"'
        parts += [f'<polyline points="{corners(row)}" {pen}/>' for row in rows]
        near = [n for n, x in enumerate(points) if abs(x - LABEL_AT[name]) <= LABEL_CLEARS]
        parts.append(label(name, LABEL_AT[name], max(row[n] for row in rows for n in near)))
    for x in (-1, -0.5, 0, 0.5, 1):
        parts.append(f'<path d="M{x_of(x):.1f} {BOTTOM}v5" stroke="#111"/>')
        parts.append(f'<text x="{x_of(x):.1f}" y="{BOTTOM + 21}" text-anchor="middle">{x:g}</text>')
    seeds = max(len(rows) for rows in densities.values())
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 740 365" font-family="sans-serif" font-size="15">'
        "<title>A teacher with three modes; SeqKD spreads over all of them, GAD settles on one</title>"
        '<rect width="740" height="365" fill="#fff"/>'
        f'<text x="{LEFT}" y="28">Probability density; one line for each of {seeds} seeds</text>'
        f'{"".join(parts)}<path d="M{LEFT} {BOTTOM}H{RIGHT}" stroke="#111"/></svg>\n'
    )
