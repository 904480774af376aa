"""A cluster of 1,000 nodes and a study of 100,000 units, through the planner, the graph and Tune's searcher.

    python benchmarks/simulation.py [--nodes 1000] [--gpus 8] [--rows 1000] [--seeds 25]

The planner makes the units, and the searcher that Ray Tune asks in a real run releases them, told of their ends by a
simulated cluster with a clock of its own: what is measured is the driver's own work, without training and without Ray.
Encoders have one to five layers. A unit takes what its steps and layers are worth, which the driver knows from earlier
units, times a factor that it doesn't know: log-normal, of 10 % in the first run. In the second nodes die, once in eight
hours each, and come back as other nodes; what ran there goes on from its newest checkpoint, which is a tenth of the
unit old at most. In the third the factor is of 40 %: no order can be good where nobody knows what is long. Printed:
decisions a second (releases and ends), the driver's memory, and the makespan against the lower bound max(all work /
slots, longest chain).
"""

import argparse
import heapq
import itertools
import logging
import random
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ray.exceptions import ActorDiedError
from ray.tune.search import Searcher

from orchestrator.execution.searcher import DispatchSearcher
from orchestrator.planning.plan import Plan, Unit, make_plan
from orchestrator.planning.resolve import resolve
from orchestrator.project import CHECKPOINTS_PER_RUN, DataFacts
from orchestrator.scheduling.dispatcher import Dispatcher, Hooks
from orchestrator.scheduling.task_graph import State, TaskGraph
from orchestrator.storage.ledger import Ledger
from orchestrator.worker.job import Job
from search_spaces.columns import ABLATION
from search_spaces.study import Row, Study, Table

SECONDS_PER_STEP = 0.5
DEPTHS = 5
HOURS_BETWEEN_DEATHS = 8.0
"""Of a node; spot instances of a crowded zone."""
SECONDS_TO_REPLACE = 300.0


def plan_of(rows: int, seeds: int) -> Plan:
    """Joint training and a fine-tuning for each of three columns: four units a row and seed."""
    lines = tuple(
        Row(str(row), {"dropout": row / (2 * rows), "encoder_layers": 1 + row % DEPTHS}) for row in range(rows)
    )
    study = Study("simulation", "?", "!", (Table("t", "T", "dropout", ABLATION, lines, "0"),), base={"steps": 20_000})
    names = ("synthetic_h36m17", "synthetic_openpose18", "synthetic_ntu25")
    data = {name: DataFacts("0" * 64, True, "", 1) for name in names}
    return make_plan(resolve(study, "tiny", {}), seeds, data, "text")


class FakeTries:
    """Of the simulation: all begin at once."""

    def __init__(self) -> None:
        self.node: dict[str, str] = {}

    def begun(self) -> list[str]:
        return []

    def ended(self, name: str) -> None:
        self.node.pop(name)

    def broke(self, name: str) -> str:
        return self.node.pop(name)


@dataclass
class Cluster:
    """Nodes with slots, and a clock."""

    nodes: int
    slots: int
    now: float = 0.0
    free: dict[str, int] = field(default_factory=dict)
    running: dict[str, set[str]] = field(default_factory=dict)
    """Names of tries by node."""

    def __post_init__(self) -> None:
        self._names = itertools.count()
        for _ in range(self.nodes):
            self.join()

    def join(self) -> str:
        """A new node."""
        name = f"node-{next(self._names)}"
        self.free[name], self.running[name] = self.slots, set()
        return name


def simulate(plan: Plan, nodes: int, slots: int, spread: float, deaths: bool) -> None:
    """Run a plan to its end, and print what it took."""
    rng = random.Random(0)
    expected = {
        key: SECONDS_PER_STEP * unit.config.optim.steps * (1 + unit.config.model.encoder_layers) / (1 + DEPTHS / 2)
        for key, unit in plan.units.items()
    }
    true_seconds = {key: seconds * rng.lognormvariate(-(spread**2) / 2, spread) for key, seconds in expected.items()}
    cluster = Cluster(nodes, slots)
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        graph = TaskGraph(plan.units, Ledger.open(folder), expected, plan.measured())
        print(f"  graph: {time.perf_counter() - began:.1f} s")
        tries = FakeTries()
        dispatcher = Dispatcher(
            graph,
            Hooks(lambda key, state: None, lambda: None),
            lambda unit: 1.0,
            lambda: cluster.free.keys(),
            growing=True,
            clock=lambda: cluster.now,
        )

        def job_of(unit: Unit) -> Job:
            return Job(unit, plan.units.get(unit.parent), folder, {}, folder)

        searcher = DispatchSearcher(dispatcher, job_of, tries)
        done_share: dict[str, float] = {}
        deciding, decisions, lost, killed = run(
            searcher, dispatcher, cluster, tries, true_seconds, done_share, rng, deaths
        )
    assert graph.counts() == {State.FINISHED: len(plan.units)}, graph.counts()
    way: dict[str, float] = {}
    for key, unit in plan.units.items():  # Parents stand before their children.
        way[key] = true_seconds[key] + way.get(unit.parent, 0.0)
    total = sum(true_seconds.values())
    bound = max(total / (nodes * slots), max(way.values()))
    print(f"  decisions: {decisions:,} in {deciding:.1f} s of the driver, {decisions / deciding:,.0f} a second")
    print(f"  driver's memory, at most so far: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10:,.0f} MiB")
    print(f"  work {total / 3600:,.0f} GPU hours, of which done twice {lost / 3600:,.0f} ({100 * lost / total:.2f} %)")
    print(f"  nodes lost: {killed}")
    print(f"  makespan {cluster.now / 3600:.3f} h, lower bound {bound / 3600:.3f} h: {cluster.now / bound:.4f} times")


def run(
    searcher: DispatchSearcher,
    dispatcher: Dispatcher,
    cluster: Cluster,
    tries: FakeTries,
    true_seconds: dict[str, float],
    done_share: dict[str, float],
    rng: random.Random,
    deaths: bool,
) -> tuple[float, int, float, int]:
    """Events in order of time, until nothing is left: seconds in the searcher, decisions, seconds of work done twice,
    nodes lost."""
    events: list[tuple[float, int, str, str]] = []
    order, names = itertools.count(), itertools.count()
    started: dict[str, tuple[float, str, str]] = {}
    """Of each try: when, which unit, where."""
    deciding, decisions, lost, killed = 0.0, 0, 0.0, 0

    def timed(call: Callable[..., object], *given: object) -> object:
        nonlocal deciding, decisions
        began = time.perf_counter()
        answer = call(*given)
        deciding += time.perf_counter() - began
        decisions += 1
        return answer

    def push(when: float, what: str, name: str) -> None:
        heapq.heappush(events, (when, next(order), what, name))

    if deaths:
        for node in cluster.free:
            push(rng.expovariate(1 / (3600 * HOURS_BETWEEN_DEATHS)), "death", node)
    open_nodes = list(cluster.free)
    while True:
        while open_nodes:
            node = open_nodes[-1]
            if not cluster.free.get(node):
                open_nodes.pop()
                continue
            name = f"try-{next(names)}"
            config = timed(searcher.suggest, name)
            if config is None or config == Searcher.FINISHED:
                decisions -= 1  # It had nothing to decide.
                break
            key = searcher.unit_of(name)
            cluster.free[node] -= 1
            cluster.running[node].add(name)
            tries.node[name] = node
            started[name] = cluster.now, key, node
            push(cluster.now + true_seconds[key] * (1 - done_share.get(key, 0.0)), "end", name)
        if dispatcher.complete:
            return deciding, decisions, lost, killed
        cluster.now, _, what, name = heapq.heappop(events)
        if what == "end" and name in started:
            _, _, node = started.pop(name)
            cluster.free[node] += 1
            cluster.running[node].discard(name)
            open_nodes.append(node)
            timed(searcher.on_trial_complete, name, {"status": "finished", "node": node})
        elif what == "death" and name in cluster.free:
            killed += 1
            del cluster.free[name]
            for dead in cluster.running.pop(name):
                when, key, _ = started.pop(dead)
                share = done_share.get(key, 0.0) + (cluster.now - when) / true_seconds[key]
                kept = int(share * CHECKPOINTS_PER_RUN) / CHECKPOINTS_PER_RUN
                lost += (share - kept) * true_seconds[key]
                done_share[key] = kept
                timed(searcher.broke, dead, ActorDiedError())
            push(cluster.now + SECONDS_TO_REPLACE, "birth", "")
            dispatcher.tick()  # The nodes that live now are known at once here; Ray takes seconds.
        elif what == "birth":
            node = cluster.join()
            open_nodes.append(node)
            push(cluster.now + rng.expovariate(1 / (3600 * HOURS_BETWEEN_DEATHS)), "death", node)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=1000)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=25)
    given = parser.parse_args()
    logging.disable(logging.WARNING)  # A line for each unit on a node that dies.
    began = time.perf_counter()
    plan = plan_of(given.rows, given.seeds)
    taken = time.perf_counter() - began
    print(f"{given.nodes:,} nodes of {given.gpus} GPUs, {len(plan.units):,} units")
    print(f"planner: {taken:.1f} s, {len(plan.units) / taken:,.0f} units a second")
    dying = f"each node dies every {HOURS_BETWEEN_DEATHS:g} hours"
    for spread, deaths in ((0.1, False), (0.1, True), (0.4, False)):
        print(f"times known to {100 * spread:.0f} %, {dying if deaths else 'nothing fails'}", flush=True)
        simulate(plan, given.nodes, given.gpus, spread, deaths)


if __name__ == "__main__":
    main()
