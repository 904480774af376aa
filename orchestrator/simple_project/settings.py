"""What a user declares of a model: settings, metrics, data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from ups_model.config.schema import canonical, digest, field_path, with_fields


@dataclass(frozen=True)
class Metric:
    """A measure that a training function returns, as "validation/NAME" and "test/NAME"."""

    name: str
    unit: str = "%"
    higher_is_better: bool = True
    trivial: float | None = None
    """Value of the trivial answer, such as that of always choosing the largest class. With it, and with the metric
    logged on validation data, the health of a run is judged: whether it learnt, converged or collapsed."""
    perfect: float | None = None
    """Value of a perfect answer; of percentages 100, and 0 where lower is better, unless it is given."""

    @property
    def best(self) -> float | None:
        """Value of a perfect answer, if it is known."""
        if self.perfect is not None:
            return self.perfect
        return 0.0 if not self.higher_is_better else 100.0 if self.unit == "%" else None


@dataclass(frozen=True)
class DataSet:
    """Data that a training function reads; its content is part of every unit's key."""

    name: str
    description: str = ""
    synthetic: bool = False
    made: bool = False
    """The code makes it: it has no file, and `--data` doesn't name it."""
    examples: int = 0
    """How many there are; 0 where that isn't said."""


@dataclass(frozen=True)
class SimpleSettings:
    """A user's dataclass as `Settings`."""

    values: Any

    @property
    def seed(self) -> int:
        return int(self.values.seed)

    def canonical(self) -> dict[str, Any]:
        plain: dict[str, Any] = canonical(self.values)
        return plain

    def fingerprint(self) -> str:
        return digest(self.canonical())

    def field_path(self, name: str) -> str:
        return field_path(type(self.values), name)

    def with_fields(self, changes: Mapping[str, Any]) -> Self:
        return type(self)(with_fields(self.values, changes))
