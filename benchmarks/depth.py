"""Which learning rate each arm of Tables 7-9 learns most with, and which it collapses at: validation figures only.

    python benchmarks/depth.py --out OUT.jsonl                       # 3D recognition alone, 240 steps
    python benchmarks/depth.py --out OUT.jsonl --task joint --steps 480 --arms "1 block" "5 blocks"
    python benchmarks/depth.py --out OUT.jsonl --show                # the table of what has been measured

Each run is one line of OUT; what stands there is not run again. Needs the prepared open sets.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ups_model.config.presets import preset
from ups_model.data.prepare.catalog import default_cache
from ups_model.source import source_digest
from ups_model.training.finite import NonFiniteLoss
from ups_model.training.options import RunOptions
from ups_model.training.run import train

ARMS = {
    "1 layer": {"encoder_layers": 1},
    "3 layers": {},
    "5 layers": {"encoder_layers": 5},
    "1 block": {"blocks_per_layer": 1},
    "5 blocks": {"blocks_per_layer": 5},
    "no routing": {"routing": False},
}
RATES = (2.5e-4, 5e-4, 1e-3, 2e-3, 4e-3)
SETS = ("uiprmd", "utd_mhad", "jhmdb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--task", choices=("ar3d", "pe", "eap", "ar2d", "joint"), default="ar3d")
    parser.add_argument("--steps", type=int, nargs="+", default=[240])
    parser.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    parser.add_argument("--arms", nargs="+", choices=tuple(ARMS), default=["1 layer", "3 layers", "5 layers"])
    parser.add_argument("--splits", type=int, nargs="+", default=[0], help="which training subject is held out")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE")
    parser.add_argument("--label", default="", help="of the recipe that --set makes")
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    if not given.show:
        torch.set_num_threads(1)
        changes = dict(text.split("=", 1) for text in given.set)
        for steps in given.steps:
            for split in given.splits:
                for arm in given.arms:
                    for rate in given.rates:
                        measure(given, arm, rate, steps, split, changes)
    show(rows(given.out))


def rows(out: Path) -> list[dict]:
    return [json.loads(line) for line in out.read_text("utf-8").splitlines()] if out.exists() else []


def is_there(out: Path, name: dict) -> bool:
    """Whether a run of this name has been kept."""
    return any(name.items() <= row.items() for row in rows(out))


def keep(out: Path, line: dict) -> None:
    """Add a run to what has been measured."""
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(line, flush=True)


def measure(given: argparse.Namespace, arm: str, rate: float, steps: int, split: int, changes: dict[str, str]) -> None:
    name = {"label": given.label, "task": given.task, "arm": arm, "rate": rate, "steps": steps, "split": split}
    if is_there(given.out, name):
        return
    fields = {"validation_subjects": 1, "split_seed": split, "learning_rate": rate, "steps": steps}
    if given.task != "joint":
        fields["optim.cycle"] = given.task
    config = preset("small").with_fields({**fields, **ARMS[arm], **changes})
    cache, started = default_cache(), time.time()
    with tempfile.TemporaryDirectory() as folder:
        options = RunOptions(Path(folder), "cpu", "fp32", checkpoint_every=10**9, cache=cache, test=False)
        try:
            metrics = train(config, {one: cache / one for one in SETS}, options).metrics
        except NonFiniteLoss:
            metrics = {}
    kept = {key.removeprefix("validation/"): round(value, 2) for key, value in metrics.items() if key in HEADLINE}
    about = {"changes": changes, "source": source_digest("training"), "seconds": round(time.time() - started)}
    keep(given.out, {**name, **kept, **about})


HEADLINE = {f"validation/{name}" for name in ("ar3d/top1", "ar2d/top1", "eap/top1", "pe/mpjpe_mm")}


def show(found: list[dict]) -> None:
    """One table a recipe, task and length: arms by rates, mean over splits."""
    for label, task, steps in dict.fromkeys((row["label"], row["task"], row["steps"]) for row in found):
        own = [row for row in found if (row["label"], row["task"], row["steps"]) == (label, task, steps)]
        for metric in ("ar3d/top1", "ar2d/top1", "eap/top1", "pe/mpjpe_mm"):
            if not any(metric in row for row in own):
                continue
            rates = sorted({row["rate"] for row in own})
            print(f"\n{label or 'preset'}, {task}, {steps} steps, validation {metric}")
            print(f"{'':12}" + "".join(f"{rate:>10g}" for rate in rates))
            for arm in dict.fromkeys(row["arm"] for row in own):
                cells = [
                    [row.get(metric, float("nan")) for row in own if row["arm"] == arm and row["rate"] == rate]
                    for rate in rates
                ]
                print(f"{arm:12}" + "".join(f"{statistics.fmean(c):10.1f}" if c else f"{'':10}" for c in cells))


if __name__ == "__main__":
    main()
