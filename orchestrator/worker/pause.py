"""When a unit pauses: at the first measure of its rung's metric. Any trainer that logs it and can be stopped pauses."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.storage.ledger import PROGRESS
from orchestrator.worker.job import Rung
from orchestrator.worker.unit_folder import readable
from ups_model.training.progress import read_rows
from ups_model.training.run_folder import PREFIX


class Pause:
    """Watches the progress of a run for its rung."""

    def __init__(self, folder: Path, rung: Rung | None, sample: Callable[[int, Any], None]) -> None:
        """
        Args:
            folder: of the unit.
            rung: None never pauses.
            sample: called after each line of progress.
        """
        self._folder, self._rung, self._sample = folder, rung, sample
        self.value: float | None = None
        """Of the rung's metric, once it has been measured."""

    def reached_before(self) -> float | None:
        """The value, where an earlier try has come to the rung and its checkpoint is there."""
        if self._rung is None:
            return None
        checkpoints = (self._folder / "checkpoints").glob(f"{PREFIX}*")
        names = [path.name.removeprefix(PREFIX) for path in checkpoints if readable(path)]
        return self._measured(max((int(name) for name in names if name.isdigit()), default=-1))

    def sample(self, step: int, values: Any) -> None:
        """As `Request.sample`."""
        self._sample(step, values)
        if self._rung is not None and self.value is None and step >= self._rung.step:
            self.value = self._measured(step)

    def _measured(self, until: int) -> float | None:
        """The metric as it was first measured from the rung on, up to a step."""
        assert self._rung is not None, "asked of runs that have a rung"
        for row in read_rows(self._folder / PROGRESS):
            if self._rung.step <= row["step"] <= until and self._rung.metric in row:
                return row[self._rung.metric]
        return None
