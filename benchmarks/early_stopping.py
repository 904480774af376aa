"""What early stopping saves and what it loses, replayed on recorded learning curves of a full random search.

    python -m orchestrator.search benchmarks/random_search.py --preset tiny --data utd_mhad=PATH --storage DIR
    python benchmarks/early_stopping.py --record DIR
    python benchmarks/early_stopping.py --out benchmarks/results/early_stopping/replays.txt

The search trains every trial to its end and is measured 27 times on the way; `--record` writes its curves to
results/early_stopping/curves.jsonl. Each replay takes the trials in another random order and lets a rule of
`orchestrator.search.rungs` decide which train on, on one slot and on eight. Printed, of all replays: how many times
fewer steps than the full random search are trained in all, and until a trial has come to its end that is within 1 % of
the best one's value; in how many the best trial never comes to its end, and in how many no trial within 1 % does.
"""

import argparse
import heapq
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.search.rungs import END, Rungs, Standing
from orchestrator.storage.ledger import Ledger
from search_spaces.space import EarlyStopping

RESULTS = Path(__file__).resolve().parent / "results" / "early_stopping"
METRIC = "validation/ar3d/top1"
NEAR = 0.01
RULES = {
    "none": None,
    "asha, third, from 1/27": EarlyStopping(first=1 / 27),
    "asha, third, from 1/9": EarlyStopping(),
    "asha, third, from 1/3": EarlyStopping(first=1 / 3),
    "asha, quarter, from 1/16": EarlyStopping(reduction=4, first=1 / 16),
    "asha, half, from 1/8": EarlyStopping(reduction=2, first=1 / 8),
    "hyperband, third, from 1/9": EarlyStopping("hyperband"),
    "median, 3 parts": EarlyStopping("median"),
    "median, 9 parts": EarlyStopping("median", points=9),
}

Curve = dict[int, float]
"""Value by step."""


def record(storage: str, out: Path) -> int:
    """Write the curves of a storage's finished units; returns how many."""
    ledger = Ledger.open(storage, create=False)
    lines = []
    for file in sorted((Path(storage) / "units").glob("*/record.json")):
        about = json.loads(file.read_text("utf-8"))["about"]
        rows = [json.loads(line) for line in (file.parent / "progress.jsonl").read_text("utf-8").splitlines()]
        curve = {row["step"]: row[METRIC] for row in rows if METRIC in row}
        optim, model = about["config"]["optim"], about["config"]["model"]
        params = {name: optim[name] for name in ("learning_rate", "label_smoothing")} | {"dropout": model["dropout"]}
        lines.append(json.dumps({"params": params, "commit": about["commit"], "curve": curve}))
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text("".join(f"{line}\n" for line in lines), "utf-8")
    assert ledger.root is not None
    return len(lines)


def at(curve: Curve, step: int) -> float:
    """The value where it was first measured from a step on."""
    return curve[min(one for one in curve if one >= step)]


@dataclass
class Replay:
    """One search over recorded curves."""

    rule: EarlyStopping | None
    curves: Sequence[Curve]
    """In the order in which trials are suggested."""
    slots: int

    def run(self) -> tuple[int, list[tuple[int, int]]]:
        """Steps trained in all; the trials that came to their end, in that order, with the steps trained until then."""
        steps = max(self.curves[0])
        rungs = Rungs(self.rule, steps) if self.rule else None
        trials: list[Standing] = []
        busy: list[tuple[int, int, int]] = []
        """Heap of (time of the end, trial, steps of this leg)."""
        trained, ended, now, reached = 0, [], 0, [0] * len(self.curves)
        while True:
            while len(busy) < self.slots:
                is_last = len(trials) == len(self.curves) and not busy
                number = rungs.promotable(trials, is_last) if rungs else None
                if number is not None and rungs:
                    trials[number] = Standing(rungs.next(trials[number].aim), trials[number].values)
                elif len(trials) < len(self.curves):
                    number = len(trials)
                    trials.append(Standing(rungs.first(number) if rungs else END))
                else:
                    break
                goal = trials[number].aim or steps
                heapq.heappush(busy, (now + goal - reached[number], number, goal - reached[number]))
            if not busy:
                return trained, ended
            now, number, leg = heapq.heappop(busy)
            trained, reached[number] = trained + leg, reached[number] + leg
            aim = trials[number].aim
            if aim == END:
                ended.append((number, trained))
            else:
                trials[number] = Standing(aim, {**trials[number].values, aim: at(self.curves[number], aim)})


def replay(curves: Sequence[Curve], rule: EarlyStopping | None, slots: int, times: int) -> str:
    """A line of the table."""
    steps = max(curves[0])
    finals = [curve[steps] for curve in curves]
    best = max(finals)
    full = steps * len(curves)
    total, near, lost_best, lost_near = [], [], 0, 0
    for number in range(times):
        order = list(range(len(curves)))
        random.Random(number).shuffle(order)
        trained, ended = Replay(rule, [curves[one] for one in order], slots).run()
        total.append(full / trained)
        values = [(finals[order[one]], spent) for one, spent in ended]
        lost_best += max(value for value, _ in values) < best
        first = next((spent for value, spent in values if value >= (1 - NEAR) * best), None)
        lost_near += first is None
        near += [full / first] if first else []
    reached = f"{statistics.median(near):5.1f}" if near else "never"
    return (
        f"{statistics.median(total):6.1f}  {reached:>6}       {lost_best / times:6.1%}        {lost_near / times:6.1%}"
    )


def main() -> None:
    """The command."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--record", metavar="STORAGE", help="write the curves of the random search on this storage")
    made.add_argument("--curves", type=Path, default=RESULTS / "curves.jsonl")
    made.add_argument("--replays", type=int, default=1000)
    made.add_argument("--out", type=Path, help="also write what is printed here")
    options = made.parse_args()
    if options.record:
        print(f"{record(options.record, options.curves)} curves")
        return
    rows = [json.loads(line) for line in options.curves.read_text("utf-8").splitlines()]
    curves = [{int(step): value for step, value in row["curve"].items()} for row in rows]
    steps = max(curves[0])
    finals = sorted((curve[steps] for curve in curves), reverse=True)
    near = sum(value >= (1 - NEAR) * finals[0] for value in finals)
    lines = [
        f"{len(curves)} trials of {steps} steps; {METRIC}: best {finals[0]:.1f}, "
        f"median {statistics.median(finals):.1f}, worst {finals[-1]:.1f}; {near} within 1 % of the best; "
        f"{options.replays} replays",
        "                              times fewer steps       share of replays that lose",
        f"{'rule':<28} slots  in all  to 1 %   the best trial   all within 1 %",
    ]
    for name, rule in RULES.items():
        for slots in (1, 8):
            lines.append(f"{name:<28} {slots:>5}  {replay(curves, rule, slots, options.replays)}")
            print("\n".join(lines[-1:] if len(lines) > 4 else lines), flush=True)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(lines) + "\n", "utf-8")


if __name__ == "__main__":
    main()
