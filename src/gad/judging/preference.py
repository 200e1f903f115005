"""What verdicts on pairs of replies add up to: win rate, position bias, and preference with length taken out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from gad.judging.statistics import Estimate, bootstrap_mean, outcome, resampled_weights, t_quantile
from gad.records import Verdict

if TYPE_CHECKING:
    from gad.judging.statistics import Floats

MATCHED_RATIO = 1.25
"""Replies whose lengths differ by less than this factor count as of matched length."""
_SLOPE_RIDGE = 0.0003
"""Prior precision of the length slope, so that a judge that goes by length alone keeps a finite one; ordinary slopes
(0 to 3) do not feel it. At 0.01 such a judge still got .66 where 80% of the replies were longer, at 0.0003 it gets .56
(.5 is right), with an interval that says how little verdicts by length alone tell of replies of equal length."""


@dataclass(frozen=True, slots=True)
class WinRate:
    """The first reply's: `preference` is the mean over prompts, a tie counting half; and the prompts by outcome."""

    preference: Estimate
    wins: int
    ties: int
    losses: int

    def as_dict(self) -> dict[str, Any]:
        return {**self.preference.as_dict(), "wins": self.wins, "ties": self.ties, "losses": self.losses}


@dataclass(frozen=True, slots=True)
class PositionBias:
    """Over the prompts judged in both orders.

    shown_first: how often the reply shown first is preferred; .5 is no bias, 1 a judge that always takes the first.
    consistent: share of prompts on which both orders gave the same outcome.
    """

    shown_first: Estimate
    consistent: Estimate

    def as_dict(self) -> dict[str, Any]:
        return {"shown_first": self.shown_first.as_dict(), "consistent": self.consistent.as_dict()}


@dataclass(frozen=True, slots=True)
class LengthControlled:
    """Preference beside what is left of it at equal length.

    controlled: what the logistic model predicts where both replies are equally long.
    slope: its coefficient of tanh(length difference / its standard deviation); > 0: longer replies are preferred.
    shorter, matched, longer: raw preference where the first reply is so against the second; None without such prompts.
    """

    raw: Estimate
    controlled: Estimate
    slope: float
    shorter: Estimate | None
    matched: Estimate | None
    longer: Estimate | None

    def as_dict(self) -> dict[str, Any]:
        strata = {"shorter": self.shorter, "matched": self.matched, "longer": self.longer}
        return {
            "raw": self.raw.as_dict(),
            "controlled": self.controlled.as_dict(),
            "slope": self.slope,
            **{name: stratum.as_dict() if stratum else None for name, stratum in strata.items()},
        }


def preferences_by_prompt(verdicts: Iterable[Verdict]) -> dict[str, float]:
    """One preference a prompt: repeated verdicts of one order are averaged first, then the orders."""
    return {
        prompt_id: math.fsum(by_order.values()) / len(by_order) for prompt_id, by_order in _by_order(verdicts).items()
    }


def win_rate(verdicts: Iterable[Verdict], *, seed: int, level: float = 0.95) -> WinRate:
    """How often the first reply is preferred, by prompt, both orders combined. Raises ValueError without verdicts."""
    preferences = list(preferences_by_prompt(verdicts).values())
    wins = sum(preference > 0.5 for preference in preferences)
    losses = sum(preference < 0.5 for preference in preferences)
    estimate = bootstrap_mean(preferences, seed=seed, level=level)
    return WinRate(estimate, wins, len(preferences) - wins - losses, losses)


def position_bias(verdicts: Iterable[Verdict], *, seed: int, level: float = 0.95) -> PositionBias | None:
    """Does the judge favour a side? None where no prompt was judged in both orders: one order cannot tell."""
    pairs = [orders for orders in _by_order(verdicts).values() if "first" in orders and "second" in orders]
    if not pairs:
        return None
    shown_first = [(orders["first"] + 1.0 - orders["second"]) / 2.0 for orders in pairs]
    consistent = [float(outcome(orders["first"]) == outcome(orders["second"])) for orders in pairs]
    return PositionBias(
        bootstrap_mean(shown_first, seed=seed, level=level), bootstrap_mean(consistent, seed=seed, level=level)
    )


def length_controlled_preference(
    preferences: Mapping[str, float],
    lengths: Mapping[str, float],
    other_lengths: Mapping[str, float],
    *,
    seed: int,
    resamples: int = 1000,
    level: float = 0.95,
) -> LengthControlled:
    """Preference with length taken out, as AlpacaEval 2 does it (Dubois et al. 2024, arXiv 2404.04475).

    preference ~ sigmoid(quality + slope * tanh(d / sd(d))), d = first reply's length - second's; the figure is
    sigmoid(quality). Their terms for the difficulty of an instruction and for other models need many models at once and
    are left out. Interval: bootstrap over prompts, and over the outcome of one unseen prompt with equally long replies,
    so that it is wide where no such prompt was judged. The strata beside it assume no model at all.
    preferences, lengths, other_lengths: prompt id -> preference of the first reply, and the lengths (any one unit).
    """
    import numpy as np

    keys = list(preferences)
    missing = [key for key in keys if key not in lengths or key not in other_lengths]
    if missing:
        raise ValueError(f"no length of a reply to prompt {missing[0]!r} ({len(missing)} such prompts)")
    y_P = np.array([preferences[key] for key in keys], dtype=np.float64)
    differences_P = np.array([float(lengths[key]) - float(other_lengths[key]) for key in keys])
    raw = bootstrap_mean(y_P.tolist(), seed=seed, level=level)
    scale = float(differences_P.std()) or float(np.abs(differences_P).max()) or 1.0
    x_P = np.tanh(differences_P / scale)
    quality, slope = (float(value) for value in _fit(x_P, y_P, np.ones((1, len(keys))), np.array([0.5]))[0])
    controlled = _sigmoid(quality)
    low, high = -math.inf, math.inf
    if len(keys) > 2:
        unseen = np.random.default_rng([seed, 1])
        drawn = [
            _fit(x_P, y_P, weights_RP, unseen.integers(0, 2, len(weights_RP)).astype(np.float64))[:, 0]
            for weights_RP in resampled_weights(len(keys), resamples, seed)
        ]
        bounds = np.quantile(np.concatenate(drawn), [0.5 - level / 2.0, 0.5 + level / 2.0])
        low, high = (_sigmoid(quality + _small_sample(len(keys), level) * (float(b) - quality)) for b in bounds)
    strata: dict[str, list[float]] = {"shorter": [], "matched": [], "longer": []}
    for key in keys:
        strata[_stratum(lengths[key], other_lengths[key])].append(preferences[key])
    shorter, matched, longer = (
        bootstrap_mean(rows, seed=seed, level=level) if rows else None for rows in strata.values()
    )
    estimate = Estimate(controlled, min(low, controlled), max(high, controlled), len(keys))
    return LengthControlled(raw, estimate, slope, shorter, matched, longer)


def _by_order(verdicts: Iterable[Verdict]) -> dict[str, dict[str, float]]:
    collected: dict[str, dict[str, list[float]]] = {}
    for verdict in verdicts:
        collected.setdefault(verdict.prompt_id, {}).setdefault(verdict.order, []).append(verdict.preference)
    return {
        prompt_id: {order: math.fsum(values) / len(values) for order, values in orders.items()}
        for prompt_id, orders in collected.items()
    }


def _stratum(length: float, other: float) -> str:
    if length > MATCHED_RATIO * other:
        return "longer"
    return "shorter" if other > MATCHED_RATIO * length else "matched"


def _small_sample(n: int, level: float) -> float:
    """A percentile interval is too narrow for few prompts: Student's quantile over the normal one, n over n - 2."""
    return t_quantile(0.5 + level / 2.0, n - 2) / NormalDist().inv_cdf(0.5 + level / 2.0) * math.sqrt(n / (n - 2))


def _sigmoid(value: float) -> float:
    return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, value))))


def _fit(x_P: Floats, y_P: Floats, weights_RP: Floats, unseen_R: Floats, iterations: int = 100) -> Floats:
    """Intercept and slope [R, 2] of R weighted logistic regressions by Newton's method, steps of at most 3.

    unseen_R: preference on one prompt more, with replies of equal length. It keeps the intercept finite where every
    verdict is the same or goes by length alone.
    """
    import numpy as np

    theta_R2: Floats = np.zeros((len(weights_RP), 2))
    for _ in range(iterations):
        p_RP = _odds_to_share(theta_R2[:, :1] + theta_R2[:, 1:] * x_P)
        p_R = _odds_to_share(theta_R2[:, 0])
        curvature_RP = weights_RP * p_RP * (1.0 - p_RP)
        residual_RP = weights_RP * (y_P - p_RP)
        h00 = curvature_RP.sum(axis=1) + p_R * (1.0 - p_R)
        h01 = curvature_RP @ x_P
        h11 = curvature_RP @ x_P**2 + _SLOPE_RIDGE
        g0 = residual_RP.sum(axis=1) + unseen_R - p_R
        g1 = residual_RP @ x_P - _SLOPE_RIDGE * theta_R2[:, 1]
        determinant = np.maximum(h00 * h11 - h01**2, 1e-12)
        step_R2 = np.stack([(h11 * g0 - h01 * g1) / determinant, (h00 * g1 - h01 * g0) / determinant], axis=1)
        theta_R2 = theta_R2 + np.clip(step_R2, -3.0, 3.0)
        if float(np.abs(step_R2).max()) < 1e-7:
            break
    return theta_R2


def _odds_to_share(log_odds: Floats) -> Floats:
    import numpy as np

    share: Floats = 1.0 / (1.0 + np.exp(-np.clip(log_odds, -30.0, 30.0)))
    return share
