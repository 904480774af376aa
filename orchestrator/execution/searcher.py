"""Tune's searcher: it releases the units that the dispatcher names, and tells it how each try ended."""

import errno
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import ray
from ray import tune
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError
from ray.tune.search import Searcher

from orchestrator.execution import local_ray
from orchestrator.planning.plan import Unit
from orchestrator.scheduling.dispatcher import Assignment, Broken, Dispatcher
from orchestrator.worker.job import Job

logger = logging.getLogger(__name__)

FULL = (errno.ENOSPC, errno.EDQUOT)
FULL_TEXT = re.compile(rf"{os.strerror(errno.ENOSPC)}|{os.strerror(errno.EDQUOT)}|os error ({FULL[0]}|{FULL[1]})\b")
"""What libraries that raise no OSError, such as safetensors, and processes of a unit's own say of a full disk."""

FRAME = re.compile(r'File "([^"]+)", line (\d+)')
"""Of a traceback."""


class Tries(Protocol):
    """What is known of tries that are under way, by their names."""

    def begun(self) -> list[str]:
        """Those that have begun since the last call. Raises RayActorError where that can't be known any more."""

    def ended(self, name: str) -> None:
        """One is over."""

    def broke(self, name: str) -> str:
        """One is over without an outcome; the node where it began, empty if it never did."""


class BellTries:
    """`Tries`, from what workers tell the bell."""

    def __init__(self, bell: Any) -> None:
        self._bell = bell
        self._news = bell.news.remote()

    def begun(self) -> list[str]:
        if not ray.wait([self._news], timeout=0)[0]:
            return []
        names: list[str] = ray.get(self._news)
        self._news = self._bell.news.remote()
        return names

    def ended(self, name: str) -> None:
        self._bell.ended.remote(name)

    def broke(self, name: str) -> str:
        try:
            node: str = ray.get(self._bell.ended.remote(name), timeout=5)
            return node
        except RayActorError:
            local_ray.wait_for_restart()
            return ""
        except GetTimeoutError:
            return ""


class DispatchSearcher(Searcher):
    """Releases what the dispatcher says, and tells it how each try ended."""

    def __init__(self, dispatcher: Dispatcher, job_of: Callable[[Unit], Job], tries: Tries) -> None:
        super().__init__(metric="done", mode="max")
        self._dispatcher, self._job_of, self._tries = dispatcher, job_of, tries
        self._unit_of: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy to restore from, which we never do; ours holds threads and open files.

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        return True

    def suggest(  # type: ignore[override]  # Ray says dict | None, but its FINISHED is a str
        self, trial_id: str
    ) -> dict[str, Any] | str | None:
        assignment: Assignment | None = self._dispatcher.next()
        if assignment is None:
            return Searcher.FINISHED if self._dispatcher.complete else None
        self._unit_of[trial_id] = assignment.unit.key
        job = replace(self._job_of(assignment.unit), gpus=assignment.gpus, too_small=assignment.too_small)
        return {"job": job.to_json(), "gpus": assignment.gpus, "avoid": list(assignment.avoid), "try": trial_id}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        if error:
            return  # `broke` comes next, and knows what happened.
        key = self._unit_of.pop(trial_id, None)
        if key is not None:
            self._tries.ended(trial_id)
            self._dispatcher.ended(key, result or {})

    def broke(self, trial_id: str, error: BaseException | None) -> None:
        """A try ended with an exception, its own or Ray's."""
        key = self._unit_of.pop(trial_id, None)
        if key is not None:
            self._dispatcher.broke(key, Broken(_first_line(error), self._tries.broke(trial_id), _kind_of(error)))

    def unit_of(self, trial_id: str) -> str:
        """Key of the unit of a try that is under way."""
        return self._unit_of[trial_id]

    def tick(self) -> None:
        """As often as Tune's loop turns."""
        try:
            for trial_id in self._tries.begun():
                if trial_id in self._unit_of:
                    self._dispatcher.began(self._unit_of[trial_id])
        except RayActorError:
            local_ray.wait_for_restart()
            if not self._dispatcher.graph.stopping:
                # Workers take its silence for the driver's end, and would stop again and again.
                self._dispatcher.request_stop("the process that tells workers to stop has died; the study stops")
        self._dispatcher.tick()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""


def _kind_of(error: BaseException | None) -> Literal["raised", "unreachable", "full", "died", "machine"]:
    """Of a `Broken`."""
    if isinstance(error, RayTaskError):
        if getattr(error.cause, "errno", None) in FULL or FULL_TEXT.search(_first_line(error)):
            return "full"
        if isinstance(error.cause, OSError):
            return "unreachable"
    if isinstance(error, ActorUnavailableError) or (isinstance(error, RayActorError) and error.preempted):
        return "machine"
    return "died" if isinstance(error, RayActorError) or error is None else "raised"


def _first_line(error: BaseException | None) -> str:
    """What went wrong, for people: of an exception of a worker, its own last line and where it was raised."""
    if isinstance(error, RayActorError) or error is None:
        return "its process died; see its log"
    lines = [line for line in str(error).splitlines() if line.strip()]
    frames = FRAME.findall(str(error))
    where = f", {Path(frames[-1][0]).name} line {frames[-1][1]}" if frames else ""
    return (lines[-1].strip() if lines else type(error).__name__) + where


class AtRest(tune.Stopper):
    """Ends Tune's loop while units still wait for room, once the study is to stop and nothing runs."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher: Dispatcher | None = dispatcher

    def __getstate__(self) -> dict[str, Any]:
        return {"_dispatcher": None}  # As of the searcher.

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._dispatcher is not None and self._dispatcher.at_rest


class Ticker(tune.Callback):
    """Tune's loop, as a clock, and what it says of tries that broke."""

    def __init__(self, searcher: DispatchSearcher) -> None:
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}  # As of the searcher.

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._searcher.tick()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        # Its `get_pickled_error` looks in the storage, where the file comes later, if ever.
        file = trial.pickled_error_file
        error = ray.cloudpickle.loads(Path(file).read_bytes()) if file else None
        self._searcher.broke(trial.trial_id, error)
