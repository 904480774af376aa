"""The arguments that the commands that run units share, their checks, and how a report shows a command line."""

import argparse
import math
import re
import shlex
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.planning.plan import Unit
from ups_model.cli import add_data_arguments, add_device_arguments, add_fit_arguments, check_processes
from ups_model.config.presets import PRESETS

DEFAULT_STORAGE = "runs/ablations"
AUTO = "auto"
AUTO_LOOKS = (5, 8, 12, 20)
"""Numbers of seeds after which `--seeds auto` looks whether all claims are decided."""
LEFT_OUT = ("--storage", "--tracking-uri", "--out", "--address", "--notify", "--notify-every")
"""Options that a report doesn't show: they say nothing to a reader and much of a machine."""


def add_shared_arguments(parser: argparse.ArgumentParser, repeated: str) -> None:
    """All arguments but the first and those of one command alone; `repeated` is what has seeds: "row" or "trial"."""
    parser.allow_abbrev = False  # `command_line` knows options by their whole names.
    add_data_arguments(parser)
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="(tiny: synthetic data)")
    seeds = f"repetitions of every {repeated} (its own number)"
    if repeated == "row":
        *first, last = AUTO_LOOKS
        seeds += f", or which: 0,3,7; auto: {', '.join(map(str, first))}, then {last}, until every primary claim is "
        seeds += "decided; auto:N ends at N, one of these"
        parser.add_argument("--seeds", type=_seeds, metavar="N|LIST|auto[:N]", help=seeds)
    else:
        parser.add_argument("--seeds", type=int, metavar="N", help=seeds)
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help=f"change a field in every {repeated}"
    )
    parser.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="URI", help=f"folder or s3://BUCKET/PREFIX ({DEFAULT_STORAGE})"
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="of MLflow (sqlite in a storage folder)")
    parser.add_argument("--address", default="auto", help="auto, local or HOST:PORT of a Ray cluster (auto)")
    parser.add_argument("--max-concurrent", type=int, metavar="N", help="units at once (as many as there is room for)")
    parser.add_argument(
        "--gpus-per-unit",
        type=_or_auto(float, "number"),
        metavar="F",
        help="a fraction shares a GPU, 2 and more train a unit together; auto measures what fits (1 if there are any)",
    )
    parser.add_argument(
        "--processes-per-unit", type=int, metavar="N", help="that train a unit together (one for each of its GPUs)"
    )
    parser.add_argument("--cpus-per-unit", type=float, metavar="F", help="also its threads (1 for each process)")
    add_device_arguments(parser)
    add_fit_arguments(parser)
    parser.add_argument(
        "--notify",
        default="",
        metavar="COMMAND",
        help="run at the end and when a unit has failed, with UPS_EVENT, UPS_NAME and UPS_STATUS in its environment",
    )
    parser.add_argument(
        "--notify-every", type=float, default=0.0, metavar="HOURS", help="run it for progress too (0: never)"
    )
    parser.add_argument("--watch", action="store_true", help="show a live table, where the output is a terminal")
    with_plan = "--plan or " if repeated == "row" else ""
    parser.add_argument(
        "--price-per-hour",
        type=float,
        metavar="PRICE",
        help=f"with {with_plan}--watch: of a GPU, or of a slot without GPUs, for the cost",
    )
    other = parser.add_mutually_exclusive_group()
    for flag, policy, text in (
        ("--accept-other-code", "accept", "keep units that other code has trained"),
        ("--retrain", "retrain", "train them again; their records are kept under another name"),
    ):
        other.add_argument(flag, dest="other_code", action="store_const", const=policy, default="refuse", help=text)


@dataclass(frozen=True)
class AutoSeeds:
    """As many seeds as the claims need."""

    looks: tuple[int, ...]
    """Numbers of seeds after which they are looked at."""


def _seeds(text: str) -> int | tuple[int, ...] | AutoSeeds:
    """For argparse: a number of seeds, the seeds themselves, or auto with the largest number of them."""
    kind, colon, most = text.partition(":")
    looks = list(map(str, AUTO_LOOKS))
    try:
        if kind == AUTO:
            return AutoSeeds(AUTO_LOOKS[: looks.index(most) + 1] if colon else AUTO_LOOKS)
        return tuple(int(seed) for seed in text.split(",") if seed) if "," in text else int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(
            f"must be a number, seeds as in 0,3,7, auto, or auto:N with N one of {', '.join(looks)}, got {text!r}"
        ) from error


def _or_auto(parse: Callable[[str], float], name: str) -> Callable[[str], float | str]:
    """For argparse, which says that `name` or auto was expected."""

    def parsed(text: str) -> float | str:
        return text if text == AUTO else parse(text)

    parsed.__name__ = f"{name}, or auto,"
    return parsed


def check_numbers(options: argparse.Namespace) -> None:
    """ValueError for values that no machine could satisfy."""
    gpus = None if options.gpus_per_unit == AUTO else options.gpus_per_unit
    for flag, number in (("--gpus-per-unit", gpus), ("--cpus-per-unit", options.cpus_per_unit)):
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{flag} must be finite, got {number}; try 1")
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", options.device):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {options.device!r}; try auto")
    if not 0 <= options.notify_every < math.inf:
        raise ValueError(f"--notify-every must be 0 or more hours, got {options.notify_every:g}; try 6")
    if options.notify_every and not options.notify:
        raise ValueError("--notify-every needs a command to run: --notify COMMAND")
    price, shows_cost = options.price_per_hour, options.watch or getattr(options, "plan", False)
    if price is not None and not (shows_cost and 0 < price < math.inf):
        flags = "--plan or --watch" if hasattr(options, "plan") else "--watch"
        raise ValueError(f"--price-per-hour goes with {flags} and must be above 0, got {price:g}")
    if options.max_concurrent is not None and options.max_concurrent < 1:
        raise ValueError(f"--max-concurrent must be at least 1, got {options.max_concurrent}")
    if gpus is not None and gpus < 0:
        raise ValueError(f"--gpus-per-unit must be at least 0, got {gpus:g}")
    if gpus is not None and gpus > 1 and gpus % 1:
        raise ValueError(f"--gpus-per-unit above 1 must be whole, got {gpus:g}")
    if options.cpus_per_unit is not None and options.cpus_per_unit <= 0:
        raise ValueError(f"--cpus-per-unit must be above 0, got {options.cpus_per_unit:g}")
    check_unit(options, gpus)
    if options.cpus_per_unit is None:
        options.cpus_per_unit = float(processes_of(options))


def processes_of(options: argparse.Namespace) -> int:
    """Processes that train a unit together."""
    if options.processes_per_unit is not None:
        return int(options.processes_per_unit)
    gpus = options.gpus_per_unit
    return int(gpus) if gpus not in (None, AUTO) and gpus > 1 else 1


def check_not_measured(options: argparse.Namespace, who: str) -> None:
    """ValueError for `--gpus-per-unit auto` where units are not there before they run; `who` makes them."""
    if options.gpus_per_unit == AUTO:
        raise ValueError(
            f"--gpus-per-unit auto measures units before they run, and {who} them as it goes; give a number"
        )


def check_cut(units: Iterable[Unit], options: argparse.Namespace) -> None:
    """ValueError for a unit whose batches can't be cut as the options ask."""
    processes = processes_of(options)
    if processes > 1 or options.micro_batch:
        for unit in units:
            unit.trainer.check_cut(unit.config, processes, options.micro_batch)


def check_unit(options: argparse.Namespace, gpus: float | None) -> None:
    """ValueError for processes that the GPUs or CPUs of a unit don't suit."""
    processes = processes_of(options)
    check_processes("--processes-per-unit", processes, options.device)
    if gpus and processes not in (1, gpus):
        raise ValueError(
            f"--processes-per-unit must be the number of a unit's GPUs, got {processes} with --gpus-per-unit {gpus:g}; "
            "leave it out"
        )
    if options.gpus_per_unit == AUTO and processes > 1:
        raise ValueError(
            f"--gpus-per-unit auto shares GPUs between units, got --processes-per-unit {processes}; give "
            f"--gpus-per-unit {processes}"
        )
    if options.cpus_per_unit is not None and options.cpus_per_unit < processes:
        raise ValueError(
            f"--cpus-per-unit must be at least 1 for each of {processes} processes, got {options.cpus_per_unit:g}"
        )


def check_address(address: str) -> None:
    """ValueError where nothing listens at HOST:PORT; Ray would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ValueError(f"--address must be auto, local or HOST:PORT, got {address!r}; try auto")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ValueError(
            f"--address {address}: no Ray cluster answers ({error.strerror or error}); start one with ray up, or use "
            "local"
        ) from error


def _from_here(file: str) -> str:
    """A file's path from the working folder; of one elsewhere, its name alone."""
    path = Path(file)
    if path.is_absolute():
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name
    return path.name if file.startswith("~") else file


def command_line(module: str, arguments: Sequence[str]) -> str:
    """The command as a report shows it: without paths, which say nothing to a reader and much of a machine; that of the
    study's file stays where it begins at the working folder."""
    kept: list[str] = []
    skip = False
    for text in arguments:
        if skip:
            skip = False
            continue
        name, equals, value = text.partition("=")
        if name in LEFT_OUT:
            skip = not equals
        elif kept and kept[-1] == "--data" and equals:
            kept.append(f"{name}=PATH")
        elif name == "--data" and equals:
            kept.append(f"--data={value.partition('=')[0]}=PATH")
        elif kept and kept[-1] == "--set" and "/" in value:  # A local language model.
            kept.append(f"{name}=PATH")
        elif text.endswith((".py", ".yaml", ".yml")):
            kept.append(_from_here(text))
        else:
            kept.append(text)
    return shlex.join(["python", "-m", module, *kept])
