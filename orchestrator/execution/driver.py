"""The Ray Tune driver: a searcher that releases units as the dispatcher says, a trainable that runs one unit.

Nothing rests on Tune's own saved state or retries: which units are left is read from the ledger at each start, a unit
goes on from its own newest checkpoint, and what a failure means is decided in `orchestrator.scheduling.dispatcher`.
"""

import logging
import shutil
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayActorError
from ray.tune.execution import class_cache
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from orchestrator import process
from orchestrator.execution import local_ray
from orchestrator.execution.ray_cluster import ClusterFacts, Resources, usable_nodes
from orchestrator.execution.searcher import AtRest, BellTries, DispatchSearcher, Ticker
from orchestrator.execution.trainable import StopBell, train_job, trainable_with
from orchestrator.planning.plan import Unit
from orchestrator.scheduling.dispatcher import Dispatcher, Hooks
from orchestrator.scheduling.task_graph import TaskGraph
from orchestrator.worker.gpu_memory import Footprint
from orchestrator.worker.job import Job

logger = logging.getLogger(__name__)

# Private, for want of a switch: Tune would put the driver's AWS keys into the runtime environment of workers, which Ray
# logs on every machine as it is. Workers find their own: their machine's role, ~/.aws, the environment of `ray start`.
class_cache.ENV_VARS_TO_PROPAGATE = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if "AWS_" not in name}


# They print a traceback for each try that failed; the dispatcher says it in a line, and the unit's log has the rest.
NOISY_LOGGERS = ("ray.tune.execution.tune_controller", "ray.tune.tune")
MAX_PENDING_UNITS = 1000
"""Units that Ray sees waiting at once, so that a cluster grows for them, where the most it can grow to isn't known."""


def execute(
    graph: TaskGraph,
    job_of: Callable[[Unit], Job],
    resources: Resources,
    facts: ClusterFacts,
    hooks: Hooks,
    work: Callable[[str, Callable[[], bool]], Mapping[str, Any]] | None = None,
    footprints: Mapping[str, Footprint] | None = None,
) -> Dispatcher | None:
    """Run every unit of the graph that can run. Ray must be connected.

    Args:
        graph: which units; holds their states afterwards.
        job_of: how to carry out a unit.
        resources: what each gets.
        facts: what `connect` found.
        hooks: told of each change.
        work: what a worker does with a job's text; by default it trains.
        footprints: what units take of a GPU, by `Unit.kind`; those that aren't there get `resources.gpus_per_unit`.

    Returns:
        What became of nodes and units; None where there was nothing to run.
    """
    if graph.complete:
        return None
    for name in NOISY_LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    room = facts.slots(resources) * _units_per_share(resources, footprints)
    if resources.max_concurrent:
        most = resources.max_concurrent
    elif facts.local:
        most = min(room, 2**15)
    else:
        # On a cluster that grows, Ray must see units that wait; each costs a placement group.
        most = min(len(graph.units), max(2 * room, 64 if facts.most else MAX_PENDING_UNITS))
    # Where the driver is: on a node that may go, it would take all units with it.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    bell = StopBell.options(  # type: ignore[attr-defined]  # mypy doesn't apply class decorators
        num_cpus=0, max_concurrency=2**14, scheduling_strategy=here
    ).remote()
    folder = tempfile.mkdtemp(prefix="ups-ablate-")
    remove_folder = partial(shutil.rmtree, folder, ignore_errors=True)
    process.before_end.append(remove_folder)

    def tell_workers() -> None:
        with suppress(RayActorError):  # They take its silence as well.
            bell.ring.remote()

    def ring() -> None:
        # Not in the handler of a signal: that may have come in the middle of another call to Ray.
        threading.Thread(target=tell_workers, daemon=True).start()

    def gpus_of(unit: Unit) -> float:
        footprint = (footprints or {}).get(unit.kind)
        return footprint.share if footprint else resources.gpus_per_unit

    dispatcher = Dispatcher(graph, hooks, gpus_of, lambda: usable_nodes(resources), growing=facts.growing, stop=ring)
    searcher = DispatchSearcher(dispatcher, job_of, BellTries(bell))
    trainable = tune.with_resources(
        trainable_with(bell, work or train_job),
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
            callbacks=[Ticker(searcher)],
            stop=AtRest(dispatcher),
        ),
    )

    try:
        with _stop_on_signal(dispatcher):
            tuner.fit()
        if graph.stopping:
            dispatcher.abandon()
    except Exception:
        local_ray.wait_for_restart()
        raise
    finally:
        local_ray.stop_watching()
        with suppress(Exception):
            ray.kill(bell)
        remove_folder()
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


@contextmanager
def _stop_on_signal(dispatcher: Dispatcher) -> Iterator[None]:
    """Ctrl-C or SIGTERM: units save a checkpoint and end. A second one, or one before units run: the driver ends now,
    and its own Ray with it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    was_told = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal was_told
        if was_told:
            logger.warning("ending at once; units go on from their newest checkpoints at the next call")
            process.end(128 + number)
        if before[number] is process.end_at_once and not dispatcher.has_begun:
            process.end_at_once(number)
        was_told = True
        name = signal.Signals(number).name
        dispatcher.request_stop(f"{name}: units save a checkpoint and end; once more ends at once")

    before = {int(number): signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
