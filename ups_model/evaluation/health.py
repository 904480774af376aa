"""Whether a run learnt, converged or collapsed: judged on its validation subjects, task by task. Imports no torch.

Every measure is put on one scale, the gain: 0 for the trivial answer (the most frequent class, the mean training pose),
1 for a perfect one. A run is measured at every fifth of its steps on the same clips.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self

CURVE_POINTS = 5
"""A run is measured at every fifth of its steps."""
CURVE_CLIPS = 256
"""Validation clips (frames, in pose estimation) of a task, evenly spaced, that the curve is measured on at most."""
LEARNT_GAIN = 0.1
"""Learnt: the last gain is at least this."""
CONVERGED_GAIN = 0.02
"""Converged: the last fifth of the steps gained less than this."""
MAX_FALL = 0.05
"""Not converged: the last gain is at least this far below the best one."""
COLLAPSED_GAIN = 0.05
"""Collapsed: the last gain is below this, or below half of the best gain before it."""


@dataclass(frozen=True)
class TaskHealth:
    """Health of one task in one run."""

    metric: str
    """Validation metric of the curve, without its "validation/": "ar3d/top1"."""
    trivial: float
    """Its value for the trivial answer on all validation clips."""
    curve: tuple[tuple[int, float], ...]
    """(step, value) at each fifth of the run, in the metric's unit."""
    perfect: float | None = None
    """The metric of a perfect answer; None: 0 for a metric that ends in _mm, 100 for all others."""

    @property
    def gains(self) -> tuple[float, ...]:
        """Share of the way from the trivial answer to a perfect one, at each point of the curve."""
        perfect = self.perfect
        if perfect is None:
            perfect = 0.0 if self.metric.endswith("_mm") else 100.0
        way = perfect - self.trivial
        # Where the trivial answer is perfect (one class alone) there is nothing to gain, only to lose.
        return tuple((value - self.trivial) / way if way else float(value == perfect) for _, value in self.curve)

    @property
    def learnt(self) -> bool:
        """Better than the trivial answer by LEARNT_GAIN."""
        return self.gains[-1] >= LEARNT_GAIN

    @property
    def converged(self) -> bool | None:
        """Whether the last fifth of the steps gained less than CONVERGED_GAIN, and the last gain is less than MAX_FALL
        below the best one. None where the run was too short for a curve of two points."""
        if len(self.curve) < 2:
            return None
        rise, fall = self.gains[-1] - self.gains[-2], max(self.gains) - self.gains[-1]
        return rise < CONVERGED_GAIN and fall < MAX_FALL

    @property
    def collapsed(self) -> bool:
        """No better than the trivial answer, or less than half as good as the run had been."""
        return self.gains[-1] < COLLAPSED_GAIN or self.gains[-1] < 0.5 * max(self.gains)

    @property
    def state(self) -> Literal["collapsed", "not learnt", "not converged", "converged", "learnt"]:
        """One word for people; "learnt" where convergence can't be judged."""
        if self.collapsed:
            return "collapsed"
        if not self.learnt:
            return "not learnt"
        if self.converged is None:
            return "learnt"
        return "converged" if self.converged else "not converged"

    def to_plain(self) -> dict[str, Any]:
        """JSON data, with the verdicts."""
        verdicts = {name: getattr(self, name) for name in ("learnt", "converged", "collapsed")}
        plain = {**asdict(self), "curve": [list(point) for point in self.curve], **verdicts}
        return plain if self.perfect is not None else {name: one for name, one in plain.items() if name != "perfect"}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_plain`; `check_health` checks data from elsewhere."""
        curve = tuple((int(step), float(value)) for step, value in plain["curve"])
        perfect = plain.get("perfect")
        return cls(plain["metric"], float(plain["trivial"]), curve, None if perfect is None else float(perfect))


def check_health(plain: Any) -> None:
    """ValueError for data that `TaskHealth.from_plain` can't take."""
    try:
        health = TaskHealth.from_plain(plain)
        numbers = [health.trivial, *(value for _, value in health.curve)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not the health of a task ({error!r})") from error
    if not health.curve or not isinstance(health.metric, str) or not all(map(math.isfinite, numbers)):
        raise ValueError("the health of a task needs a metric's name and a curve of finite numbers")


def curve_steps(steps: int) -> tuple[int, ...]:
    """Steps after which a run of `steps` steps is measured for its curve; the last is the end."""
    return tuple(dict.fromkeys(max(1, steps * point // CURVE_POINTS) for point in range(1, CURVE_POINTS + 1)))


def judge(curve: Mapping[int, Mapping[str, float]], trivial: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Health of each task, as JSON data.

    Args:
        curve: headline metrics by step, e.g. {240: {"ar3d/top1": 71.3}}.
        trivial: the same metrics of the trivial answer.
    """
    steps = sorted(curve)
    health = {}
    for metric, value in trivial.items():
        if steps and all(metric in curve[step] for step in steps):
            points = tuple((step, round(curve[step][metric], 4)) for step in steps)
            health[metric.split("/", 1)[0]] = TaskHealth(metric, round(value, 4), points).to_plain()
    return health


def health_line(health: Mapping[str, Mapping[str, Any]]) -> str:
    """One line for a log, e.g. "ar3d converged, pe not converged"; empty where nothing was judged."""
    return ", ".join(f"{task} {TaskHealth.from_plain(plain).state}" for task, plain in health.items())
