"""T1, the paper's toy with arms that should win, lose or fail: `python -m claims.toy` writes claims/results/toy.json.

The game is that of `examples/toy.py`. Its settings were chosen on other random numbers; the seeds here decided nothing.
Intervals: Student's t over seeds, 95%. Differences are over the same seeds: same teacher draws, same start, same first
discriminator and the same random numbers for draws and replies (in groups of another size other ones).
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from examples import toy
from examples.toy import Arm
from torch import Tensor

from claims.evidence import ROOT, interval, provenance
from gad.objectives import standardized
from gad.storage import write_json

WRITTEN = Path("claims/results/toy.json")
RESTS_ON = ("claims/toy.py", "examples/toy.py", "src/gad/objectives", "src/gad/seeds.py")
FIRST_SEED = 2000
MASSES = ("mass_left", "mass_middle", "mass_right", "mass_between")

ARMS: Mapping[str, Arm] = {
    **toy.ARMS,
    "gad_std_decay": Arm("GAD, std-scaled, rate decays to 0", advantages=standardized, decay=True),
    "group4": Arm("GAD, mean-only, groups of 4", group=4),
    "group8": Arm("GAD, mean-only, groups of 8", group=8),
    "group4_std": Arm("GAD, std-scaled, groups of 4", advantages=standardized, group=4),
    "group8_std": Arm("GAD, std-scaled, groups of 8", advantages=standardized, group=8),
    "frozen_kl1_decay": Arm("frozen, KL 1 in the reward, rate decays", frozen=True, kl_weight=1.0, decay=True),
    "gad_mean_from_seqkd": Arm("GAD, mean-only, from SeqKD", from_seqkd=True),
    "gad_mean_decay_from_seqkd": Arm("GAD, mean-only, decay, from SeqKD", decay=True, from_seqkd=True),
    "one_step_off": Arm("GAD, mean-only, decay, one step off", decay=True, one_step_off=True),
    "one_step_off_weighed": Arm(
        "GAD, mean-only, decay, one step off, weighed", decay=True, one_step_off=True, importance_cap=2.0
    ),
    "cross_entropy_small": Arm("GAD, mean-only, decay, cross-entropy 0.1", decay=True, cross_entropy_weight=0.1),
    "cross_entropy_large": Arm("GAD, mean-only, decay, cross-entropy 1", decay=True, cross_entropy_weight=1.0),
}
SAYS = toy.SAYS | {name: arm.says for name, arm in ARMS.items()}
PAIRS = (
    ("gad_mean", "seqkd"),
    ("gad_mean", "gad_std"),
    ("gad_mean_decay", "gad_mean"),
    ("gad_mean_decay", "exact_reverse_kl"),
    ("gad_mean", "frozen"),
    ("frozen_kl1", "frozen"),
    ("one_step_off", "gad_mean_decay"),
    ("one_step_off_weighed", "gad_mean_decay"),
    ("group4", "gad_mean"),
    ("group8", "gad_mean"),
)

Row = dict[str, float]


def rows_of(log_probs_SN: Tensor, seeds: Sequence[int]) -> list[Row]:
    """One row per seed: divergences in nats, probability at each mode and between the modes, peak of the student."""
    masses_SM = toy.mode_masses(log_probs_SN)
    columns = {
        "reverse_kl": toy.reverse_kl(log_probs_SN),
        "forward_kl": toy.forward_kl(log_probs_SN),
        **{name: masses_SM[:, mode] for mode, name in enumerate(MASSES[:-1])},
        "mass_between": (1 - masses_SM.sum(dim=1)).clamp(min=0),
        "peak": log_probs_SN.exp().amax(dim=1),
    }
    values = {name: column.tolist() for name, column in columns.items()}
    return [{"seed": seed, **{name: values[name][s] for name in values}} for s, seed in enumerate(seeds)]


def summary(rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """`t1.<arm>.<figure>` and `paired.<arm>_minus_<arm>.reverse_kl`, each {mean, low, high, seeds}."""
    figures = {
        arm: {name: interval([row[name] for row in of_arm]) for name in of_arm[0] if name != "seed"}
        for arm, of_arm in rows.items()
    }
    paired = {
        f"{first}_minus_{second}": {
            "reverse_kl": interval(
                [a["reverse_kl"] - b["reverse_kl"] for a, b in zip(rows[first], rows[second], strict=True)]
            )
        }
        for first, second in PAIRS
    }
    return {"t1": figures, "paired": paired}


def best_student() -> float:
    """The least reverse KL that a student can have, by a grid over its centre and width."""
    centres, widths = torch.linspace(-1, 1, 401), torch.linspace(0.01, 0.5, 246).log()
    grid = toy.Students(centres.repeat_interleave(len(widths)), widths.repeat(len(centres)))
    return float(toy.reverse_kl(grid.log_probs()).min())


def table(figures: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Rows of Markdown: reverse KL with its interval, forward KL, mass at each mode and between, best arm first."""
    lines = ["| arm | reverse KL | forward KL | at -.6 | at .1 | at .6 | between |", "|---|---|---|---|---|---|---|"]
    for arm, of_arm in sorted(figures.items(), key=lambda item: item[1]["reverse_kl"]["mean"]):
        kl = of_arm["reverse_kl"]
        half = "" if kl["high"] is None else f" ± {kl['high'] - kl['mean']:.3f}"
        masses = [of_arm[name]["mean"] for name in MASSES]
        cells = [SAYS[arm], f"{kl['mean']:.3f}{half}", f"{of_arm['forward_kl']['mean']:.3g}"]
        lines.append(f"| {' | '.join(cells + [f'{mass:.2f}' for mass in masses])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m claims.toy", description="The paper's toy, every arm.")
    parser.add_argument("--seeds", type=int, default=20, help="seeds of every arm (default 20)")
    parser.add_argument("--steps", type=int, default=toy.STEPS, help=f"adversarial steps (default {toy.STEPS})")
    parser.add_argument("--out", type=Path, default=ROOT / WRITTEN, help=f"results (default {WRITTEN})")
    asked = parser.parse_args()
    if asked.seeds < 1 or asked.steps < 1:
        parser.error(f"--seeds {asked.seeds} --steps {asked.steps}: both must be 1 or more")
    torch.set_num_threads(1)
    started, seeds = time.process_time(), range(FIRST_SEED, FIRST_SEED + asked.seeds)
    results = toy.run_all(ARMS, seeds, asked.steps)
    rows = {arm: rows_of(log_probs_SN, seeds) for arm, log_probs_SN in results.items()}
    written = {
        **provenance(RESTS_ON, f"python -m claims.toy --seeds {asked.seeds} --steps {asked.steps}"),
        "cpu_seconds": round(time.process_time() - started, 1),
        "settings": {"steps": asked.steps, "teacher_draws": toy.DRAWS, "arms": SAYS},
        "best_student_reverse_kl": best_student(),
        **summary(rows),
        "rows": rows,
    }
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    write_json(asked.out, written)
    print(f"{table(written['t1'])}\n\n{written['cpu_seconds']} CPU seconds. Written: {asked.out}")


if __name__ == "__main__":
    main()
