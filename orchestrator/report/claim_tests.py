"""Tests of claims over seeds, as pure functions: decisions, corrections for several claims and looks, seeds needed.

An effect is the difference of two arms in one seed, signed so that above 0 the first arm is better, in the
metric's unit.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np
from scipy.stats import nct, t

from orchestrator.report.statistics import CONFIDENCE, TIED, sd_with_rounding
from search_spaces.study import ClaimKind

ALPHA = 1 - CONFIDENCE
POWER = 0.8
MAX_SEEDS = 200
"""More seeds than this are not named as what would decide a claim."""
MIN_SUBJECTS = 5
"""Fewer test subjects say nothing about new ones."""

Direction = Literal["supported", "contradicted"]


@dataclass(frozen=True)
class Decision:
    """The better supported of a claim and its contradiction."""

    direction: Direction
    p: float
    """Below ALPHA it is decided, if nothing is to be corrected. 1 where effects have no spread to judge by."""


def decide(effects: Sequence[float], kind: ClaimKind, margin: float) -> Decision:
    """Test a claim by Student's t with n - 1 degrees of freedom.

    superior: the effect is above the margin; not better: it is below; two-sided p. equivalent: it is within +-margin,
    by two one-sided tests (Schuirmann 1987); contradicted by a two-sided test against the nearer margin. For each true
    effect one direction alone is an error, so a claim errs with at most ALPHA.
    """
    if len(effects) < 2 or without_spread(effects):
        return Decision("supported", 1.0)
    mean, error, df = fmean(effects), sd_with_rounding(effects) / math.sqrt(len(effects)), len(effects) - 1

    def above(point: float) -> float:
        """One-sided p of an effect above the point."""
        return float(t.sf((mean - point) / error, df))

    def below(point: float) -> float:
        return float(t.cdf((mean - point) / error, df))

    if kind == "equivalent":
        within, outside = max(above(-margin), below(margin)), min(1.0, 2 * min(above(margin), below(-margin)))
        return Decision("supported", within) if within <= outside else Decision("contradicted", outside)
    higher, lower = above(margin), below(margin)
    supported = higher < lower if kind == "superior" else lower < higher
    return Decision("supported" if supported else "contradicted", min(1.0, 2 * min(higher, lower)))


def without_spread(effects: Sequence[float]) -> bool:
    """Whether all effects are the same, so that nothing says how far chance reaches."""
    return math.isclose(min(effects), max(effects), rel_tol=TIED, abs_tol=TIED)


def decide_with_looks(
    looks: Sequence[Sequence[float]], kind: ClaimKind, margin: float, factors: Sequence[float]
) -> Decision:
    """The decision after several looks: the smallest p of all, each times the factor of its look.

    By Bonferroni's inequality it errs with at most ALPHA over all looks together where the sum of 1 / factor is 1 or
    less, and a further look never turns a decided claim into an undecided one.

    Args:
        looks: the effects that each look was at, the present one included.
        factors: of each look; of looks at effects that are no longer there, too, which have no effects.
    """
    decisions = [
        Decision(decision.direction, min(1.0, decision.p * factor))
        for effects, factor in zip(looks, factors, strict=True)
        for decision in [decide(effects, kind, margin)]
    ]
    return min(decisions, key=lambda one: one.p)


def holm(ps: Sequence[float]) -> list[float]:
    """P values adjusted for their number, in the same order (Holm 1979): the family-wise error stays below ALPHA."""
    adjusted, running = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda i: ps[i])):
        running = max(running, min(1.0, (len(ps) - place) * ps[index]))
        adjusted[index] = running
    return adjusted


def seeds_needed(mean: float, sd: float, kind: ClaimKind, margin: float, alpha: float) -> int | None:
    """Seeds with which a claim is decided with a probability of POWER, if the effect and its spread are as measured.

    From the noncentral t distribution; for two one-sided tests a lower bound of the power.

    Returns:
        None if MAX_SEEDS don't suffice, or the effects have no spread.
    """
    if sd <= 0:
        return None
    for n in range(3, MAX_SEEDS + 1):
        scale = math.sqrt(n) / sd
        if kind == "equivalent" and abs(mean) < margin:
            critical = t.ppf(1 - alpha, n - 1)
            power = sum(nct.sf(critical, n - 1, room * scale) for room in (margin - mean, margin + mean)) - 1
        else:
            distance = abs(mean) - margin if kind == "equivalent" else abs(mean - margin)
            power = nct.sf(t.ppf(1 - alpha / 2, n - 1), n - 1, distance * scale)
        if power >= POWER:
            return n
    return None


def crossed_interval(effect_SJ: np.ndarray) -> tuple[float, float, float]:
    """Mean and 95 % interval of an effect for new subjects and new seeds.

    Seeds and subjects are crossed random factors: v = (MS_seed + MS_subject) / (S J), degrees of freedom by
    Satterthwaite: (MS_seed + MS_subject)^2 / (MS_seed^2 / (S - 1) + MS_subject^2 / (J - 1)).

    Args:
        effect_SJ: effects by seed (S) and test subject (J).

    Raises:
        ValueError: fewer than 2 seeds or MIN_SUBJECTS subjects.
    """
    seeds, subjects = effect_SJ.shape
    if seeds < 2 or subjects < MIN_SUBJECTS:
        raise ValueError(
            f"an interval for new subjects needs at least 2 seeds and {MIN_SUBJECTS} test subjects, got {seeds} and "
            f"{subjects}"
        )
    mean = float(effect_SJ.mean())
    ms_seed = subjects * float(effect_SJ.mean(axis=1).var(ddof=1))
    ms_subject = seeds * float(effect_SJ.mean(axis=0).var(ddof=1))
    total = ms_seed + ms_subject
    if total == 0:
        return mean, mean, mean
    df = total**2 / (ms_seed**2 / (seeds - 1) + ms_subject**2 / (subjects - 1))
    half = float(t.ppf(1 - ALPHA / 2, df)) * math.sqrt(total / (seeds * subjects))
    return mean, mean - half, mean + half
