"""The Ray Tune driver: a searcher that releases units when their parents are done, a trainable that runs one unit.

Nothing rests on Tune's own saved state: which units are left is read from the ledger at each start, and a unit goes on
from its own newest checkpoint.
"""

import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any

# Tune reads these when it is imported: no result files (the ledger has them), no handler of Ctrl-C (ours is below).
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
from ray import tune
from ray.tune.search import Searcher

from orchestrator.agenda import Agenda, State
from orchestrator.plan import Unit
from orchestrator.worker import Job, run_unit

logger = logging.getLogger(__name__)

RETRIES = 3
"""How often a unit is tried again, from its newest checkpoint, after its process died or raised what may pass."""
LOOK_ELSEWHERE_SECONDS = 2.0
RETRY_PAUSE_SECONDS = 2.0


@dataclass(frozen=True)
class Resources:
    """What a unit gets, and how many units may run at once."""

    cpus_per_unit: float = 1.0
    gpus_per_unit: float = 0.0
    max_concurrent: int | None = None
    """None: as many as the cluster has room for."""


@dataclass(frozen=True)
class ClusterFacts:
    """What Ray says there is."""

    cpus: float
    gpus: float
    local: bool

    def slots(self, resources: Resources) -> int:
        """Units that run at once."""
        room = self.cpus / resources.cpus_per_unit if resources.cpus_per_unit else float("inf")
        if resources.gpus_per_unit:
            room = min(room, self.gpus / resources.gpus_per_unit)
        most = resources.max_concurrent if resources.max_concurrent is not None else float("inf")
        return int(max(1, min(room + 1e-9, most)))


def connect(address: str) -> ClusterFacts:
    """Start Ray on this machine ("local"), or join a cluster that runs ("auto": if there is one; HOST:PORT).

    Raises:
        ValueError: no cluster answers at the address.
    """
    if not ray.is_initialized():
        quiet = {"logging_level": logging.ERROR, "log_to_driver": False}
        try:
            if address == "auto":
                # RAY_ADDRESS or a cluster of `ray start` (so of `ray up`), else one of our own. Ray's own "auto" would
                # also take what another driver on this machine has started for itself, and end with it.
                ray.init(**quiet)
            else:
                ray.init(address=address, **quiet)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"--address {address}: no Ray cluster answers ({reason}); start one with ray up, or use local"
            ) from error
    found = ray.cluster_resources()
    local = address == "local" or sum(node["Alive"] for node in ray.nodes()) == 1
    return ClusterFacts(found.get("CPU", 0.0), found.get("GPU", 0.0), local)


def check_room(facts: ClusterFacts, resources: Resources) -> None:
    """ValueError where no node could ever run one unit."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for flag, name, asked in (
        ("--gpus-per-unit", "GPU", resources.gpus_per_unit),
        ("--cpus-per-unit", "CPU", resources.cpus_per_unit),
    ):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if asked > most:
            total = facts.gpus if name == "GPU" else facts.cpus
            raise ValueError(
                f"{flag} must be at most what one node has, got {asked:g}: the cluster has {total:g} {name} in all and "
                f"{most:g} on its largest node; try {flag} {most:g}"
            )


@dataclass
class Hooks:
    """What the driver tells others; each must return at once and never raise."""

    changed: Callable[[str, State], None]
    """A unit's key and its new state."""
    tick: Callable[[], None]
    """A few times a second."""


def execute(
    agenda: Agenda,
    job_of: Callable[[Unit], Job],
    resources: Resources,
    facts: ClusterFacts,
    hooks: Hooks,
    work: Callable[[str, Callable[[], bool]], Mapping[str, str]] | None = None,
) -> None:
    """Run every unit of the agenda that can run. Ray must be connected.

    Args:
        agenda: which units; holds their states afterwards.
        job_of: how to carry out a unit.
        resources: what each gets.
        facts: what `connect` found.
        hooks: told of each change.
        work: what a worker does with a job's text; by default it trains.
    """
    if agenda.complete:
        return
    most = facts.slots(resources) if facts.local else resources.max_concurrent or len(agenda.units)
    bell = _Bell.options(num_cpus=0, max_concurrency=2**10).remote()
    folder = tempfile.mkdtemp(prefix="ups-ablate-")
    searcher = _AgendaSearcher(agenda, job_of, hooks)
    trainable = tune.with_resources(
        tune.with_parameters(_UnitTrainable, bell=bell, work=work or train_job),
        {"cpu": resources.cpus_per_unit, "gpu": resources.gpus_per_unit},
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=2**31,  # The searcher says when it is finished.
            # On a cluster that grows, Ray must see units that wait; on this machine they would only wait.
            max_concurrent_trials=most,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"unit-{trial.trial_id}",
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="units",
            storage_path=folder,
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[_Ticker(searcher)],
        ),
    )

    def stop() -> None:
        agenda.stopping = True
        # Not in the handler of the signal: that may have come in the middle of another call to Ray.
        threading.Thread(target=lambda: ray.get(bell.ring.remote()), daemon=True).start()

    try:
        with _stop_on_signal(stop):
            tuner.fit()
    finally:
        with suppress(Exception):
            ray.kill(bell)
        shutil.rmtree(folder, ignore_errors=True)


def disconnect() -> None:
    """End the connection, and Ray itself where `connect` started it."""
    ray.shutdown()


def train_job(text: str, should_stop: Callable[[], bool]) -> Mapping[str, str]:
    """What a worker does by default: train the unit."""
    return run_unit(Job.from_json(text), should_stop).to_plain()


class _UnitTrainable(tune.Trainable):
    """One unit a trial, in one step. The process goes on to the next unit: a unit takes nothing from the global state
    of its process, which a test holds it to, and starting a process costs seconds."""

    def setup(self, config: dict[str, Any], bell: Any = None, work: Any = None) -> None:
        self._job = config["job"]
        self._work = work
        # Answers when the driver says stop; broken when the driver is gone, which means stop as well.
        self._rung = bell.heard.remote()

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._job = new_config["job"]
        return True

    def step(self) -> dict[str, Any]:
        try:
            return {**self._work(self._job, self._should_stop), "done": True}
        except OSError:
            time.sleep(RETRY_PAUSE_SECONDS)  # A full disk or a lost mount may come back.
            raise

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # A unit's checkpoints are its own, in the ledger.

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass

    def _should_stop(self) -> bool:
        return bool(ray.wait([self._rung], timeout=0)[0])


@ray.remote
class _Bell:
    """Tells all workers at once that they should stop."""

    def __init__(self) -> None:
        import asyncio

        self._event = asyncio.Event()

    async def ring(self) -> None:
        self._event.set()

    async def heard(self) -> bool:
        return await self._event.wait()


class _AgendaSearcher(Searcher):
    """Releases what the agenda says is ready."""

    def __init__(self, agenda: Agenda, job_of: Callable[[Unit], Job], hooks: Hooks) -> None:
        super().__init__(metric="done", mode="max")
        self._agenda, self._job_of, self._hooks = agenda, job_of, hooks
        self._unit_of: dict[str, str] = {}
        self._looked = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune keeps a copy to restore from, which we never do; ours holds threads and open files.

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        self.tick()
        unit = self._agenda.next()
        if unit is None:
            return Searcher.FINISHED if self._agenda.complete else None
        self._unit_of[trial_id] = unit.key
        self._hooks.changed(unit.key, State.RUNNING)
        return {"job": self._job_of(unit).to_json()}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        key = self._unit_of.pop(trial_id, None)
        if key is None:
            return
        agenda = self._agenda
        status = "failed" if error or not result else result.get("status", "failed")
        reason = (result or {}).get("error") or "its process died or raised, again and again; see its log"
        if status == "finished":
            agenda.finished(key)
        elif status == "stopped":
            agenda.stopped(key)
        elif status == "busy":
            agenda.busy(key)
        elif status == "parent_unreadable":
            agenda.parent_unreadable(key, reason)
        else:
            agenda.failed(key, reason)
        self._hooks.changed(key, agenda.state[key])

    def tick(self) -> None:
        """Now and then: ask about units that others hold, and let the display move."""
        if time.monotonic() - self._looked > LOOK_ELSEWHERE_SECONDS:
            self._looked = time.monotonic()
            for key in self._agenda.look_elsewhere():
                self._hooks.changed(key, State.FINISHED)
        self._hooks.tick()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""


class _Ticker(tune.Callback):
    """Tune's loop, as a clock."""

    def __init__(self, searcher: _AgendaSearcher) -> None:
        self._searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        return {}  # As of the searcher.

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._searcher.tick()


@contextmanager
def _stop_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C or SIGTERM: units save a checkpoint and end. A second one: the driver ends now, and Ray with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            logger.warning("ending at once; units go on from their newest checkpoints at the next call")
            os._exit(128 + number)
        asked = True
        logger.warning("%s: units save a checkpoint and end; once more ends at once", signal.Signals(number).name)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
