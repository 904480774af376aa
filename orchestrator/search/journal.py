"""The journal of a search: its trials in a file of Optuna's, to which lines are added, each whole or cut off.

<storage>/searches/<name>/journal.log     the trials, as Optuna keeps them
<storage>/searches/<name>/                search.md, trials.csv
"""

import copy
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from orchestrator.search.plan import Dimensions, Params
from orchestrator.search.rungs import END
from orchestrator.search.suggestions import PriorTrial, Suggestions
from orchestrator.storage.search_journal import NUMBER, JournalPlace
from search_spaces.space import Space

logger = logging.getLogger(__name__)

MIN_TRIALS_FOR_IMPORTANCES = 20
AIM = "aim"
"""Attribute of Optuna's trials: the step of the rung that it trains to."""
PRIOR = "prior"
"""Attribute of the study."""


class Journal:
    """The trials of a search in a file of Optuna's, to which lines are only added. Several processes may add to it:
    each reads what there is, decides and writes in one transaction.

    Each line is written whole, with a trial's number and all its parameters, or is cut off when the file is next
    read. A trial that is tried again is another one to Optuna, of the same number.
    """

    def __init__(
        self,
        file: Path,
        name: str,
        space: Space,
        dimensions: Dimensions,
        start: Params | None,
        place: JournalPlace | None = None,
    ) -> None:
        """
        Args:
            name: of the search.
            start: parameters of the first trial; None draws them as well.
            place: where others have the file too; None where nobody has.

        Raises:
            ValueError: the file holds something else.
        """
        self._file, self._place, self._start = file, place or JournalPlace(), start
        self.transaction = self._place.transaction
        """Keeps other processes out while it lasts; may be entered again within itself."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._suggestions = Suggestions(space, dimensions)
        try:
            with self.transaction():
                self._storage = JournalStorage(_file_backend(file, self._place))
                self._study = optuna.create_study(
                    storage=self._storage, study_name=name, directions=self._suggestions.directions, load_if_exists=True
                )
                self.read()
        except (ValueError, KeyError) as error:
            raise ValueError(
                f"{file}: not the trials of this search ({error}); move it away and run again: units are kept"
            ) from error

    def read(self) -> None:
        """Read what other processes have added."""
        with self._place.reading():
            cut_torn_line(self._file)  # Of a process that died.
            newest = {number_of(trial): trial for trial in self._study.get_trials(deepcopy=False)}
            entries = self._study.user_attrs.get(PRIOR)
        self.trials = [_without_rung(newest[number]) for number in sorted(newest)]
        """By number, as they were last tried."""
        self.prior = None if entries is None else [PriorTrial(**entry) for entry in entries]
        """What suggestions learn from beside the trials, best first; None until `learn`."""

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Read what there is, write, and read that: a transaction."""
        with self.transaction():
            self.read()
            yield
            self.read()

    def learn(self, prior: Sequence[PriorTrial]) -> None:
        """Keep what there was at the start of the search, once: later calls suggest from the same."""
        with self._writing():
            if self.prior is None:
                self._study.set_user_attr(PRIOR, [asdict(one) for one in prior])

    @property
    def exhausted(self) -> bool:
        """Whether the trials are all configurations that the space has."""
        most = self._suggestions.most
        return most is not None and len(self.trials) >= most

    def suggest(self) -> Params | None:
        """Parameters of the next trial, None where the space has no more; changes nothing."""
        if not self.trials and self._start is not None:
            return self._start
        if len(self.trials) <= (self._start is not None):
            best = next((one.params for one in self.prior or () if one.own), None)
            if best is not None and best not in [trial.params for trial in self.trials]:
                return best
        return self._suggestions.next(self.trials, self.prior or ())

    def _add(self, number: int, params: Params, aim: int, at_rungs: Mapping[int, float] | None = None) -> None:
        attributes = {NUMBER: number} | ({AIM: aim} if aim != END else {})
        self._study.add_trial(
            self._suggestions.trial(
                params, TrialState.RUNNING, user_attrs=attributes, intermediate_values=dict(at_rungs or {})
            )
        )

    def begin(self, params: Params, aim: int = END) -> int:
        """Keep a new trial as running, to the rung at step `aim`; returns its number."""
        with self._writing():
            number = len(self.trials)
            self._add(number, params, aim)
        return number

    def again(self, number: int, aim: int | None = None) -> None:
        """Keep a trial that has ended as running, to another rung if one is named."""
        with self._writing():
            trial = self.trials[number]
            if trial.state.is_finished():
                aim = aim_of(trial) if aim is None else aim
                self._add(number, trial.params, aim, trial.intermediate_values)

    def restart(self, number: int, aim: int) -> None:
        """Keep a trial as running from its start: what it has shown was of other code."""
        with self._writing():
            trial = self.trials[number]
            if not trial.state.is_finished():
                self._study.tell(trial.number, state=TrialState.FAIL)
            self._add(number, trial.params, aim)

    def report(self, number: int, step: int, value: float) -> None:
        """Keep a running trial's value at a rung: the mean over its seeds."""
        with self._writing():
            if not self.trials[number].state.is_finished():
                self._storage.set_trial_intermediate_value(self._row(number), step, value)

    def aim(self, number: int, step: int) -> None:
        """Keep that a running trial trains on to another rung."""
        with self._writing():
            if not self.trials[number].state.is_finished():
                self._storage.set_trial_user_attr(self._row(number), AIM, step)

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
        with self._writing():
            if self.trials[number].state.is_finished():
                return
            for name, excess in (constraints or {}).items():
                # As `Trial.set_constraint` keeps it, for which a trial would have to be asked for.
                self._storage.set_trial_system_attr(self._row(number), f"constraints:{name}", excess)
            self._study.tell(self.trials[number].number, value)

    def end(self, number: int, state: TrialState) -> None:
        """Keep that it failed, or stays at its rung (PRUNED). What another process has judged stays."""
        with self._writing():
            if not self.trials[number].state.is_finished():
                self._study.tell(self.trials[number].number, state=state)

    def importances(self) -> dict[str, float]:
        """Share of each searched field in what sets the best trials apart, by Optuna's PED-ANOVA; empty for too few
        trials, and with several objectives."""
        if len(self._suggestions.directions) > 1:
            return {}  # Which share would be of which objective?
        values = [trial.value for trial in self.trials if trial.state is TrialState.COMPLETE]
        if len(values) < MIN_TRIALS_FOR_IMPORTANCES or len(set(values)) == 1:
            return {}
        with self._place.reading():
            shares: dict[str, float] = get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator())
        return shares


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


class _NoLock:
    """Transactions are ours: a lock file of Optuna's would outlive a killed process by half a minute."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass


def _file_backend(file: Path, place: JournalPlace) -> JournalFileBackend:
    class Backend(JournalFileBackend):
        def append_logs(self, logs: list[dict[str, Any]]) -> None:
            cut_torn_line(file)  # A full disk may have taken half a line just now.
            super().append_logs(logs)
            place.keep()

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
