"""Pictures of the bench's results, as SVG: how long a step takes each contestant, and what grows with what."""

from __future__ import annotations

from typing import Any

WORKLOADS = ("short", "long")
NAMES = {
    "ours": "gad",
    "ours_grpo": "gad, frozen discriminator",
    "trl_grpo": "TRL GRPO, frozen reward model",
    "trl_fused": "GAD on TRL, fused",
    "trl_naive": "GAD on TRL, naive",
}
AXES = {"replies": "replies a prompt", "prompt": "prompt tokens", "reply": "reply tokens"}


def contestants(result: dict[str, Any]) -> str:
    """Bars of CPU seconds."""
    width, row, left = 720, 22, 220
    height = 2 * (len(NAMES) * row + 40)
    parts = _opening(width, height, "CPU seconds a step of each contestant")
    top = 20
    for workload in WORKLOADS:
        cells = result[workload]["contestants"]
        longest = max(cell["cpu_seconds"] for cell in cells.values())
        parts.append(f'<text x="8" y="{top}" font-weight="bold">{workload}, CPU seconds a step</text>')
        for index, (name, title) in enumerate(NAMES.items()):
            y = top + 8 + index * row
            bar = (width - left - 70) * cells[name]["cpu_seconds"] / longest
            color = "#1b6ca8" if name.startswith("ours") else "#9aa5b1"
            parts += [
                f'<text x="{left - 8}" y="{y + 14}" text-anchor="end">{title}</text>',
                f'<rect x="{left}" y="{y + 2}" width="{bar:.1f}" height="{row - 6}" fill="{color}"/>',
                f'<text x="{left + bar + 6:.1f}" y="{y + 14}">{cells[name]["cpu_seconds"]:.2f}</text>',
            ]
        top += len(NAMES) * row + 40
    return "\n".join([*parts, "</svg>"]) + "\n"


def costs(result: dict[str, Any]) -> str:
    """A panel for each axis: measured seconds as dots, operations at the last point's rate as a line."""
    panel, height, left, top, bottom = 260, 230, 44, 30, 40
    parts = _opening(panel * len(AXES), height, "CPU seconds of both updates as groups, prompts and replies grow")
    for number, (axis, title) in enumerate(AXES.items()):
        rows = result["curves"][axis]
        last = rows[-1]
        tallest = 1.1 * max(row["cpu_seconds"] for row in rows)
        x0, wide, tall = number * panel + left, panel - left - 16, height - top - bottom

        def place(value: float, seconds: float, x0: int = x0, wide: int = wide, most: float = last[axis]) -> str:
            return f"{x0 + wide * value / most:.1f},{top + tall * (1 - seconds / tallest):.1f}"  # noqa: B023

        line = " ".join(place(row[axis], row["gflop"] / last["gflop"] * last["cpu_seconds"]) for row in rows)
        parts += [
            f'<text x="{x0}" y="18" font-weight="bold">{title}</text>',
            f'<path d="M{x0},{top} V{top + tall} H{x0 + wide}" fill="none" stroke="#52606d"/>',
            f'<text x="{x0 - 6}" y="{top + 10}" text-anchor="end">{tallest:.1f} s</text>',
            f'<text x="{x0 - 6}" y="{top + tall}" text-anchor="end">0</text>',
            f'<polyline points="{line}" fill="none" stroke="#9aa5b1" stroke-width="2"/>',
        ]
        for row in rows:
            x, y = place(row[axis], row["cpu_seconds"]).split(",")
            parts.append(f'<circle cx="{x}" cy="{y}" r="4" fill="#1b6ca8"/>')
        end = f'<text x="{x0 + wide}" y="{top + tall + 16}" text-anchor="end">{last[axis]:,.0f}</text>'
        parts += [end, f'<text x="{x0}" y="{top + tall + 16}">0</text>']
    return "\n".join([*parts, "</svg>"]) + "\n"


def _opening(width: int, height: int, label: str) -> list[str]:
    return [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{label}">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
    ]
