"""Dimensions of a space as Optuna has them."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from orchestrator.search.plan import Dimensions, active
from search_spaces.space import ROUNDING, Choice, Range

DIGITS = 4
"""Significant digits of a suggested number: more say nothing, and nobody could type them."""


def distribution_of(where: Range | Choice) -> BaseDistribution:
    if isinstance(where, Choice):
        return CategoricalDistribution(where.values)
    if isinstance(where.low, int):
        return IntDistribution(where.low, int(where.high), where.log, int(where.step or 1))
    return FloatDistribution(where.low, where.high, where.log, where.step)


def rounded(value: Any, where: Any) -> Any:
    if not isinstance(value, float) or isinstance(where, CategoricalDistribution):
        return value
    if where.step is not None:
        return round(value, 10)
    return min(max(float(f"{value:.{DIGITS}g}"), where.low), where.high)


def values_of(where: Any) -> list[Any]:
    """All values of a dimension that has an end."""
    if isinstance(where, CategoricalDistribution):
        return list(where.choices)
    # 0.3 has three steps of 0.1, but 2.9999999999999996 by floating point.
    steps = math.floor((where.high - where.low) / where.step * (1 + ROUNDING))
    return [rounded(where.low + step * where.step, where) for step in range(steps + 1)]


def count_points(where: Mapping[str, Any], dimensions: Dimensions) -> int | None:
    """How many configurations there are; None where they can't be counted."""
    if any(not isinstance(each, CategoricalDistribution) and each.step is None for each in where.values()):
        return None
    parents = list(dict.fromkeys(parent for one in dimensions.values() for parent in one.when or ()))
    chosen: list[dict[str, Any]] = []
    for point in itertools.product(*(values_of(where[parent]) for parent in parents)):
        kept = active(dict(zip(parents, point, strict=True)), {parent: dimensions[parent] for parent in parents})
        chosen += [kept] if kept not in chosen else []
    others = {path: values_of(each) for path, each in where.items() if path not in parents}
    return sum(
        math.prod(len(values) for path, values in others.items() if path in active({**kept, path: None}, dimensions))
        for kept in chosen
    )


def suggest(trial: Trial, path: str, where: Any) -> Any:
    """What Optuna suggests for a dimension."""
    if isinstance(where, CategoricalDistribution):
        return trial.suggest_categorical(path, where.choices)
    if isinstance(where, IntDistribution):
        return trial.suggest_int(path, where.low, where.high, step=where.step, log=where.log)
    return trial.suggest_float(path, where.low, where.high, step=where.step, log=where.log)
