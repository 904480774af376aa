"""One, two and three hosts: how far from ideal is the makespan of units that take a known time?

    python benchmarks/cluster_scaling.py            # as root, with netlab; about nine minutes

Each time Ray is brought up by `ray up` on hosts of this machine that have an address, processes and disks of their own
(tests/support/hosts.py), with one slot each; then 24 units that sleep for ten seconds go through the planner, Tune and
the ledger's claims as trainings do. Ideal is units / hosts times the ten seconds; what comes on top is starting the
workers' processes, and the way from one unit to the next.
"""

import json
import math
import shlex
import sys
import tempfile
import time
from pathlib import Path

UNITS, SECONDS = 24, 10.0


def on_the_head(folder: str) -> None:
    """Runs in the first host: the units, and what they took."""
    from benchmarks.orchestration import plan_of
    from orchestrator.execution import driver as run
    from orchestrator.execution import ray_cluster as ray_nodes
    from orchestrator.scheduling.task_graph import TaskGraph
    from orchestrator.storage.ledger import Ledger
    from orchestrator.worker.job import Job

    plan = plan_of(UNITS)
    ledger = Ledger.open(folder)

    def sleep(text, should_stop):
        from orchestrator.storage.ledger import Ledger
        from orchestrator.worker.job import Job

        job = Job.from_json(text)
        with Ledger.open(job.storage).claim(job.unit):
            time.sleep(SECONDS)
        return {"status": "finished", "error": ""}

    facts = ray_nodes.connect("auto")
    resources = ray_nodes.Resources()
    began = time.monotonic()
    run.execute(
        TaskGraph(plan.units, ledger, tested=plan.measured()),
        lambda unit: Job(unit, None, folder, {}, folder),
        resources,
        facts,
        run.Hooks(lambda *_: None, lambda: None),
        sleep,
    )
    print(json.dumps({"slots": facts.slots(resources), "seconds": time.monotonic() - began}))


def main() -> None:
    """The command."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from tests.support.hosts import ROOT, SHARED, Cluster, Hosts, why_not

    if why_not():
        raise SystemExit(f"error: {why_not()}")
    print(f"{UNITS} units of {SECONDS:g} s, one slot a host")
    for count in (1, 2, 3):
        with tempfile.TemporaryDirectory() as folder, Hosts.up(Path("/tmp/ups-scaling"), count) as hosts:
            cluster = Cluster(hosts, Path(folder))
            up = cluster.up()
            cluster.wait_for_nodes(count)
            source = hosts.shared / "benchmarks"
            source.mkdir()
            for name in ("cluster_scaling.py", "orchestration.py"):
                (source / name).write_text((ROOT / "benchmarks" / name).read_text())
            command = f"cd ~/ups && PYTHONPATH=~/ups:{SHARED} python -m benchmarks.cluster_scaling {SHARED}/ledger"
            printed = hosts.run(1, f"RAY_ADDRESS={hosts.address(1)}:6379 {command}", timeout=500)
            found = json.loads(printed.splitlines()[-1])
            assert found["slots"] == count, found
            ideal = math.ceil(UNITS / count) * SECONDS
            print(
                f"{count} hosts (ray up {up:.0f} s): {found['seconds']:.1f} s, ideal {ideal:.0f} s: "
                f"{found['seconds'] / ideal:.3f} times",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        on_the_head(shlex.quote(sys.argv[1]))
    else:
        main()
