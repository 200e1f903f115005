"""The paper's toy (arXiv 2511.10643, Figure 5): SeqKD covers the teacher's modes, GAD settles on one.

The teacher is a mixture of three Gaussians on 100 points, the student one Gaussian, and nothing but the teacher's draws
is known to it. Everything that makes GAD what it is comes from `gad.objectives`, the functions of the real training:

    SeqKD          student <- token_cross_entropy on the teacher's draws
    GAD, per step  replies ~ student
                   student_scores, teacher_scores = D(replies), D(draws)       before this step's update
                   discriminator <- bradley_terry(teacher_scores, student_scores)
                   student <- reinforce(log p(replies), centered(student_scores))

A reply is one token, the index of a point; there is one prompt. Every seed is one row of each tensor: all students and
all discriminators are trained at once and never meet. Unlike the paper's toy it has points on a line instead of classes
0 to 9, three modes whose best student is known (reverse KL .510), several seeds, and arms that should fail.

    python examples/toy.py [--seeds 5] [--picture runs/toy.svg]      half a minute on one core; needs 'gad[train]'

S seeds, N points, G replies and G teacher draws per step, K points to be scored.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from gad import objectives
from gad.seeds import stable_seed

POINTS = torch.linspace(-1.0, 1.0, 100)
CENTRES, WEIGHTS, SPREAD, UNIFORM = (-0.6, 0.1, 0.6), (0.3, 0.1, 0.6), 0.08, 1e-4
DRAWS, SEQKD_STEPS, STEPS = 2000, 2000, 2000
STUDENT_WARMUP, DISCRIMINATOR_WARMUP = 500, 300
SEQKD_RATE, STUDENT_RATE, DISCRIMINATOR_RATE, BETAS = 2e-2, 5e-3, 3e-3, (0.5, 0.99)
WAVES, HIDDEN = 6, 64

Advantages = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to play. `frozen`: the discriminator is not trained after its warm-up. `kl_weight`: of the KL to the
    student's start, in the reward. `cross_entropy_weight`: of SeqKD's loss, mixed in. `decay`: rate linear to 0.
    `from_seqkd`: starts where SeqKD ended, and not from its own, shorter warm-up. `one_step_off`: replies are
    sampled by the student before its last update; `importance_cap`: and weighed for that, by at most so much."""

    says: str
    advantages: Advantages = objectives.centered
    group: int = 32
    decay: bool = False
    frozen: bool = False
    kl_weight: float = 0.0
    cross_entropy_weight: float = 0.0
    from_seqkd: bool = False
    one_step_off: bool = False
    importance_cap: float | None = None

    def __post_init__(self) -> None:
        if self.group < 2:
            raise ValueError(f"group={self.group}: one reply has no baseline; use 2 or more")


ARMS: Mapping[str, Arm] = {
    "gad_mean": Arm("GAD, mean-only advantages"),
    "gad_mean_decay": Arm("GAD, mean-only, rate decays to 0", decay=True),
    "gad_std": Arm("GAD, std-scaled advantages (paper)", advantages=objectives.standardized),
    "frozen": Arm("frozen discriminator", frozen=True),
    "frozen_kl1": Arm("frozen discriminator, KL 1 in the reward", frozen=True, kl_weight=1.0),
}

SAYS = {"seqkd": "SeqKD", "exact_reverse_kl": "exact descent of the reverse KL"}


def teacher_log_probs() -> Tensor:
    """log p of the teacher (N): mixture of `CENTRES`, and `UNIFORM` of its mass everywhere, so that no log is -inf."""
    bells_NM = torch.exp(-((POINTS.double()[:, None] - torch.tensor(CENTRES)) ** 2) / (2 * SPREAD**2))
    mixture_N = (bells_NM / bells_NM.sum(dim=0)) @ torch.tensor(WEIGHTS, dtype=torch.float64)
    return ((1 - UNIFORM) * mixture_N + UNIFORM / len(POINTS)).log().float()


@dataclass(frozen=True, slots=True)
class Students:
    """One Gaussian per seed, cut to the points: softmax(-((x - centre) / width)^2 / 2)."""

    centre_S: Tensor
    log_width_S: Tensor

    def log_probs(self) -> Tensor:
        """(S, N)."""
        z_SN = (POINTS - self.centre_S[:, None]) / self.log_width_S.exp()[:, None]
        return torch.log_softmax(-z_SN.square() / 2, dim=1)

    def copy(self) -> "Students":
        """The same students, to be trained on their own."""
        return Students(*(part.detach().clone().requires_grad_() for part in (self.centre_S, self.log_width_S)))

    def optimizer(self, rate: float) -> torch.optim.Adam:
        return torch.optim.Adam([self.centre_S, self.log_width_S], lr=rate, betas=BETAS)


class Discriminators:
    """One MLP per seed on x and six pairs of waves; a high score means teacher."""

    def __init__(self, seeds: Sequence[int]) -> None:
        phases_NW = POINTS[:, None] * math.pi * torch.arange(1, WAVES + 1)
        self._features_NF = torch.cat([POINTS[:, None], phases_NW.sin(), phases_NW.cos()], dim=1)
        sizes = [self._features_NF.shape[1], HIDDEN, HIDDEN, 1]
        generators = [torch.Generator().manual_seed(stable_seed(seed, "discriminator")) for seed in seeds]
        self.weights = [
            _uniform(shape, n_in**-0.5, generators)
            for n_in, n_out in pairwise(sizes)
            for shape in ((n_in, n_out), (1, n_out))
        ]

    def __call__(self, points_SK: Tensor) -> Tensor:
        """Scores (S, K)."""
        w1, b1, w2, b2, w3, b3 = self.weights
        hidden = torch.nn.functional.silu(torch.baddbmm(b1, self._features_NF[points_SK], w1))
        hidden = torch.nn.functional.silu(torch.baddbmm(b2, hidden, w2))
        return torch.baddbmm(b3, hidden, w3).squeeze(-1)


def _uniform(shape: tuple[int, int], bound: float, generators: Sequence[torch.Generator]) -> Tensor:
    rows = [(2 * torch.rand(shape, generator=generator) - 1) * bound for generator in generators]
    return torch.stack(rows).requires_grad_()


def _random(seeds: Sequence[int], what: str, *shape: int) -> Tensor:
    """Uniform numbers (S, *shape); those of a seed do not depend on which other seeds run."""
    generators = (torch.Generator().manual_seed(stable_seed(seed, what)) for seed in seeds)
    return torch.stack([torch.rand(shape, generator=generator) for generator in generators])


def sample(log_probs_SN: Tensor, uniform_SK: Tensor) -> Tensor:
    """Indices of points (S, K), drawn from each row of probabilities by inverting its cumulative sum."""
    cumulative_SN = log_probs_SN.detach().double().exp().cumsum(dim=1)
    return torch.searchsorted(cumulative_SN, uniform_SK.double()).clamp(max=log_probs_SN.shape[1] - 1)


def teacher_draws(seeds: Sequence[int], count: int = DRAWS) -> Tensor:
    """All that is ever seen of the teacher: indices of points (S, count), a set of its own for every seed."""
    return sample(teacher_log_probs().expand(len(seeds), -1), _random(seeds, "teacher", count))


def cross_entropy(log_probs_SN: Tensor, draws_SK: Tensor) -> Tensor:
    """Mean over a seed's draws, summed over seeds: each seed has the gradient that it would have alone."""
    logps_BT = log_probs_SN.gather(1, draws_SK)
    return objectives.token_cross_entropy(logps_BT, torch.ones_like(draws_SK, dtype=torch.bool), draws_SK.shape[1])


def seqkd(draws_SD: Tensor, steps: int = SEQKD_STEPS) -> Students:
    """Maximum likelihood on the teacher's draws, from a Gaussian in the middle; in fewer steps, the warm-up of GAD."""
    S = len(draws_SD)
    students = Students(torch.zeros(S), torch.full((S,), math.log(0.5))).copy()
    optimizer = students.optimizer(SEQKD_RATE)
    for step in range(steps):
        decay(optimizer, SEQKD_RATE, step, steps)
        update(optimizer, cross_entropy(students.log_probs(), draws_SD))
    return students


def exact_descent(start: Students, steps: int = STEPS) -> Students:
    """Reverse KL by its exact gradient: where GAD would go if its discriminator were perfect and its groups endless."""
    students = start.copy()
    optimizer = students.optimizer(STUDENT_RATE)
    for _ in range(steps):
        update(optimizer, reverse_kl(students.log_probs()).sum())
    return students


def play(arm: Arm, seeds: Sequence[int], draws_SD: Tensor, start: Students, steps: int = STEPS) -> Students:
    """Warm the discriminators up against `start`, then play `steps` steps of the game; returns the students."""
    students, discriminators = start.copy(), Discriminators(seeds)
    d_optimizer = torch.optim.Adam(discriminators.weights, lr=DISCRIMINATOR_RATE, betas=BETAS)
    s_optimizer = students.optimizer(STUDENT_RATE)
    start_SN, G = start.log_probs().detach(), arm.group
    before_SN = start_SN
    dice_SLG = _random(seeds, "replies", DISCRIMINATOR_WARMUP + steps, G)
    picks_SLG = (_random(seeds, "draws", DISCRIMINATOR_WARMUP + steps, G) * draws_SD.shape[1]).long()
    for step in range(-DISCRIMINATOR_WARMUP, steps):
        now = step + DISCRIMINATOR_WARMUP
        log_probs_SN = students.log_probs()
        sampler_SN = before_SN if arm.one_step_off else log_probs_SN.detach()
        before_SN = log_probs_SN.detach()
        replies_SG = sample(sampler_SN, dice_SLG[:, now])
        drawn_SG = draws_SD.gather(1, picks_SLG[:, now])
        scores_SK = discriminators(torch.cat([drawn_SG, replies_SG], dim=1))
        if step < 0 or not arm.frozen:
            update(d_optimizer, game_loss(scores_SK[:, :G], scores_SK[:, G:]))
        if step < 0:
            continue
        logps_SG, sampler_logps_SG, start_logps_SG = (
            part_SN.gather(1, replies_SG) for part_SN in (log_probs_SN, sampler_SN, start_SN)
        )
        loss = student_loss(arm, logps_SG, sampler_logps_SG, start_logps_SG, scores_SK[:, G:])
        if arm.cross_entropy_weight:
            loss = loss + arm.cross_entropy_weight * cross_entropy(log_probs_SN, drawn_SG)
        if arm.decay:
            decay(s_optimizer, STUDENT_RATE, step, steps)
        update(s_optimizer, loss)
    return students


def game_loss(teacher_scores_SG: Tensor, student_scores_SG: Tensor) -> Tensor:
    """Bradley-Terry: each teacher draw of a step meets all replies of its seed. A mean per seed, summed over seeds."""
    S, G = student_scores_SG.shape
    met_PG = student_scores_SG[:, None].expand(S, G, G).reshape(S * G, G)
    return objectives.bradley_terry(teacher_scores_SG.flatten(), met_PG, total_prompts=G)


def student_loss(
    arm: Arm, logps_SG: Tensor, sampler_logps_SG: Tensor, start_logps_SG: Tensor, scores_SG: Tensor
) -> Tensor:
    """The policy gradient with the discriminator's score as reward; the group of a seed is its baseline."""
    mask_SG = torch.ones_like(logps_SG, dtype=torch.bool)
    rewards_SG = objectives.kl_in_reward(scores_SG, objectives.k1(logps_SG, start_logps_SG, mask_SG), arm.kl_weight)
    logps_BT, mask_BT = logps_SG.reshape(-1, 1), mask_SG.reshape(-1, 1)
    losses_BT = objectives.reinforce(logps_BT, arm.advantages(rewards_SG).flatten(), mask_BT)
    if arm.importance_cap is not None:
        sampler_BT = sampler_logps_SG.reshape(-1, 1)
        losses_BT = losses_BT * objectives.importance_weights(logps_BT, sampler_BT, mask_BT, arm.importance_cap)
    return objectives.token_mean(losses_BT, mask_BT, total_tokens=logps_SG.shape[1])


def update(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def decay(optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate * (1 - step / steps)


def reverse_kl(log_probs_SN: Tensor) -> Tensor:
    """KL(student || teacher) in nats (S): what GAD goes down."""
    return (log_probs_SN.exp() * (log_probs_SN - teacher_log_probs())).sum(dim=1)


def forward_kl(log_probs_SN: Tensor) -> Tensor:
    """KL(teacher || student) in nats (S): what SeqKD goes down, the price of what is not covered."""
    teacher_N = teacher_log_probs()
    return (teacher_N.exp() * (teacher_N - log_probs_SN)).sum(dim=1)


def mode_masses(log_probs_SN: Tensor) -> Tensor:
    """Probability within three spreads of each mode (S, 3); what is missing to 1 lies where the teacher never goes."""
    near_NM = (POINTS[:, None] - torch.tensor(CENTRES)).abs() <= 3 * SPREAD
    return log_probs_SN.exp() @ near_NM.float()


def run_all(arms: Mapping[str, Arm], seeds: Sequence[int], steps: int = STEPS) -> dict[str, Tensor]:
    """log-probabilities (S, N) by arm: SeqKD, every arm of `arms`, and exact descent of the reverse KL."""
    draws_SD = teacher_draws(seeds)
    warm, converged = seqkd(draws_SD, STUDENT_WARMUP), seqkd(draws_SD)
    played = {
        name: play(arm, seeds, draws_SD, converged if arm.from_seqkd else warm, steps) for name, arm in arms.items()
    }
    students = {"seqkd": converged, **played, "exact_reverse_kl": exact_descent(warm, steps)}
    return {name: of_arm.log_probs().detach() for name, of_arm in students.items()}


def table(results: Mapping[str, Tensor]) -> str:
    """Means over seeds: both divergences and the mass at each mode and between them."""
    rows = [f"{'':42}{'reverse KL':>12}{'forward KL':>12}{'at -.6':>8}{'at .1':>8}{'at .6':>8}{'between':>9}"]
    says = {name: arm.says for name, arm in ARMS.items()} | SAYS
    for name, log_probs_SN in results.items():
        masses = mode_masses(log_probs_SN).mean(dim=0).tolist()
        kls = f"{reverse_kl(log_probs_SN).mean():12.3f}{forward_kl(log_probs_SN).mean():12.3f}"
        rows.append(f"{says[name]:42}{kls}{''.join(f'{mass:8.2f}' for mass in masses)}{1 - sum(masses):9.2f}")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description="SeqKD covers the teacher's modes, GAD settles on one.")
    parser.add_argument("--seeds", type=int, default=5, help="students trained side by side (default 5)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"adversarial steps (default {STEPS})")
    parser.add_argument("--picture", type=Path, default=Path("runs/toy.svg"), help="SVG (default runs/toy.svg)")
    asked = parser.parse_args()
    if asked.seeds < 1 or asked.steps < 1:
        parser.error(f"--seeds {asked.seeds} --steps {asked.steps}: both must be 1 or more")
    try:
        asked.picture.parent.mkdir(parents=True, exist_ok=True)
        asked.picture.open("a").close()
    except OSError as error:
        parser.error(f"--picture {asked.picture}: {error.strerror}; name a file that can be written")
    from toy_picture import draw  # lies beside this script

    torch.set_num_threads(1)
    results = run_all(ARMS, range(asked.seeds), asked.steps)
    curves = {"SeqKD": results["seqkd"], "GAD": results["gad_mean"]}
    svg = draw(POINTS.tolist(), teacher_log_probs().tolist(), {name: c.tolist() for name, c in curves.items()})
    asked.picture.write_text(svg, encoding="utf-8")
    print(f"{table(results)}\n\n{asked.seeds} seeds; teacher's draws are all that was seen. Picture: {asked.picture}")


if __name__ == "__main__":
    main()
