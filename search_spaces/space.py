"""What a search space is: a base configuration, the fields that are searched, and what decides, as plain data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from search_spaces.common import NOTHING, UPS, text_faults

Sampler = Literal["tpe", "gp", "random", "qmc", "grid"]
SCORE = "validation/score"
"""The number that checkpoints are chosen by: the mean over tasks of the share solved, in percent."""


@dataclass(frozen=True)
class Range:
    """All numbers from `low` to `high`, both included; whole ones where the field is a whole number."""

    low: float
    high: float
    log: bool = False
    """Drawn evenly over the logarithm."""
    step: float | None = None
    """Only low, low + step, low + 2 step ..."""

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise ValueError(f"a range needs low < high, got {self.low} and {self.high}")
        if self.log and (self.low <= 0 or self.step is not None):
            raise ValueError(
                f"a range over the logarithm needs low > 0 and no step, got low {self.low}, step {self.step}"
            )
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise ValueError(f"a range's step must be above 0 and at most high - low, got {self.step}")

    @property
    def ends(self) -> tuple[float, ...]:
        """Values to check a field with."""
        return self.low, self.high


@dataclass(frozen=True)
class Choice:
    """One of several values, without an order."""

    values: tuple[bool | int | float | str, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or len({repr(value) for value in self.values}) < len(self.values):
            raise ValueError(f"a choice needs at least two different values, got {self.values}")
        if not all(isinstance(value, bool | int | float | str) for value in self.values):
            raise ValueError(f"a choice's values must be numbers, texts or true/false, got {self.values}")

    @property
    def ends(self) -> tuple[bool | int | float | str, ...]:
        """Values to check a field with."""
        return self.values


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
    direction: Literal["maximize", "minimize"] = "maximize"
    trials: int = 20
    seeds: int = 1
    """Repetitions of each trial: seeds first_seed, first_seed + 1 ..."""
    first_seed: int = 100
    """Apart from those of studies, which begin at 0: what was lucky in the search must not count again in a study."""
    sampler: Sampler = "tpe"
    """Who suggests trials, of Optuna's: "tpe" and "gp" (Gaussian process) learn from the trials so far, "random" and
    "qmc" (Sobol's points) don't, "grid" takes all combinations in their order."""
    sampler_seed: int = 0
    """Of the suggestions."""
    project: str = UPS
    """Address of the trainer, "package.module:NAME" (`orchestrator.project.Project`)."""

    def __post_init__(self) -> None:
        faults = text_faults([("question", self.question)])
        if not self.name.isidentifier():
            faults.append(f"name must be letters, digits and underscores, got {self.name!r}")
        if not self.dimensions:
            faults.append("dimensions must name at least one field, got none")
        if not self.objective.startswith("validation/"):
            faults.append(
                f"objective must be a validation metric, got {self.objective!r}: choosing by the test split would "
                f"spoil it; try {SCORE!r}"
            )
        if self.sampler not in get_args(Sampler):
            faults.append(f"sampler must be one of {', '.join(get_args(Sampler))}, got {self.sampler!r}")
        for name, low in (("trials", 1), ("seeds", 1), ("first_seed", 0), ("sampler_seed", 0)):
            if getattr(self, name) < low:
                faults.append(f"{name} must be at least {low}, got {getattr(self, name)}")
        if faults:
            raise ValueError(f"space {self.name!r}: " + "; ".join(faults))
