"""The journal of a search: its trials in a file of Optuna's, and what Optuna suggests next. Alone imports Optuna."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from orchestrator.search.trial_queue import Params, Trial, TrialState, cut_torn_line
from search_spaces.space import Choice, Range, Space
from ups_model.config.schema import digest

STARTUP = 10
"""Trials drawn at random before Optuna's TPE learns from them."""
MAX_ATTEMPTS = 10
"""Suggestions that were there before, until one of the rest is drawn."""
DIGITS = 4
"""Significant digits of a suggested number: more say nothing, and nobody could type them."""
MIN_TRIALS_FOR_IMPORTANCES = 20


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
        for attempt in range(MAX_ATTEMPTS):
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
        if len(complete) < MIN_TRIALS_FOR_IMPORTANCES or len({trial.value for trial in complete}) == 1:
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
