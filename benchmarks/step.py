"""Speed of training steps and of pose evaluation, preset small, against another commit: ratios taken in one run.

    python benchmarks/step.py [--against COMMIT] [--data NAME=PATH ...] [--rounds 12] [--bf16]

Each commit's code runs in a process of its own, on one thread; the processes take turns, a step each, so that a machine
whose speed drifts does not decide. Times are processor seconds of the process; ratios are of turns that follow each
other, and their median is printed, with the quartiles. First both train 30 steps without dropout, whose masks may be
drawn in another way, to compare the losses. Without --data the clip sets are the synthetic ones.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from same_training import extract

ROOT = Path(__file__).resolve().parents[1]
SYNTHETIC = {"uiprmd": "synthetic_h36m17", "utd_mhad": "synthetic_ntu25", "jhmdb": "synthetic_openpose18"}
PARITY_STEPS = 30
EVALUATED_POSES = 640


def serve(options: dict[str, Any]) -> None:
    """A process that does what it is told by a line of standard input, with the ups_model first on its path."""
    import torch

    from ups_model.cli import data_paths
    from ups_model.config.identity import configured_sets
    from ups_model.config.presets import small
    from ups_model.device import flush_denormal_numbers
    from ups_model.evaluation.measure import measure

    # Earlier commits have them in a module of another name.
    there = next(name for name in ("run", "loop") if importlib.util.find_spec(f"ups_model.training.{name}"))
    training = importlib.import_module(f"ups_model.training.{there}")

    torch.set_num_threads(1)
    config = small()
    if not options["data"]:
        tasks = {task: getattr(config.data, task) for task in ("pe", "ar2d", "eap", "ar3d")}
        changed = {task: data.replace(sources=tuple(map(SYNTHETIC.get, data.sources))) for task, data in tasks.items()}
        config = config.replace(data=config.data.replace(**changed))
    paths = data_paths(options["data"], configured_sets(config))

    def run_of(changes: dict[str, Any]) -> Any:
        run_options = training.RunOptions(Path(options["out"]), "cpu", options["precision"])
        run = training.Run(config.with_fields(changes), paths, run_options, None, None)
        run.start_or_resume()
        return run

    with flush_denormal_numbers():
        run = run_of({})
        for line in sys.stdin:
            started = time.process_time()
            if line.strip() == "losses":
                still = run_of({"dropout": 0.0})
                answer = {"losses": [step_loss(still)[1] for _ in range(PARITY_STEPS)]}
            elif line.strip() == "step":
                task, loss = step_loss(run)
                answer = {"task": task, "loss": loss}
            elif line.strip() == "evaluate":
                feeds = {"pe": run.parts.feeds["pe"]}
                metrics = measure(run.state.model, feeds, "validation", config.evaluation, max_clips=EVALUATED_POSES)
                answer = {"task": "evaluate pe", "metrics": metrics}
            print(json.dumps(answer | {"seconds": time.process_time() - started}), flush=True)


def step_loss(run: Any) -> tuple[str, float]:
    """Take a training step; returns its task and its loss."""
    run.recent.clear()
    run.train_step()
    ((task, losses),) = run.recent.items()
    return task, float(losses[-1])


class Worker:
    """One commit's code in a process."""

    def __init__(self, source: Path, folder: Path, data: list[str], precision: str) -> None:
        options = {"out": str(folder), "data": data, "precision": precision}
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve", json.dumps(options)],
            cwd=source, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ask(self, what: str) -> dict[str, Any]:
        """The answer to "losses", "step" or "evaluate"."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(what, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            sys.exit(f"the process of {self.process.args} ended")
        return json.loads(answer)  # type: ignore[no-any-return]


def show(title: str, ratios: list[float], seconds: list[list[float]], names: list[str]) -> None:
    low, middle, high = statistics.quantiles(ratios, n=4)
    medians = ", ".join(f"{name} {statistics.median(values):.4f}" for name, values in zip(names, seconds, strict=True))
    print(f"{title}: {middle:.2f} ({low:.2f} to {high:.2f}, {len(ratios)} pairs; median seconds {medians})", flush=True)


def compare(workers: dict[str, Worker], rounds: int) -> None:
    """Steps and evaluations in turns; ratios of the first worker's times to those of each other."""
    names = list(workers)
    cycle = 6
    times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for _ in range(cycle):  # Warm up.
        for worker in workers.values():
            worker.ask("step")
    for index in range(rounds * cycle):
        order = names if index % 2 else names[::-1]
        for name in order:
            answer = workers[name].ask("step")
            times[answer["task"]][name].append(answer["seconds"])
        if index % cycle == 0:
            for name in order:
                times["evaluate pe"][name].append(workers[name].ask("evaluate")["seconds"])
    for other in names[1:]:
        print(f"{names[0]} / {other}, times of a step:")
        for task, seconds in times.items():
            if task != "evaluate pe":
                pairs = [one / two for one, two in zip(seconds[names[0]], seconds[other], strict=True)]
                show(f"  {task}", pairs, [seconds[names[0]], seconds[other]], [names[0], other])
        joint = {
            name: [
                sum(3 * seconds[name][index] if task == "pe" else seconds[name][index] for task, seconds in steps)
                for index in range(rounds)
            ]
            for name in (names[0], other)
            for steps in [[(task, seconds) for task, seconds in times.items() if task != "evaluate pe"]]
        }
        pairs = [one / two for one, two in zip(joint[names[0]], joint[other], strict=True)]
        show("  joint cycle", pairs, [joint[names[0]], joint[other]], [names[0], other])
        seconds = times["evaluate pe"]
        pairs = [one / two for one, two in zip(seconds[names[0]], seconds[other], strict=True)]
        show("  evaluating poses", pairs, [seconds[names[0]], seconds[other]], [names[0], other])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", default="c93a767", metavar="COMMIT")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--rounds", type=int, default=12, help="joint cycles (12)")
    parser.add_argument("--bf16", action="store_true", help="compare with --precision bf16 too")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(json.loads(args.serve))
        return
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        source = extract(args.against, folder / "source")
        workers = {
            args.against: Worker(source, folder / "against", args.data, "fp32"),
            "present": Worker(ROOT, folder / "present", args.data, "fp32"),
        }
        if args.bf16:
            workers["present, bf16"] = Worker(ROOT, folder / "bf16", args.data, "bf16")
        print(f"{platform.machine()}, one thread, preset small, {'given' if args.data else 'synthetic'} clip sets")
        curves = {name: worker.ask("losses")["losses"] for name, worker in workers.items()}
        metrics = {name: worker.ask("evaluate")["metrics"] for name, worker in workers.items()}
        for name in list(workers)[1:]:
            apart = [abs(b / a - 1) for a, b in zip(curves[args.against], curves[name], strict=True)]
            error = [metrics[which]["pe/mpjpe_mm"] for which in (args.against, name)]
            print(f"{name}: losses of {PARITY_STEPS} steps differ by at most {max(apart):.1e} of their value, MPJPE of")
            print(f"  the untrained model on validation {error[1]:.6f} and {error[0]:.6f} mm", flush=True)
        compare(workers, args.rounds)
        for worker in workers.values():
            assert worker.process.stdin is not None
            worker.process.stdin.close()
            worker.process.wait()


if __name__ == "__main__":
    main()
