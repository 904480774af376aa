"""SIGKILL a driver at random moments of a study of short units, run it again, compare with an undisturbed run.

    python benchmarks/kill_driver.py [KILLS] [SEEDS]

Needs Linux. Prints what each kill found, and at the end: finished units trained again, duplicated or open MLflow runs,
and whether the tables are equal. Exit status 0 only if all is as it should be.
"""

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.support.drivers import Bench, cells, mlflow_runs, records

STEPS = 240
BEYOND_START_SECONDS = 15.0
"""A kill comes at a random moment between the start of the process and so long after its first unit would begin."""


def main(kills: int = 20, seeds: int = 3) -> int:
    moments = random.Random(0)
    more = ("--seeds", str(seeds))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.make(Path(folder) / "bench", STEPS)
        reference, storage = bench.folder / "reference", bench.folder / "killed"
        started = time.monotonic()
        driver = bench.start(reference, *more)
        driver.wait_for("start ")
        first_unit = time.monotonic() - started
        driver.process.wait(1800)
        print(f"undisturbed: exit {driver.process.returncode}, {len(records(reference))} units, first unit after "
              f"{first_unit:.0f} s, all after {time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
        seen: dict[str, bytes] = {}
        again = 0
        for kill in range(kills):
            driver = bench.start(storage, *more)
            wait = moments.uniform(0, first_unit + BEYOND_START_SECONDS)
            try:
                driver.process.wait(wait)
                ended = f"had ended by itself, exit {driver.process.returncode}"
            except subprocess.TimeoutExpired:
                driver.kill()
                ended = "killed"
            now = records(storage)
            changed = [unit for unit in seen if now.get(unit) != seen[unit]]
            again += len(changed)
            print(f"kill {kill + 1:2d} after {wait:4.1f} s: {ended}; {len(now)} units finished, "
                  f"{len(now) - len(seen)} of them new, {len(changed)} trained again", flush=True)  # fmt: skip
            seen = now
        driver = bench.run(storage, *more, timeout=1800)
        print(f"last call: exit {driver.process.returncode}, {len(records(storage))} units")
        changed = [unit for unit in seen if records(storage).get(unit) != seen[unit]]
        again += len(changed)
        units, parents = mlflow_runs(storage)
        status = [value for values in units.values() for value in values] + parents
        results = {
            "finished units trained again": again,
            "units without a record": len(records(reference).keys() - records(storage).keys()),
            "units with more than one MLflow run": sum(len(values) > 1 for values in units.values()),
            "units without an MLflow run": len(records(storage)) - len(units),
            "MLflow runs that aren't FINISHED": sum(value != "FINISHED" for value in status),
            "table cells that differ": sum(a != b for a, b in zip(cells(reference), cells(storage), strict=True)),
        }
        for name, value in results.items():
            print(f"{name}: {value}")
        return int(any(results.values()) or driver.process.returncode != 0)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
