"""Look for better fields: python -m orchestrator.search. Optuna suggests, Ray Tune schedules, the ledger keeps.

The same command again resumes or extends. The only file that imports optuna.
"""

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.cli.session import (
    AUTO,
    MIRROR_SECONDS,
    add_shared_arguments,
    check_numbers,
    command_line,
    connect,
    job_of,
    make_writable,
    record_failures,
    unmade_if_refused,
)
from orchestrator.planning.plan import Unit
from orchestrator.scheduling.dispatcher import Hooks
from orchestrator.search.resolve_space import SearchInputs, read_search, search_content
from orchestrator.search.trial_queue import Params, SearchAgenda, Trial, TrialState, cut_torn_line, units_of_trials
from orchestrator.search.trial_report import closing, write_trials
from orchestrator.storage.ledger import REPORTS, Ledger
from orchestrator.storage.search_journal import JOURNAL, SearchPlace
from orchestrator.storage.source_check import SourceCheck
from orchestrator.worker.environment import commit, site_of
from orchestrator.worker.job import Job
from search_spaces import find_space, space_names
from search_spaces.space import Choice, Range, Space
from ups_model.cli import start_logging
from ups_model.config.schema import digest

__all__ = ["JOURNAL", "Journal", "main", "parser", "run"]

logger = logging.getLogger(__name__)

STARTUP = 10
"""Trials drawn at random before Optuna's TPE learns from them."""
ATTEMPTS = 10
"""Suggestions that were there before, until one of the rest is drawn."""
DIGITS = 4
"""Significant digits of a suggested number: more say nothing, and nobody could type them."""
FEWEST_FOR_IMPORTANCES = 20

EXAMPLES = """examples:
  python -m orchestrator.search learning_rate                     24 trials on synthetic data, preset tiny
  python -m orchestrator.search routed_encoder --preset small --data uiprmd=PATH --data utd_mhad=PATH --data jhmdb=PATH
  python -m orchestrator.search my_space.py --trials 50 --seeds 2 --storage /mnt/shared/ablations --gpus-per-unit 1

Trials are judged on validation subjects; the test split is not touched. Run again to resume, with more --trials to
go on. Units that other code of ups_model has trained are refused: --accept-other-code keeps them, --retrain trains
them again.
exit status: 0 done, 1 some trials failed or were stopped (the rest is reported), 2 usage or configuration, before
anything starts"""


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    made = argparse.ArgumentParser(
        prog="python -m orchestrator.search",
        description="Search fields of the configuration with Optuna, judged on validation subjects.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("space", nargs="?", metavar="SPACE", help="name, FILE.py or module:name")
    made.add_argument("--list", action="store_true", help="name the spaces and end")
    made.add_argument("--trials", type=int, metavar="N", help="trials in all (the space's own number)")
    add_shared_arguments(made, "trial")
    made.add_argument("--out", type=Path, metavar="DIR", help="of the tables (in the storage; for s3:// here too)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    given = parser().parse_args(arguments)
    start_logging()
    try:
        if given.list:
            print("\n".join(f"{name:<16}{find_space(name).question}" for name in space_names()))
            return 0
        if given.space is None:
            raise ValueError(f"name a search space: {', '.join(space_names())}, or give a file's path")
        check_numbers(given)
        if given.gpus_per_unit == AUTO:
            raise ValueError(
                "--gpus-per-unit auto measures units before they run, and a search makes them as it goes; give a number"
            )
        inputs = read_search(given.space, given.preset, given.data, given.set, given.seeds, given.trials)
        line = command_line("orchestrator.search", sys.argv[1:] if arguments is None else arguments)
        return run(inputs, given, line)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # Before units run; while they run, the driver handles it.
        print("interrupted", file=sys.stderr)
        return 130


def run(inputs: SearchInputs, given: argparse.Namespace, command: str) -> int:
    """Everything after the arguments were found good."""
    from orchestrator.cli.display import Display, several
    from orchestrator.execution import driver, ray_cluster
    from orchestrator.tracking import mlflow_store
    from orchestrator.tracking.sync import Outcome

    plan, space = inputs.plan, inputs.plan.study
    aimed = Ledger.at(given.storage)
    place = SearchPlace(aimed.storage, plan.name, REPORTS)
    folder = place.folder
    uri = given.tracking_uri or mlflow_store.default_uri(aimed)
    if given.tracking_uri is not None:
        mlflow_store.check(given.tracking_uri)
    ray = None
    try:
        with unmade_if_refused(*aimed.folders(), folder, given.out or folder):
            ledger = Ledger.open(given.storage)
            for each in {folder, given.out or folder}:
                make_writable(each)
            if not place.begun():
                ray = connect(given)  # Before there is anything to leave behind.
            book = Journal(place.hold(), plan.name, space, inputs.dimensions, inputs.start, place.keep)
            check = SourceCheck(ledger, given.other_code)
            check.check(units_of_trials(plan, book.trials))
            agenda = SearchAgenda(plan, ledger, book, inputs.trials, check=check)
            if ray is None and not agenda.complete:
                ray = connect(given)
        logger.info(
            "%s: %d of %d trials there, %d seed%s each, judged by %s",
            plan.name, len(book.trials), inputs.trials, plan.seeds, "s" * (plan.seeds > 1), space.objective,
        )  # fmt: skip
        mirror = mlflow_store.Mirror(ledger, plan, search_content(inputs, command), uri)
        mirror.start()
        if ray is not None:
            facts, resources = ray
            slots = facts.slots(resources)
            # More at once than there is room for would be suggested before the results that should guide them.
            resources = replace(resources, max_concurrent=slots)
            expected = inputs.seconds_of_a_unit(slots)
            display = Display(agenda, dict.fromkeys(agenda.units, expected), slots)

            def joined(unit: Unit, done: bool) -> None:
                display.expect(unit.key, expected, done)
                if done:
                    mirror.note(unit.key, "finished")

            agenda.joined = joined
            noted = several(display.changed, lambda key, state: mirror.note(key, str(state)))
            try:
                with site_of(ledger.root, commit(), {name: one.fingerprint for name, one in plan.data.items()}) as site:

                    def job(unit: Unit) -> Job:
                        return job_of(unit, None, ledger, inputs.paths, given, False, site)

                    driver.execute(agenda, job, resources, facts, Hooks(noted, display.tick))
            finally:
                display.close()
        record_failures(agenda)
        folders = list(dict.fromkeys([folder, given.out or folder]))
        written = write_trials(inputs, agenda, book.importances(), command, folders)
        copy = place.publish(file for file in written if file.parent == folder)
        outcome: Outcome = "finished" if agenda.whole else "stopped" if agenda.stopping else "failed"
        missing = mirror.close(outcome, folder, MIRROR_SECONDS)
        print(closing(inputs, agenda, written, mlflow_store.ui_command(uri), missing))
        if copy:
            print(f"trials: {copy}")
        return 0 if agenda.whole else 1
    finally:
        place.release()
        if ray is not None:
            ray_cluster.disconnect()


class Journal:
    """The trials of a search in a file of Optuna's, to which lines are only added. Held by one process at a time.

    Each line is written whole, with a trial's number and all its parameters, or is cut off when the file is next
    opened. Suggestions are a function of the trials so far and the space's sampler seed, so that a search that was
    killed suggests what it would have suggested.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        space: Space,
        dimensions: Mapping[str, Range | Choice],
        start: Params | None,
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Args:
            name: of the search.
            dimensions: by dotted field name; ranges of whole numbers have whole ends.
            start: parameters of the first trial; None draws them as well.
            keep: called after lines have been added.

        Raises:
            ValueError: the file holds something else.
        """
        import optuna
        from optuna.storages import JournalStorage

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._optuna, self._space, self._start = optuna, space, start
        self._where = {path: _distribution(optuna, where) for path, where in dimensions.items()}
        try:
            storage = JournalStorage(_file_backend(file, keep))
            self._study = optuna.create_study(
                storage=storage, study_name=name, direction=space.direction, load_if_exists=True
            )
            self.trials, self._attempt = self._read()
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{file}: not the trials of this search ({error}); move it away and run again: units are kept"
            ) from error

    def _read(self) -> tuple[list[Trial], dict[int, int]]:
        """Trials, and of each the number that Optuna gives to its newest attempt."""
        state_of: dict[str, TrialState] = {"COMPLETE": "complete", "FAIL": "failed"}
        trials: dict[int, Trial] = {}
        attempt = {}
        for kept in self._study.get_trials(deepcopy=False):
            number = kept.user_attrs["trial"]
            trials[number] = Trial(number, dict(kept.params), state_of.get(kept.state.name, "running"), kept.value)
            attempt[number] = kept.number
        return [trials[number] for number in sorted(trials)], attempt

    def suggest(self) -> Params | None:
        """See `orchestrator.search.trial_queue.Book`."""
        number, taken = len(self.trials), [dict(trial.params) for trial in self.trials]
        if number == 0 and self._start is not None:
            return self._start
        with warnings.catch_warnings():
            # Some samplers call themselves experimental; ours are fixed by the journal, and tests hold them to it.
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            return self._suggest(number, taken)

    def _suggest(self, number: int, taken: list[dict[str, Any]]) -> Params | None:
        samplers = self._optuna.samplers
        for attempt in range(ATTEMPTS):
            seed = int(digest([self._space.sampler_seed, number, attempt])[:8], 16)
            sampler = samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP)
            if (params := self._draw(sampler)) not in taken:
                return params
        points = _points(self._where.values())
        if points is None:
            return params
        return self._draw(samplers.BruteForceSampler(seed=seed)) if len(taken) < points else None

    def _draw(self, sampler: Any) -> Params:
        trial_states = self._optuna.trial.TrialState
        study = self._optuna.create_study(direction=self._space.direction, sampler=sampler)
        for trial in self.trials:
            # One that failed counts as one without a value yet: both are taken for bad, and their neighbours avoided.
            state = trial_states.COMPLETE if trial.state == "complete" else trial_states.RUNNING
            study.add_trial(self._frozen(trial, state, trial.value))
        drawn = study.ask(self._where).params
        return {path: _rounded(drawn[path], where) for path, where in self._where.items()}

    def _frozen(self, trial: Trial, state: Any, value: float | None = None) -> Any:
        return self._optuna.trial.create_trial(
            state=state, value=value, params=dict(trial.params), distributions=self._where,
            user_attrs={"trial": trial.number},
        )  # fmt: skip

    def begin(self, params: Params) -> Trial:
        """See `orchestrator.search.trial_queue.Book`."""
        trial = Trial(len(self.trials), dict(params))
        self._add(trial)
        self.trials.append(trial)
        return trial

    def again(self, trial: Trial) -> None:
        """See `orchestrator.search.trial_queue.Book`."""
        self._add(trial)
        trial.state = "running"

    def _add(self, trial: Trial) -> None:
        self._study.add_trial(self._frozen(trial, self._optuna.trial.TrialState.RUNNING))
        self._attempt[trial.number] = self._study.get_trials(deepcopy=False)[-1].number

    def complete(self, trial: Trial, value: float) -> None:
        """See `orchestrator.search.trial_queue.Book`."""
        self._study.tell(self._attempt[trial.number], value)
        trial.state, trial.value = "complete", value

    def fail(self, trial: Trial) -> None:
        """See `orchestrator.search.trial_queue.Book`."""
        self._study.tell(self._attempt[trial.number], state=self._optuna.trial.TrialState.FAIL)
        trial.state = "failed"

    def importances(self) -> dict[str, float]:
        """Share of each searched field in what sets the best trials apart, by Optuna's PED-ANOVA; empty for too few
        trials."""
        complete = [trial for trial in self.trials if trial.state == "complete"]
        if len(complete) < FEWEST_FOR_IMPORTANCES or len({trial.value for trial in complete}) == 1:
            return {}
        importance = self._optuna.importance
        evaluator = importance.PedAnovaImportanceEvaluator()
        shares: dict[str, float] = importance.get_param_importances(self._study, evaluator=evaluator)
        return shares


def _distribution(optuna: Any, where: Range | Choice) -> Any:
    distributions = optuna.distributions
    if isinstance(where, Choice):
        return distributions.CategoricalDistribution(where.values)
    if isinstance(where.low, int):
        return distributions.IntDistribution(where.low, int(where.high), where.log, int(where.step or 1))
    return distributions.FloatDistribution(where.low, where.high, where.log, where.step)


def _rounded(value: Any, where: Any) -> Any:
    if not isinstance(value, float) or hasattr(where, "choices"):
        return value
    if where.step is not None:
        return round(value, 10)
    return min(max(float(f"{value:.{DIGITS}g}"), where.low), where.high)


def _points(where: Any) -> int | None:
    """How many configurations there are; None where they can't be counted."""
    found = 1
    for each in where:
        if hasattr(each, "choices"):
            found *= len(each.choices)
        elif each.step is None:
            return None
        else:
            found *= round((each.high - each.low) // each.step) + 1
    return found


def _file_backend(file: Path, keep: Callable[[], None]) -> Any:
    from optuna.storages.journal import JournalFileBackend

    class Held:
        """The search is held by this process: a lock file of Optuna's would outlive a killed one by half a minute."""

        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    class Backend(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            cut_torn_line(file)  # A full disk may have taken half a line just now.
            super().append_logs(logs)
            keep()

    cut_torn_line(file)
    return Backend(str(file), lock_obj=Held())  # type: ignore[arg-type]  # Optuna's base of locks is not public


if __name__ == "__main__":
    sys.exit(main())
