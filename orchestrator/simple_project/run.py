"""A training run, as a user's training function sees it."""

import math
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.project import Request, checkpoint_interval
from orchestrator.simple_project.settings import Metric
from ups_model.training.progress import append_row
from ups_model.training.run_folder import PREFIX, prune_checkpoints, verify_checkpoint, write_checkpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import ArrayLike

KEPT_CHECKPOINTS = 2


def as_number(what: str, value: Any) -> float:
    """A number of any library as one of Python's, whole ones as such. ValueError for anything else."""
    try:
        number = value.item() if hasattr(value, "item") else value
        if isinstance(number, int | float) and not isinstance(number, bool):
            return number
    except (TypeError, ValueError, RuntimeError):  # An array of several numbers.
        pass
    raise ValueError(f"{what} must be a number, got {value!r:.80}")


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
    _items: "dict[str, tuple[np.ndarray, np.ndarray]]" = field(default_factory=dict)
    _metrics: tuple[Metric, ...] = ()
    _task: str = ""

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
        folder = self._request.folder / "checkpoints"
        with write_checkpoint(folder, step, {"key": self._request.key, "train_seconds": self.seconds}) as place:
            yield place
        prune_checkpoints(folder, KEPT_CHECKPOINTS)
        self._request.on_checkpoint()

    def log(self, step: int, **values: float) -> None:
        """A line of progress, for curves in MLflow: `log(100, loss=0.3)`. A declared metric here is one on validation
        data, by which the run's health is judged: `log(100, accuracy=81.2)`."""
        numbers = {name: as_number(f"step {step}: {name}", value) for name, value in values.items()}
        if wrong := [name for name, number in numbers.items() if not math.isfinite(number)]:
            raise ValueError(
                f"step {step}: {wrong[0]} must be finite, got {numbers[wrong[0]]}; did the training diverge?"
            )
        append_row(self._request.folder / "progress.jsonl", {"step": int(step), **self._named(numbers)})
        self._request.sample(int(step), numbers)

    def set_trivial(self, **values: float) -> None:
        """Values of the trivial answer that follow from the data, such as the error of the mean training pose, where
        the metric's declaration has none: `set_trivial(mpjpe=239.5)`."""
        names = [metric.name for metric in self._metrics]
        if unknown := sorted(values.keys() - set(names)):
            raise ValueError(f"set_trivial takes declared metrics ({', '.join(names)}), got {unknown[0]!r}")
        self._trivial |= {name: as_number(name, value) for name, value in values.items()}

    def describe(self, **facts: str | float) -> None:
        """What a caption should say: `describe(parameters=1_200_000, device="cuda", precision="bf16")`."""
        self._facts |= {name: fact if isinstance(fact, str) else as_number(name, fact) for name, fact in facts.items()}

    def keep_items(self, metric: str, values: "ArrayLike", subjects: "ArrayLike") -> None:
        """Results of the test data one by one, of which the metric is the mean: the report then says what a claim's
        effect would be for new subjects, where there are at least five, and `outcomes` has them in a notebook.

        Args:
            metric: a declared one.
            values: [n] in its unit, of an accuracy in % 0 or 100.
            subjects: [n] whole numbers: who each item is of.

        Raises:
            ValueError: another metric, arrays of other shapes, or values that aren't finite.
        """
        import numpy as np

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
