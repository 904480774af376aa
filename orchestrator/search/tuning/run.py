"""Run the searches of a study's tuning, all at once, or look at how far they are."""

import argparse
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState

from orchestrator.cli.arguments import check_not_measured
from orchestrator.cli.session import Session
from orchestrator.planning.inputs import Inputs, wanted_metrics
from orchestrator.planning.origin import check_origin, origin_of
from orchestrator.planning.plan import Line, Unit
from orchestrator.planning.plan_file import PlanFile, without_tuned
from orchestrator.planning.tuning import PlannedTuning
from orchestrator.project import DataFacts
from orchestrator.search.journal import Journal
from orchestrator.search.resolve_space import search_content
from orchestrator.search.trial_queue import TrialQueue
from orchestrator.search.trial_report import table
from orchestrator.search.trials import spread, units_of_trials
from orchestrator.search.tuning.graph import TuningGraph
from orchestrator.search.tuning.searches import ArmSearch, budget_text, outcome
from orchestrator.storage.ledger import REPORTS, Ledger
from orchestrator.storage.search_journal import JOURNAL, SearchPlace, search_place
from orchestrator.storage.source_check import SourceCheck
from orchestrator.storage.studies import TRIALS
from search_spaces.study import Study, Table, Tuning
from ups_model.atomic import write_atomic
from ups_model.training.progress import duration
from ups_model.wording import count

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrackedTuning:
    """The searches as MLflow is told of them: as one, whose trials are those of all arms."""

    name: str
    study: Study
    preset: str
    data: Mapping[str, DataFacts]
    seeds: int
    queues: tuple[TrialQueue, ...]
    tables: tuple[tuple[Table, tuple[Line, ...]], ...] = ()

    @property
    def units(self) -> Mapping[str, Unit]:
        """Those of all trials so far."""
        return {key: unit for queue in self.queues for key, unit in queue.units.items()}


def tune(
    inputs: Inputs, tuning: Tuning, searches: Sequence[ArmSearch], options: argparse.Namespace, command: str
) -> tuple[int, PlannedTuning | None]:
    """Search each arm's values; returns the exit status, and what was chosen unless the searches were
    stopped or an arm has no value.

    Raises:
        ValueError: another process runs one of the searches, or as a session.
    """
    check_not_measured(options, "tuning makes")
    plan = inputs.plan
    with Session(options, inputs.paths) as session:
        places = [search_place(session.ledger.storage, one.name, REPORTS) for one in searches]
        for place in places:
            session.at_exit.callback(place.release)
        folders = [place.folder for place in places] + ([options.out] if options.out else [])
        with session.opened(*folders) as ledger:
            _check_origin(inputs, ledger, options.study, command)
            if not all(place.begun() for place in places):
                session.connect()  # Before there is anything to leave behind.
            check = SourceCheck(ledger, options.other_code, wanted_metrics(inputs))
            check.check(plan.units.values())  # Those of the tables come later, refusals before there is a journal.
            journals = [
                _journal(place.hold(alone=True), one, place) for place, one in zip(places, searches, strict=True)
            ]
            pairs = [(one.inputs.plan, journal) for one, journal in zip(searches, journals, strict=True)]
            begun = {unit.key: unit for search, journal in pairs for unit in units_of_trials(search, journal.trials)}
            check.check(begun.values())
            queues = [TrialQueue(search, ledger, journal, tuning.trials, check=check) for search, journal in pairs]
            graph = TuningGraph(queues, ledger, check)
            if not graph.complete:
                session.connect()
        logger.info(
            "%s: tuning, %d of %s there: %s, %s each",
            plan.name, sum(len(queue.trials[: tuning.trials]) for queue in graph.queues),
            count(len(searches) * tuning.trials, "trial"), count(len(searches), "arm"), budget_text(tuning),
        )  # fmt: skip
        _run(inputs, searches, graph, check, session, command)
        for place, one, queue in zip(places, searches, graph.queues, strict=True):
            write_atomic(place.folder / TRIALS, table(one.inputs, queue))
            place.publish([place.folder / TRIALS])
        last = session.end(graph, graph.whole, None, [])
    if graph.stopping:
        faults = [queue.fault for queue in graph.queues if queue.fault]
        print("\n".join([*faults, "tuning stopped; the same command goes on from here", *last]))
        return 1, None
    try:
        chosen = outcome(searches, tuning, {queue.search.name: queue.trials for queue in graph.queues}, ledger)
    except ValueError as error:  # Not the user's: units have run.
        print("\n".join([str(error), *last]))
        return 1, None
    print("\n".join([*chosen_lines(chosen), *last]))
    return 0 if graph.whole else 1, chosen


def _check_origin(inputs: Inputs, ledger: Ledger, study: str, command: str) -> None:
    """ValueError where the tables could not be saved after all, because another study has their name."""
    plan, before = inputs.plan, ledger.plan(inputs.plan.name)
    if before is not None:
        drafted = replace(PlanFile.of(plan, command, inputs.changes), origin=origin_of(study))
        check_origin(without_tuned(before), drafted, ledger.storage.where(f"studies/{plan.name}"))


def _journal(file: Path, search: ArmSearch, place: SearchPlace | None = None) -> Journal:
    inputs = search.inputs
    return Journal(file, search.name, inputs.plan.study, inputs.dimensions, inputs.start, place)


def _run(
    inputs: Inputs,
    searches: Sequence[ArmSearch],
    graph: TuningGraph,
    check: SourceCheck,
    session: Session,
    command: str,
) -> None:
    """Train what the trials need, and tell MLflow."""
    plan, seeds = inputs.plan, searches[0].inputs.plan.seeds
    tracked = TrackedTuning(f"{plan.name}-tuning", plan.study, plan.preset, plan.data, seeds, graph.queues)
    slots = session.run_no_more_than_fit()
    of_arm = {one.name: one.inputs.seconds_of_a_unit(slots) if slots else 0.0 for one in searches}
    graph.joined = lambda queue, unit, done: session.joined(unit, of_arm[queue.search.name], done)
    expected = {key: of_arm[queue.search.name] for queue in graph.queues for key in queue.units}
    content = search_content(searches[0].inputs, command) | {
        "name": tracked.name,
        "question": f"Which values are best for each arm of the study {plan.study.name}?",
        "data": {name: vars(facts) for name, facts in plan.data.items()},
    }
    session.execute(tracked, content, graph, check, expected)


def chosen_lines(chosen: PlannedTuning) -> list[str]:
    """What the end of the searches says of each arm."""
    each = f"{count(chosen.trials, 'trial')} x {count(chosen.seeds, 'seed')} each"
    lines = [f"tuning: {count(len(chosen.arms), 'arm')}, {each}"]
    for arm in chosen.arms:
        values = ", ".join(f"{name}={value}" for name, value in arm.chosen.items())
        before = f"{spread(list(arm.start_values))} untuned" if arm.start_values else "not measured untuned"
        failed = f", {arm.failed} failed" if arm.failed else ""
        best = "no trial is better" if arm.is_start else f"best {spread(list(arm.best_values))} with {values}"
        lines.append(f"  {arm.arm}: {arm.objective} {before}; {best} ({arm.complete} trials{failed})")
    return lines


def look(
    searches: Sequence[ArmSearch], tuning: Tuning, ledger: Ledger | None
) -> tuple[dict[str, list[FrozenTrial]], bool]:
    """The trials of each search so far, by its name, and whether all searches have ended; nothing is written."""
    trials: dict[str, list[FrozenTrial]] = {}
    ended = True
    for one in searches:
        place = f"searches/{one.name}/{JOURNAL}"
        if ledger is None or ledger.storage.look(place) is None:
            trials[one.name], ended = [], False
            continue
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / JOURNAL
            file.write_bytes(ledger.storage.read(place))
            journal = _journal(file, one)
            mine = trials[one.name] = journal.trials[: tuning.trials]
            is_whole = len(mine) == tuning.trials or journal.exhausted
            ended = ended and is_whole and all(trial.state.is_finished() for trial in mine)
    return trials, ended


def plan_lines(
    searches: Sequence[ArmSearch], tuning: Tuning, trials: Mapping[str, Sequence[FrozenTrial]], slots: int
) -> list[str]:
    """What `--plan` says of searches that have not ended."""
    units = tuning.trials * tuning.seeds
    lines = [f"tuning: {count(len(searches), 'arm')}, {budget_text(tuning)} each", ""]
    left, trials_left = 0.0, 0
    width = max(len(one.arm.name) for one in searches)
    for one in searches:
        done = sum(trial.state is TrialState.COMPLETE for trial in trials[one.name])
        seconds = one.inputs.seconds_of_a_unit(slots)
        left += seconds * tuning.seeds * (tuning.trials - done)
        trials_left += tuning.trials - done
        lines.append(
            f"  {one.arm.name:<{width}}  {units} units of {duration(seconds)}, {done} of {tuning.trials} trials done; "
            f"{one.inputs.plan.study.objective}"
        )
    return [
        *lines,
        "",
        f"{trials_left * tuning.seeds} units of trials come first, about {duration(left / slots)} on {slots} at once. "
        "The values of tuned rows are not chosen yet: below is the study without them, and they double its units at "
        "most.",
        "",
    ]
