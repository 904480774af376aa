"""One call of a command that runs units: what `orchestrator.ablate` and `orchestrator.search` do alike."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from orchestrator import process
from orchestrator.cli.arguments import AUTO, check_address, command_line, processes_of
from orchestrator.cli.notify import Notifier, Outcome
from orchestrator.planning.plan import Unit
from orchestrator.project import import_folders
from orchestrator.record import Record
from orchestrator.scheduling.task_graph import SETTLED, State, TaskGraph
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.source_check import SourceCheck
from orchestrator.tracking.uri import default_uri, page_address, ui_command
from orchestrator.worker.environment import commit, driver_environment
from orchestrator.worker.gpu_memory import Footprint, described
from orchestrator.worker.job import Job, Rung
from ups_model.cli import start_logging
from ups_model.data.prepare.catalog import default_cache
from ups_model.pipes import refuse
from ups_model.wording import count

if TYPE_CHECKING:  # Ray and MLflow take seconds to import, which --help, --plan and refusals need not wait for.
    from orchestrator.cli.display import Display
    from orchestrator.execution.ray_cluster import ClusterFacts, Resources
    from orchestrator.tracking.mirror import Mirror
    from orchestrator.tracking.schema import Tracked

logger = logging.getLogger(__name__)

TRACKING_TIMEOUT_SECONDS = 60.0
"""How long the end of a call waits for MLflow; the next call brings the rest."""


def run_command(
    module: str,
    parser: argparse.ArgumentParser,
    act: Callable[[argparse.Namespace, str], int],
    arguments: Sequence[str] | None,
) -> int:
    """Parse the arguments and act on them; returns the exit status.

    Args:
        act: takes the options and the command line as a report shows it.
        arguments: those of the process if None.
    """
    options = parser.parse_args(arguments)
    start_logging()
    try:
        return act(options, command_line(module, sys.argv[1:] if arguments is None else arguments))
    except (ValueError, OSError) as error:
        return refuse(error)
    except KeyboardInterrupt:  # Of a library's user, or where `process` lets it through; else a signal's handler ends.
        print("interrupted", file=sys.stderr)
        return 130


class Session:
    """The storage, Ray, MLflow and the display of one call. As a context manager it leaves Ray at its end."""

    def __init__(self, options: argparse.Namespace, paths: Mapping[str, Path]) -> None:
        """Looks at nothing but the addresses.

        Args:
            paths: folder of each clip set.

        Raises:
            ValueError: an address that can't be one, or that nothing answers at.
        """
        self.options, self._paths = options, paths
        self.ledger = Ledger.at(options.storage)
        self.tracking_uri = options.tracking_uri or default_uri(self.ledger)
        if options.tracking_uri is not None:
            from orchestrator.tracking.client import check

            check(options.tracking_uri)
        self.cluster: tuple[ClusterFacts, Resources] | None = None
        self.display: Display | None = None
        self.notifier = Notifier("", 0, "")
        self.at_exit = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.notifier.tell("failed", str(error) or type(error).__name__)
        self.notifier.wait()
        self.at_exit.close()

    @contextmanager
    def opened(self, *folders: Path) -> Iterator[Ledger]:
        """The storage, and these folders, made if they aren't there; what the block refuses leaves none that was made,
        unless it holds anything."""
        wanted = [*self.ledger.folders(), *folders]
        new = {one for folder in wanted for one in (folder, *folder.parents) if not one.exists()}
        try:
            self.ledger = Ledger.open(self.options.storage)
            for folder in folders:
                make_writable(folder)
            yield self.ledger
        except (ValueError, OSError):
            for one in sorted(new, key=lambda path: len(path.parts), reverse=True):
                with suppress(OSError):
                    one.rmdir()
            raise

    def connect(self) -> int:
        """Join Ray, if this session hasn't; returns how many units run at once. ValueError as `connect`."""
        if self.cluster is None:
            from orchestrator.execution import ray_cluster

            self.cluster = connect(self.options)
            self.at_exit.callback(ray_cluster.disconnect)
        facts, resources = self.cluster
        return facts.slots(resources)

    def run_no_more_than_fit(self) -> int:
        """Units at once that there is room for, and no more from here on: more would be suggested before the results
        that should guide them. 0 where the session hasn't joined Ray."""
        if self.cluster is None:
            return 0
        facts, resources = self.cluster
        slots = facts.slots(resources)
        self.cluster = facts, replace(resources, max_concurrent=slots)
        return slots

    def execute(
        self,
        plan: Tracked,
        content: Mapping[str, Any],
        graph: TaskGraph,
        check: SourceCheck,
        seconds: Mapping[str, float],
    ) -> None:
        """Run what the graph has to run, and tell MLflow and the terminal.

        Args:
            content: of the plan, for MLflow.
            seconds: the expected time of each unit.

        Raises:
            RuntimeError: the driver failed.
        """
        from orchestrator.execution import driver
        from orchestrator.scheduling.dispatcher import Hooks
        from orchestrator.tracking import mirror

        self.mirror: Mirror = mirror.Mirror(self.ledger, plan, content, self.tracking_uri)
        self.mirror.start()
        self.notifier = notifier = Notifier(self.options.notify, self.options.notify_every, plan.name)
        if self.cluster is not None:
            facts, resources = self.cluster
            self.display = display = self._display(graph, seconds, facts.slots(resources), resources.gpus_per_unit)
            clips = {name: one.fingerprint for name, one in plan.data.items()}

            def changed(key: str, state: State) -> None:
                display.changed(key, state)
                self.mirror.note(key, str(State.STOPPED if state is State.PAUSED else state))
                if state is State.FAILED:
                    notifier.tell("unit failed", f"{graph.units[key].name}: {graph.error.get(key, '')}")

            def tick() -> None:
                display.tick()
                notifier.tick(display.line)

            try:
                projects = graph.projects
                with driver_environment(self.ledger.root, commit(), clips, projects) as environment:

                    def job(unit: Unit) -> Job:
                        return Job(
                            unit,
                            graph.units.get(unit.parent),
                            self.ledger.address,
                            {name: str(path.absolute()) for name, path in self._paths.items()},
                            str(default_cache()),
                            max(1, int(self.options.cpus_per_unit)),
                            self.options.device,
                            self.options.precision,
                            unit.key in graph.tested,
                            remake=unit.key in graph.remade,
                            site=environment,
                            other_code=self.options.other_code,
                            wanted=check.wanted(unit),
                            processes=resources.processes_per_unit,
                            micro_batch=self.options.micro_batch,
                            activation_checkpointing=self.options.activation_checkpointing,
                            import_path=import_folders(projects),
                            rung=Rung(*graph.rung[unit.key]) if unit.key in graph.rung else None,
                        )

                    sizes = footprints(self.options, graph, job, resources)
                    try:
                        driver.execute(graph, job, resources, facts, Hooks(changed, tick), footprints=sizes)
                    except (ValueError, OSError) as error:  # Not the user's: units have run.
                        raise RuntimeError("the driver failed; the same command goes on from here") from error
            finally:
                display.close()
        process.unwind()
        record_failures(graph)

    def _display(self, graph: TaskGraph, seconds: Mapping[str, float], slots: int, gpus_per_unit: float) -> Display:
        """A live table where one was asked for and standard error is a terminal; else a line or log lines."""
        if self.options.watch and sys.stderr.isatty():
            from orchestrator.cli.watch import Watch

            return Watch(graph, seconds, slots, self.options.price_per_hour, gpus_per_unit)
        from orchestrator.cli.display import Display

        return Display(graph, seconds, slots)

    def joined(self, unit: Unit, seconds: float, done: bool) -> None:
        """A unit has joined the graph while it runs."""
        assert self.display is not None, "units join a graph that runs"
        self.display.expect(unit.key, seconds, done)
        if done:
            self.mirror.note(unit.key, "finished")

    def end(self, graph: TaskGraph, is_whole: bool, report: Path | None, shown: Sequence[str]) -> list[str]:
        """Bring MLflow up to date; returns the last lines of what the call prints.

        Args:
            is_whole: all that was to be done is done.
            report: folder for MLflow.
            shown: lines that say where the report is.
        """
        outcome: Outcome = "finished" if is_whole else "stopped" if graph.stopping else "failed"
        done = graph.counts()[State.FINISHED]
        self.notifier.tell(outcome, f"{done} of {count(len(graph.units), 'unit')} finished")
        missing = self.mirror.close(outcome, report, TRACKING_TIMEOUT_SECONDS)
        self.notifier.wait()
        lines = [not_mirrored(missing, self.mirror.fault)] if missing else []
        lines += [*shown, f"compare in MLflow: {ui_command(self.tracking_uri)}"]
        page = self.mirror.arms_page
        return [*lines, f"means over seeds side by side: {page_address(self.tracking_uri, page)}"] if page else lines


def not_mirrored(units: int, fault: str) -> str:
    """A line on units that MLflow doesn't have; `fault` is why, where waiting won't mend that."""
    why = f" ({fault}); once that is mended," if fault else " yet;"
    return f"{count(units, 'unit')} {'is' if units == 1 else 'are'} not in MLflow{why} the same command makes up for it"


def footprints(
    options: argparse.Namespace, graph: TaskGraph, job_of: Callable[[Unit], Job], resources: Resources
) -> dict[str, Footprint]:
    """With `--gpus-per-unit auto`, what each kind of unit that is to run takes of a GPU; else nothing.

    Raises:
        ValueError: a unit doesn't fit on a whole GPU, or torch sees none.
    """
    if options.gpus_per_unit != AUTO or not resources.gpus_per_unit:
        return {}
    from orchestrator.execution.ray_cluster import measure_footprints

    kinds = {graph.units[key].kind: graph.units[key] for key, state in graph.state.items() if state not in SETTLED}
    logger.info("measuring what %d kinds of units take of a GPU", len(kinds))
    measured = measure_footprints({kind: job_of(unit) for kind, unit in kinds.items()}, resources)
    logger.info("units on a GPU:\n%s", described((kinds[kind].name, one) for kind, one in measured.items()))
    return measured


def connect(options: argparse.Namespace) -> tuple[ClusterFacts, Resources]:
    """What Ray has, and what a unit gets of it.

    Raises:
        ValueError: no cluster answers, or no node of it has room for a unit.
    """
    from orchestrator.execution import ray_cluster

    check_address(options.address)
    facts = ray_cluster.connect(options.address)
    try:
        is_open = options.gpus_per_unit in (None, AUTO) and options.device != "cpu"
        if is_open and facts.missing and not facts.has_gpus:
            raise ValueError(
                f"--gpus-per-unit: {facts.missing} machines have not joined yet, and none that has joined has a GPU; "
                "start again when `ray status` shows them all, or give --gpus-per-unit 0 for processors alone"
            )
        asked = 0.0 if options.gpus_per_unit in (None, AUTO) else options.gpus_per_unit
        gpus = float(facts.has_gpus) if is_open else asked
        if is_open and options.gpus_per_unit == AUTO and not gpus:
            logger.info("--gpus-per-unit auto: there are no GPUs; units run on processors")
        processes = processes_of(options)
        if processes > 1 and gpus not in (0, processes):
            raise ValueError(
                f"--processes-per-unit {processes} needs as many GPUs, got {gpus:g}; give --gpus-per-unit {processes}, "
                "or --gpus-per-unit 0 for processors"
            )
        resources = ray_cluster.Resources(
            options.cpus_per_unit or float(processes), gpus, options.max_concurrent, processes
        )
        ray_cluster.check_room(facts, resources)
        if options.device.startswith("cuda") and not gpus:
            raise ValueError(f"--device {options.device} needs --gpus-per-unit above 0, got {gpus:g}; try {processes}")
    except ValueError:
        ray_cluster.disconnect()
        raise
    return facts, resources


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


def record_failures(graph: TaskGraph) -> None:
    """Leave a record of each unit that failed without leaving one itself: its process died, or the disk was full."""
    for key, state in graph.state.items():
        unit = graph.units[key]
        if state is not State.FAILED:
            continue
        record = graph.ledger.record(unit)
        # One that doesn't tell of this error is of an earlier call.
        if record is None or (record.status == "failed" and graph.error[key] not in record.error):
            try:
                graph.ledger.write(unit, Record(key, "failed", about={"ended": time.time()}, error=graph.error[key]))
            except OSError as error:
                logger.error("%s: its failure can't be recorded (%s)", unit.name, error)
