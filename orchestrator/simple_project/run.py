"""A training run, as a user's training function sees it."""

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from orchestrator.project import ITEM, Request, checkpoint_interval
from orchestrator.simple_project.settings import Metric
from ups_model.evaluation.health import CURVE_POINTS, TaskHealth
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.training.progress import append_row, read_rows
from ups_model.training.run_folder import PREFIX, prune_checkpoints, verify_checkpoint, write_checkpoint

KEPT_CHECKPOINTS = 2
MEAN_TOLERANCE = 1e-4
"""Between a metric and the mean of its items, in part of it or in its unit."""
MAX_STEPS = 10**8
"""Names of checkpoints have eight digits."""


def as_number(what: str, value: Any) -> float:
    """A number of any library as one of Python's, whole ones as such. ValueError for anything else."""
    try:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, int | float) and not isinstance(number, bool):
            return number
    except (TypeError, ValueError, RuntimeError):  # An array of several numbers.
        pass
    raise ValueError(f"{what} must be a number, got {value!r:.80}")


def finite(what: str, value: Any) -> float:
    """A finite number. ValueError for anything else."""
    number = as_number(what, value)
    if not math.isfinite(number):
        raise ValueError(f"{what} must be a finite number, got {number}; did the training diverge?")
    return number


def whole_step(of: str, step: Any) -> int:
    """The number of a step. ValueError for what is none."""
    number = finite(f"{of}: step", step)
    if number != int(number) or not 0 <= number < MAX_STEPS:
        raise ValueError(f"{of}: step must be a whole number from 0 and below {MAX_STEPS:,}, got {step!r:.80}")
    return int(number)


@dataclass
class Run:
    """One training run, as a training function sees it."""

    data: Mapping[str, Path]
    """File or folder of each data set that `--data` names."""
    device: str
    """As `--device` names it: "auto", "cpu", "cuda" ..."""
    precision: str
    threads: int
    test: bool
    """Measure the test data too; without it they are left alone, and `test/...` metrics are an error."""
    checkpoint: Path | None
    """Folder that `save` wrote last, in an earlier try; None in a new run."""
    step: int
    """Of that checkpoint; 0 in a new run."""
    _request: Request
    _facts: dict[str, Any] = field(default_factory=dict)
    _trivial: dict[str, float] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _seconds_before: float = 0.0
    _was_told: bool = False
    _items: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    _metrics: tuple[Metric, ...] = ()
    _task: str = ""
    _name: str = ""

    def should_stop(self) -> bool:
        """Whether to end now: save a checkpoint and return None. Cheap enough for every step."""
        self._was_told = self._was_told or self._request.should_stop()
        return self._was_told

    def is_due(self, step: int, steps: int) -> bool:
        """Whether to save after a step: ten times a run, every 500 steps at least, and where the run is to end early,
        so that it goes on from there."""
        return step % checkpoint_interval(steps) == 0 or (step < steps and self.should_stop())

    @contextmanager
    def save(self, step: int) -> Iterator[Path]:
        """A folder to write files to, with all that is needed to go on after this step: weights, the optimizer's state,
        states of random generators. It counts once the block has ended."""
        folder, step = self._request.folder / "checkpoints", whole_step("save", step)
        with write_checkpoint(folder, step, {"key": self._request.key, "train_seconds": self.seconds}) as place:
            yield place
        prune_checkpoints(folder, KEPT_CHECKPOINTS)
        self._request.on_checkpoint()

    def log(self, step: int, **values: float) -> None:
        """A line of progress, for curves in MLflow: `log(100, loss=0.3)`. A declared metric here is one on validation
        data, by which the run's health is judged: `log(100, accuracy=81.2)`."""
        step = whole_step("log", step)
        numbers = {name: finite(f"step {step}: {name}", value) for name, value in values.items()}
        append_row(self._request.folder / "progress.jsonl", {"step": step, **self._named(numbers)})
        self._request.sample(step, numbers)

    def set_trivial(self, **values: float) -> None:
        """Values of the trivial answer that follow from the data, such as the error of the mean training pose, where
        the metric's declaration has none: `set_trivial(mpjpe=239.5)`."""
        names = [metric.name for metric in self._metrics]
        if unknown := sorted(values.keys() - set(names)):
            raise ValueError(f"set_trivial takes declared metrics ({', '.join(names)}), got {unknown[0]!r}")
        self._trivial |= {name: finite(f"set_trivial: {name}", value) for name, value in values.items()}

    def describe(self, **facts: str | float) -> None:
        """What a caption should say: `describe(parameters=1_200_000, device="cuda", precision="bf16")`."""
        self._facts |= {
            name: fact if isinstance(fact, str) else finite(f"describe: {name}", fact) for name, fact in facts.items()
        }

    def keep_items(self, metric: str, values: ArrayLike, subjects: ArrayLike) -> None:
        """Results of the test data one by one, of which the metric is the mean: the report then says what a claim's
        effect would be for new subjects, where there are at least five, and `outcomes` has them in a notebook.

        Args:
            metric: a declared one.
            values: [n] in its unit, of an accuracy in % 0 or 100.
            subjects: [n] whole numbers: who each item is of.

        Raises:
            ValueError: another metric, arrays of other shapes, or values that aren't finite.
        """
        value_N, subject_N = np.asarray(values, dtype=np.float64), np.asarray(subjects)
        names = [one.name for one in self._metrics]
        if metric not in names:
            raise ValueError(f"keep_items takes a declared metric ({', '.join(names)}), got {metric!r}")
        if not self.test:
            raise ValueError("keep_items is for test data, and run.test is False; leave test data alone then")
        if value_N.ndim != 1 or not len(value_N) or value_N.shape != subject_N.shape:
            raise ValueError(
                f"keep_items({metric!r}): values and subjects must be one-dimensional, of one length above 0, got "
                f"{value_N.shape} and {subject_N.shape}"
            )
        if not np.issubdtype(subject_N.dtype, np.integer) or not np.isfinite(value_N).all():
            raise ValueError(f"keep_items({metric!r}): subjects must be whole numbers, and values finite")
        self._items[metric] = (value_N, subject_N.astype(np.int64))

    @property
    def seconds(self) -> float:
        """Since the run began, interruptions not counted."""
        return round(self._seconds_before + time.monotonic() - self._started, 2)

    def _named(self, values: Mapping[str, float]) -> dict[str, float]:
        names = {metric.name for metric in self._metrics}
        return {
            f"validation/{self._task}/{name}" if name in names else f"train/{name}": value
            for name, value in values.items()
        }

    def _checked(self, returned: Mapping[str, float]) -> dict[str, float]:
        """The metrics under their whole names."""
        names = [metric.name for metric in self._metrics]
        metrics = {}
        if not isinstance(returned, Mapping):
            raise ValueError(f"{self._name}: the training function must return a dictionary, got {returned!r:.80}")
        for name, given in returned.items():
            at, (part, _, metric) = f"{self._name}: {name}", str(name).partition("/")
            if part not in ("validation", "test") or metric not in names:
                raise ValueError(
                    f"{self._name}: metrics must be named validation/NAME or test/NAME with a NAME of "
                    f"{', '.join(names)}, got {name!r}"
                )
            if part == "test" and not self.test:
                raise ValueError(f"{at} was measured though run.test is False; leave test data alone then")
            metrics[f"{part}/{self._task}/{metric}"] = finite(at, given)
        if self.test and (missing := [name for name in names if f"test/{self._task}/{name}" not in metrics]):
            raise ValueError(f"{self._name}: the training function must return test/{missing[0]}")
        return metrics

    def _save_items(self, metrics: Mapping[str, float], sets: Sequence[str]) -> str:
        """Write `outcomes.npz` where the function has kept results one by one; its SHA-256, or nothing."""
        if not self._items:
            return ""
        from ups_model.evaluation.outcomes import save_outcomes  # It imports torch.

        if not sets:
            raise ValueError(f"{self._name}: keep_items needs to know what was measured: declare data=[DataSet(...)]")
        place = f"{self._task}/{sets[0]}"  # In reports, results one by one are those of a column's first data set.
        _, subject_N = next(iter(self._items.values()))
        arrays = {f"{place}/subject": subject_N}
        for metric, (value_N, whose_N) in self._items.items():
            mean, reported = float(value_N.mean()), metrics[f"test/{self._task}/{metric}"]
            if not math.isclose(mean, reported, rel_tol=MEAN_TOLERANCE, abs_tol=MEAN_TOLERANCE):
                raise ValueError(
                    f"{self._name}: test/{metric} must be the mean of its items, {mean:.6g}, got {reported:.6g}"
                )
            if not np.array_equal(whose_N, subject_N):
                raise ValueError(f"{self._name}: all metrics must be kept of the same items, in one order")
            arrays[f"{place}/{ITEM}{metric}"] = value_N
        return save_outcomes(self._request.folder / OUTCOMES, arrays)

    def _health(self) -> dict[str, dict[str, Any]]:
        """From the validation metrics that were logged, at about each fifth of the run."""
        rows = read_rows(self._request.folder / "progress.jsonl")
        last = max((int(row["step"]) for row in rows), default=0)
        for metric in self._metrics:
            name = f"validation/{self._task}/{metric.name}"
            values = {int(row["step"]): float(row[name]) for row in rows if name in row}
            worst = self._trivial.get(metric.name, metric.trivial)
            if worst is not None and metric.best is not None and values:
                ends = (last * point / CURVE_POINTS for point in range(1, CURVE_POINTS + 1))
                steps = dict.fromkeys(max(below) for end in ends if (below := [step for step in values if step <= end]))
                curve = tuple((step, round(values[step], 4)) for step in steps)
                judged = TaskHealth(f"{self._task}/{metric.name}", worst, curve, metric.best)
                return {self._task: judged.to_plain()}
        return {}


@dataclass(frozen=True)
class FinishedRun:
    """A `Result`, for projects without one of their own."""

    status: Literal["finished", "stopped"]
    key: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    checkpoint: str = ""
    about: Mapping[str, Any] = field(default_factory=dict)
    health: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    outcomes: str = ""
    routes: Mapping[str, list[int]] = field(default_factory=dict)


def newest_checkpoint(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The newest whole checkpoint and its state."""
    for path in sorted(folder.glob(f"{PREFIX}*"), reverse=True):
        try:
            return path, verify_checkpoint(path)
        except ValueError:
            shutil.rmtree(path)
    return None, {}


def keep_weights(request: Request) -> Path:
    """The files of the last checkpoint as the chosen weights; without any, a checkpoint of no file."""
    newest, state = newest_checkpoint(request.folder / "checkpoints")
    step, best = int(state.get("step", 0)), request.folder / "best"
    with write_checkpoint(best, step, {"key": request.key}) as place:
        for name in state.get("sha256", {}) if newest else ():
            shutil.copyfile(newest / name, place / name)
    prune_checkpoints(best, 1)
    return best / f"{PREFIX}{step:08d}"
