"""A search whose units take no time, and what of it is looked at."""

from __future__ import annotations

import math
from pathlib import Path

from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from orchestrator.record import Record
from orchestrator.search import __main__ as search
from orchestrator.search.journal import Journal, number_of
from orchestrator.search.plan import SearchPlan
from orchestrator.search.resolve_space import check_dimensions, read_search
from orchestrator.search.trial_queue import TrialQueue
from orchestrator.search.trial_report import STATES
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.search_journal import JOURNAL
from search_spaces.space import Range, Space
from tests.support.drivers import STUDY, Bench
from tests.support.plans import DATA, TEXT
from tests.support.runs import session_folder
from ups_model.config.presets import preset

DIMENSIONS = {"learning_rate": Range(1e-4, 1e-2, log=True), "dropout": Range(0, 0.4), "encoder_layers": Range(1, 3)}
TRIALS = 13
"""More than are drawn at random before the sampler learns from results."""


def small_space(**changes):
    return Space(**({"name": "small", "question": "?", "dimensions": DIMENSIONS, "trials": TRIALS} | changes))


def plan_of(space, seeds=None, **changes):
    base = preset("tiny").with_fields(changes)
    return SearchPlan(space, "tiny", base, seeds or space.seeds, DATA, TEXT)


def worth(config):
    """A hill at a rate of 0.002 without dropout, and the luck of the seed."""
    distance = math.log10(config.optim.learning_rate / 0.002) ** 2 + config.model.dropout
    return 50 - 20 * distance + config.model.encoder_layers - 0.5 * (config.seed % 2)


def finish(ledger, unit, **metrics):
    values = metrics or {"validation/score": worth(unit.config)}
    ledger.write(unit, Record(unit.key, "finished", values, checkpoint="best/step-1"))


class Search:
    """A search whose units take no time; each instance is a driver that starts anew."""

    def __init__(self, folder, space=None, trials=TRIALS, seeds=None, **changes):
        space = space or small_space()
        self.plan = plan_of(space, seeds, **changes)
        self.ledger = Ledger.open(str(folder / "storage"))
        self.file = folder / JOURNAL
        dimensions = check_dimensions(space, self.plan.base, [])
        start = self.plan.start if space.name == "small" else None
        self.book = Journal(self.file, self.plan.name, space, dimensions, start)
        self.graph = TrialQueue(self.plan, self.ledger, self.book, trials)
        self.trained = []

    def run(self, units=10**6):
        """One unit at a time, until all is done or so many have been trained."""
        while len(self.trained) < units and (unit := self.graph.next()):
            finish(self.ledger, unit)
            self.trained.append(unit.key)
            self.graph.finished(unit.key)
        return self

    @property
    def outcome(self):
        return [(number_of(trial), trial.params, STATES[trial.state], trial.value) for trial in self.book.trials]


def in_journal(file):
    """What Optuna itself reads, as state and parameters."""
    storage = JournalStorage(JournalFileBackend(str(file)))
    (study,) = storage.get_all_studies()
    return [(trial.state.name, trial.params) for trial in storage.get_all_trials(study._study_id)]


def search_bench(tmp_path_factory):
    """Toy clip sets, and a space on them, for commands that search."""
    folder = session_folder(tmp_path_factory, "search")
    with FileLock(folder / "lock"):
        if (folder / "toy_space.py").exists():
            return SearchBench.opened(folder)
        made = SearchBench.make(folder, 80)
        base = STUDY[STUDY.index("    base={") : STUDY.index("    seeds=1")].replace("STEPS", "80")
        (folder / "toy_space.py").write_text(
            "from search_spaces.space import Range, Space\n"
            'SPACE = Space("toy_space", "Which?", {"learning_rate": Range(1e-3, 1e-1, log=True), '
            f'"dropout": Range(0, 0.3)}}, trials=4, seeds=2,\n{base})\n'
        )
    return made


class SearchBench(Bench):
    """Drivers of a search instead of a study."""

    def command(self, storage: Path, *more: str) -> list[str]:
        command = super().command(storage, *more)
        place = command.index("orchestrator.ablate")
        return [*command[:place], "orchestrator.search", str(self.folder / "toy_space.py"), *command[place + 2 :]]

    def inputs(self, *sets: str, seeds=None, trials=None):
        data = [f"{name}={path}" for name, path in self.data.items()]
        return read_search(str(self.folder / "toy_space.py"), "tiny", data, sets, seeds, trials)

    def refusal(self, capsys, storage, *more, space=None):
        """What the command says when it refuses."""
        _, _, _, own, *rest = self.command(storage, *more)
        assert search.main([str(space or own), *rest]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("error: ")
        return error
