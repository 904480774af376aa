"""What a search learns from before its first trial: taken once, no trial of its own, and never the best."""

from __future__ import annotations

import statistics
from dataclasses import replace

import pytest

from orchestrator.record import Record
from orchestrator.search.journal import Journal
from orchestrator.search.plan import SearchPlan
from orchestrator.search.resolve_space import check_dimensions, read_search
from orchestrator.search.suggestions import PriorTrial
from orchestrator.search.trial_queue import TrialQueue
from orchestrator.search.warm_start import prior_trials
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.source_check import SourceCheck
from search_spaces.space import Constraint, Objective, Range
from tests.support.plans import DATA, TEXT
from tests.support.searches import Search, small_space, worth
from ups_model.config.presets import preset

SECONDS = "cost/train_seconds"


class Warm(Search):
    """A search that learns from what is on its storage, in a folder of its own."""

    def __init__(self, folder, storage, space, trials=14):
        super().__init__(folder, space, trials)
        self.ledger = Ledger.open(str(storage))
        self.plan = SearchPlan(space, "tiny", preset("tiny"), space.seeds, DATA, TEXT, warm=True)
        dimensions = check_dimensions(space, self.plan.base, [])
        self.book = Journal(folder / "warm.log", self.plan.name, space, dimensions, self.plan.start)
        if self.book.prior is None:
            check = SourceCheck(self.ledger, "accept")
            self.book.learn(prior_trials(self.plan, dimensions, self.ledger, check))
        self.graph = TrialQueue(self.plan, self.ledger, self.book, trials)

    def run(self, units=10**6):
        while len(self.trained) < units and (unit := self.graph.next()):
            train(self.ledger, unit)
            self.trained.append(unit.key)
            self.graph.finished(unit.key)
        return self


def train(ledger, unit, **metrics):
    about = {"config": unit.config.canonical(), "train_seconds": 1.0, "project": unit.project}
    metrics = metrics or {"validation/score": worth(unit.config)}
    ledger.write(unit, Record(unit.key, "finished", metrics, about=about, checkpoint="best/step-1"))


def earlier(folder, seed=0, trials=12, **fields):
    """An earlier search on the storage, by default with seeds of a study."""
    folder.mkdir(exist_ok=True)
    run = Search(folder, small_space(**({"first_seed": seed, "sampler": "random"} | fields)), trials)
    while unit := run.graph.next():
        train(run.ledger, unit)
        run.graph.finished(unit.key)
    return run


@pytest.fixture
def storage(tmp_path):
    earlier(tmp_path)
    return tmp_path / "storage"


def folder_of(tmp_path, name):
    (tmp_path / name).mkdir()
    return tmp_path / name


def test_finished_units_of_other_seeds_inform_the_sampler_and_are_no_trials(tmp_path, storage):
    space = small_space()
    warm = Warm(folder_of(tmp_path, "warm"), storage, space).run()
    assert len(warm.book.prior) == 12 and not any(one.own for one in warm.book.prior)
    assert [one.values[0] for one in warm.book.prior] == sorted(
        (one.values[0] for one in warm.book.prior), reverse=True
    )
    assert len(warm.book.trials) == len(warm.trained) == 14, "each trial is trained with its own seed"
    cold = Search(folder_of(tmp_path, "cold"), space, 14).run()
    assert [trial.params for trial in warm.book.trials[1:10]] != [trial.params for trial in cold.book.trials[1:10]]
    mean = [sum(trial.value for trial in run.book.trials[1:10]) / 9 for run in (warm, cold)]
    assert mean[0] > mean[1], "from the second trial on it has learned, where the other draws at random"


@pytest.mark.slow
def test_a_warm_start_twice_and_after_a_kill_suggests_the_same_though_the_storage_has_grown(tmp_path, storage):
    one = Warm(folder_of(tmp_path, "one"), storage, small_space())
    other = Warm(folder_of(tmp_path, "other"), storage, small_space())
    other.run(3)
    earlier(tmp_path, seed=50, sampler_seed=9)
    other = Warm(tmp_path / "other", storage, small_space()).run()
    assert one.run().outcome == other.outcome
    assert len(other.book.prior) == 12
    later = Warm(folder_of(tmp_path, "later"), storage, small_space())
    assert len(later.book.prior) > 12


def test_a_configuration_with_all_own_seeds_costs_nothing_and_the_best_of_them_is_a_trial(tmp_path):
    before = earlier(tmp_path, seed=100, trials=25, sampler="tpe")
    best = max(before.book.trials, key=lambda trial: trial.value)
    assert best.params != before.plan.start
    warm = Warm(folder_of(tmp_path, "warm"), tmp_path / "storage", small_space(), 2).run()
    assert all(one.own for one in warm.book.prior)
    assert [trial.params for trial in warm.book.trials] == [warm.plan.start, best.params]
    assert warm.trained == [] and warm.book.trials[1].value == best.value


def test_only_units_of_the_same_base_data_and_objective_count(tmp_path, storage):
    def known(space=None, **changes):
        plan = SearchPlan(space or small_space(), "tiny", preset("tiny").with_fields(changes), 1, DATA, TEXT)
        ledger = Ledger.open(str(storage))
        return prior_trials(plan, plan.dimensions, ledger, SourceCheck(ledger, "accept"))

    assert len(known()) == 12
    assert known(**{"optim.steps": 9}) == [], "another base"
    other = {name: replace(facts, fingerprint="0" * 16) for name, facts in DATA.items()}
    plan = SearchPlan(small_space(), "tiny", preset("tiny"), 1, other, TEXT)
    ledger = Ledger.open(str(storage))
    assert prior_trials(plan, plan.dimensions, ledger, SourceCheck(ledger, "accept")) == [], "other data"
    assert known(small_space(objective="validation/ar3d/top1")) == [], "a metric that no record has"
    assert len(known(small_space(objectives=(Objective("validation/score"), Objective(SECONDS, "minimize"))))) == 12
    narrow = known(small_space(dimensions={"learning_rate": Range(1e-4, 1e-2, log=True)}))
    assert [list(one.params) for one in narrow] == [["optim.learning_rate"]], "the base's dropout and layers"
    mine = SearchPlan(small_space(), "tiny", preset("tiny"), 1, DATA, TEXT)
    assert prior_trials(mine, mine.dimensions, ledger, SourceCheck(ledger)) == [], "records that name no code"


def test_what_is_known_keeps_its_constraints(tmp_path, storage):
    limit = Constraint(SECONDS, at_most=0.5)
    plan = SearchPlan(small_space(constraints=(limit,)), "tiny", preset("tiny"), 1, DATA, TEXT)
    ledger = Ledger.open(str(storage))
    known = prior_trials(plan, plan.dimensions, ledger, SourceCheck(ledger, "accept"))
    assert {tuple(one.constraints.items()) for one in known} == {((f"{SECONDS} at most 0.5", 0.5),)}


def test_a_warm_search_is_another_search_than_a_cold_one():
    space = small_space()
    names = {SearchPlan(space, "tiny", preset("tiny"), 1, DATA, TEXT, warm=warm).name for warm in (False, True)}
    assert len(names) == 2


def test_what_was_learned_is_kept_in_the_journal_once(tmp_path):
    space = small_space()
    dimensions = check_dimensions(space, preset("tiny"), [])
    book = Journal(tmp_path / "journal.log", "small", space, dimensions, None)
    assert book.prior is None
    params = {"optim.learning_rate": 1e-3, "model.dropout": 0.1, "model.encoder_layers": 2}
    book.learn([PriorTrial(params, [3.0], {}, False)])
    book.learn([])
    again = Journal(tmp_path / "journal.log", "small", space, dimensions, None)
    assert again.prior == [PriorTrial(params, [3.0], {}, False)]


@pytest.mark.slow
def test_cma_es_begins_around_the_best_of_earlier_units(tmp_path, storage):
    dimensions = {"learning_rate": Range(1e-4, 1e-2, log=True), "dropout": Range(0, 0.4)}
    earlier(tmp_path / "more", dimensions=dimensions, trials=30)
    drawn = {}
    for name, where in (("warm", tmp_path / "more" / "storage"), ("cold", tmp_path / "nothing")):
        space = small_space(sampler="cmaes", dimensions=dimensions, first_seed=7)
        drawn[name] = [trial.value for trial in Warm(folder_of(tmp_path, name), where, space).run().book.trials]
    assert statistics.fmean(drawn["warm"][1:7]) > statistics.fmean(drawn["cold"][1:7])


def test_a_sampler_that_does_not_learn_takes_no_warm_start(tmp_path):
    file = tmp_path / "space.py"
    file.write_text(
        "from search_spaces.space import Range, Space\n"
        'SPACE = Space("s", "?", {"dropout": Range(0, 0.3)}, sampler="random", base={"validation_subjects": 1})\n'
    )
    with pytest.raises(ValueError, match=r"--warm-start needs a sampler that learns, tpe, gp, cmaes, nsga2.*'random'"):
        read_search(str(file), "tiny", [], [], None, None, warm=True)
