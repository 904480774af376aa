"""What the commands that run units share: arguments and their checks, what they refuse, joining Ray."""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.planning.plan import Unit
from orchestrator.record import Record
from orchestrator.scheduling.task_graph import SETTLED, Agenda, State
from orchestrator.storage.ledger import Ledger
from orchestrator.worker.environment import Site
from orchestrator.worker.gpu_memory import Footprint, described
from orchestrator.worker.job import Job
from ups_model.cli import add_data_arguments, add_device_arguments
from ups_model.config.presets import PRESETS
from ups_model.data.prepare.catalog import default_cache

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.execution.ray_cluster import ClusterFacts, Resources

logger = logging.getLogger(__name__)

DEFAULT_STORAGE = "runs/ablations"
AUTO = "auto"
MIRROR_SECONDS = 60.0
"""How long the end of a call waits for MLflow; what is left is made up for at the next one."""


def add_shared_arguments(parser: argparse.ArgumentParser, repeated: str) -> None:
    """All arguments but the first, `--list`, `--out` and those of one command alone.

    Args:
        repeated: what has seeds: "row" or "trial".
    """
    add_data_arguments(parser)
    parser.add_argument("--preset", choices=PRESETS, default="tiny", help="(tiny: synthetic data)")
    parser.add_argument("--seeds", type=int, metavar="N", help=f"repetitions of every {repeated} (its own number)")
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
        type=_gpus,
        metavar="F",
        help="a fraction shares a GPU; auto measures what fits (1 if there are GPUs)",
    )
    parser.add_argument("--cpus-per-unit", type=float, default=1.0, metavar="F", help="also its threads (1)")
    add_device_arguments(parser)
    other = parser.add_mutually_exclusive_group()
    other.add_argument(
        "--accept-other-code",
        dest="other_code",
        action="store_const",
        const="accept",
        default="refuse",
        help="keep units that other code of ups_model has trained",
    )
    other.add_argument(
        "--retrain",
        dest="other_code",
        action="store_const",
        const="retrain",
        default="refuse",
        help="train them again; their records are kept under another name",
    )


def _gpus(text: str) -> float | str:
    return text if text == AUTO else float(text)


_gpus.__name__ = "number, or auto,"
"""What argparse says was expected."""


def job_of(
    unit: Unit,
    parent: Unit | None,
    ledger: Ledger,
    paths: Mapping[str, Path],
    given: argparse.Namespace,
    test: bool,
    site: Site | None = None,
    wanted: Sequence[str] = (),
) -> Job:
    """How a unit is carried out, as the arguments say; `wanted` are the metrics that tables want of it."""
    return Job(
        unit,
        parent,
        ledger.address,
        {name: str(path.absolute()) for name, path in paths.items()},
        str(default_cache()),
        max(1, int(given.cpus_per_unit)),
        given.device,
        given.precision,
        test,
        site,
        other_code=given.other_code,
        wanted=tuple(wanted),
    )


def footprints(
    given: argparse.Namespace, agenda: Agenda, job_of: Callable[[Unit], Job], resources: Resources
) -> dict[str, Footprint]:
    """With `--gpus-per-unit auto`, what each kind of unit that is to run takes of a GPU; else nothing.

    Raises:
        ValueError: a unit doesn't fit on a whole GPU, or torch sees none.
    """
    if given.gpus_per_unit != AUTO or not resources.gpus_per_unit:
        return {}
    from orchestrator.execution.ray_cluster import measure_footprints

    kinds = {agenda.units[key].kind: agenda.units[key] for key, state in agenda.state.items() if state not in SETTLED}
    logger.info("measuring what %d kinds of units take of a GPU", len(kinds))
    found = measure_footprints({kind: job_of(unit) for kind, unit in kinds.items()}, resources)
    logger.info("units on a GPU:\n%s", described((kinds[kind].name, one) for kind, one in found.items()))
    return found


def check_numbers(given: argparse.Namespace) -> None:
    """ValueError for numbers that no machine could satisfy."""
    gpus = None if given.gpus_per_unit == AUTO else given.gpus_per_unit
    for flag, number in (("--gpus-per-unit", gpus), ("--cpus-per-unit", given.cpus_per_unit)):
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{flag} must be finite, got {number}; try 1")
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", given.device):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {given.device!r}; try auto")
    if given.max_concurrent is not None and given.max_concurrent < 1:
        raise ValueError(f"--max-concurrent must be at least 1, got {given.max_concurrent}")
    if gpus is not None and gpus < 0:
        raise ValueError(f"--gpus-per-unit must be at least 0, got {gpus:g}")
    if gpus is not None and gpus > 1 and gpus % 1:
        raise ValueError(f"--gpus-per-unit above 1 must be whole, got {gpus:g}")
    if given.cpus_per_unit <= 0:
        raise ValueError(f"--cpus-per-unit must be above 0, got {given.cpus_per_unit:g}")


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


def connect(given: argparse.Namespace) -> tuple[ClusterFacts, Resources]:
    """What Ray has, and what a unit gets of it.

    Raises:
        ValueError: no cluster answers, or no node of it has room for a unit.
    """
    # Ray takes seconds to import, which --help and refusals need not wait for.
    from orchestrator.execution import ray_cluster

    check_address(given.address)
    facts = ray_cluster.connect(given.address)
    try:
        if given.gpus_per_unit in (None, AUTO) and facts.missing and not facts.has_gpus:
            raise ValueError(
                f"--gpus-per-unit: {facts.missing} machines have not joined yet, and none that has joined has a GPU; "
                "start again when `ray status` shows them all, or give --gpus-per-unit 0 for processors alone"
            )
        gpus = float(facts.has_gpus) if given.gpus_per_unit in (None, AUTO) else given.gpus_per_unit
        if given.gpus_per_unit == AUTO and not gpus:
            logger.info("--gpus-per-unit auto: there are no GPUs; units run on processors")
        resources = ray_cluster.Resources(given.cpus_per_unit, gpus, given.max_concurrent)
        ray_cluster.check_room(facts, resources)
        if given.device.startswith("cuda") and not gpus:
            raise ValueError(f"--device {given.device} needs --gpus-per-unit above 0, got {gpus:g}; try 1")
    except ValueError:
        ray_cluster.disconnect()
        raise
    return facts, resources


@contextmanager
def unmade_if_refused(*folders: Path) -> Iterator[None]:
    """What the block refuses leaves none of these folders that it has made; those that hold anything stay."""
    new = {one for folder in folders for one in (folder, *folder.parents) if not one.exists()}
    try:
        yield
    except (ValueError, OSError):
        for one in sorted(new, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):
                one.rmdir()
        raise


def make_writable(out: Path) -> None:
    """Make the report's folder: hours of training should not end at a folder that can't be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not os.access(out, os.W_OK):
            raise PermissionError("no permission")
    except OSError as error:
        raise ValueError(
            f"--out {out}: cannot be written to ({error.strerror or error}); give another folder"
        ) from error


def record_failures(agenda: Agenda) -> None:
    """Leave a record of each unit that failed without leaving one itself: its process died, or the disk was full."""
    for key, state in agenda.state.items():
        unit = agenda.units[key]
        if state is not State.FAILED:
            continue
        record = agenda.ledger.record(unit)
        # One that doesn't tell of this error is of an earlier call.
        if record is None or (record.status == "failed" and agenda.error[key] not in record.error):
            try:
                agenda.ledger.write(unit, Record(key, "failed", error=agenda.error[key]))
            except OSError as error:
                logger.error("%s: its failure can't be recorded (%s)", unit.name, error)


def command_line(module: str, arguments: Sequence[str]) -> str:
    """The command as a report shows it: without paths, which say nothing to a reader and much of a machine."""
    kept: list[str] = []
    skip = False
    for text in arguments:
        if skip:
            skip = False
            continue
        name, equals, value = text.partition("=")
        if text in ("--storage", "--tracking-uri", "--out", "--address"):
            skip = True
        elif name in ("--storage", "--tracking-uri", "--out", "--address") and equals:
            continue
        elif kept and kept[-1] == "--data" and equals:
            kept.append(f"{name}=PATH")
        elif name == "--data" and equals:
            kept.append(f"--data={value.partition('=')[0]}=PATH")
        elif kept and kept[-1] == "--set" and "/" in value:  # A local language model.
            kept.append(f"{name}=PATH")
        elif text.endswith(".py"):
            kept.append(Path(text).name)
        else:
            kept.append(text)
    return shlex.join(["python", "-m", module, *kept])
