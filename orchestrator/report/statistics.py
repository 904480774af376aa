"""The report's statistics as pure functions: spread over seeds, paired differences, error of a finite test set."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, stdev
from typing import Literal

import numpy as np
from scipy.stats import norm, t

CONFIDENCE = 0.95
TIED = 1e-9
"""Values that are no further apart are the same: what lies between them is rounding of the last bits."""
MIN_CORRELATED = 3
"""Seeds below which a correlation says nothing: two points always lie on a line."""
Z = float(norm.ppf((1 + CONFIDENCE) / 2))

Verdict = Literal["no pair", "one pair", "no spread", "distinguishable", "not distinguishable"]


@dataclass(frozen=True)
class Paired:
    """Differences of two rows, taken seed by seed over the seeds that both have."""

    by_seed: Mapping[int, float]
    """Ours minus the baseline, of each seed in ascending order."""
    mean: float | None
    """None without a pair."""
    sd: float | None
    """Sample standard deviation (n - 1); None below two pairs."""
    low: float | None
    """Ends of the 95 % t interval of the mean difference; None below two pairs."""
    high: float | None

    @property
    def n(self) -> int:
        """Pairs."""
        return len(self.by_seed)

    @property
    def verdict(self) -> Verdict:
        """What the differences say, over seeds alone.

        Differences that are the same in every pair have no spread from which to say how far chance reaches: they may be
        exact (a quantisation floor) or coincide on few test clips, so nothing is claimed of them.
        """
        if self.n < 2 or self.low is None or self.high is None:
            return "one pair" if self.n else "no pair"
        if math.isclose(self.low, self.high, rel_tol=1e-9, abs_tol=1e-9):
            return "no spread"
        return "distinguishable" if self.low > 0 or self.high < 0 else "not distinguishable"


def mean_and_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean, and sample standard deviation (n - 1); None where there are too few values for them."""
    return (fmean(values) if values else None, stdev(values) if len(values) > 1 else None)


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean by Student's t with n - 1 degrees of freedom: mean +- t * sd / sqrt(n), rounding
    included in sd.

    Raises:
        ValueError: fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"an interval needs at least 2 values, got {len(values)}")
    half = float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * sd_with_rounding(values) / math.sqrt(len(values))
    return fmean(values) - half, fmean(values) + half


def sd_with_rounding(values: Sequence[float]) -> float:
    """Standard deviation of two or more values, that of rounding included: sqrt(variance + step^2 / 12), where the step
    is 0 for values without ties.

    Ties show that values come in steps, as accuracies do by test clip. The smallest gap between values is then taken
    for the step, and the variance that rounding to it hides is added: without it few values that happen to be tied
    look surer than they are. Values that are all the same have a deviation of 0.
    """
    ordered = sorted(values)
    gaps = [above - below for below, above in pairwise(ordered)]
    apart = [gap for gap in gaps if gap > TIED]
    step = min(apart) if 0 < len(apart) < len(gaps) else 0.0
    return math.hypot(stdev(values), step / math.sqrt(12))


def paired(ours: Mapping[int, float], baseline: Mapping[int, float]) -> Paired:
    """Differences over the seeds that both have. Seeds share data order and initial weights, so pairs vary less."""
    by_seed = {seed: ours[seed] - baseline[seed] for seed in sorted(ours.keys() & baseline.keys())}
    mean, sd = mean_and_sd(list(by_seed.values()))
    low, high = t_interval(list(by_seed.values())) if len(by_seed) > 1 else (None, None)
    return Paired(by_seed, mean, sd, low, high)


def seed_correlation(pairs: Sequence[tuple[Mapping[int, float], Mapping[int, float]]]) -> float | None:
    """Correlation of rows with their baseline row over common seeds, pooled over the rows: the sum of covariances over
    the root of the product of the summed variances. Above 0, pairing by seed makes differences vary less.

    Args:
        pairs: values by seed of a row and of the baseline row. Those with fewer than MIN_CORRELATED common seeds don't
            count.

    Returns:
        None where no pair counts or values have no spread.
    """
    covariance = row_variance = baseline_variance = 0.0
    for ours, baseline in pairs:
        seeds = sorted(ours.keys() & baseline.keys())
        if len(seeds) < MIN_CORRELATED:
            continue
        of_row, of_baseline = (np.array([values[seed] for seed in seeds]) for values in (ours, baseline))
        (own, both), (_, other) = np.cov(of_row, of_baseline)
        covariance, row_variance, baseline_variance = covariance + both, row_variance + own, baseline_variance + other
    scale = math.sqrt(row_variance * baseline_variance)
    return float(covariance / scale) if scale > 0 else None


def is_percentage(value: float) -> bool:
    """Whether a value can be a percentage; 100 may have come out of a mean a little larger."""
    return 0 <= value <= 100 + 1e-9


def is_possible(value: float, unit: str) -> bool:
    """Whether a measure of this unit can have a value: a percentage, a length, or any other number."""
    return is_percentage(value) if unit == "%" else value >= -1e-9 or unit != "mm"


def proportion_se(percent: float, n: float) -> float:
    """Standard error, in percentage points, of an accuracy measured on n independent clips.

    Agresti & Coull (1998): z^2 / 2 successes and as many failures are added, z = 1.96, so that 0 % and 100 % on a
    finite test set keep an error above 0. For the mean of several accuracies on the same clips (early prediction over
    its ratios) it is an upper bound.

    Raises:
        ValueError: a percentage outside 0..100, or no clip.
    """
    if not is_percentage(percent) or not n >= 1:
        raise ValueError(f"an accuracy must lie in 0..100 % of at least 1 clip, got {percent} % of {n}")
    total = n + Z**2
    share = (min(percent, 100) / 100 * n + Z**2 / 2) / total
    return 100 * math.sqrt(share * (1 - share) / total)
