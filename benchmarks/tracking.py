"""What a report of 20 metrics costs the driver's loop: our mirror, and Ray Tune's own MLflow callback.

    python benchmarks/tracking.py [--rounds N]

Both write to one new sqlite store, in turns, in one process. A round is one report of one unit:

- mirror: the unit appends a line to its progress file (in its own process, so not counted), the driver calls `note`;
  then the round waits until the line is in MLflow, and takes the CPU time of the mirror's thread, which runs beside the
  loop but shares the interpreter with it. In a study the driver notes changes of state alone, not every report.
- callback: `MLflowLoggerCallback.log_trial_result`, which the driver's loop waits for.
"""

import argparse
import logging
import os
import platform
import statistics
import tempfile
import time
from importlib.metadata import version

from orchestrator.planning.plan import Plan, Unit, make_plan
from orchestrator.planning.plan_file import PlanFile
from orchestrator.planning.resolve import resolve
from orchestrator.project import DataFacts
from orchestrator.storage.ledger import Ledger
from orchestrator.tracking.mirror import Mirror
from orchestrator.tracking.uri import default_uri
from search_spaces import find_study
from ups_model.config.presets import preset
from ups_model.training.progress import append_row

METRICS = 20
WARM_UP = 2


class Trial:
    """What the callback asks of a trial."""

    def __init__(self) -> None:
        self.config: dict[str, float] = {}

    def __str__(self) -> str:
        return "trial"


def make() -> Plan:
    """The study `smoke` on invented data sets."""
    base = preset("tiny")
    names = {name for task in base.optim.tasks for name in getattr(base.data, task).sources}
    facts = {name: DataFacts(name, True, name, 1) for name in sorted(names)}
    return make_plan(resolve(find_study("smoke"), "tiny", {}), 1, facts, "")


def values(step: int) -> dict[str, float]:
    """A report."""
    return {f"train/metric_{place}": step + place / METRICS for place in range(METRICS)}


class Mirrored:
    """A unit that reports, and a mirror that watches it."""

    def __init__(self, ledger: Ledger, plan: Plan) -> None:
        self.unit: Unit = next(iter(plan.units.values()))
        self.file = ledger.folder(self.unit) / "progress.jsonl"
        self.mirror = Mirror(ledger, plan, PlanFile.of(plan, "", {}).to_plain(), default_uri(ledger))
        self.mirror.start()
        self.mirror.note(self.unit.key, "running")

    def has(self, step: int) -> bool:
        """Whether MLflow has been given a step."""
        store = self.mirror._store
        run = store.units.get(self.unit.key) if store else None
        return run is not None and run.tags.get("ups.synced_step") == f"train={step}"

    def thread_seconds(self) -> float:
        """CPU time of the mirror's thread so far."""
        return time.clock_gettime(time.pthread_getcpuclockid(self.mirror._thread.ident))

    def report(self, step: int) -> tuple[float, float, float]:
        """Seconds that the driver waits, of the thread's CPU, and until MLflow has it."""
        append_row(self.file, {"step": step, **values(step)})
        cpu, start = self.thread_seconds(), time.perf_counter()
        self.mirror.note(self.unit.key, "running")
        waited = time.perf_counter() - start
        while not self.has(step):
            time.sleep(0.002)
        return waited, self.thread_seconds() - cpu, time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    logging.disable(logging.WARNING)
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(folder)
        ours = Mirrored(ledger, make())
        ours.report(1)  # The database is made by now.
        callback, trial = MLflowLoggerCallback(tracking_uri=default_uri(ledger), experiment_name="callback"), Trial()
        callback.setup()
        callback.log_trial_start(trial)
        waits, cpus, delays, theirs, their_cpus = [], [], [], [], []
        for step in range(2, 2 + rounds + WARM_UP):
            waited, cpu, delay = ours.report(step)
            start, cpu_start = time.perf_counter(), time.thread_time()
            callback.log_trial_result(step, trial, {"training_iteration": step, **values(step)})
            took, took_cpu = time.perf_counter() - start, time.thread_time() - cpu_start
            if step >= 2 + WARM_UP:
                waits.append(waited)
                cpus.append(cpu)
                delays.append(delay)
                theirs.append(took)
                their_cpus.append(took_cpu)
        ours.mirror.note(ours.unit.key, "stopped")
        assert ours.mirror.close("stopped", None, 30) == 0

    def row(name: str, seconds: list[float]) -> str:
        low, high = 1000 * min(seconds), 1000 * max(seconds)
        return f"{name:<52}{1000 * statistics.median(seconds):>12.3f}{low:>12.3f}{high:>12.3f}"

    print(f"{rounds} rounds in turns, {METRICS} metrics a report, one sqlite store; {os.cpu_count()} processors")
    packages = ", ".join(f"{name} {version(name)}" for name in ("mlflow", "ray"))
    print(f"Python {platform.python_version()}, {packages}\n")
    print(f"{'milliseconds a report':<52}{'median':>12}{'least':>12}{'most':>12}")
    print(row("mirror: the driver's loop waits", waits))
    print(row("mirror: CPU time of its thread, beside the loop", cpus))
    print(row("mirror: until MLflow has it, beside the loop", delays))
    print(row("MLflowLoggerCallback: the driver's loop waits", theirs))
    print(row("MLflowLoggerCallback: CPU time of that", their_cpus))
    print("\nMedian ratio of pairs, callback to mirror:")
    for name, pairs in (
        ("what the loop waits", zip(theirs, waits, strict=True)),
        (
            "if all of the thread's CPU time were the loop's",
            zip(theirs, map(sum, zip(waits, cpus, strict=True)), strict=True),
        ),
    ):
        print(f"{name:<52}{statistics.median(first / second for first, second in pairs):>12,.0f}")


if __name__ == "__main__":
    main()
