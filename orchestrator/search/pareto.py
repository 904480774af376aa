"""Which trials are best: those that keep the constraints, and of several objectives the Pareto front."""

from collections.abc import Iterable, Sequence

from optuna.trial import FrozenTrial


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a complete trial keeps all constraints."""
    return all(excess <= 0 for excess in trial.constraints.values())


def front(trials: Iterable[FrozenTrial], directions: Sequence[str]) -> list[FrozenTrial]:
    """The complete and feasible trials than which none is at least as good in all objectives and better in one; of one
    objective those with the best value."""
    every = [(trial, _losses(trial, directions)) for trial in trials if trial.values is not None and is_feasible(trial)]
    return [trial for trial, own in every if not any(_dominates(other, own) for _, other in every)]


def _losses(trial: FrozenTrial, directions: Sequence[str]) -> list[float]:
    return [
        -value if direction == "maximize" else value for value, direction in zip(trial.values, directions, strict=True)
    ]


def _dominates(one: Sequence[float], other: Sequence[float]) -> bool:
    return one != other and all(mine <= theirs for mine, theirs in zip(one, other, strict=True))
