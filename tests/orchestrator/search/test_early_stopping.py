"""Early stopping: which trial trains on, that no step is trained twice, and what a search with rungs says."""

from __future__ import annotations

import io
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from optuna.trial import TrialState
from PIL import Image

from orchestrator.scheduling.task_graph import State
from orchestrator.search.figures import figures
from orchestrator.search.journal import Journal, aim_of, number_of
from orchestrator.search.resolve_space import check_dimensions, read_search
from orchestrator.search.rungs import END, Rungs, Standing
from orchestrator.search.trial_queue import TrialQueue
from orchestrator.search.trial_report import early_stopping
from orchestrator.search.trials import ranked
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.search_journal import JOURNAL
from orchestrator.storage.source_check import SourceCheck
from orchestrator.worker.job import Rung
from orchestrator.worker.pause import Pause
from search_spaces.space import Constraint, EarlyStopping
from tests.support.searches import finish, plan_of, small_space, worth
from ups_model.training.progress import append_row

ASHA = EarlyStopping()
STEPS = 480
"""Of preset tiny."""


def waiting(step, value, **earlier):
    return Standing(step, {int(name[1:]): number for name, number in earlier.items()} | {step: value})


class Curves:
    """A search whose units take no time and learn as 1 - 1 / step; each instance is a driver that starts anew."""

    def __init__(self, folder, early=ASHA, trials=24, seeds=1, **space):
        self.space = small_space(early_stopping=early, trials=trials, **space)
        self.plan = plan_of(self.space, seeds)
        self.ledger = Ledger.open(str(folder / "storage"))
        dimensions = check_dimensions(self.space, self.plan.base, [])
        self.book = Journal(folder / JOURNAL, self.plan.name, self.space, dimensions, self.plan.start)
        self.graph = TrialQueue(self.plan, self.ledger, self.book, trials)
        self.trained = []
        """(key, step) of each leg."""

    def run(self, legs=10**6):
        while len(self.trained) < legs and (unit := self.graph.next()):
            step = self.graph.rung.get(unit.key, (END, ""))[0]
            self.trained.append((unit.key, step))
            if step == END:
                finish(self.ledger, unit)
                self.graph.finished(unit.key)
            else:
                self.graph.paused(unit.key, worth(unit.config) * (1 - 10 / step))
        self.graph.settle()
        return self

    @property
    def outcome(self):
        return [(number_of(one), one.params, one.state, one.value, one.intermediate_values) for one in self.book.trials]


def test_rungs_are_the_reduction_apart_and_a_search_of_27_trains_27_9_3():
    rungs = Rungs(replace(ASHA, first=1 / 9), 540)
    assert rungs.at == (60, 180)
    # By hand: all to 60, a third on to 180, a ninth on to 540.
    assert rungs.share == pytest.approx((60 + 120 / 3 + 360 / 9) / 540)
    assert Rungs(EarlyStopping("median", points=5, first=0.2), 100).at == (20, 40, 60, 80)


@pytest.mark.parametrize(
    ("trials", "is_last", "expected"),
    [
        ([waiting(60, 1.0), waiting(60, 2.0)], False, None),  # A third of two is none.
        ([waiting(60, 1.0), waiting(60, 3.0), waiting(60, 2.0)], False, 1),
        ([waiting(60, 1.0), Standing(180, {60: 3.0}), waiting(60, 2.0)], False, None),  # The best has gone on.
        ([waiting(60, 1.0), waiting(60, 2.0)], True, 1),  # A short search has one that comes to its end.
        ([waiting(60, 1.0), waiting(180, 0.5, _60=0.1)], True, 1),
        ([waiting(60, 1.0), Standing(END, {60: 0.5})], True, None),
        ([waiting(60, 9.0), replace(waiting(60, 10.0), failed=True), waiting(60, 1.0)], False, None),
        # The upper rung first: of three at 180 the best goes to the end.
        (
            [waiting(180, 1.0, _60=1), waiting(180, 2.0, _60=1), waiting(180, 3.0, _60=1)] + 6 * [waiting(60, 0)],
            False,
            2,
        ),
    ],
)
def test_the_best_of_a_rung_trains_on(trials, is_last, expected):
    assert Rungs(ASHA, 540).promotable(trials, is_last) == expected


def test_brackets_of_hyperband_have_the_sizes_of_its_paper():
    rungs = Rungs(EarlyStopping("hyperband"), 540)
    brackets = [rungs.bracket(number) for number in range(17)]
    assert [brackets.count(one) for one in range(3)] == [9, 5, 3]  # Table 1 there: n of s = 2, 1, 0 with R = 9.
    assert [rungs.first(number) for number in (0, 9, 14)] == [60, 180, END]


@pytest.mark.slow
def test_a_search_trains_a_third_on_at_each_rung_and_finds_the_best(tmp_path):
    search = Curves(tmp_path, trials=27, sampler="random").run()
    legs = [step for _, step in search.trained]
    assert [legs.count(step) for step in (*search.plan.rungs.at, END)] == [27, 9, 3]
    assert len(set(search.trained)) == len(search.trained), "no rung is trained twice"
    states = [trial.state for trial in search.book.trials]
    assert states.count(TrialState.COMPLETE) == 3 and states.count(TrialState.PRUNED) == 24
    worths = [worth(search.plan.units_of(trial.params)[0].config) for trial in search.book.trials]
    assert ranked(search.book.trials, "maximize")[0].value == max(worths)
    assert search.graph.whole and search.graph.complete
    last = [max(trial.intermediate_values) for trial in ranked(search.book.trials, "maximize")]
    assert last == [160] * 9 + [53] * 18, "of those without a result, those that came farther stand first"
    assert f"{27 * 53 + 9 * 107 + 3 * 320:,} of the {27 * 480:,}" in early_stopping(search.graph)[0]


@pytest.mark.slow
def test_a_search_with_rungs_has_a_figure_of_the_values_there(tmp_path):
    search = Curves(tmp_path, trials=9).run()
    drawn = figures(SimpleNamespace(plan=search.plan, dimensions=search.plan.dimensions), search.graph)
    assert "rungs.png" not in drawn, "one complete trial is too few for any"
    more = Curves(tmp_path, trials=24).run()
    inputs = SimpleNamespace(plan=more.plan, dimensions=more.plan.dimensions)
    with Image.open(io.BytesIO(figures(inputs, more.graph)["rungs.png"])) as image:
        assert image.format == "PNG" and len(np.unique(image.convert("L"))) > 5
    assert all(max(trial.intermediate_values) < STEPS for trial in more.book.trials), "the figure leaves trials alone"


@pytest.mark.slow
@pytest.mark.parametrize("early", [ASHA, EarlyStopping("median"), EarlyStopping("hyperband")])
@pytest.mark.parametrize("legs", [1, 2, 7, 20, 30])
def test_a_search_that_dies_between_legs_ends_as_an_undisturbed_one(tmp_path, legs, early):
    undisturbed = Curves(tmp_path / "undisturbed", early).run()
    first = Curves(tmp_path / "killed", early).run(legs)
    first.graph.next()  # Running at the time of death.
    second = Curves(tmp_path / "killed", early).run()
    assert second.outcome == undisturbed.outcome
    assert first.trained + second.trained == undisturbed.trained


def test_a_trial_of_several_seeds_pauses_when_all_have_come_to_the_rung(tmp_path):
    search = Curves(tmp_path, trials=3, seeds=2).run(1)
    assert not search.book.trials[0].intermediate_values
    again = Curves(tmp_path, trials=3, seeds=2).run()
    # The unit that had paused is asked again, which trains nothing: its worker finds the value.
    assert again.trained[0] == search.trained[0]
    assert all(53 in trial.intermediate_values for trial in again.book.trials)
    assert sum(trial.state is TrialState.COMPLETE for trial in again.book.trials) == 1


def test_a_trial_fails_when_one_of_its_seeds_does(tmp_path):
    search = Curves(tmp_path, trials=1, seeds=2)
    one, two = search.graph.next(), search.graph.next()
    search.graph.paused(one.key, 1.0)
    search.graph.failed(two.key, "the loss is not finite")
    assert search.book.trials[0].state is TrialState.FAIL
    again = Curves(tmp_path, trials=1, seeds=2)
    assert {again.graph.next().key, again.graph.next().key} == {one.key, two.key}


@pytest.mark.slow
def test_promote_trains_a_stopped_trial_to_its_end_and_more_trials_compare_with_all(tmp_path):
    search = Curves(tmp_path, trials=9, sampler="random").run()
    worst = min(search.book.trials, key=lambda trial: trial.intermediate_values[53])
    assert worst.state is TrialState.PRUNED
    promoted = TrialQueue(search.plan, search.ledger, search.book, 9, promoted=[number_of(worst)])
    (unit,) = search.plan.units_of(worst.params)
    assert promoted.next().key == unit.key and unit.key not in promoted.rung
    finish(search.ledger, unit)
    promoted.finished(unit.key)
    assert search.book.trials[number_of(worst)].state is TrialState.COMPLETE
    assert search.book.trials[number_of(worst)].intermediate_values == worst.intermediate_values
    more = Curves(tmp_path, trials=27, sampler="random").run()
    assert len(more.book.trials) == 27
    assert {aim_of(trial) for trial in more.book.trials if trial.state is TrialState.COMPLETE} == {END}


def test_a_trial_goes_on_to_its_end_when_another_search_finishes_one_of_its_units_meanwhile(tmp_path):
    search = Curves(tmp_path, trials=1, seeds=2)
    one, two = search.graph.next(), search.graph.next()
    search.graph.paused(one.key, 1.0)
    finish(search.ledger, two)
    search.graph.busy(two.key)
    assert search.graph.look_elsewhere() == [two.key]
    assert aim_of(search.book.trials[0]) == END and search.graph.next().key == one.key
    finish(search.ledger, one)
    search.graph.finished(one.key)
    assert search.book.trials[0].state is TrialState.COMPLETE and search.graph.whole


def test_a_trial_that_another_process_trains_on_is_not_over_for_this_one(tmp_path):
    mine = Curves(tmp_path, trials=1)
    unit = mine.graph.next()
    mine.graph.paused(unit.key, 1.0)
    theirs = Curves(tmp_path, trials=1)
    assert theirs.graph.next().key == unit.key and unit.key in theirs.graph.rung, "promoted, of one trial"
    mine.book.read()
    assert not mine.graph.complete and mine.graph.state[unit.key] is State.ELSEWHERE


def test_values_at_rungs_of_other_code_are_dropped_when_it_is_trained_again(tmp_path):
    first = Curves(tmp_path, trials=3)
    for _ in range(3):
        unit = first.graph.next()
        folder = first.ledger.folder(unit)
        (folder / "checkpoints" / "step-00000053").mkdir(parents=True)
        (folder / "source.json").write_text('{"training": ["0123456789abcdef"], "evaluation": ""}')
        first.graph.paused(unit.key, worth(unit.config))
    kept = Curves(tmp_path, trials=3)
    assert all(trial.intermediate_values for trial in kept.book.trials)
    check = SourceCheck(kept.ledger, "retrain")
    again = TrialQueue(kept.plan, kept.ledger, kept.book, 3, check)
    assert not any(trial.intermediate_values for trial in again.trials)
    assert [again.rung[again.next().key][0] for _ in range(3)] == [53] * 3, "to the first rung again"


def test_a_unit_that_another_search_has_finished_needs_no_rung(tmp_path):
    search = Curves(tmp_path, trials=2, seeds=2)
    first = search.graph.next()
    finish(search.ledger, first)
    again = Curves(tmp_path, trials=2, seeds=2)
    assert again.graph.state[first.key] is State.FINISHED and aim_of(again.book.trials[0]) == END
    again.run()
    assert again.book.trials[0].state is TrialState.COMPLETE


def test_another_rule_is_another_search_and_none_keeps_its_name():
    names = [plan_of(small_space(early_stopping=early)).name for early in (None, ASHA, EarlyStopping("median"))]
    assert len(set(names)) == 3
    assert read_search("learning_rate", "tiny", [], [], None, None, stopping="none").plan.name == (
        read_search("learning_rate", "tiny", [], [], None, None).plan.name
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rule": "best"}, "must be one of asha, hyperband, median, got 'best'"),
        ({"reduction": 1}, "reduction and points of at least 2, got 1"),
        ({"reduction": "3"}, "reduction must be a whole number, got '3'"),
        ({"points": 2.5}, "points must be a whole number, got 2.5"),
        ({"first": 1}, "above 0 and at most that of the last rung, got 1"),
        ({"first": 0}, "got 0; try 0.111"),
        ({"rule": "median", "first": 0.7}, "got 0.7"),
    ],
)
def test_early_stopping_says_what_is_wrong_with_it(changes, message):
    with pytest.raises(ValueError, match=message):
        EarlyStopping(**changes)


def test_runs_too_short_for_a_rung_are_refused():
    with pytest.raises(ValueError, match=r"rungs at 0.037, 0.111, 0.333 of a run, .* got runs of 8 steps; train"):
        Rungs(EarlyStopping(first=1 / 27), 8)
    with pytest.raises(ValueError, match="give its settings a field `steps`"):
        Rungs(ASHA, 0)
    assert Rungs(replace(ASHA, first=0.2), 100).at == (20, 60), "the first rung is where `first` says"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"early_stopping": "asha"}, r"early_stopping must be EarlyStopping\(...\), got 'asha'"),
        ({"seeds": 1.5}, "seeds must be a whole number, got 1.5"),
        ({"trials": True}, "trials must be a whole number, got True"),
        ({"constraints": Constraint("validation/score", at_least=3)}, r"must be a tuple of Constraint\(...\), got Con"),
        ({"objectives": ("validation/score", "cost/flops")}, r"objectives must be a tuple of Objective\(...\)"),
    ],
)
def test_a_space_says_which_field_has_another_kind_of_value(fields, message):
    with pytest.raises(ValueError, match=message):
        small_space(**fields)


def test_a_run_pauses_at_the_first_measure_from_its_rung_on(tmp_path):
    seen = []
    pause = Pause(tmp_path, Rung(100, "validation/score"), lambda step, values: seen.append(step))
    for step, name in ((50, "validation/score"), (100, "train/loss"), (110, "validation/score")):
        append_row(tmp_path / "progress.jsonl", {"step": step, name: float(step)})
        pause.sample(step, {})
        assert pause.value == (110.0 if step == 110 else None)
    assert seen == [50, 100, 110]
    assert Pause(tmp_path, Rung(100, "validation/score"), print).reached_before() is None, "there is no checkpoint"
    assert Pause(tmp_path, None, print).reached_before() is None
