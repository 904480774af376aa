"""What a search space is: a base configuration, the fields that are searched, and what decides, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from search_spaces.common import NOTHING, UPS, kind_faults, text_faults

Sampler = Literal["tpe", "gp", "cmaes", "nsga2", "random", "qmc", "grid"]
StoppingRule = Literal["asha", "hyperband", "median"]
Direction = Literal["maximize", "minimize"]
Value = bool | int | float | str
SCORE = "validation/score"
"""The number that checkpoints are chosen by: the mean over tasks of the share solved, in percent."""
TRAIN_SECONDS, PARAMETERS, FLOPS = COSTS = ("cost/train_seconds", "cost/parameters", "cost/flops")
"""What a trial costs: the time that a unit trained, which differs between machines and runs; parameters of its model;
multiplications and additions of a forward pass, per sample, their mean over tasks."""
MAX_OBJECTIVES = 4
ROUNDING = 1e-9
"""Of floating point, as a share: 0.3 - 0.2 is less than 0.1."""
"""Of more, hardly any trial is worse in all than another."""


@dataclass(frozen=True)
class Objective:
    """One of several objectives."""

    metric: str
    """Of a unit's record, "validation/...", or one of `COSTS`."""
    direction: Direction = "maximize"
    bound: float | None = None
    """The worst value that is admitted; None admits all."""

    def __post_init__(self) -> None:
        if faults := kind_faults(self, bound=float):
            raise ValueError("an objective's " + "; ".join(faults))


@dataclass(frozen=True)
class Constraint:
    """What a trial must keep to be admitted, e.g. Constraint("cost/parameters", at_most=1e6)."""

    metric: str
    """As of an `Objective`."""
    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if faults := kind_faults(self, at_most=float, at_least=float):
            raise ValueError("a constraint's " + "; ".join(faults))
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError(
                f"a constraint needs at_most or at_least, got {self.at_most} and {self.at_least}; write two for both"
            )

    def excess(self, value: float) -> float:
        """By how much a value breaks it; 0 or below where it keeps it."""
        if self.at_most is not None:
            return value - self.at_most
        assert self.at_least is not None
        return self.at_least - value

    def __str__(self) -> str:
        side, limit = ("at most", self.at_most) if self.at_most is not None else ("at least", self.at_least)
        return f"{self.metric} {side} {limit:g}"


def _plain(where: Any) -> dict[str, Any]:
    """The fields of a dimension as they stand in a search's name; no condition where there is none."""
    return {name: value for name, value in vars(where).items() if name != "when" or value}


def _when(when: Mapping[str, Any] | None) -> Mapping[str, tuple[Value, ...]] | None:
    """A condition with a tuple of values for each parent; None where there is none."""
    every = {
        name: tuple(value) if isinstance(value, tuple | list) else (value,) for name, value in (when or {}).items()
    }
    return every or None


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; whole ones where the field is a whole number."""

    low: float
    high: float
    log: bool = False
    """Drawn evenly over the logarithm."""
    step: float | None = None
    """Only low, low + step, low + 2 step ..."""
    when: Mapping[str, Any] | None = field(default=None, hash=False)
    """Searched only where earlier dimensions, each a `Choice`, have these values, one or a tuple of some for each;
    elsewhere the field is as in the base and no part of the trial."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "when", _when(self.when))
        if faults := kind_faults(self, low=float, high=float, log=bool, step=float):
            raise ValueError("a range's " + "; ".join(faults))
        if not self.low < self.high:
            raise ValueError(f"a range needs low < high, got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(
                f"a range over the logarithm needs low > 0 and no step, got low {self.low}, step {self.step}"
            )
        if self.step is not None and not 0 < self.step <= (self.high - self.low) * (1 + ROUNDING):
            raise ValueError(f"a range's step must be above 0 and at most high - low, got {self.step}")

    @property
    def ends(self) -> tuple[float, ...]:
        """Values to check a field with."""
        return self.low, self.high

    def plain(self) -> dict[str, Any]:
        """JSON data."""
        return _plain(self)


@dataclass(frozen=True)
class Choice:
    """One of several values, without an order."""

    values: tuple[Value, ...]
    when: Mapping[str, Any] | None = field(default=None, hash=False)
    """As of a `Range`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "when", _when(self.when))
        if len(self.values) < 2 or len({repr(value) for value in self.values}) < len(self.values):
            raise ValueError(f"a choice needs at least two different values, got {self.values}")
        if not all(isinstance(value, bool | int | float | str) for value in self.values):
            raise ValueError(f"a choice's values must be numbers, texts or true/false, got {self.values}")

    @property
    def ends(self) -> tuple[Value, ...]:
        """Values to check a field with."""
        return self.values

    def plain(self) -> dict[str, Any]:
        """JSON data."""
        return _plain(self)


@dataclass(frozen=True)
class EarlyStopping:
    """Trials pause at rungs, shares of a run, and those that stand best train on; the others keep their checkpoints."""

    rule: StoppingRule = "asha"
    """asha: of the trials that come to a rung the best 1 / `reduction` train on, and rungs are that factor apart;
    hyperband: the same, and some trials begin at later rungs; median: the better half, at even rungs."""
    reduction: int = 3
    first: float = 1 / 9
    """Share of a run before the first rung; of the rule median the least."""
    points: int = 3
    """Of the rule median: parts into which rungs cut a run. More stop sooner, and lose the best trial more often."""

    def __post_init__(self) -> None:
        if faults := kind_faults(self, reduction=int, first=float, points=int):
            raise ValueError("early stopping's " + "; ".join(faults))
        if self.rule not in get_args(StoppingRule):
            raise ValueError(
                f"early stopping's rule must be one of {', '.join(get_args(StoppingRule))}, got {self.rule!r}"
            )
        if self.reduction < 2 or self.points < 2:
            raise ValueError(
                f"early stopping needs reduction and points of at least 2, got {self.reduction} and {self.points}"
            )
        most = 1 - 1 / self.points if self.rule == "median" else 1.0
        if not 0 < self.first <= most or self.first == 1:
            raise ValueError(
                f"early stopping's first rung must be a share of a run above 0 and at most that of the last rung, got "
                f"{self.first:g}; try {1 / 9:.3f}"
            )


@dataclass(frozen=True)
class Space:
    """A question about training, and where its answer is looked for.

    A trial is one configuration, trained jointly on all its tasks where its project can, once a seed; its value is the
    mean of `objective` over the seeds. All trials train on equally many samples of each task and hold out the same
    validation subjects, by which they are judged. The test split stays untouched: no unit of a search measures it, and
    no test metric can be an objective. What a search finds is measured on it by a study, whose seeds are others.
    """

    name: str
    question: str
    dimensions: Mapping[str, Range | Choice]
    """Fields of the configuration by dotted or unambiguous short name, and where each is searched."""
    base: Mapping[str, Any] = field(default_factory=lambda: NOTHING)
    """Changes to the preset that hold in every trial."""
    objective: str = SCORE
    """Metric of a unit's record that decides, e.g. "validation/ar3d/top1". Where tasks are trained apart, its task is
    the one that is trained."""
    direction: Direction = "maximize"
    objectives: tuple[Objective, ...] = ()
    """Several, in place of `objective` and `direction`: the search looks for trials than which none is better in all,
    its Pareto front. At least one is a validation metric."""
    constraints: tuple[Constraint, ...] = ()
    """What a trial must keep beside the bounds of objectives: one that doesn't is never the best, nor on the front."""
    trials: int = 20
    seeds: int = 1
    """Repetitions of each trial: seeds first_seed, first_seed + 1 ..."""
    first_seed: int = 100
    """Apart from those of studies, which begin at 0: what was lucky in the search must not count again in a study."""
    sampler: Sampler = "tpe"
    """Who suggests trials, of Optuna's: "tpe", "gp" (Gaussian process), "cmaes" (CMA-ES, for ranges and one objective)
    and "nsga2" (a genetic algorithm, for many trials) learn from the trials so far, "random" and "qmc" (Sobol's points)
    don't, "grid" takes all combinations in their order."""
    sampler_seed: int = 0
    """Of the suggestions."""
    project: str = UPS
    """Address of the trainer, "package.module:NAME" (`orchestrator.project.Project`)."""
    early_stopping: EarlyStopping | None = None
    """None trains every trial to its end."""

    def __post_init__(self) -> None:
        faults = kind_faults(self, trials=int, seeds=int, first_seed=int, sampler_seed=int)
        faults += kind_faults(self, early_stopping=EarlyStopping, objectives=Objective, constraints=Constraint)
        if faults:
            raise ValueError(f"space {self.name!r}: " + "; ".join(faults))
        faults = text_faults([("question", self.question)])
        if not self.name.isidentifier():
            faults.append(f"name must be letters, digits and underscores, got {self.name!r}")
        if not self.dimensions:
            faults.append("dimensions must name at least one field, got none")
        faults += self._faults_of_objectives()
        if self.sampler not in get_args(Sampler):
            faults.append(f"sampler must be one of {', '.join(get_args(Sampler))}, got {self.sampler!r}")
        for name, low in (("trials", 1), ("seeds", 1), ("first_seed", 0), ("sampler_seed", 0)):
            if getattr(self, name) < low:
                faults.append(f"{name} must be at least {low}, got {getattr(self, name)}")
        if faults:
            raise ValueError(f"space {self.name!r}: " + "; ".join(faults))

    def _faults_of_objectives(self) -> list[str]:
        faults = [
            f"objective must be a validation metric, got {metric!r}: choosing by the test split would spoil it; "
            f"try {SCORE!r}"
            for metric in ([self.objective] if not self.objectives else self.metrics)
            if not metric.startswith("validation/") and (not self.objectives or metric not in COSTS)
        ]
        faults += [
            f"a constraint must be on a validation metric or one of {', '.join(COSTS)}, got {limit.metric!r}"
            for limit in self.constraints
            if not limit.metric.startswith("validation/") and limit.metric not in COSTS
        ]
        if not self.objectives:
            return faults
        if self.sampler == "cmaes":
            faults.append("sampler cmaes has one objective, got several; use tpe, gp or nsga2")
        if self.early_stopping is not None:
            faults.append(
                "early_stopping needs one objective by which trials are compared at rungs, got several; give objective "
                "and direction, and the others as constraints"
            )
        metrics = [one.metric for one in self.objectives]
        if (self.objective, self.direction) != (SCORE, "maximize"):
            faults.append("give objective and direction, or objectives, and not both")
        if not 2 <= len(metrics) <= MAX_OBJECTIVES:
            faults.append(
                f"objectives must be 2 to {MAX_OBJECTIVES}, got {len(metrics)}; one is given as objective and "
                "direction, and limits as constraints"
            )
        if len(set(metrics)) < len(metrics):
            faults.append(f"objectives must differ, got {', '.join(metrics)}")
        if all(metric in COSTS for metric in metrics):
            faults.append("objectives must have a validation metric among them: costs alone need no training")
        faults += [
            f"direction of {one.metric} must be 'minimize', got {one.direction!r}"
            for one in self.objectives
            if one.metric in COSTS and one.direction != "minimize"
        ]
        return faults

    @property
    def aims(self) -> tuple[Objective, ...]:
        """The objectives, also where there is one."""
        return self.objectives or (Objective(self.objective, self.direction),)

    @property
    def limits(self) -> tuple[Constraint, ...]:
        """The constraints, and the bounds of objectives as such."""
        bounds = [
            Constraint(one.metric, at_most=one.bound)
            if one.direction == "minimize"
            else Constraint(one.metric, at_least=one.bound)
            for one in self.objectives
            if one.bound is not None
        ]
        return (*bounds, *self.constraints)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Of objectives and constraints, each once, objectives first."""
        return tuple(dict.fromkeys([*(one.metric for one in self.aims), *(one.metric for one in self.constraints)]))

    @property
    def judged_on(self) -> str:
        """The first objective that is a validation metric; where tasks are trained apart, its task is trained."""
        return next(one.metric for one in self.aims if one.metric not in COSTS)
