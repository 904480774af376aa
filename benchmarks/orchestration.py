"""What orchestration costs: units that do nothing, against bare Ray Tune; equal units on two slots; planning; trials of
a search with early stopping that do nothing, against Ray Tune's own.

    python benchmarks/orchestration.py              # all four, about fifteen minutes
    python benchmarks/orchestration.py noop|makespan|planning|search

Ratios are taken in one run, in turns; each turn is a process of its own with its own Ray.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.resolve import resolve
from orchestrator.project import DataFacts
from orchestrator.record import Record
from orchestrator.scheduling.task_graph import TaskGraph
from orchestrator.storage.ledger import Ledger
from search_spaces.columns import ABLATION, AR3D
from search_spaces.space import EarlyStopping, Range, Space
from search_spaces.study import Row, Study, Table

UNITS = 40
ROUNDS = 3
SLEEP_SECONDS = 20.0
SLEEPERS = 12


def plan_of(rows: int, seeds: int = 1, training: str = "separate", columns=(AR3D,)) -> Plan:
    """A study of rows that differ in dropout alone."""
    lines = tuple(Row(str(row), {"dropout": row / (2 * rows)}, training) for row in range(rows))
    study = Study("benchmark", "How long?", "Not long.", (Table("t", "T", "dropout", columns, lines, "0"),))
    names = ("synthetic_h36m17", "synthetic_openpose18", "synthetic_ntu25")
    data = {name: DataFacts("0" * 64, True, "", 1) for name in names}
    return make_plan(resolve(study, "tiny", {}), seeds, data, "text")


def nothing(job: str, should_stop) -> Mapping[str, str]:
    """The work of a unit that does nothing."""
    return {"status": "finished", "error": ""}


def sleep(job: str, should_stop) -> Mapping[str, str]:
    """The work of a unit that takes a known time."""
    time.sleep(SLEEP_SECONDS)
    return {"status": "finished", "error": ""}


def ours(plan: Plan, work) -> float:
    """Seconds from a connected Ray to the last unit's end."""
    from orchestrator.execution import driver as run
    from orchestrator.execution import ray_cluster as ray_nodes

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(folder)
        facts = ray_nodes.connect("local")
        graph = TaskGraph(plan.units, ledger, tested=plan.measured())

        def job_of(unit):
            return run.Job(unit, plan.units.get(unit.parent), folder, {}, folder)

        resources = ray_nodes.Resources(max_concurrent=2)
        started = time.perf_counter()
        run.execute(graph, job_of, resources, facts, run.Hooks(lambda *_: None, lambda: None), work)
        seconds = time.perf_counter() - started
        assert graph.complete and not graph.error
        return seconds


def bare(units: int) -> float:
    """Ray Tune with its default settings, as its first example has it."""
    import ray
    from ray import tune

    ray.init(address="local", log_to_driver=False)

    def trainable(config):
        tune.report({"done_nothing": 1})

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            trainable,
            param_space={"x": tune.grid_search(list(range(units)))},
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        started = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - started
    assert len(results) == units and not results.errors
    return seconds


def paused(job: str, should_stop) -> Mapping[str, Any]:
    """The work of a unit of a search that does nothing and comes to its rung or its end."""
    from orchestrator.worker.job import Job

    made = Job.from_json(job)
    value = made.unit.config.model.dropout
    if made.rung is not None:
        return {"status": "paused", "value": value}
    metrics = {"validation/score": value}
    Ledger.at(made.storage).write(made.unit, Record(made.unit.key, "finished", metrics))
    return {"status": "finished", "error": ""}


def ours_search(trials: int) -> float:
    """Seconds from a connected Ray to the end of a search with ASHA."""
    from orchestrator.execution import driver as run
    from orchestrator.execution import ray_cluster as ray_nodes
    from orchestrator.search.journal import Journal
    from orchestrator.search.plan import SearchPlan
    from orchestrator.search.resolve_space import check_dimensions
    from orchestrator.search.trial_queue import TrialQueue
    from orchestrator.worker.job import Rung
    from ups_model.config.presets import preset

    dimensions = {"dropout": Range(0.0, 0.5)}
    space = Space("benchmark", "How long?", dimensions, trials=trials, early_stopping=EarlyStopping())
    plan = SearchPlan(space, "tiny", preset("tiny"), 1, {}, "text")
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(folder)
        journal = Journal(Path(folder) / "journal.log", plan.name, space, check_dimensions(space, plan.base, []), None)
        graph = TrialQueue(plan, ledger, journal, trials)
        facts = ray_nodes.connect("local")

        def job_of(unit):
            rung = Rung(*graph.rung[unit.key]) if unit.key in graph.rung else None
            return run.Job(unit, None, folder, {}, folder, rung=rung)

        resources = ray_nodes.Resources(max_concurrent=2)
        started = time.perf_counter()
        run.execute(graph, job_of, resources, facts, run.Hooks(lambda *_: None, lambda: None), paused)
        seconds = time.perf_counter() - started
        assert graph.complete and len(graph.trials) == trials and not graph.error
        return seconds


def bare_search(trials: int) -> float:
    """Ray Tune's own: Optuna's searcher, and ASHA at the same rungs."""
    import ray
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler
    from ray.tune.search.optuna import OptunaSearch

    ray.init(address="local", log_to_driver=False)

    def trainable(config):
        for _ in range(9):
            tune.report({"score": config["dropout"]})

    with tempfile.TemporaryDirectory() as folder:
        tuner = tune.Tuner(
            trainable,
            param_space={"dropout": tune.uniform(0.0, 0.5)},
            tune_config=tune.TuneConfig(
                metric="score",
                mode="max",
                num_samples=trials,
                search_alg=OptunaSearch(),
                scheduler=ASHAScheduler(max_t=9, grace_period=1, reduction_factor=3),
                max_concurrent_trials=2,
            ),
            run_config=tune.RunConfig(storage_path=folder, verbose=0),
        )
        started = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - started
    assert len(results) == trials and not results.errors
    return seconds


def in_turns(what: str, ours: str, bare: str) -> None:
    """Our seconds against those of bare Ray Tune."""
    ratios = []
    for round_ in range(ROUNDS):
        times = {}
        for kind in (ours, bare) if round_ % 2 == 0 else (bare, ours):
            done = subprocess.run(
                [sys.executable, __file__, f"one-{kind}"], capture_output=True, text=True, check=True, cwd=Path.cwd()
            )
            times[kind] = float(done.stdout.split()[-1])
        ratios.append(times[bare] / times[ours])
        each = {kind: f"{seconds / UNITS:.3f} s" for kind, seconds in times.items()}
        print(f"round {round_}: {UNITS} {what} that do nothing, each: ours {each[ours]}, bare Ray Tune {each[bare]}")
    print(f"bare / ours: median {statistics.median(ratios):.1f} ({min(ratios):.1f}-{max(ratios):.1f})", flush=True)


def noop() -> None:
    """Units that do nothing: ours against bare Ray Tune."""
    in_turns("units", "ours", "bare")


def search() -> None:
    """Trials with early stopping that do nothing: ours against Ray Tune's ASHA with Optuna."""
    in_turns("trials with ASHA", "ours-search", "bare-search")


def makespan() -> None:
    """Equal units on two slots, against the ideal."""
    seconds = ours(plan_of(SLEEPERS), sleep)
    ideal = SLEEPERS / 2 * SLEEP_SECONDS
    print(
        f"{SLEEPERS} units of {SLEEP_SECONDS:g} s on 2 slots: {seconds:.1f} s, ideal {ideal:g} s, {seconds / ideal:.3f}"
    )


def planning() -> None:
    """A plan of 10,000 units."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        plan = plan_of(834, 3, "fine-tuned", ABLATION)
        times.append(time.perf_counter() - started)
    each = ", ".join(f"{seconds:.2f}" for seconds in times)
    print(f"planning {len(plan.units):,} units: median {statistics.median(times):.2f} s of {each}", flush=True)


def main() -> None:
    wanted = sys.argv[1] if len(sys.argv) > 1 else "all"
    single = {
        "one-ours": lambda: ours(plan_of(UNITS), nothing),
        "one-bare": lambda: bare(UNITS),
        "one-ours-search": lambda: ours_search(UNITS),
        "one-bare-search": lambda: bare_search(UNITS),
    }
    if wanted in single:
        print(single[wanted]())
    else:
        for name, benchmark in (("planning", planning), ("makespan", makespan), ("noop", noop), ("search", search)):
            if wanted in ("all", name):
                benchmark()


if __name__ == "__main__":
    main()
