"""Run a study to its end: python -m orchestrator.ablate. The same command again resumes, extends or repairs it."""

import argparse
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator import process
from orchestrator.cli.arguments import AUTO, AutoSeeds, add_shared_arguments, check_cut, check_numbers, processes_of
from orchestrator.cli.session import Session, run_command
from orchestrator.planning.estimate import Estimate, estimate, on_slots, unit_sizes
from orchestrator.planning.inputs import Inputs, read_inputs, wanted_metrics
from orchestrator.planning.origin import check_origin, origin_of, study_text
from orchestrator.planning.plan import Plan
from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record, finished_of
from orchestrator.scheduling.task_graph import State, TaskGraph
from orchestrator.search.tuning.searches import ArmSearch, outcome, read_tuning
from orchestrator.storage.ledger import Ledger, Place
from orchestrator.storage.measured import measured_units
from orchestrator.storage.source_check import SourceCheck, Standing, is_measured_now, measured_again, not_measured_again
from orchestrator.storage.trained import with_twin
from orchestrator.worker.environment import working_tree_diff
from search_spaces import find_study, study_names
from ups_model.cli import command_parser
from ups_model.pipes import end_with
from ups_model.training.progress import duration
from ups_model.wording import count

if TYPE_CHECKING:
    from orchestrator.project import Gpus
    from orchestrator.report import Report

logger = logging.getLogger(__name__)

DEFAULT_STUDY = "first_look"
DIFF = "working_tree.diff"
"""Beside a saved plan: what the code differed in from its commit."""

EXAMPLES = """examples:
  python -m orchestrator.ablate                                  a first look on synthetic data, preset tiny
  python -m orchestrator.ablate paper_tables --plan              what would be trained, and how long it takes
  python -m orchestrator.ablate tables_7_9 --preset small --data uiprmd=PATH --data utd_mhad=PATH --data jhmdb=PATH
  python -m orchestrator.ablate my_study.py --seeds 5 --set steps=4000 --storage /mnt/shared/ablations
  python -m orchestrator.ablate tables_7_9 --storage s3://my-bucket/ablations --tracking-uri http://HOST:5000
  python -m orchestrator.ablate tables_7_9 --preset paper --plan --gpu-memory 16 --price-per-hour 3.06
  python -m orchestrator.ablate tables_7_9 --preset paper --address auto --gpus-per-unit 1 --micro-batch auto
  python -m orchestrator.ablate table_7_tuned                    each row beside one with a learning rate of its own

Run again to resume, with more rows or seeds to extend: finished units are never trained twice. Units that other code
has trained are refused: --accept-other-code keeps them, --retrain trains them again.
exit status: 0 done, 1 some units failed or were stopped (the rest finished and is reported), 2 usage or configuration,
before anything starts"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = command_parser(
        "orchestrator.ablate", "Train what a study's tables need and isn't trained yet, then report.", EXAMPLES
    )
    made.add_argument(
        "study",
        nargs="?",
        default=DEFAULT_STUDY,
        metavar="STUDY",
        help=f"name, FILE.py, FILE.yaml or module:name ({DEFAULT_STUDY})",
    )
    made.add_argument("--list", action="store_true", help="name the studies and end")
    made.add_argument("--plan", action="store_true", help="show rows, arms, units, sizes and times; start nothing")
    made.add_argument(
        "--gpu-memory", type=float, metavar="GB", help="with --plan: of the GPUs that it is for (this machine's)"
    )
    add_shared_arguments(made, "row")
    made.add_argument("--out", type=Path, metavar="DIR", help="of the report (in the storage; for s3:// here too)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("orchestrator.ablate", parser(), act, arguments)


def act(options: argparse.Namespace, command: str) -> int:
    """What the arguments ask for."""
    if options.list:
        width = 2 + max(map(len, study_names()))
        print("\n".join(f"{name:<{width}}{find_study(name).question}" for name in study_names()))
        return 0
    check_numbers(options)
    if (memory := options.gpu_memory) is not None and not (options.plan and 0 < memory < float("inf")):
        raise ValueError(f"--gpu-memory goes with --plan and must be above 0, got {memory:g}")
    looks = options.seeds.looks if isinstance(options.seeds, AutoSeeds) else ()
    tuning_status = 0
    for seeds in looks or (options.seeds,):
        with process.unwinding():  # Clip sets may have to be made.
            inputs = read_inputs(options.study, options.preset, options.data, options.set, seeds)
            tuning = inputs.plan.study.tuning
            searches = read_tuning(inputs, tuning) if tuning is not None else ()
        if looks and not inputs.plan.study.claims:
            raise ValueError(f"--seeds auto: study {inputs.plan.study.name!r} has no claims to decide; give a number")
        check_cut(inputs.plan.units.values(), options)
        if options.plan:
            print(show_whole_plan(inputs, searches, existing_ledger(options.storage), options))
            return 0
        if tuning is not None:
            from orchestrator.search.tuning.run import tune  # Optuna takes a second to import.

            tuning_status, chosen = tune(inputs, tuning, searches, options, command)
            if chosen is None:
                return tuning_status
            inputs = inputs.tuned(chosen)
        status, report = run(inputs, options, command, looks)
        undecided = [result for result in report.primary_claims if result.verdict == "undecided"] if report else []
        if status or not undecided:
            break
        if looks:
            end = "; no more seeds are allowed" if seeds == looks[-1] else ""
            logger.info("%d seeds: %s undecided%s", seeds, count(len(undecided), "primary claim"), end)
    return max(status, tuning_status)


def run(
    inputs: Inputs, options: argparse.Namespace, command: str, planned_looks: tuple[int, ...] = ()
) -> tuple[int, "Report | None"]:
    """Train, then report; returns the exit status and the report, if it could be made."""
    from orchestrator.report import build, health_lines, write_report  # It takes a second to import.
    from orchestrator.report.sources import outcomes_from

    plan = inputs.plan
    with Session(options, inputs.paths) as session:
        out = options.out or session.ledger.report_folder(plan)
        with session.opened(out) as ledger:
            before = ledger.plan(plan.name)
            draft = replace(PlanFile.of(plan, command, inputs.changes), origin=origin_of(options.study))
            warning = check_origin(before, draft, ledger.storage.where(f"studies/{plan.name}"))
            check = SourceCheck(ledger, options.other_code, wanted_metrics(inputs))
            with ledger.remembering(plan.units.values()):
                standing = check.check(plan.units.values())
                # What is longest goes first, so times are needed before there are slots.
                expected = estimates(inputs, ledger, 1)
                graph = TaskGraph(plan.units, ledger, expected.seconds, plan.measured(), check)
            if not graph.complete:
                expected = on_slots(expected, plan.units, graph.unfinished(), session.connect(), graph.measured_only)
            saved = before.units.items() if before else ()
            counted = {key: unit.size for key, unit in saved if unit.size is not None}
            sizes = unit_sizes(plan.units, inputs.sets, counted)
        if warning:
            logger.warning("%s", warning)
        plan_file = PlanFile.of(plan, command, inputs.changes, sizes)
        plan_file = replace(
            plan_file,
            origin=draft.origin,
            looks=looks_before(ledger, plan_file, before),
            ended_before=ended_before(ledger, plan_file, before),
            planned_looks=planned_before(ledger, before, planned_looks),
        )
        name, text = study_text(options.study)
        ledger.save_plan(plan_file, {name: text, DIFF: working_tree_diff()})
        logger.info("%s", summary(plan, graph, expected))
        session.execute(plan, plan_file.to_plain(), graph, check, expected.seconds)
    written, copy, notes, report = [], "", [], None
    try:
        records = ledger.read(plan.units.values())
        report = build(plan_file, records, outcomes_from(ledger, plan_file, records))
        notes = [*measuring_notes(standing, graph, records), *health_lines(report)]
        written = write_report(report, out)
        copy = ledger.publish_report(plan, written, out)
    except (ValueError, OSError) as error:  # All that it is made from is on storage.
        logger.error("no report: %s; make it with python -m orchestrator.report %s", error, plan.name)
    finished = graph.counts()[State.FINISHED] == len(plan.units)
    places = [*(str(path) for path in written if path.suffix in (".md", ".html")), *filter(None, [copy])]
    last = session.end(graph, finished, out if written else None, [f"report: {place}" for place in places])
    print("\n".join([*closing(graph, notes), *last]))
    return 0 if finished and written and (copy or ledger.root is not None) else 1, report


def looks_before(ledger: Ledger, plan: PlanFile, before: PlanFile | None) -> tuple[tuple[int, ...], ...]:
    """Other seeds with which the runs of a claim were complete: it could be looked at before they were changed.

    Args:
        before: the plan as it was saved last; None where it never was.
    """
    if before is None or not plan.claims:
        return ()
    seeds = tuple(sorted(before.seed_numbers))
    if seeds == tuple(sorted(plan.seed_numbers)):
        return before.looks
    return tuple(dict.fromkeys((*before.looks, *([seeds] if is_complete(ledger, before) else []))))


def planned_before(ledger: Ledger, before: PlanFile | None, looks: tuple[int, ...]) -> tuple[int, ...]:
    """The looks of this call as far as they were planned before the first one: none where the claims could be looked at
    under another plan, since that look used up what these share. A look at one seed decides nothing."""
    if before is None or before.planned_looks == looks:
        return looks
    had_looks = any(len(seeds) > 1 for seeds in before.looks) or (before.seeds > 1 and is_complete(ledger, before))
    return () if had_looks else looks


def is_complete(ledger: Ledger, plan: PlanFile) -> bool:
    """Whether all runs of a claim have finished, so that it could be looked at."""
    finished = finished_claim_units(ledger, plan)
    return any(all(finished >= set(keys.values()) for keys in plan.claim_units(claim)) for claim in plan.claims)


def ended_before(ledger: Ledger, plan: PlanFile, before: PlanFile | None) -> int:
    """Runs that claims rest on and that had ended when these claims were first declared."""
    return before.ended_before if before is not None else len(finished_claim_units(ledger, plan))


def finished_claim_units(ledger: Ledger, plan: PlanFile) -> set[str]:
    """Keys of the finished ones among the units that the plan's claims rest on."""
    keys = dict.fromkeys(
        key for claim in plan.claims for by_seed in plan.claim_units(claim) for key in by_seed.values()
    )
    return set(finished_of(ledger.read([Place(key, plan.units[key].folder) for key in keys])))


def existing_ledger(storage: str) -> Ledger | None:
    """The ledger if there is one; --plan makes none."""
    ledger = Ledger.at(storage)
    if ledger.root is None:
        return Ledger.open(storage, create=False)
    return ledger if (ledger.root / "units").is_dir() else None


def estimates(inputs: Inputs, ledger: Ledger | None, slots: int, gpus_per_unit: int = 0) -> Estimate:
    """Times, with what the ledger has measured."""
    units = inputs.plan.units
    if ledger is None:
        return estimate(units, inputs.sets, {}, slots, gpus_per_unit)
    projects = {unit.project for unit in units.values()}
    records = finished_of(ledger.read(units.values()))
    return estimate(
        units, inputs.sets, records, slots, gpus_per_unit, lambda: measured_units(ledger, projects, gpus_per_unit > 0)
    )


def gpus_of(options: argparse.Namespace) -> "Gpus | None":
    """The GPUs that a plan is for: those named, else this machine's; None for processors."""
    from orchestrator.planning.describe import GB
    from orchestrator.project import Gpus

    if options.gpus_per_unit == 0 or options.device == "cpu":
        if options.gpu_memory is not None:
            raise ValueError(f"--gpu-memory {options.gpu_memory:g} needs units on GPUs; leave it out")
        return None
    if options.gpu_memory is not None:
        memory = options.gpu_memory * GB
    else:
        import torch

        if not torch.cuda.is_available():
            return None
        memory = float(torch.cuda.get_device_properties(0).total_memory)
    share = options.gpus_per_unit if options.gpus_per_unit not in (None, AUTO) and options.gpus_per_unit < 1 else 1.0
    return Gpus(memory, processes_of(options), options.micro_batch, options.activation_checkpointing, share)


def summary(plan: Plan, graph: TaskGraph, expected: Estimate) -> str:
    """One line at the start."""
    done = len(graph.done_before)
    return (
        f"{plan.name}: {count(plan.rows, 'row')}, {count(len(plan.arms), 'arm')}, {count(plan.seeds, 'seed')}, "
        f"{count(len(plan.units), 'unit')} ({plan.unshared_units - len(plan.units)} saved by sharing), {done} done "
        f"before; about {duration(expected.makespan)} on {expected.slots} at once"
    )


def show_whole_plan(
    inputs: Inputs, searches: Sequence[ArmSearch], ledger: Ledger | None, options: argparse.Namespace
) -> str:
    """What `--plan` prints: of a study with tuning that has not ended, its trials and then the study without tuned
    rows."""
    if (tuning := inputs.plan.study.tuning) is None:
        return show_plan(inputs, ledger, options)
    from orchestrator.search.tuning.run import chosen_lines, look, plan_lines

    trials, ended = look(searches, tuning, ledger)
    if ended and ledger is not None:
        chosen = outcome(searches, tuning, trials, ledger)
        return "\n".join([*chosen_lines(chosen), "", show_plan(inputs.tuned(chosen), ledger, options)])
    slots = options.max_concurrent or machine_slots(options.cpus_per_unit)
    return "\n".join([*plan_lines(searches, tuning, trials, slots), show_plan(inputs, ledger, options)])


def show_plan(inputs: Inputs, ledger: Ledger | None, options: argparse.Namespace) -> str:
    """What `--plan` prints."""
    from orchestrator.planning.describe import plan_text

    plan = inputs.plan
    gpus = gpus_of(options)
    slots = options.max_concurrent or (1 if gpus else machine_slots(options.cpus_per_unit))
    expected = estimates(inputs, ledger, slots, gpus.per_unit if gpus else 0)
    if ledger is None:
        return plan_text(plan, inputs.sets, expected, (), gpus, options.price_per_hour)
    check = SourceCheck(ledger, options.other_code, wanted_metrics(inputs))
    with ledger.remembering(plan.units.values()):
        standing = check.standing(plan.units.values())
        # What is refused is refused when the study is run: a plan counts it as done.
        counted = check if options.other_code == "retrain" else SourceCheck(ledger, "accept", check.wanted_by_key)
        graph = TaskGraph(plan.units, ledger, tested=plan.measured(), check=counted)
        done = graph.done_before
        expected = on_slots(expected, plan.units, graph.unfinished(), slots, graph.measured_only)
    text = plan_text(plan, inputs.sets, expected, done, gpus, options.price_per_hour)
    unfinished = [unit for unit in plan.units.values() if unit.key not in {*done, *standing.to_measure}]
    return "\n".join([text, *code_notes(standing, len(with_twin(ledger, unfinished, options.other_code)))])


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


def trained_already(units: int) -> str:
    """For a plan and for the end of a call."""
    return f"{count(units, 'unit')} measured with another unit's weights, without training"


def machine_slots(cpus_per_unit: float) -> int:
    """Units that this machine runs at once, as Ray would count."""
    return max(1, int((os.cpu_count() or 1) / cpus_per_unit))


def measuring_notes(standing: Standing, graph: TaskGraph, records: Mapping[str, Record | None]) -> list[str]:
    """What the end of a run says of units that were measured and not trained."""
    finished = finished_of(records)
    measured = [key for key in standing.to_measure if key in finished and is_measured_now(finished[key])]
    twins = [key for key in finished.keys() - graph.done_before if "trained_by" in finished[key].about]
    twins = [key for key in twins if key not in standing.to_measure]
    lines = [measured_again(len(measured), "were")] if measured else []
    lines += [trained_already(len(twins))] if twins else []
    kept = [key for key in standing.without_weights if key in graph.done_before]
    return lines + ([not_measured_again(len(kept))] if kept else [])


def closing(graph: TaskGraph, notes: Sequence[str]) -> list[str]:
    """What the end of a run says of its units; `notes` are lines about measuring."""
    lines = [
        f"{graph.counts()[State.FINISHED]} of {len(graph.units)} units finished, {len(graph.done_before)} of them "
        "before this call",
        *notes,
    ]
    lines += [f"{graph.state[key]}: {graph.units[key].name}: {error}" for key, error in graph.error.items()]
    if graph.stopping:
        lines.append("stopped; the same command goes on from here")
    elif graph.error:
        lines.append(
            "the same command tries the failed units again; after a change of the code that trains, with "
            "--accept-other-code it goes on from their checkpoints, with --retrain it begins anew"
        )
    return lines


if __name__ == "__main__":
    end_with(main)
