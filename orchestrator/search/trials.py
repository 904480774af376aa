"""Trials of a search: their units, and which are best: those that keep the constraints, and of several objectives the
Pareto front."""

import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress

from optuna.trial import FrozenTrial

from orchestrator.planning.plan import Unit
from orchestrator.search.journal import number_of
from orchestrator.search.plan import SearchPlan


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a complete trial keeps all constraints."""
    return all(excess <= 0 for excess in trial.constraints.values())


def front(trials: Iterable[FrozenTrial], directions: Sequence[str]) -> list[FrozenTrial]:
    """The complete and feasible trials than which none is at least as good in all objectives and better in one; of one
    objective those with the best value."""
    every = [(trial, _losses(trial, directions)) for trial in trials if trial.values is not None and is_feasible(trial)]
    return [trial for trial, own in every if not any(_dominates(other, own) for _, other in every)]


def ranked(trials: Iterable[FrozenTrial], *directions: str) -> list[FrozenTrial]:
    """Best first, by the direction of each objective: the Pareto front by the first objective, then those that keep the
    constraints, those that don't, and those without a value, in their order, those that came to a later rung first."""
    every = list(trials)
    on_front = {number_of(trial) for trial in front(every, directions)} if len(directions) > 1 else set()
    sign = -1.0 if directions[0] == "maximize" else 1.0

    def place(trial: FrozenTrial) -> tuple[bool, bool, bool, int, float, int]:
        rung, shown = max(trial.intermediate_values.items(), default=(0, 0.0))
        rung, first = (-rung, sign * shown) if trial.values is None else (0, sign * trial.values[0])
        number = number_of(trial)
        return trial.values is None, not is_feasible(trial), number not in on_front, rung, first, number

    return sorted(every, key=place)


def _losses(trial: FrozenTrial, directions: Sequence[str]) -> list[float]:
    return [
        -value if direction == "maximize" else value for value, direction in zip(trial.values, directions, strict=True)
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))


def units_of_trials(plan: SearchPlan, trials: Iterable[FrozenTrial]) -> list[Unit]:
    """Units of all trials whose parameters make a configuration, each once."""
    units: dict[str, Unit] = {}
    for trial in trials:
        with suppress(ValueError):
            units |= {unit.key: unit for unit in plan.units_of(trial.params)}
    return list(units.values())


def spread(values: list[float]) -> str:
    """Mean and standard deviation, and over how many."""
    if len(values) == 1:
        return f"{short(values[0])} (n = 1)"
    return f"{short(statistics.fmean(values))} ± {statistics.stdev(values):.2g} (n = {len(values)})"


def short(value: float) -> str:
    """Four digits; of numbers of parameters and operations all, up to millions."""
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e9 else f"{value:.4g}"
