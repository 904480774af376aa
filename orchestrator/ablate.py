"""Run a study to its end: python -m orchestrator.ablate. The same command again resumes, extends or repairs it."""

import argparse
import logging
import math
import os
import re
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from orchestrator.agenda import Agenda, State
from orchestrator.content import plan_content
from orchestrator.estimate import Estimate, estimate
from orchestrator.inputs import Inputs, read_inputs
from orchestrator.ledger import Ledger, storage_path
from orchestrator.plan import Plan, Unit
from orchestrator.worker import Job
from search_spaces import find_study, study_names
from ups_model.command import add_data_arguments, add_device_arguments, start_logging
from ups_model.data.sources import default_cache
from ups_model.presets import PRESETS
from ups_model.progress import duration

logger = logging.getLogger(__name__)

DEFAULT_STUDY = "tables_7_9"
DEFAULT_STORAGE = "runs/ablations"
MIRROR_SECONDS = 60.0
"""How long the end of a study waits for MLflow; what is left is made up for at the next call."""

EXAMPLES = """examples:
  python -m orchestrator.ablate                                  Tables 7-9 on synthetic data, preset tiny
  python -m orchestrator.ablate paper_tables --plan              what would be trained, and how long it takes
  python -m orchestrator.ablate tables_7_9 --preset small --data uiprmd=PATH --data utd_mhad=PATH --data jhmdb=PATH
  python -m orchestrator.ablate my_study.py --seeds 5 --set steps=4000 --storage /mnt/shared/ablations
  python -m orchestrator.ablate tables_7_9 --preset paper --address auto --gpus-per-unit 1

Run again to resume, with more rows or seeds to extend: finished units are never trained twice.
exit status: 0 done, 1 some units failed or were stopped (the rest finished and is reported), 2 usage or configuration,
before anything starts"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m orchestrator.ablate",
        description="Train what a study's tables need and isn't trained yet, then report.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `command_line` knows options by their whole names.
    )
    made.add_argument(
        "study",
        nargs="?",
        default=DEFAULT_STUDY,
        metavar="STUDY",
        help=f"name, FILE.py or module:name ({DEFAULT_STUDY})",
    )
    made.add_argument("--list", action="store_true", help="name the studies and end")
    made.add_argument("--plan", action="store_true", help="show rows, arms, units, sizes and times; start nothing")
    add_data_arguments(made)
    made.add_argument("--preset", choices=PRESETS, default="tiny", help="(tiny: synthetic data)")
    made.add_argument("--seeds", type=int, metavar="N", help="repetitions of every row (the study's own number)")
    made.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="change a field in every row")
    made.add_argument(
        "--storage", default=DEFAULT_STORAGE, metavar="URI", help=f"folder of the ledger ({DEFAULT_STORAGE})"
    )
    made.add_argument("--tracking-uri", metavar="URI", help="of MLflow (sqlite in the storage)")
    made.add_argument("--address", default="auto", help="auto, local or HOST:PORT of a Ray cluster (auto)")
    made.add_argument("--max-concurrent", type=int, metavar="N", help="units at once (as many as there is room for)")
    made.add_argument("--gpus-per-unit", type=float, metavar="F", help="a fraction shares a GPU (1 if there are GPUs)")
    made.add_argument("--cpus-per-unit", type=float, default=1.0, metavar="F", help="also its threads (1)")
    add_device_arguments(made)
    made.add_argument("--out", type=Path, metavar="DIR", help="of the report (in the storage)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = parser().parse_args(arguments)
    start_logging()
    try:
        if given.list:
            print(list_studies())
            return 0
        check_numbers(given)
        inputs = read_inputs(given.study, given.preset, given.data, given.set, given.seeds)
        if given.plan:
            print(show_plan(inputs, existing_ledger(given.storage), given))
            return 0
        return run(inputs, given, command_line(sys.argv[1:] if arguments is None else arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # Before units run; while they run, the driver handles it.
        print("interrupted", file=sys.stderr)
        return 130


def run(inputs: Inputs, given: argparse.Namespace, command: str) -> int:
    """Everything after the arguments were found good."""
    # Ray and MLflow take seconds to import, which --help and --plan need not wait for.
    from orchestrator import run as driver
    from orchestrator import tracking
    from orchestrator.display import Display, several
    from orchestrator.report import write_report

    plan = inputs.plan
    root = storage_path(given.storage)
    out = given.out or Ledger(root).study(plan) / "report"
    if given.tracking_uri is not None:
        tracking.check(given.tracking_uri)
    facts, slots = None, 1
    try:
        with unmade_if_refused(root / "units", root / "studies", out):
            ledger = Ledger.open(given.storage)
            make_writable(out)
            uri = given.tracking_uri or tracking.default_uri(ledger)
            agenda = Agenda(plan, ledger)
            if not agenda.complete:
                check_address(given.address)
                facts = driver.connect(given.address)
                gpus = given.gpus_per_unit if given.gpus_per_unit is not None else float(facts.gpus > 0)
                resources = driver.Resources(given.cpus_per_unit, gpus, given.max_concurrent)
                driver.check_room(facts, resources)
                if given.device.startswith("cuda") and not gpus:
                    raise ValueError(f"--device {given.device} needs --gpus-per-unit above 0, got {gpus:g}; try 1")
                slots = facts.slots(resources)
        content = plan_content(plan, command, inputs.changes)
        ledger.save_plan(plan, content)
        expected = estimates(inputs, ledger, slots)
        logger.info("%s", summary(plan, agenda, expected))
        mirror = tracking.Mirror(ledger, plan, content, uri)
        mirror.start()
        display = Display(agenda, expected.seconds, slots)
        measured = plan.measured()

        def job_of(unit: Unit) -> Job:
            return Job(
                unit,
                plan.units.get(unit.parent),
                str(ledger.root),
                {name: str(path.absolute()) for name, path in inputs.paths.items()},
                str(default_cache()),
                max(1, int(given.cpus_per_unit)),
                given.device,
                given.precision,
                unit.key in measured,
            )

        if facts is not None:
            hooks = driver.Hooks(
                several(display.changed, lambda key, state: mirror.note(key, str(state))), display.tick
            )
            try:
                driver.execute(agenda, job_of, resources, facts, hooks)
            except (ValueError, OSError) as error:  # Not the user's: units have run.
                raise RuntimeError("the driver failed; the same command goes on from here") from error
            finally:
                display.close()
    finally:
        if facts is not None:
            driver.disconnect()
    record_failures(agenda)
    records = {key: ledger.record(unit) for key, unit in plan.units.items()}
    written = []
    try:
        written = write_report(content, records, out)
    except ValueError as error:  # All that it is made from is on storage.
        logger.error("no report: %s; make it with python -m orchestrator.report %s", error, plan.name)
    finished = agenda.counts()[State.FINISHED] == len(plan.units)
    outcome = "finished" if finished else "stopped" if agenda.stopping else "failed"
    missing = mirror.close(outcome, out if written else None, MIRROR_SECONDS)
    print(closing(agenda, written, tracking.ui_command(uri), missing))
    return 0 if finished and written else 1


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


def record_failures(agenda: Agenda) -> None:
    """Leave a record of each unit that failed without leaving one itself: its process died, or the disk was full."""
    from orchestrator.ledger import Record

    for key, state in agenda.state.items():
        unit = agenda.units[key]
        if state is State.FAILED and agenda.ledger.record(unit) is None:
            try:
                agenda.ledger.write(unit, Record(key, "failed", error=agenda.error[key]))
            except OSError as error:
                logger.error("%s: its failure can't be recorded (%s)", unit.name, error)


def check_numbers(given: argparse.Namespace) -> None:
    """ValueError for numbers that no machine could satisfy."""
    for flag, number in (("--gpus-per-unit", given.gpus_per_unit), ("--cpus-per-unit", given.cpus_per_unit)):
        if number is not None and not math.isfinite(number):
            raise ValueError(f"{flag} must be finite, got {number}; try 1")
    if not re.fullmatch(r"auto|cpu|mps|(cuda|xpu)(:\d+)?", given.device):
        raise ValueError(f"--device must be auto, cpu, cuda or cuda:N, got {given.device!r}; try auto")
    if given.max_concurrent is not None and given.max_concurrent < 1:
        raise ValueError(f"--max-concurrent must be at least 1, got {given.max_concurrent}")
    if given.gpus_per_unit is not None and given.gpus_per_unit < 0:
        raise ValueError(f"--gpus-per-unit must be at least 0, got {given.gpus_per_unit:g}")
    if given.gpus_per_unit is not None and given.gpus_per_unit > 1 and given.gpus_per_unit % 1:
        raise ValueError(f"--gpus-per-unit above 1 must be whole, got {given.gpus_per_unit:g}")
    if given.cpus_per_unit <= 0:
        raise ValueError(f"--cpus-per-unit must be above 0, got {given.cpus_per_unit:g}")


def existing_ledger(storage: str) -> Ledger | None:
    """The ledger if there is one; --plan makes none."""
    root = storage_path(storage)
    return Ledger(root) if (root / "units").is_dir() else None


def estimates(inputs: Inputs, ledger: Ledger | None, slots: int) -> Estimate:
    """Sizes and times, with what the ledger has measured."""
    units = inputs.plan.units.items()
    found = {key: ledger.finished(unit) for key, unit in units} if ledger else {}
    return estimate(inputs.plan, inputs.sets, {key: record for key, record in found.items() if record}, slots)


def list_studies() -> str:
    """Each study's name and question."""
    return "\n".join(f"{name:<16}{find_study(name).question}" for name in study_names())


def summary(plan: Plan, agenda: Agenda, expected: Estimate) -> str:
    """One line at the start."""
    done = len(agenda.done_before)
    return (
        f"{plan.name}: {plan.rows} rows, {len(plan.arms)} arms, {plan.seeds} seed{'s' * (plan.seeds > 1)}, "
        f"{len(plan.units)} units ({plan.unshared_units - len(plan.units)} saved by sharing), {done} done before; "
        f"about {duration(expected.makespan)} on {expected.slots} at once"
    )


def show_plan(inputs: Inputs, ledger: Ledger | None, given: argparse.Namespace) -> str:
    """What `--plan` prints."""
    from orchestrator.plan_text import plan_text

    plan = inputs.plan
    slots = given.max_concurrent or machine_slots(given.cpus_per_unit)
    done = Agenda(plan, ledger).done_before if ledger is not None else set()
    return plan_text(plan, estimates(inputs, ledger, slots), done)


def machine_slots(cpus_per_unit: float) -> int:
    """Units that this machine runs at once, as Ray would count."""
    import os

    return max(1, int((os.cpu_count() or 1) / cpus_per_unit))


def command_line(arguments: Sequence[str]) -> str:
    """The command as a report shows it: without paths, which say nothing to a reader and much of a machine."""
    kept, skip = [], False
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
    return shlex.join(["python", "-m", "orchestrator.ablate", *kept])


def closing(agenda: Agenda, written: Sequence[Path], ui: str, missing: int) -> str:
    """What the end of a run says."""
    counts = agenda.counts()
    total, finished = len(agenda.units), counts[State.FINISHED]
    lines = [f"{finished} of {total} units finished, {len(agenda.done_before)} of them before this call"]
    for key, error in agenda.error.items():
        lines.append(f"{agenda.state[key]}: {agenda.units[key].name}: {error}")
    if agenda.stopping:
        lines.append("stopped; the same command goes on from here")
    elif agenda.error:
        lines.append("the same command tries the failed units again")
    if missing:
        lines.append(f"{missing} units are not in MLflow yet; the same command makes up for it")
    lines += [f"report: {path}" for path in written if path.suffix in (".md", ".html")]
    lines.append(f"compare in MLflow: {ui}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
