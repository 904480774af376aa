"""The journal of a search: its trials in a file of Optuna's, and what Optuna suggests next.

<storage>/searches/<name>/journal.log     the trials, as Optuna keeps them
<storage>/searches/<name>/                search.md, trials.csv
"""

import copy
import itertools
import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.exceptions import ExperimentalWarning
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.samplers import BaseSampler, BruteForceSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState, create_trial

from orchestrator.search.plan import Params
from orchestrator.search.rungs import END
from search_spaces.space import Choice, Range, Space
from ups_model.config.schema import digest

logger = logging.getLogger(__name__)

STARTUP = 10
"""Trials drawn at random before Optuna's TPE learns from them."""
MAX_ATTEMPTS = 10
"""Suggestions that were there before, until one of the rest is drawn."""
DIGITS = 4
"""Significant digits of a suggested number: more say nothing, and nobody could type them."""
MIN_TRIALS_FOR_IMPORTANCES = 20
NUMBER, AIM = "trial", "aim"
"""Attributes of Optuna's trials: the trial's number, and the step of the rung that it trains to."""


class Journal:
    """The trials of a search in a file of Optuna's, to which lines are only added. Held by one process at a time.

    Each line is written whole, with a trial's number and all its parameters, or is cut off when the file is next
    opened. A trial that is tried again is another one to Optuna, of the same number. Suggestions are a function of the
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
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._space, self._start = space, start
        self._where = {path: _distribution(where) for path, where in dimensions.items()}
        try:
            storage = JournalStorage(_file_backend(file, keep))
            self._study = optuna.create_study(
                storage=storage, study_name=name, direction=space.direction, load_if_exists=True
            )
            self._read()
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{file}: not the trials of this search ({error}); move it away and run again: units are kept"
            ) from error

    def _read(self) -> None:
        newest = {number_of(trial): trial for trial in self._study.get_trials(deepcopy=False)}
        self.trials = [_without_rung(newest[number]) for number in sorted(newest)]
        """By number, as they were last tried."""

    def suggest(self) -> Params | None:
        """Parameters of the next trial, None where the space has no more; changes nothing."""
        if not self.trials and self._start is not None:
            return self._start
        with warnings.catch_warnings():
            # Some samplers call themselves experimental; ours are fixed by the journal, and tests hold them to it.
            warnings.simplefilter("ignore", ExperimentalWarning)
            return self._suggest([trial.params for trial in self.trials])

    def _suggest(self, taken: list[Params]) -> Params | None:
        if self._space.sampler == "grid":
            points = itertools.product(*map(_values, self._where.values()))
            every = (dict(zip(self._where, point, strict=True)) for point in points)
            return next((params for params in every if params not in taken), None)
        for attempt in range(MAX_ATTEMPTS):
            seed = int(digest([self._space.sampler_seed, len(taken), attempt])[:8], 16)
            is_fixed = self._space.sampler == "qmc"
            params = self._sobol(len(taken) + attempt) if is_fixed else self._draw(self._sampler(seed))
            if params not in taken:
                return params
        number = _points(self._where.values())
        if number is None:
            return params
        return self._draw(BruteForceSampler(seed=seed)) if len(taken) < number else None

    def _sampler(self, seed: int) -> BaseSampler:
        if self._space.sampler == "random":
            return RandomSampler(seed=seed)
        if self._space.sampler == "gp":
            return GPSampler(seed=seed, n_startup_trials=STARTUP)
        return TPESampler(seed=seed, multivariate=True, constant_liar=True, n_startup_trials=STARTUP)

    def _sobol(self, number: int) -> Params:
        """Point `number` of Sobol's sequence, which Optuna's sampler counts by how often a study has asked it."""
        sampler = QMCSampler(seed=self._space.sampler_seed, scramble=True, warn_asynchronous_seeding=False)
        study = optuna.create_study(direction=self._space.direction, sampler=sampler)
        # The first trial is drawn at random: from it the sampler learns the dimensions.
        study.add_trial(self._trial(0, self._draw(RandomSampler(seed=0)), TrialState.RUNNING))
        for _ in range(number):
            study.ask(self._where)
        return self._of(study.ask(self._where).params)

    def _draw(self, sampler: BaseSampler) -> Params:
        study = optuna.create_study(direction=self._space.direction, sampler=sampler)
        for number, trial in enumerate(self.trials):
            shown = trial.intermediate_values
            study.add_trial(self._trial(number, trial.params, _state_for_sampler(trial), trial.value, shown))
        return self._of(study.ask(self._where).params)

    def _of(self, drawn: Params) -> Params:
        return {path: _rounded(drawn[path], where) for path, where in self._where.items()}

    def _trial(
        self,
        number: int,
        params: Params,
        state: TrialState,
        value: float | None = None,
        at_rungs: Mapping[int, float] | None = None,
        aim: int = END,
    ) -> FrozenTrial:
        return create_trial(
            state=state,
            value=value,
            params=dict(params),
            distributions=self._where,
            user_attrs={NUMBER: number} | ({AIM: aim} if aim != END else {}),
            intermediate_values=dict(at_rungs or {}),
        )

    def begin(self, params: Params, aim: int = END) -> int:
        """Keep a new trial as running; returns its number.

        Args:
            aim: step of the rung that it trains to.
        """
        number = len(self.trials)
        self._study.add_trial(self._trial(number, params, TrialState.RUNNING, aim=aim))
        self._read()
        return number

    def again(self, number: int, aim: int | None = None) -> None:
        """Keep a trial that has ended as running, to another rung if one is named."""
        trial = self.trials[number]
        aim = aim_of(trial) if aim is None else aim
        values = trial.intermediate_values
        self._study.add_trial(self._trial(number, trial.params, TrialState.RUNNING, None, values, aim))
        self._read()

    def report(self, number: int, step: int, value: float) -> None:
        """Keep a running trial's value at a rung: the mean over its seeds."""
        self._running(number).report(value, step)
        self._read()

    def aim(self, number: int, step: int) -> None:
        """Keep that a running trial trains on to another rung."""
        self._running(number).set_user_attr(AIM, step)
        self._read()

    def prune(self, number: int) -> None:
        """Keep that a trial stays at its rung."""
        self._study.tell(self.trials[number].number, state=TrialState.PRUNED)
        self._read()

    def _running(self, number: int) -> optuna.Trial:
        return optuna.Trial(self._study, self.trials[number]._trial_id)  # Only Optuna's own id opens a trial again.

    def complete(self, number: int, value: float) -> None:
        """Keep its value: the mean over its seeds."""
        self._study.tell(self.trials[number].number, value)
        self._read()

    def fail(self, number: int) -> None:
        """Keep that it has none."""
        self._study.tell(self.trials[number].number, state=TrialState.FAIL)
        self._read()

    def importances(self) -> dict[str, float]:
        """Share of each searched field in what sets the best trials apart, by Optuna's PED-ANOVA; empty for too few
        trials."""
        values = [trial.value for trial in self.trials if trial.state is TrialState.COMPLETE]
        if len(values) < MIN_TRIALS_FOR_IMPORTANCES or len(set(values)) == 1:
            return {}
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


def _distribution(where: Range | Choice) -> BaseDistribution:
    if isinstance(where, Choice):
        return CategoricalDistribution(where.values)
    if isinstance(where.low, int):
        return IntDistribution(where.low, int(where.high), where.log, int(where.step or 1))
    return FloatDistribution(where.low, where.high, where.log, where.step)


def _rounded(value: Any, where: Any) -> Any:
    if not isinstance(value, float) or isinstance(where, CategoricalDistribution):
        return value
    if where.step is not None:
        return round(value, 10)
    return min(max(float(f"{value:.{DIGITS}g}"), where.low), where.high)


def _values(where: Any) -> list[Any]:
    """All values of a dimension that has an end."""
    if isinstance(where, CategoricalDistribution):
        return list(where.choices)
    steps = round((where.high - where.low) // where.step + 1)
    return [_rounded(where.low + step * where.step, where) for step in range(steps)]


def _points(where: Any) -> int | None:
    """How many configurations there are; None where they can't be counted."""
    points = 1
    for each in where:
        if isinstance(each, CategoricalDistribution):
            points *= len(each.choices)
        elif each.step is None:
            return None
        else:
            points *= round((each.high - each.low) // each.step) + 1
    return points


class _NoLock:
    """The search is held by this process: a lock file of Optuna's would outlive a killed one by half a minute."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _file_backend(file: Path, keep: Callable[[], None]) -> JournalFileBackend:
    class Backend(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            cut_torn_line(file)  # A full disk may have taken half a line just now.
            super().append_logs(logs)
            keep()

    cut_torn_line(file)
    return Backend(str(file), lock_obj=_NoLock())  # type: ignore[arg-type]  # Optuna's base of locks is not public


def cut_torn_line(file: Path) -> None:
    """Drop a line that a crash or a full disk cut short; what is added behind it would make the file unreadable."""
    if not file.exists():
        return
    with file.open("r+b") as stream:
        size = stream.seek(0, 2)
        kept = size
        while kept:
            stream.seek(max(0, kept - 65536))
            chunk = stream.read(kept - stream.tell())
            if (end := chunk.rfind(b"\n")) >= 0:
                kept -= len(chunk) - end - 1
                break
            kept -= len(chunk)
        if kept < size:
            logger.warning("%s: its last line is incomplete and is dropped", file)
            stream.truncate(kept)
