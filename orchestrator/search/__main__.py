"""Look for better fields: python -m orchestrator.search. Optuna suggests, Ray Tune schedules, the ledger keeps.

The same command again resumes or extends.
"""

import argparse
import logging
import shlex
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import get_args

from orchestrator import process
from orchestrator.cli.arguments import add_shared_arguments, check_cut, check_not_measured, check_numbers
from orchestrator.cli.session import Session, run_command
from orchestrator.search.resolve_space import SearchInputs, aims_text, read_search, search_content
from orchestrator.storage.ledger import REPORTS
from orchestrator.storage.search_journal import JOURNAL, search_place
from orchestrator.storage.source_check import SourceCheck
from search_spaces import find_space, space_names
from search_spaces.space import StoppingRule
from ups_model.cli import command_parser
from ups_model.pipes import end_with
from ups_model.wording import count

logger = logging.getLogger(__name__)

EXAMPLES = """examples:
  python -m orchestrator.search learning_rate                     24 trials on synthetic data, preset tiny
  python -m orchestrator.search routed_encoder --preset small --data uiprmd=PATH --data utd_mhad=PATH --data jhmdb=PATH
  python -m orchestrator.search learning_rate --early-stopping asha --trials 60
  python -m orchestrator.search my_space.py --trials 50 --seeds 2 --storage /mnt/shared/ablations --gpus-per-unit 1
  python -m orchestrator.search my_space.py --warm-start --watch --price-per-hour 3.06

Trials are judged on validation subjects; the test split is not touched. Run again to resume, with more --trials to
go on; at the same time, to share one search. Units that other code has trained are refused:
--accept-other-code keeps them, --retrain trains them again.
exit status: 0 done, 1 some trials failed or were stopped (the rest is reported), 2 usage or configuration, before
anything starts"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = command_parser(
        "orchestrator.search",
        "Search fields of the configuration with Optuna, judged on validation subjects.",
        EXAMPLES,
    )
    made.add_argument("space", nargs="?", metavar="SPACE", help="name, FILE.py or module:name")
    made.add_argument("--list", action="store_true", help="name the spaces and end")
    made.add_argument("--trials", type=int, metavar="N", help="trials in all (the space's own number)")
    made.add_argument(
        "--early-stopping",
        choices=(*get_args(StoppingRule), "none"),
        help="pause trials at shares of their run, and train on those that stand best (the space's own)",
    )
    made.add_argument(
        "--promote", type=trial_numbers, default=(), metavar="N,...", help="train trials that were stopped to their end"
    )
    made.add_argument(
        "--warm-start", action="store_true", help="learn from finished units of earlier searches and studies, too"
    )
    add_shared_arguments(made, "trial")
    made.add_argument("--out", type=Path, metavar="DIR", help="of the tables (in the storage; for s3:// here too)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    return run_command("orchestrator.search", parser(), act, arguments)


def act(options: argparse.Namespace, command: str) -> int:
    """What the arguments ask for."""
    if options.list:
        print("\n".join(f"{name:<15} {find_space(name).question}" for name in space_names()))
        return 0
    if options.space is None:
        raise ValueError(f"name a search space: {', '.join(space_names())}, or give a file's path")
    check_numbers(options)
    check_not_measured(options, "a search makes")
    with process.unwinding():  # Clip sets may have to be made.
        inputs = read_search(
            options.space,
            options.preset,
            options.data,
            options.set,
            options.seeds,
            options.trials,
            options.warm_start,
            options.early_stopping,
        )
    check_cut(inputs.plan.units_of(inputs.plan.start)[:1], options)
    return run(inputs, options, command)


def run(inputs: SearchInputs, options: argparse.Namespace, command: str) -> int:
    """Search, then write the trials."""
    # Optuna takes a second to import, which --help and refusals need not wait for.
    from orchestrator.search.journal import Journal
    from orchestrator.search.trial_queue import TrialQueue
    from orchestrator.search.trial_report import closing, front_of, write_trials
    from orchestrator.search.trials import units_of_trials
    from orchestrator.search.warm_start import prior_trials, warm_start_text

    plan, space = inputs.plan, inputs.plan.study
    with Session(options, inputs.paths) as session:
        place = search_place(session.ledger.storage, plan.name, REPORTS)
        session.at_exit.callback(place.release)
        folders = list(dict.fromkeys([place.folder, options.out or place.folder]))
        with session.opened(*folders) as ledger:
            if not place.begun():
                check_promoted(options.promote, 0, plan.name)
                session.connect()  # Before there is anything to leave behind.
            journal = Journal(place.hold(), plan.name, space, inputs.dimensions, inputs.start, place)
            check = SourceCheck(ledger, options.other_code)
            check.check(units_of_trials(plan, journal.trials))
            check_promoted(options.promote, len(journal.trials), plan.name)
            if plan.warm and journal.prior is None:
                journal.learn(prior_trials(plan, inputs.dimensions, ledger, check))
            graph = TrialQueue(plan, ledger, journal, inputs.trials, check, options.promote)
            if not graph.complete:
                session.connect()
        logger.info(
            "%s: %d of %s there, %s each, to %s",
            plan.name, len(journal.trials), count(inputs.trials, "trial"), count(plan.seeds, "seed"), aims_text(space),
        )  # fmt: skip
        if plan.warm:
            logger.info("%s", warm_start_text(journal.prior or ()))
        if session.ledger.root is not None:  # A store's journal is a copy on this machine.
            dashboard = shlex.join(["optuna-dashboard", str(place.folder / JOURNAL)])
            logger.info("watch its trials: %s (pip install optuna-dashboard)", dashboard)
        slots = session.run_no_more_than_fit()
        seconds = inputs.seconds_of_a_unit(slots) if slots else 0.0
        graph.unit_seconds = seconds
        graph.joined = lambda unit, done: session.joined(unit, seconds, done)
        expected = dict.fromkeys(graph.units, seconds)
        content = search_content(inputs, command)
        session.execute(plan, content, graph, check, expected)
        graph.settle()
        with suppress(OSError):  # What other processes have judged meanwhile.
            journal.read()
        if space.objectives:  # For MLflow, which hears it at the end.
            content["front"] = [unit.arm for trial in front_of(inputs, graph) for unit in plan.units_of(trial.params)]
        written = write_trials(inputs, graph, journal.importances(), command, folders)
        copy = place.publish(file for file in written if file.parent == place.folder)
        shown = [f"trials: {path}" for path in written if path.suffix in (".md", ".csv")]
        last = session.end(graph, graph.whole, place.folder, shown)
        print("\n".join([*closing(inputs, graph, place.folder), *last, *([f"trials: {copy}"] if copy else [])]))
        return 0 if graph.whole else 1


def trial_numbers(text: str) -> tuple[int, ...]:
    """Numbers of trials, as in "3,17"."""
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"must be numbers of trials as in 3,17, got {text!r}")
    return tuple(int(part) for part in parts)


def check_promoted(numbers: Sequence[int], trials: int, name: str) -> None:
    """ValueError for a number that no trial has."""
    if unknown := [number for number in numbers if number >= trials]:
        raise ValueError(f"--promote: there is no trial {unknown[0]}; {name} has {count(trials, 'trial')}")


if __name__ == "__main__":
    end_with(main)
