"""The journal of a search: its trials in a file of Optuna's, and what Optuna suggests next.

<storage>/searches/<name>/journal.log     the trials, as Optuna keeps them
<storage>/searches/<name>/                search.md, trials.csv
"""

import copy
import itertools
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import (
    BaseSampler,
    BruteForceSampler,
    GPSampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.storages import JournalStorage
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.search.dimensions import count_points, distribution_of, rounded, suggest, values_of
from orchestrator.search.journal_file import cut_torn_line, file_backend
from orchestrator.search.plan import Params, active
from orchestrator.search.rungs import END
from search_spaces.space import Choice, Range, Space
from ups_model.config.schema import digest

logger = logging.getLogger(__name__)

STARTUP = 10
"""Trials drawn at random before Optuna's TPE learns from them."""
GENERATION = 10
"""Trials of each generation of the genetic algorithm; those of the first are random."""
MAX_ATTEMPTS = 10
"""Suggestions that were there before, until one of the rest is drawn."""
MIN_TRIALS_FOR_IMPORTANCES = 20
NUMBER, AIM = "trial", "aim"
"""Attributes of Optuna's trials: the trial's number, and the step of the rung that it trains to."""
PRIOR = "prior"
"""Attribute of the study."""


@dataclass(frozen=True)
class PriorTrial:
    """A configuration that was trained before the search; it informs the sampler and is no trial of the search."""

    params: Params
    values: Sequence[float]
    """Of each objective."""
    constraints: Mapping[str, float]
    """As of `Journal.complete`."""
    own: bool
    """Trained with all seeds of the search, too, so that it costs nothing as a trial."""


class Journal:
    """The trials of a search in a file of Optuna's, to which lines are only added. Several processes may add to it:
    each reads what there is, decides and writes in one transaction.

    Each line is written whole, with a trial's number and all its parameters, or is cut off when the file is next
    read. A trial that is tried again is another one to Optuna, of the same number. Suggestions are a function of the
    trials so far and the space's sampler seed, so a search that was killed suggests what it would have suggested.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        space: Space,
        dimensions: Mapping[str, Range | Choice],
        start: Params | None,
        keep: Callable[[], None] = lambda: None,
        transaction: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        """
        Args:
            name: of the search.
            dimensions: by dotted field name; ranges of whole numbers have whole ends.
            start: parameters of the first trial; None draws them as well.
            keep: called after lines have been added.
            transaction: keeps other processes out while it lasts; may be entered again within itself.

        Raises:
            ValueError: the file holds something else.
        """
        self.transaction, self._file = transaction, file
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._start, self._dimensions = space, start, dimensions
        self._where = {path: distribution_of(where) for path, where in dimensions.items()}
        self._directions = [aim.direction for aim in space.aims]
        try:
            with transaction():
                self._storage = JournalStorage(file_backend(file, keep))
                self._study = optuna.create_study(
                    storage=self._storage, study_name=name, directions=self._directions, load_if_exists=True
                )
                self.read()
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{file}: not the trials of this search ({error}); move it away and run again: units are kept"
            ) from error

    def read(self) -> None:
        """Read what other processes have added."""
        with self.transaction():
            cut_torn_line(self._file)  # Of a process that died.
            newest = {number_of(trial): trial for trial in self._study.get_trials(deepcopy=False)}
            entries = self._study.user_attrs.get(PRIOR)
        self.trials = [_without_rung(newest[number]) for number in sorted(newest)]
        """By number, as they were last tried."""
        self.prior = None if entries is None else [PriorTrial(**entry) for entry in entries]
        """What suggestions learn from beside the trials, best first; None until `learn`."""

    def learn(self, prior: Sequence[PriorTrial]) -> None:
        """Keep what there was at the start of the search, once: later calls suggest from the same."""
        with self.transaction():
            self.read()
            if self.prior is None:
                self._study.set_user_attr(PRIOR, [asdict(one) for one in prior])
                self.read()

    def suggest(self) -> Params | None:
        """Parameters of the next trial, None where the space has no more; changes nothing."""
        if not self.trials and self._start is not None:
            return self._start
        if len(self.trials) <= (self._start is not None):
            best = next((one.params for one in self.prior or () if one.own), None)
            if best is not None and best not in [trial.params for trial in self.trials]:
                return best
        with warnings.catch_warnings():
            # Some samplers call themselves experimental; ours are fixed by the journal, and tests hold them to it.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return self._suggest([trial.params for trial in self.trials])

    def _suggest(self, taken: list[Params]) -> Params | None:
        if self._space.sampler == "grid":
            points = itertools.product(*map(values_of, self._where.values()))
            every = (active(dict(zip(self._where, point, strict=True)), self._dimensions) for point in points)
            return next((params for params in every if params not in taken), None)
        for attempt in range(MAX_ATTEMPTS):
            seed = int(digest([self._space.sampler_seed, len(taken), attempt])[:8], 16)
            is_fixed = self._space.sampler == "qmc"
            params = (
                self._sobol(len(taken) + attempt) if is_fixed else self._draw(self._sampler(seed), self.prior or ())
            )
            if params not in taken:
                return params
        number = count_points(self._where, self._dimensions)
        if number is None:
            return params
        return self._draw(BruteForceSampler(seed=seed), ()) if len(taken) < number else None

    def _sampler(self, seed: int) -> BaseSampler:
        if self._space.sampler == "random":
            return RandomSampler(seed=seed)
        if self._space.sampler == "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP)
        if self._space.sampler == "nsga2":
            return Generations(seed)
        conditional = any(where.when for where in self._dimensions.values())
        return TPESampler(
            seed=seed,
            multivariate=True,
            group=conditional,  # It would else learn together only what all trials have.
            constant_liar=True,
            n_startup_trials=STARTUP,
        )

    def _sobol(self, number: int) -> Params:
        """Point `number` of Sobol's sequence, which Optuna's sampler counts by how often a study has asked it."""
        sampler = QMCSampler(seed=self._space.sampler_seed, scramble=True, warn_asynchronous_seeding=False)
        study = optuna.create_study(directions=self._directions, sampler=sampler)
        # The first trial is drawn at random: from it the sampler learns the dimensions.
        first = self._of(optuna.create_study(sampler=RandomSampler(seed=0)).ask(self._where).params)
        study.add_trial(self._trial(0, first, TrialState.RUNNING))
        for _ in range(number):
            study.ask(self._where)
        return active(self._of(study.ask(self._where).params), self._dimensions)

    def _draw(self, sampler: BaseSampler, prior: Sequence[PriorTrial]) -> Params:
        study = optuna.create_study(directions=self._directions, sampler=sampler)
        complete = [trial.params for trial in self.trials if trial.state is TrialState.COMPLETE]
        for one in prior:
            if one.params not in complete:
                study.add_trial(self._trial(-1, one.params, TrialState.COMPLETE, one.values, one.constraints))
        for number, trial in enumerate(self.trials):
            state, shown = _state_for_sampler(trial), trial.intermediate_values
            study.add_trial(self._trial(number, trial.params, state, trial.values, trial.constraints, shown))
        asked, drawn = study.ask(), dict[str, Any]()
        for path, where in self._where.items():
            if path in active({**drawn, path: None}, self._dimensions):
                drawn[path] = rounded(suggest(asked, path, where), where)
        return drawn

    def _of(self, drawn: Params) -> Params:
        return {path: rounded(drawn[path], where) for path, where in self._where.items()}

    def _trial(
        self,
        number: int,
        params: Params,
        state: TrialState,
        values: Sequence[float] | None = None,
        constraints: Mapping[str, float] | None = None,
        at_rungs: Mapping[int, float] | None = None,
        aim: int = END,
    ) -> FrozenTrial:
        return create_trial(
            state=state,
            values=values,
            params=dict(params),
            distributions={path: self._where[path] for path in params},
            user_attrs={NUMBER: number} | ({AIM: aim} if aim != END else {}),
            constraints=dict(constraints) if constraints else None,
            intermediate_values=dict(at_rungs or {}),
        )

    def begin(self, params: Params, aim: int = END) -> int:
        """Keep a new trial as running; returns its number.

        Args:
            aim: step of the rung that it trains to.
        """
        with self.transaction():
            self.read()
            number = len(self.trials)
            self._study.add_trial(self._trial(number, params, TrialState.RUNNING, aim=aim))
            self.read()
        return number

    def again(self, number: int, aim: int | None = None) -> None:
        """Keep a trial that has ended as running, to another rung if one is named."""
        with self.transaction():
            self.read()
            trial = self.trials[number]
            if trial.state.is_finished():
                aim = aim_of(trial) if aim is None else aim
                shown = trial.intermediate_values
                self._study.add_trial(self._trial(number, trial.params, TrialState.RUNNING, at_rungs=shown, aim=aim))
                self.read()

    def restart(self, number: int, aim: int) -> None:
        """Keep a trial as running from its start: what it has shown was of other code."""
        with self.transaction():
            self.read()
            trial = self.trials[number]
            if not trial.state.is_finished():
                self._study.tell(trial.number, state=TrialState.FAIL)
            self._study.add_trial(self._trial(number, trial.params, TrialState.RUNNING, aim=aim))
            self.read()

    def report(self, number: int, step: int, value: float) -> None:
        """Keep a running trial's value at a rung: the mean over its seeds."""
        with self.transaction():
            self.read()
            if not self.trials[number].state.is_finished():
                self._storage.set_trial_intermediate_value(self._row(number), step, value)
                self.read()

    def aim(self, number: int, step: int) -> None:
        """Keep that a running trial trains on to another rung."""
        with self.transaction():
            self.read()
            if not self.trials[number].state.is_finished():
                self._storage.set_trial_user_attr(self._row(number), AIM, step)
                self.read()

    def prune(self, number: int) -> None:
        """Keep that a trial stays at its rung."""
        self._end(number, TrialState.PRUNED)

    def _row(self, number: int) -> int:
        """Optuna's own number of a trial among those of all studies."""
        study = self._storage.get_study_id_from_name(self._study.study_name)
        return self._storage.get_trial_id_from_study_id_trial_number(study, self.trials[number].number)

    def complete(
        self, number: int, value: float | Sequence[float], constraints: Mapping[str, float] | None = None
    ) -> None:
        """Keep its value, or that of each objective: the mean over its seeds. What another process has judged stays.

        Args:
            constraints: by how much it breaks each; 0 or below where it keeps it.
        """
        with self.transaction():
            self.read()
            if self.trials[number].state.is_finished():
                return
            for name, excess in (constraints or {}).items():
                # As `Trial.set_constraint` keeps it, for which a trial would have to be asked for.
                self._storage.set_trial_system_attr(self._row(number), f"constraints:{name}", excess)
            self._study.tell(self.trials[number].number, value)
            self.read()

    def fail(self, number: int) -> None:
        """Keep that it has none. What another process has judged stays."""
        self._end(number, TrialState.FAIL)

    def _end(self, number: int, state: TrialState) -> None:
        with self.transaction():
            self.read()
            if not self.trials[number].state.is_finished():
                self._study.tell(self.trials[number].number, state=state)
                self.read()

    def importances(self) -> dict[str, float]:
        """Share of each searched field in what sets the best trials apart, by Optuna's PED-ANOVA; empty for too few
        trials, and with several objectives."""
        if len(self._directions) > 1:
            return {}  # Which share would be of which objective?
        values = [trial.value for trial in self.trials if trial.state is TrialState.COMPLETE]
        if len(values) < MIN_TRIALS_FOR_IMPORTANCES or len(set(values)) == 1:
            return {}
        with self.transaction():
            shares: dict[str, float] = get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator())
        return shares


def _state_for_sampler(trial: FrozenTrial) -> TrialState:
    """What has been shown at rungs counts. One that failed counts as one without a value yet: both are taken for bad,
    and their neighbours avoided."""
    if trial.state is TrialState.COMPLETE:
        return TrialState.COMPLETE
    has_shown = trial.intermediate_values and trial.state is not TrialState.FAIL
    return TrialState.PRUNED if has_shown else TrialState.RUNNING


def _without_rung(trial: FrozenTrial) -> FrozenTrial:
    """Optuna gives a trial that was pruned the value of its last rung, which is no result."""
    if trial.state is TrialState.PRUNED:
        trial = copy.copy(trial)
        trial.value = None
    return trial


def aim_of(trial: FrozenTrial) -> int:
    """Step of the rung that a trial trains to; `END` of one that trains to its end."""
    step: int = trial.user_attrs.get(AIM, END)
    return step


def number_of(trial: FrozenTrial) -> int:
    """Of a trial in its search; Optuna's own counts tries."""
    number: int = trial.user_attrs[NUMBER]
    return number


class Generations(NSGAIISampler):
    """NSGA-II whose generations follow from the complete trials in their order, so that it suggests the same from the
    same trials; Optuna's keeps each trial's generation where the trials are kept."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed=seed, population_size=GENERATION)

    def get_trial_generation(self, study: Study, trial: FrozenTrial) -> int:
        return len(_complete(study)) // GENERATION

    def get_population(self, study: Study, generation: int) -> list[FrozenTrial]:
        return _complete(study)[generation * GENERATION :][:GENERATION]


def _complete(study: Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
