"""Train one baseline: python -m baselines."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from baselines.config import PRESETS, SYSTEMS, RunConfig, base
from ups_model.cli import (
    StopOnSignal,
    add_data_arguments,
    add_device_arguments,
    alone_in,
    assignments,
    command_parser,
    data_paths,
    metric_table,
    start_logging,
)
from ups_model.config import TASK_NAMES, set_of
from ups_model.evaluation.metric_names import is_headline
from ups_model.pipes import end_with, refuse

EXAMPLES = """examples:
  python -m baselines residual_mlp --preset tiny
  python -m baselines videopose3d --preset small --set receptive_field=81 --set data.pe.frames=88
  python -m baselines dd_net --preset small --task eap --seed 1 --out runs/dd-net-eap
  python -m baselines multitask --preset small --set supervision=last

--data may be left out for a set that `python -m ups_model.data prepare` has put in its usual place.
exit status: 0 done, 1 stopped or not finite, 2 usage or configuration, before anything starts"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = command_parser("baselines", "Train another network than UPS. The same command again resumes it.", EXAMPLES)
    made.add_argument("system", choices=(*SYSTEMS, "multitask"))
    made.add_argument("--preset", choices=PRESETS, required=True, help="clips and sizes, as of ups_model.train")
    made.add_argument("--task", choices=TASK_NAMES, help="(lifters and multitask: pe, recognisers: ar3d)")
    made.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field (repeatable)")
    made.add_argument("--seed", type=int, default=0, metavar="N", help="(0)")
    add_data_arguments(made)
    made.add_argument("--out", type=Path, metavar="DIR", help="(runs/SYSTEM)")
    made.add_argument("--no-test", action="store_true", help="leave the test split alone, as while choosing settings")
    add_device_arguments(made)
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    args = parser().parse_args(arguments)
    start_logging()
    from baselines.learner import SingleTask
    from baselines.multitask.config import base as multitask_base
    from baselines.multitask.learner import Multitask
    from baselines.train import train
    from ups_model.training.finite import NonFiniteLoss

    try:
        changes = {"seed": args.seed, **({"task": args.task} if args.task else {})}
        both = args.system == "multitask"
        config: RunConfig = multitask_base(args.preset) if both else base(args.preset, args.system)
        config = config.with_fields(changes)
        config = config.with_fields(assignments(args.set, "--set", "FIELD=VALUE"))
        out = args.out or Path("runs") / args.system
        with alone_in(out):
            result = train(
                config,
                data_paths(args.data, [set_of(source) for source in config.task_data.sources]),
                folder=out,
                learner=Multitask if both else SingleTask,
                device=args.device,
                precision=args.precision,
                test=not args.no_test,
                should_stop=StopOnSignal(),
            )
    except (ValueError, OSError, NonFiniteLoss) as error:
        return refuse(error, 1 if isinstance(error, NonFiniteLoss) else 2)
    if shown := {name: value for name, value in result.metrics.items() if is_headline(name.split("/", 1)[1])}:
        print(metric_table(shown))
    print(
        f"{result.status} at step {result.step}, {result.about['train_seconds']:.0f} s on {result.about['device']} "
        f"({result.about['precision']}), {result.about['parameters'] / 1e6:.2f} M parameters, run {result.key}, in "
        f"{out}"
    )
    return 0 if result.status == "finished" else 1


if __name__ == "__main__":
    end_with(main)
