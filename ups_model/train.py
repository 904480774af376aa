"""Train one run: joint, one task alone, or fine-tuning: python -m ups_model.train."""

import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from ups_model import cli
from ups_model.config import TASK_NAMES
from ups_model.config.identity import configured_sets
from ups_model.config.presets import PRESETS
from ups_model.pipes import end_with, refuse
from ups_model.training.finite import NonFiniteLoss
from ups_model.training.options import RunOptions
from ups_model.training.parallel.group import check_shares, first_process
from ups_model.training.parallel.launch import ProcessDied, train_in_processes
from ups_model.training.run import train

EXAMPLES = """examples:
  python -m ups_model.train --preset tiny
  python -m ups_model.train --preset small --data uiprmd=PATH --data utd_mhad=PATH --data jhmdb=PATH
  python -m ups_model.train --preset small --task ar3d --set encoder_layers=2 --seed 1 --out runs/ar3d-depth2
  python -m ups_model.train --preset small --task pe --parent runs/small/best/step-00004200 --out runs/small-pe
  python -m ups_model.train --preset paper --processes 8 --micro-batch auto --data h36m=PATH ...
  torchrun --nproc-per-node 8 -m ups_model.train --preset paper --data h36m=PATH ...      the same

--data may be left out for a set that `python -m ups_model.data prepare` has put in its usual place.
exit status: 0 done, 1 stopped or not finite, 2 usage or configuration, before anything starts"""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = cli.command_parser("ups_model.train", "Train one UPS model. The same command again resumes it.", EXAMPLES)
    parser.add_argument(
        "--preset",
        choices=PRESETS,
        help="tiny: synthetic data, minutes; small: open data; paper; paper_twin: the same, small",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="a configuration as written to config.json")
    parser.add_argument("--task", choices=TASK_NAMES, help="train one task alone instead of all")
    parser.add_argument("--parent", type=Path, metavar="CHECKPOINT", help="fine-tune from these weights, routes kept")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field (repeatable)")
    parser.add_argument("--seed", type=int, metavar="N", help="(0, or that of --config)")
    cli.add_data_arguments(parser)
    parser.add_argument("--out", type=Path, metavar="DIR", help="(runs/PRESET)")
    cli.add_device_arguments(parser)
    cli.add_fit_arguments(parser)
    parser.add_argument(
        "--processes",
        type=int,
        default=1,
        metavar="N",
        help="that share each batch, on a GPU each if there are any; at most a batch's clips (1)",
    )
    parser.add_argument("--checkpoint-every", type=int, default=500, metavar="STEPS", help="(500)")
    args = parser.parse_args(arguments)
    cli.start_logging()
    try:
        config = cli.read_config(args)
        paths = cli.data_paths(args.data, configured_sets(config))
        out = args.out or Path("runs") / (args.preset or args.config.stem)
        if args.checkpoint_every < 1:
            raise ValueError(f"--checkpoint-every must be at least 1, got {args.checkpoint_every}")
        options = RunOptions(
            out,
            args.device,
            args.precision,
            args.checkpoint_every,
            micro_batch=args.micro_batch,
            activation_checkpointing=args.activation_checkpointing,
        )
        cli.check_processes("--processes", args.processes, args.device)
        if args.processes > 1 and os.environ.get("WORLD_SIZE", "1") != "1":
            raise ValueError(
                f"torchrun has started the processes already, got --processes {args.processes}; leave it out"
            )
        check_shares(config, args.processes, args.micro_batch)
        stop = cli.StopOnSignal()
        with cli.alone_in(out) if first_process() else nullcontext():
            if args.processes == 1:
                result = train(config, paths, options, args.parent, should_stop=stop)
            else:
                result = train_in_processes(args.processes, config, paths, options, args.parent, should_stop=stop)
    except (ValueError, OSError, NonFiniteLoss, ProcessDied) as error:
        return refuse(error, 1 if isinstance(error, (NonFiniteLoss, ProcessDied)) else 2)
    if first_process():
        print(cli.report(result))
    return 0 if result.status == "finished" else 1


if __name__ == "__main__":
    end_with(main)
