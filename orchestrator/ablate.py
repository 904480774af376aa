"""Run a study to its end: python -m orchestrator.ablate. The same command again resumes, extends or repairs it."""

import argparse
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestrator.cli.session import (
    MIRROR_SECONDS,
    add_shared_arguments,
    check_numbers,
    command_line,
    connect,
    footprints,
    job_of,
    make_writable,
    record_failures,
    unmade_if_refused,
)
from orchestrator.planning.estimate import Estimate, estimate, on_slots
from orchestrator.planning.plan import Plan, Unit
from orchestrator.planning.plan_file import plan_content
from orchestrator.planning.resolve import Inputs, read_inputs, wanted_metrics
from orchestrator.record import Record
from orchestrator.scheduling.dispatcher import Hooks
from orchestrator.scheduling.task_graph import Agenda, State
from orchestrator.storage.ledger import Ledger, storage_path
from orchestrator.storage.source_check import SourceCheck, Standing, evaluation_code, measured_again, not_measured_again
from orchestrator.storage.trained import with_twin
from orchestrator.worker.environment import commit, site_of
from orchestrator.worker.job import Job
from search_spaces import find_study, study_names
from ups_model.cli import start_logging
from ups_model.source import source_digest
from ups_model.training.progress import duration

logger = logging.getLogger(__name__)

DEFAULT_STUDY = "first_look"

EXAMPLES = """examples:
  python -m orchestrator.ablate                                  a first look on synthetic data, preset tiny
  python -m orchestrator.ablate paper_tables --plan              what would be trained, and how long it takes
  python -m orchestrator.ablate tables_7_9 --preset small --data uiprmd=PATH --data utd_mhad=PATH --data jhmdb=PATH
  python -m orchestrator.ablate my_study.py --seeds 5 --set steps=4000 --storage /mnt/shared/ablations
  python -m orchestrator.ablate tables_7_9 --storage s3://my-bucket/ablations --tracking-uri http://HOST:5000
  python -m orchestrator.ablate tables_7_9 --preset paper --address auto --gpus-per-unit 1

Run again to resume, with more rows or seeds to extend: finished units are never trained twice. Units that other code
of ups_model has trained are refused: --accept-other-code keeps them, --retrain trains them again.
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
    add_shared_arguments(made, "row")
    made.add_argument("--out", type=Path, metavar="DIR", help="of the report (in the storage; for s3:// here too)")
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
        return run(inputs, given, command_line("orchestrator.ablate", sys.argv[1:] if arguments is None else arguments))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # Before units run; while they run, the driver handles it.
        print("interrupted", file=sys.stderr)
        return 130


def run(inputs: Inputs, given: argparse.Namespace, command: str) -> int:
    """Everything after the arguments were found good."""
    # Ray and MLflow take seconds to import, which --help and --plan need not wait for.
    from orchestrator.cli.display import Display, several
    from orchestrator.execution import driver, ray_cluster
    from orchestrator.report import build, health_lines, write_report
    from orchestrator.tracking import mlflow_store
    from orchestrator.tracking.sync import Outcome

    plan = inputs.plan
    aimed = Ledger.at(given.storage)
    out = given.out or aimed.report_folder(plan)
    uri = given.tracking_uri or mlflow_store.default_uri(aimed)
    if given.tracking_uri is not None:
        mlflow_store.check(given.tracking_uri)
    ray, slots = None, 1
    try:
        with unmade_if_refused(*aimed.folders(), out):
            ledger = Ledger.open(given.storage)
            make_writable(out)
            # What is longest goes first, so times are needed before there are slots.
            check = SourceCheck(ledger, given.other_code, wanted_metrics(plan, inputs.sets))
            with ledger.remembering(plan.units.values()):
                standing = check.check(plan.units.values())
                expected = estimates(inputs, ledger, slots)
                agenda = Agenda(plan, ledger, expected.seconds, check=check)
            if not agenda.complete:
                ray = facts, resources = connect(given)
                slots = facts.slots(resources)
                expected = on_slots(expected, plan, agenda.unfinished(), slots)
        content = plan_content(plan, command, inputs.changes)
        ledger.save_plan(plan, content)
        logger.info("%s", summary(plan, agenda, expected))
        mirror = mlflow_store.Mirror(ledger, plan, content, uri)
        mirror.start()
        display = Display(agenda, expected.seconds, slots)
        measured = plan.measured()

        if ray is not None:
            hooks = Hooks(several(display.changed, lambda key, state: mirror.note(key, str(state))), display.tick)
            try:
                with site_of(ledger.root, commit(), {name: one.fingerprint for name, one in plan.data.items()}) as site:

                    def job(unit: Unit) -> Job:
                        tested = unit.key in measured
                        parent, wanted = plan.units.get(unit.parent), check.wanted(unit)
                        return job_of(unit, parent, ledger, inputs.paths, given, tested, site, wanted)

                    sizes = footprints(given, agenda, job, resources)
                    try:
                        driver.execute(agenda, job, resources, facts, hooks, footprints=sizes)
                    except (ValueError, OSError) as error:  # Not the user's: units have run.
                        raise RuntimeError("the driver failed; the same command goes on from here") from error
            finally:
                display.close()
    finally:
        if ray is not None:
            ray_cluster.disconnect()
    record_failures(agenda)
    written, copy, notes = [], "", []
    try:
        records = ledger.records(plan.units.values())
        notes = [*measuring_notes(standing, agenda, records), *health_lines(build(content, records))]
        written = write_report(content, records, out)
        copy = ledger.publish_report(plan, written, out)
    except (ValueError, OSError) as error:  # All that it is made from is on storage.
        logger.error("no report: %s; make it with python -m orchestrator.report %s", error, plan.name)
    finished = agenda.counts()[State.FINISHED] == len(plan.units)
    outcome: Outcome = "finished" if finished else "stopped" if agenda.stopping else "failed"
    missing = mirror.close(outcome, out if written else None, MIRROR_SECONDS)
    print(closing(agenda, written, mlflow_store.ui_command(uri), missing, copy, notes))
    return 0 if finished and written and (copy or ledger.root is not None) else 1


def existing_ledger(storage: str) -> Ledger | None:
    """The ledger if there is one; --plan makes none."""
    root = storage_path(storage)
    if root is None:
        return Ledger.open(storage, create=False)
    return Ledger(root) if (root / "units").is_dir() else None


def estimates(inputs: Inputs, ledger: Ledger | None, slots: int) -> Estimate:
    """Sizes and times, with what the ledger has measured."""
    found = ledger.records(inputs.plan.units.values()) if ledger else {}
    finished = {key: record for key, record in found.items() if record is not None and record.status == "finished"}
    return estimate(inputs.plan, inputs.sets, finished, slots)


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
    from orchestrator.planning.describe import plan_text

    plan = inputs.plan
    slots = given.max_concurrent or machine_slots(given.cpus_per_unit)
    if ledger is None:
        return plan_text(plan, estimates(inputs, ledger, slots), ())
    check = SourceCheck(ledger, given.other_code, wanted_metrics(plan, inputs.sets))
    with ledger.remembering(plan.units.values()):
        standing = check.standing(plan.units.values())
        # What is refused is refused when the study is run: a plan counts it as done.
        counted = check if given.other_code == "retrain" else SourceCheck(ledger, "accept", check.wanted_by_key)
        done = Agenda(plan, ledger, check=counted).done_before
    text = plan_text(plan, estimates(inputs, ledger, slots), done)
    unfinished = [unit for unit in plan.units.values() if unit.key not in {*done, *standing.to_measure}]
    return "\n".join([text, *code_notes(standing, len(with_twin(ledger, unfinished, given.other_code)))])


def code_notes(standing: Standing, twins: int) -> list[str]:
    """What `--plan` says of code and of measuring."""
    lines = []
    if standing.is_mixed:
        lines.append(f"{standing.describe()}; run with --accept-other-code or --retrain")
    if standing.to_measure:
        lines.append(f"of these {measured_again(len(standing.to_measure), 'are')}")
    if standing.without_weights:
        lines.append(not_measured_again(len(standing.without_weights)))
    if twins:
        lines.append(f"of these {trained_already(twins)}")
    return lines


def trained_already(count: int) -> str:
    """For a plan and for the end of a call."""
    return f"{count} unit{'s' * (count != 1)} measured with another unit's weights, without training"


def machine_slots(cpus_per_unit: float) -> int:
    """Units that this machine runs at once, as Ray would count."""
    return max(1, int((os.cpu_count() or 1) / cpus_per_unit))


def measuring_notes(standing: Standing, agenda: Agenda, records: Mapping[str, Record | None]) -> list[str]:
    """What the end of a run says of units that were measured and not trained."""
    finished = {key: record for key, record in records.items() if record is not None and record.status == "finished"}
    measured = [
        key
        for key in standing.to_measure
        if key in finished and evaluation_code(finished[key]) == source_digest("evaluation")
    ]
    twins = [key for key in finished.keys() - agenda.done_before if "trained_by" in finished[key].about]
    twins = [key for key in twins if key not in standing.to_measure]
    lines = [measured_again(len(measured), "were")] if measured else []
    lines += [trained_already(len(twins))] if twins else []
    kept = [key for key in standing.without_weights if key in agenda.done_before]
    return lines + ([not_measured_again(len(kept))] if kept else [])


def closing(
    agenda: Agenda, written: Sequence[Path], ui: str, missing: int, copy: str = "", notes: Sequence[str] = ()
) -> str:
    """What the end of a run says; `copy` is where else the report is, `notes` are lines about measuring."""
    counts = agenda.counts()
    total, finished = len(agenda.units), counts[State.FINISHED]
    lines = [f"{finished} of {total} units finished, {len(agenda.done_before)} of them before this call"]
    lines += notes
    for key, error in agenda.error.items():
        lines.append(f"{agenda.state[key]}: {agenda.units[key].name}: {error}")
    if agenda.stopping:
        lines.append("stopped; the same command goes on from here")
    elif agenda.error:
        lines.append("the same command tries the failed units again")
    if missing:
        lines.append(f"{missing} units are not in MLflow yet; the same command makes up for it")
    lines += [f"report: {path}" for path in written if path.suffix in (".md", ".html")]
    lines += [f"report: {copy}"] if copy else []
    lines.append(f"compare in MLflow: {ui}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
