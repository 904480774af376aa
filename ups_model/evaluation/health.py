"""Whether a run learnt, converged or collapsed: judged on its validation subjects, task by task. Imports no torch.

Every measure is put on one scale, the gain: 0 for the trivial answer (the most frequent class, the mean training pose),
1 for a perfect one. A run is measured at every fifth of its steps on the same clips.

Few clips show no small change: of 50 clips, one is 2 points. Accuracies that differ by CHANCE_CLIPS clips or fewer are
therefore not told apart, and runs that differ in their seed alone are judged by their mean curve too, on all their
clips, which shows smaller changes (`states_together`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
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
CHANCE_CLIPS = 5
"""Between two measurements on the same clips, so many clips that are now right (or now wrong) may be chance: if skill
stays the same, five clips that change all change to one side in one case of 16, six in one of 32 (McNemar's exact
test)."""
COLLAPSED_GAIN = 0.05
"""Collapsed: the last gain is below this, or below half of the best gain before it."""
WINDOWS = 64
"""Clips of a curve of `baselines.multitask`, whose CURVE_CLIPS poses lie in windows of four."""

State = Literal["collapsed", "not learnt", "not converged", "converged", "learnt"]


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
    clips: int | None = None
    """Of an accuracy: how many clips it is over, at each point. None: unknown, or not an accuracy."""

    @property
    def chance(self) -> float:
        """Gain that CHANCE_CLIPS clips don't reach and one more does; 0 where the number of clips is unknown."""
        if self.clips is None or self.trivial >= self.best:
            return 0.0
        return (CHANCE_CLIPS + 0.5) / self.clips * self.best / (self.best - self.trivial)

    @property
    def best(self) -> float:
        """Value of a perfect answer."""
        if self.perfect is None:
            return 0.0 if self.metric.endswith("_mm") else 100.0
        return self.perfect

    @property
    def gains(self) -> tuple[float, ...]:
        """Share of the way from the trivial answer to a perfect one, at each point of the curve."""
        way = self.best - self.trivial
        # Where the trivial answer is perfect (one class alone) there is nothing to gain, only to lose.
        return tuple((value - self.trivial) / way if way else float(value == self.best) for _, value in self.curve)

    @property
    def learnt(self) -> bool:
        """Better than the trivial answer by LEARNT_GAIN."""
        return self.gains[-1] >= LEARNT_GAIN

    @property
    def converged(self) -> bool | None:
        """Whether the last fifth of the steps gained less than CONVERGED_GAIN, and the last gain is less than MAX_FALL
        below the best one, or no more than chance. None where the run was too short for a curve of two points."""
        return _converged(self.gains, self.chance)

    @property
    def collapsed(self) -> bool:
        """No better than the trivial answer, or less than half as good as the run had been."""
        return self.gains[-1] < COLLAPSED_GAIN or self.gains[-1] < 0.5 * max(self.gains)

    @property
    def state(self) -> State:
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
        return {name: one for name, one in plain.items() if name not in ("perfect", "clips") or one is not None}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Self:
        """The inverse of `to_plain`; `check_health` checks data from elsewhere."""
        curve = tuple((int(step), float(value)) for step, value in plain["curve"])
        perfect, clips = plain.get("perfect"), plain.get("clips")
        return cls(
            plain["metric"],
            float(plain["trivial"]),
            curve,
            None if perfect is None else float(perfect),
            None if clips is None else int(clips),
        )


def read_health(health: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any]) -> dict[str, TaskHealth]:
    """Health of each task of a record; of accuracies of UPS and the baselines with the number of clips, which their
    metrics have ("validation/ar3d/clips")."""
    read = {task: TaskHealth.from_plain(plain) for task, plain in health.items()}
    for task, one in read.items():
        validated = metrics.get(f"validation/{task}/clips")
        if validated is not None and one.clips is None and one.perfect is None and one.best > 0:
            read[task] = replace(one, clips=_clips_of(one, int(validated)))
    return read


def states_together(runs: Sequence[TaskHealth]) -> list[State]:
    """State of each of several runs that differ in their seed alone.

    A run has not converged if its own curve shows it, whatever chance may do, or if the mean curve does and the run's
    own change is as large as it takes, chance or not.
    """
    states = [run.state for run in runs]
    sound = [run for run, state in zip(runs, states, strict=True) if state in ("converged", "not converged")]
    if len(sound) < 2 or len({(run.metric, len(run.curve)) for run in sound}) > 1:
        return states
    # Weights that make of the mean gain that of all clips together.
    weights = [1 / run.chance for run in sound] if all(run.chance for run in sound) else None
    means = [fmean(gains, weights) for gains in zip(*(run.gains for run in sound), strict=True)]
    if _converged(means, 1 / sum(weights) if weights else 0.0):
        return states
    return [
        "not converged" if state == "converged" and not _converged(run.gains, 0.0) else state
        for run, state in zip(runs, states, strict=True)
    ]


def _converged(gains: Sequence[float], chance: float) -> bool | None:
    if len(gains) < 2:
        return None
    rise, fall = gains[-1] - gains[-2], max(gains) - gains[-1]
    return rise < max(CONVERGED_GAIN, chance) and fall < max(MAX_FALL, chance)


def _clips_of(health: TaskHealth, validated: int) -> int:
    """Clips behind each point of a curve where so many were validated in all."""
    counts = [value * WINDOWS / 100.0 for _, value in health.curve]
    in_windows = all(abs(count - round(count)) < 1e-3 for count in counts)
    return min(validated, WINDOWS if in_windows and validated > CURVE_CLIPS else CURVE_CLIPS)


def check_health(plain: Any) -> None:
    """ValueError for data that `TaskHealth.from_plain` can't take."""
    try:
        health = TaskHealth.from_plain(plain)
        numbers = [health.trivial, *(value for _, value in health.curve)]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not the health of a task ({error!r})") from error
    if not health.curve or not isinstance(health.metric, str) or not all(map(math.isfinite, numbers)):
        raise ValueError("the health of a task needs a metric's name and a curve of finite numbers")
    if health.clips is not None and health.clips < 1:
        raise ValueError(f"the health of a task needs at least 1 of clips, got {health.clips}")


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


def health_line(health: Mapping[str, Mapping[str, Any]], metrics: Mapping[str, Any]) -> str:
    """One line for a log, e.g. "ar3d converged, pe not converged"; empty where nothing was judged."""
    return ", ".join(f"{task} {one.state}" for task, one in read_health(health, metrics).items())
