"""The Ray Tune driver: a searcher that releases units as the dispatcher says, a trainable that runs one unit.

Nothing rests on Tune's own saved state or retries: which units are left is read from the ledger at each start, a unit
goes on from its own newest checkpoint, and what a failure means is decided in `orchestrator.scheduling.dispatcher`.
"""

import errno
import logging
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

# Tune reads these when it is imported: no result files (the ledger has them), no handler of Ctrl-C (ours is below).
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")
os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "1000000000")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")

import ray
from ray import tune
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayActorError, RayTaskError
from ray.tune.execution import class_cache
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator.execution.ray_cluster import ClusterFacts, Resources, usable_nodes
from orchestrator.planning.plan import Unit
from orchestrator.scheduling.dispatcher import Assignment, Broken, Dispatcher, Hooks
from orchestrator.scheduling.task_graph import Agenda
from orchestrator.worker.gpu_memory import Footprint
from orchestrator.worker.job import Job
from orchestrator.worker.preemption import Notice, configured
from orchestrator.worker.run_unit import run_unit

logger = logging.getLogger(__name__)

# Private, for want of a switch: Tune would put the driver's AWS keys into the runtime environment of workers, which Ray
# logs on every machine as it is. Workers find their own: their machine's role, ~/.aws, the environment of `ray start`.
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if "AWS_" not in name}

# They print a traceback for each try that failed; the dispatcher says it in a line, and the unit's log has the rest.
TALKERS = ("ray.tune.execution.tune_controller", "ray.tune.tune")
RETRY_PAUSE_SECONDS = 2.0
MOST_WAITING = 1000
"""Units that Ray sees waiting at once, so that a cluster grows for them, where the most it can grow to isn't known."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""A disk that is full doesn't come back while one waits for it."""
LEAVE_SECONDS = 2.0
"""After SIGTERM, when a worker's unit has ended, until its process does."""


def execute(
    agenda: Agenda,
    job_of: Callable[[Unit], Job],
    resources: Resources,
    facts: ClusterFacts,
    hooks: Hooks,
    work: Callable[[str, Callable[[], bool]], Mapping[str, Any]] | None = None,
    footprints: Mapping[str, Footprint] | None = None,
) -> Dispatcher | None:
    """Run every unit of the agenda that can run. Ray must be connected.

    Args:
        agenda: which units; holds their states afterwards.
        job_of: how to carry out a unit.
        resources: what each gets.
        facts: what `connect` found.
        hooks: told of each change.
        work: what a worker does with a job's text; by default it trains.
        footprints: what units take of a GPU, by `Unit.kind`; those that aren't there get `resources.gpus_per_unit`.

    Returns:
        What became of nodes and units; None where there was nothing to run.
    """
    if agenda.complete:
        return None
    for name in TALKERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if resources.max_concurrent:
        most = resources.max_concurrent
    elif facts.local:
        most = min(facts.slots(resources) * _units_per_share(resources, footprints), 2**15)
    else:
        # On a cluster that grows, Ray must see units that wait; each costs a placement group.
        room = facts.slots(resources) * _units_per_share(resources, footprints)
        most = min(len(agenda.units), max(2 * room, 64) if facts.most else max(2 * room, MOST_WAITING))
    # Where the driver is: on a node that may go, it would take all units with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    bell = _Bell.options(  # type: ignore[attr-defined]  # mypy doesn't apply class decorators
        num_cpus=0, max_concurrency=2**14, scheduling_strategy=here
    ).remote()
    folder = tempfile.mkdtemp(prefix="ups-ablate-")

    def ring() -> None:
        # Not in the handler of a signal: that may have come in the middle of another call to Ray.
        threading.Thread(target=lambda: ray.get(bell.ring.remote()), daemon=True).start()

    def gpus_of(unit: Unit) -> float:
        found = (footprints or {}).get(unit.kind)
        return found.share if found else resources.gpus_per_unit

    dispatcher = Dispatcher(agenda, hooks, gpus_of, lambda: usable_nodes(resources), growing=facts.growing, stop=ring)
    searcher = DispatchSearcher(dispatcher, job_of, _Wire(bell))
    trainable = tune.with_resources(
        tune.with_parameters(_UnitTrainable, bell=bell, work=work or train_job),
        lambda config: _request(config, resources.cpus_per_unit),
    )
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            num_samples=2**31,  # The searcher says when it is finished.
            max_concurrent_trials=most,
            reuse_actors=True,
            trial_name_creator=lambda trial: f"unit-{trial.trial_id}",
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="units",
            storage_path=folder,
            verbose=0,
            # A trial is one try: the dispatcher decides whether there is another, and where.
            failure_config=tune.FailureConfig(max_failures=0),
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
            callbacks=[_Ticker(searcher)],
            stop=_AtRest(dispatcher),
        ),
    )

    def stop() -> None:
        agenda.stopping = True
        ring()

    try:
        with _stop_on_signal(stop):
            tuner.fit()
        if agenda.stopping:
            dispatcher.abandon()
    finally:
        with suppress(Exception):
            ray.kill(bell)
        shutil.rmtree(folder, ignore_errors=True)
    return dispatcher


def _units_per_share(resources: Resources, footprints: Mapping[str, Footprint] | None) -> int:
    """How many more units run at once than without packing, at most."""
    return max((one.fit for one in (footprints or {}).values()), default=1) if resources.gpus_per_unit else 1


def _request(config: Mapping[str, Any], cpus: float) -> tune.PlacementGroupFactory:
    """What a trial asks Ray for."""
    # Ray labels each node with its id.
    bundles = [{"CPU": cpus, "GPU": config["gpus"]}]
    if not config["avoid"]:
        return tune.PlacementGroupFactory(bundles)
    where = {"ray.io/node-id": f"!in({','.join(config['avoid'])})"}
    return tune.PlacementGroupFactory(bundles, bundle_label_selector=[where])


def train_job(text: str, should_stop: Callable[[], bool]) -> Mapping[str, str]:
    """What a worker does by default: train the unit."""
    return run_unit(Job.from_json(text), should_stop).to_plain()


class _UnitTrainable(tune.Trainable):
    """One unit a trial, in one step. The process goes on to the next unit: a unit takes nothing from the global state
    of its process, which a test holds it to, and starting a process costs seconds."""

    def setup(self, config: dict[str, Any], bell: Any = None, work: Any = None) -> None:
        self._config, self._bell, self._work = config, bell, work
        self._node = ray.get_runtime_context().get_node_id()
        # Answers when the driver says stop; broken when the driver is gone, which means stop as well.
        self._rung = bell.heard.remote()
        self._notice: Notice = configured()
        self._told = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._tell)  # Ray's own handler ends the process at once.

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self._config = new_config
        return True

    def step(self) -> dict[str, Any]:
        if self._should_stop():  # Before a model is built; and asked to end while it had no unit, it still has to.
            self._leave_if_told()
            return {"status": "stopped", "done": True, "node": self._node, "notice": self._notice.reason}
        self._bell.begins.remote(self._config["try"], self._node)
        try:
            result = {**self._work(self._config["job"], self._should_stop), "done": True, "node": self._node}
        except OSError:
            time.sleep(RETRY_PAUSE_SECONDS)  # A full disk or a lost mount may come back.
            raise
        self._leave_if_told()
        return result | {"notice": self._notice.reason}

    def _leave_if_told(self) -> None:
        if self._told:
            # Asked to end, and not that its machine is about to go; that Ray says by itself. Not at once: the result
            # must reach the driver.
            threading.Timer(LEAVE_SECONDS, os._exit, (0,)).start()

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        return {}  # A unit's checkpoints are its own, in the ledger.

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        pass

    def cleanup(self) -> None:
        self._notice.close()

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self._told = True

    def _should_stop(self) -> bool:
        return self._told or bool(self._notice.reason) or bool(ray.wait([self._rung], timeout=0)[0])


@ray.remote
class _Bell:
    """Tells all workers at once that they should stop, and the driver which tries began, and where."""

    def __init__(self) -> None:
        import asyncio

        self._event, self._more = asyncio.Event(), asyncio.Event()
        self._node: dict[str, str] = {}
        self._fresh: list[str] = []

    async def ring(self) -> None:
        self._event.set()

    async def heard(self) -> bool:
        return await self._event.wait()

    async def begins(self, name: str, node: str) -> None:
        self._node[name] = node
        self._fresh.append(name)
        self._more.set()

    async def news(self) -> list[str]:
        """Tries that have begun since it was last asked; answers when there are any."""
        await self._more.wait()
        self._more.clear()
        fresh, self._fresh = self._fresh, []
        return fresh

    async def ended(self, name: str) -> str:
        """Where a try began; empty if it never did. Forgets it."""
        return self._node.pop(name, "")


class Tries(Protocol):
    """What is known of tries that are under way, by their names."""

    def begun(self) -> list[str]:
        """Those that have begun since the last call. Raises RayActorError where that can't be known any more."""

    def ended(self, name: str) -> None:
        """One is over."""

    def broke(self, name: str) -> str:
        """One is over without an outcome; the node where it began, empty if it never did."""


class _Wire:
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
        except (RayActorError, GetTimeoutError):
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
        given: Assignment | None = self._dispatcher.next()
        if given is None:
            return Searcher.FINISHED if self._dispatcher.complete else None
        self._unit_of[trial_id] = given.unit.key
        job = replace(self._job_of(given.unit), gpus=given.gpus, too_small=given.too_small)
        return {"job": job.to_json(), "gpus": given.gpus, "avoid": list(given.avoid), "try": trial_id}

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
            if not self._dispatcher.agenda.stopping:
                # Workers take its silence for the driver's end, and would stop again and again.
                logger.error("the process that tells workers to stop has died; the study stops")
                self._dispatcher.agenda.stopping = True
        self._dispatcher.tick()

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the ledger has it."""


def _kind_of(error: BaseException | None) -> Literal["raised", "unreachable", "died", "machine"]:
    """Of a `Broken`."""
    if isinstance(error, RayTaskError) and isinstance(error.cause, OSError) and error.cause.errno not in FULL:
        return "unreachable"
    if isinstance(error, ActorUnavailableError) or (isinstance(error, RayActorError) and error.preempted):
        return "machine"
    return "died" if isinstance(error, RayActorError) or error is None else "raised"


def _first_line(error: BaseException | None) -> str:
    """What went wrong, for people: of an exception of a worker, its own last line."""
    if isinstance(error, RayActorError) or error is None:
        return "its process died; see its log"
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


class _AtRest(tune.Stopper):
    """Ends Tune's loop while units still wait for room, once the study is to stop and nothing runs."""

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher: Dispatcher | None = dispatcher

    def __getstate__(self) -> dict[str, Any]:
        return {"_dispatcher": None}  # As of the searcher.

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._dispatcher is not None and self._dispatcher.at_rest


class _Ticker(tune.Callback):
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
