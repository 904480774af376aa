"""Which learning rate fine-tuning gets most with, after the joint training that a study has made: validation figures
only, test is not measured.

    python benchmarks/fine_tuning.py --storage DIR --data NAME=PATH ... --out FILE.jsonl [--tasks pe ar3d] [--seeds 0 1]
    python benchmarks/fine_tuning.py --out FILE.jsonl --show

Runs of the study "training" whose joint weights lie in the storage. At the study's own share of the rate the value is
that of its record; each other run is one line of FILE, and what stands there is not run again.
"""

import argparse
import tempfile
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from depth import is_there, keep, rows

from orchestrator.report.sources import open_study
from orchestrator.storage.ledger import Ledger
from ups_model.cli import data_paths
from ups_model.config import Config
from ups_model.config.identity import configured_sets
from ups_model.evaluation.metric_names import headline_metric
from ups_model.source import source_digest
from ups_model.training.options import RunOptions
from ups_model.training.run import train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--storage")
    parser.add_argument("--study", default="training")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 2.0, 10 / 3], help="of the study's own rate")
    parser.add_argument("--tasks", nargs="+", default=["pe", "ar3d", "eap", "ar2d"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--show", action="store_true")
    options = parser.parse_args()
    if not options.show:
        torch.set_num_threads(1)
        measure(options)
    show(rows(options.out))


def measure(options: argparse.Namespace) -> None:
    """Run what FILE lacks, one after the other."""
    ledger = Ledger.open(options.storage, create=False)
    study = open_study(options.study, ledger, None)
    units = {key: unit for key, unit in study.plan.units.items() if unit.stage == "finetune"}
    wanted = [key for task in options.tasks for key, unit in units.items() if unit.task == task]
    for key in wanted:
        unit, record = units[key], study.records.get(key)
        if unit.seed not in options.seeds or record is None:
            continue
        parent, joint = study.plan.units[unit.parent], study.records[unit.parent]
        assert joint is not None and record.status == joint.status == "finished"
        config = Config.from_canonical(record.about["config"])
        metric = f"validation/{headline_metric(unit.task)}"
        for factor in options.factors:
            rate = factor * config.optim.learning_rate
            name = {"task": unit.task, "seed": unit.seed, "rate": float(f"{rate:.3g}")}
            if is_there(options.out, name):
                continue
            about = {"before": round(joint.metrics[metric], 3), "source": source_digest("training")}
            if factor == 1.0:
                value, about["source"] = record.metrics[metric], record.about["source"]["training"]
            else:
                paths = data_paths(options.data, configured_sets(config))
                weights = ledger.weights(parent, joint)
                with tempfile.TemporaryDirectory() as folder:
                    run = RunOptions(Path(folder), "cpu", "fp32", checkpoint_every=10**9, test=False)
                    value = train(config.with_fields({"learning_rate": rate}), paths, run, weights).metrics[metric]
            keep(options.out, {**name, "metric": metric, "value": round(value, 3), **about})


def show(found: list[dict[str, Any]]) -> None:
    """A table a task: seeds by rates, and their mean; the value before fine-tuning first."""
    for task in dict.fromkeys(line["task"] for line in found):
        own = {(line["seed"], line["rate"]): line for line in found if line["task"] == task}
        rates = sorted({rate for _, rate in own})
        print(f"\n{task}, {next(iter(own.values()))['metric']}")
        print(f"{'':8}{'before':>10}" + "".join(f"{rate:>10g}" for rate in rates))
        table = []
        for seed in sorted({seed for seed, _ in own}):
            before = next(line["before"] for (one, _), line in own.items() if one == seed)
            values = [own[seed, rate]["value"] if (seed, rate) in own else None for rate in rates]
            table.append([before, *values])
            print(f"seed {seed:<3}" + "".join(f"{'' if value is None else f'{value:.2f}':>10}" for value in table[-1]))
        means = [fmean(column) if None not in column else None for column in zip(*table, strict=True)]
        print(f"{'mean':8}" + "".join(f"{'' if value is None else f'{value:.2f}':>10}" for value in means))


if __name__ == "__main__":
    main()
