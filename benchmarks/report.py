"""How long a report of a large study takes: 3,000 records with results by clip, health and claims.

    python benchmarks/report.py [--records 3000] [--out benchmarks/results/claims/report_time.txt]

The study is `paper_tables` with as many seeds as make that number of records; their values are invented, in the sizes
of UTD-MHAD and UI-PRMD. Timed are `python -m orchestrator.report` as a whole process, and its parts in this one; on a
machine with other work the processor's time says more.
"""

import argparse
import cProfile
import io
import itertools
import os
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.planning.plan import Plan, make_plan
from orchestrator.planning.plan_file import PlanFile
from orchestrator.planning.resolve import resolve
from orchestrator.project import DataFacts
from orchestrator.record import Record
from orchestrator.report import build, files
from orchestrator.report.sources import open_study
from orchestrator.storage.ledger import Ledger
from search_spaces import find_study
from ups_model.evaluation.health import TaskHealth
from ups_model.evaluation.metric_names import OUTCOMES
from ups_model.evaluation.outcomes import save_outcomes

CLIPS, SUBJECTS, FRAMES = 430, 6, 60


def plan_of(records: int) -> Plan:
    resolved = resolve(find_study("paper_tables"), "tiny", {})
    names = ("synthetic_h36m17", "synthetic_openpose18", "synthetic_ntu25")
    data = {name: DataFacts("0" * 64, True, "invented", 1000) for name in names}
    each = len(make_plan(resolved, 1, data, "text").units)
    return make_plan(resolved, round(records / each), data, "text")


def metrics_of(plan: Plan, random: np.random.Generator) -> dict[str, float]:
    """Values of every column of the study."""
    columns = {column.metric: column for table, _ in plan.tables for column in table.columns}
    values = {f"test/{name}": 60 + random.normal() for name in columns}
    return values | {"test/ar3d/clips": CLIPS, "test/eap/clips": CLIPS, "test/pe/mpjpe_mm_se": 1.0}


def outcomes_of(task: str, source: str, random: np.random.Generator) -> dict[str, np.ndarray]:
    """Arrays as a run leaves them."""
    place = f"{task}/{source}/"
    clip = np.arange(CLIPS, dtype=np.int32)
    named = {"clip": clip, "subject": clip % SUBJECTS}
    if task == "pe":
        sums = random.uniform(30, 60, (2, CLIPS)) * FRAMES
        named |= {"camera": np.zeros(CLIPS, np.int16), "frames": np.full(CLIPS, FRAMES, np.int32)}
        named |= {"error_sum_mm": sums[0], "p_error_sum_mm": sums[1]}
        named |= {"frame": np.tile(np.arange(FRAMES, dtype=np.int32), CLIPS)}
        named |= {"frame_error": random.integers(0, 9000, CLIPS * FRAMES).astype(np.uint16)}
        return {place + name: value for name, value in named.items()}
    named["label"] = (clip % 27).astype(np.int16)
    for end in ("@0.2", "@0.4", "@0.6", "@0.8", "@1") if task == "eap" else ("",):
        rank = random.geometric(0.7, CLIPS) - 1
        named |= {f"rank{end}": rank.astype(np.int16), f"margin{end}": random.normal(size=CLIPS).astype(np.float16)}
        named[f"predicted{end}"] = np.where(rank, (named["label"] + rank) % 27, named["label"]).astype(np.int16)
    return {place + name: value for name, value in named.items()}


def fill(ledger: Ledger, plan: Plan) -> None:
    """Leave a record of every unit."""
    random = np.random.default_rng(0)
    measured = plan.measured()
    for unit in plan.units.values():
        folder = ledger.folder(unit)
        folder.mkdir(parents=True)
        tasks = (unit.task,) if unit.task else unit.config.optim.tasks
        health = {
            task: TaskHealth(f"{task}/top1", 5.0, tuple((200 * i, 60.0) for i in range(1, 6))).to_plain()
            for task in tasks
            if task != "pe"
        }
        digest = ""
        if unit.key in measured:
            arrays: dict[str, np.ndarray] = {}
            for task in tasks:
                arrays |= outcomes_of(task, getattr(unit.config.data, task).sources[0], random)
            digest = save_outcomes(folder / OUTCOMES, arrays)
        about = {"parameters": 700_000, "train_seconds": 60.0, "device": "cpu", "precision": "fp32", "commit": "a" * 40}
        routes = {task: [0] * unit.config.model.encoder_layers for task in tasks}
        record = Record(unit.key, "finished", metrics_of(plan, random), routes, about, health=health, outcomes=digest)
        ledger.write(unit, record)
    ledger.save_plan(replace(PlanFile.of(plan, "benchmarks/report.py", {})))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=3000)
    parser.add_argument("--profile", action="store_true", help="print where the time goes")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    plan = plan_of(options.records)
    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger.open(folder)
        fill(ledger, plan)
        command = [sys.executable, "-m", "orchestrator.report", "--storage", folder, "--out", f"{folder}/report"]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        whole = time.perf_counter() - started
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        profile = cProfile.Profile()
        if options.profile:
            profile.enable()
        times = [time.perf_counter()]
        study = open_study(None, ledger, None)
        times.append(time.perf_counter())
        report = build(study.plan, study.records, study.outcomes)
        times.append(time.perf_counter())
        written = files(report)
        times.append(time.perf_counter())
        profile.disable()
    parts = (after - before for before, after in itertools.pairwise(times))
    lines = [
        f"{len(plan.units)} records, {plan.seeds} seeds, {len(report.claims)} claims, {len(written)} files",
        f"python -m orchestrator.report: {whole:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of a processor; "
        f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors",
        *(f"{name}: {s:.1f} s" for name, s in zip(("records read", "built", "drawn and rendered"), parts, strict=True)),
    ]
    print("\n".join(lines))
    if options.profile:
        stream = io.StringIO()
        pstats.Stats(profile, stream=stream).sort_stats("cumulative").print_stats(40)
        print(stream.getvalue())
    if options.out:
        options.out.write_text("\n".join([f"$ python benchmarks/report.py --records {options.records}", *lines]) + "\n")


if __name__ == "__main__":
    main()
