"""Several objectives, constraints and conditions: what is suggested, what is best, what a trial consists of."""

from __future__ import annotations

import csv
import io
import itertools
from dataclasses import replace

import optuna
import pytest
import yaml
from optuna.samplers import RandomSampler
from optuna.trial import TrialState, create_trial

from orchestrator.project import Objective as Measured
from orchestrator.project import Objectives
from orchestrator.record import Record
from orchestrator.search.best_study import STUDY_FILE
from orchestrator.search.figures import PARETO
from orchestrator.search.journal import number_of
from orchestrator.search.plan import SearchPlan
from orchestrator.search.resolve_space import SearchInputs, check_dimensions, check_objective, search_content
from orchestrator.search.suggestions import Generations
from orchestrator.search.trial_report import closing, front_of, table, write_trials
from orchestrator.search.trials import front, ranked
from orchestrator.tracking.arms import arms_of
from search_spaces.space import Choice, Constraint, Objective, Range, Space
from tests.support.searches import Search, small_space, worth
from ups_model.config.presets import preset

ERROR = "validation/pe/mpjpe_mm"
SECONDS = "cost/train_seconds"
TWO = (Objective("validation/score"), Objective(SECONDS, "minimize"))
MEASURED = Objectives(
    "1 validation subject",
    {"validation/score": Measured("%", True), ERROR: Measured("mm", False)}
    | {f"validation/{task}/top1": Measured("%", True) for task in ("eap", "ar3d", "ar2d")},
)


def seconds(config):
    """That a unit takes."""
    return 10.0 * config.model.encoder_layers + 1000 * config.optim.learning_rate


class Trials(Search):
    """A search whose units also have an error and a time."""

    def run(self, units=10**6):
        while len(self.trained) < units and (unit := self.graph.next()):
            config = unit.config
            metrics = {"validation/score": worth(config), ERROR: 50 + 100 * config.model.dropout}
            about = {"train_seconds": seconds(config)}
            self.ledger.write(unit, Record(unit.key, "finished", metrics, about=about))
            self.trained.append(unit.key)
            self.graph.finished(unit.key)
        return self

    @property
    def outcome(self):
        return [(number_of(trial), trial.params, trial.values, trial.constraints) for trial in self.book.trials]

    @property
    def inputs(self):
        space = self.plan.study
        start = self.plan.start if space.name == "small" else None
        dimensions = check_dimensions(space, self.plan.base, [])
        return SearchInputs(self.plan, self.graph.wanted, dimensions, start, MEASURED, {}, {}, {})


def trial_of(*values, number=0, **constraints):
    return create_trial(values=values, user_attrs={"trial": number}, constraints=constraints or None)


def test_the_front_of_six_trials_worked_out_by_hand():
    """Maximise the first, minimise the second: (5, 9) and (3, 4) and (1, 1) are on the front; (3, 5) and (2, 4) are
    worse than (3, 4); (9, 0) would beat all, but breaks its constraint."""
    values = [(3, 5), (5, 9), (9, 0), (1, 1), (3, 4), (2, 4)]
    trials = [
        trial_of(*pair, number=number, **({"limit": 0.5} if pair == (9, 0) else {"limit": 0.0}))
        for number, pair in enumerate(values)
    ]
    directions = ["maximize", "minimize"]
    assert [number_of(trial) for trial in front(trials, directions)] == [1, 3, 4]
    assert [number_of(trial) for trial in ranked(trials, *directions)] == [1, 4, 3, 0, 5, 2]
    study = optuna.create_study(directions=directions)
    study.add_trials(trials)
    assert sorted(trial.number for trial in study.best_trials) == [1, 3, 4], "Optuna says the same"


def test_trials_of_equal_values_are_on_the_front_together_and_one_without_values_is_not():
    running = create_trial(state=TrialState.RUNNING, user_attrs={"trial": 2})
    trials = [trial_of(1.0, 2.0), trial_of(1.0, 2.0, number=1), running]
    assert [number_of(trial) for trial in front(trials, ["maximize", "minimize"])] == [0, 1]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "gp", "random", "qmc"])
@pytest.mark.parametrize("killed_after", [3, 23])
def test_a_killed_search_of_two_objectives_ends_as_an_undisturbed_one(tmp_path, sampler, killed_after):
    trials = 25 if sampler in ("tpe", "nsga2") else 13
    space = small_space(objectives=TWO, constraints=(Constraint(ERROR, at_most=75),), sampler=sampler)
    (tmp_path / "whole").mkdir()
    whole = Trials(tmp_path / "whole", space, trials).run()
    first = Trials(tmp_path, space, trials).run(min(killed_after, trials - 2))
    first.graph.next()  # Running at the time of death.
    second = Trials(tmp_path, space, trials).run()
    assert second.outcome == whole.outcome
    assert len(whole.trained) == len(first.trained + second.trained) == trials
    assert len({str(trial.params) for trial in whole.book.trials}) == trials


def test_a_generation_descends_from_the_best_of_the_complete_trials_before_it():
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=RandomSampler(seed=0))
    where = {"x": optuna.distributions.FloatDistribution(0, 1)}
    for number in range(24):
        study.add_trial(create_trial(values=[number, -number], params={"x": number / 24}, distributions=where))
    sampler = Generations(0)
    asked = study.ask()
    trial = study.trials[asked.number]
    assert sampler.get_trial_generation(study, trial) == 2
    assert [one.number for one in sampler.get_population(study, 1)] == list(range(10, 20))
    assert {one.number for one in sampler.get_parent_population(study, 2)} <= set(range(20))


@pytest.mark.slow
def test_the_genetic_algorithm_finds_a_better_front_than_random_trials(tmp_path):
    def area(sampler):
        """Between the front and a score of 20, up to 45 seconds, in points x seconds."""
        (tmp_path / sampler).mkdir()
        space = small_space(objectives=TWO, sampler=sampler)
        run = Trials(tmp_path / sampler, space, 60).run()
        on_front = front(run.book.trials, ["maximize", "minimize"])
        best = sorted((trial.values for trial in on_front), key=lambda values: values[1])
        ends = [took for _, took in best[1:]] + [45.0]
        return sum(max(0.0, score - 20) * (end - took) for (score, took), end in zip(best, ends, strict=True))

    assert area("nsga2") > area("random")


def test_a_trial_is_judged_by_its_means_over_seeds_and_a_missing_cost_fails_it(tmp_path):
    space = small_space(objectives=TWO, constraints=(Constraint(ERROR, at_most=60),))
    run = Trials(tmp_path, space, 1, seeds=2).run()
    (trial,) = run.book.trials
    config = run.plan.base
    assert trial.values == [pytest.approx(worth(config) - 0.25), 10 * config.model.encoder_layers + 2.0]
    assert trial.constraints == {f"{ERROR} at most 60": pytest.approx(50 + 100 * config.model.dropout - 60)}
    (tmp_path / "none").mkdir()
    lacking = Trials(tmp_path / "none", space, 1)
    unit = lacking.graph.next()
    lacking.ledger.write(unit, Record(unit.key, "finished", {"validation/score": 1.0, ERROR: 3.0}))
    lacking.graph.finished(unit.key)
    assert lacking.graph.reason[0] == f"{SECONDS} is not in the record of each of its units"


@pytest.mark.slow
def test_an_infeasible_trial_is_never_the_best_and_the_report_counts_them(tmp_path):
    space = small_space(constraints=(Constraint(ERROR, at_most=65),))
    run = Trials(tmp_path, space, 13).run()
    broken = {number_of(trial) for trial in run.book.trials if 50 + 100 * trial.params["model.dropout"] > 65}
    assert 0 < len(broken) < 13
    order = [number_of(trial) for trial in ranked(run.book.trials, "maximize")]
    assert set(order[-len(broken) :]) == broken
    write_trials(run.inputs, run.graph, {}, "python -m orchestrator.search small", [tmp_path / "out"])
    text = (tmp_path / "out" / "search.md").read_text()
    assert f"{len(broken)} of 13 complete trials broke the constraints" in text
    assert text.count("(infeasible)") == len(broken)
    rows = list(csv.DictReader(io.StringIO(table(run.inputs, run.graph))))
    assert {int(row["trial"]) for row in rows if row["feasible"] == "no"} == broken
    assert [float(row[ERROR]) > 65 for row in rows] == [row["feasible"] == "no" for row in rows]


@pytest.mark.slow
def test_where_no_trial_keeps_the_constraints_there_is_no_best(tmp_path):
    run = Trials(tmp_path, small_space(constraints=(Constraint(ERROR, at_most=1),)), 3).run()
    write_trials(run.inputs, run.graph, {}, "python -m orchestrator.search small", [tmp_path / "out"])
    assert "None of 3 complete trials keeps the constraints" in (tmp_path / "out" / "search.md").read_text()
    assert not (tmp_path / "out" / STUDY_FILE).exists()
    told = closing(run.inputs, run.graph, tmp_path)
    assert any("None of 3 complete trials keeps" in line for line in told)
    assert not any("orchestrator.ablate" in line for line in told)


@pytest.mark.slow
def test_constraints_lead_suggestions_to_where_they_are_kept(tmp_path):
    def kept(*constraints):
        (tmp_path / str(len(constraints))).mkdir()
        run = Trials(tmp_path / str(len(constraints)), small_space(constraints=constraints), 40).run()
        config = [run.plan.base.with_fields(trial.params) for trial in run.book.trials[20:]]
        return sum(seconds(one) <= 20.8 for one in config)

    # More layers score better, and take more seconds than are admitted.
    assert kept(Constraint(SECONDS, at_most=20.8)) > kept()


def test_the_report_of_two_objectives_has_the_front_as_table_figure_columns_and_study(tmp_path):
    run = Trials(tmp_path, small_space(objectives=(TWO[0], replace(TWO[1], bound=36))), 20).run()
    on_front = front_of(run.inputs, run.graph)
    assert 1 < len(on_front) < 20
    assert all(trial.values[1] <= 36 for trial in on_front)
    written = write_trials(run.inputs, run.graph, {}, "python -m orchestrator.search small", [tmp_path / "out"])
    assert PARETO in [file.name for file in written]
    text = (tmp_path / "out" / "search.md").read_text()
    assert f"## Pareto front: {len(on_front)} of 20 trials" in text and f"]({PARETO})" in text
    assert "Maximize `validation/score` and minimize `cost/train_seconds`" in text
    rows = list(csv.DictReader((tmp_path / "out" / "trials.csv").open()))
    assert {int(row["trial"]) for row in rows if row["front"] == "yes"} == {number_of(trial) for trial in on_front}
    assert all(float(row["validation/score"]) and float(row[SECONDS]) for row in rows)
    values = {number_of(trial): trial.values for trial in run.book.trials}
    assert all([float(row["validation/score"]), float(row[SECONDS])] == values[int(row["trial"])] for row in rows)
    labels = [row["label"] for row in yaml.safe_load((tmp_path / "out" / STUDY_FILE).read_text())["tables"][0]["rows"]]
    assert labels[0] == "base" and 2 <= len(labels) <= 6
    assert set(labels[1:]) <= {f"trial {number_of(trial)}" for trial in on_front}


def test_the_names_of_trials_on_the_front_are_those_of_their_runs_in_mlflow(tmp_path):
    run = Trials(tmp_path, small_space(objectives=TWO), 4).run()
    assert search_content(run.inputs, "command")["objective"] == "validation/score"
    names = {unit.arm for trial in run.book.trials for unit in run.plan.units_of(trial.params)}
    assert names == set(arms_of(run.plan))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"objectives": TWO[:1]}, "objectives must be 2 to 4, got 1"),
        ({"objectives": TWO, "objective": ERROR, "direction": "minimize"}, "objective and direction, or objectives"),
        ({"objectives": (TWO[0], TWO[0])}, "objectives must differ"),
        ({"objectives": (TWO[1], Objective("cost/flops", "minimize"))}, "costs alone need no training"),
        ({"objectives": (TWO[0], Objective(SECONDS))}, "direction of cost/train_seconds must be 'minimize'"),
        ({"objectives": (TWO[0], Objective("test/score"))}, "would spoil it"),
        ({"objective": "cost/flops", "direction": "minimize"}, "must be a validation metric"),
        ({"objectives": TWO, "sampler": "cmaes"}, "sampler cmaes has one objective, got several; use tpe"),
        ({"constraints": (Constraint("test/score", at_least=1),)}, "must be on a validation metric or one of cost/"),
    ],
)
def test_objectives_that_cannot_be_meant_are_refused(fields, words):
    with pytest.raises(ValueError, match=words):
        small_space(**fields)


def test_a_constraint_has_one_side():
    with pytest.raises(ValueError, match="needs at_most or at_least, got None and None"):
        Constraint(ERROR)


def test_each_objective_must_be_measured_and_look_for_the_best():
    with pytest.raises(ValueError, match=f"direction of {ERROR} must be 'minimize'"):
        check_objective(small_space(objectives=(TWO[0], Objective(ERROR))), MEASURED)
    with pytest.raises(ValueError, match="'validation/pe/f1' is not measured"):
        check_objective(small_space(constraints=(Constraint("validation/pe/f1", at_least=1),)), MEASURED)


def test_a_display_shows_the_best_admitted_trials_so_far(tmp_path):
    run = Trials(tmp_path, small_space(constraints=(Constraint(ERROR, at_most=65),)), 13)
    assert run.graph.highlights() == ["trials: 0 of 13 complete"]
    run.run()
    head, *lines = run.graph.highlights()
    assert head == "trials: 13 of 13 complete, best first:"
    kept = [trial for trial in run.book.trials if 50 + 100 * trial.params["model.dropout"] <= 65]
    best = sorted(kept, key=lambda trial: -trial.value)[:3]
    assert [int(line.split(":")[0]) for line in lines] == [number_of(trial) for trial in best]


CONDITIONAL = {
    "routing_execution": Choice(("sparse", "dense")),
    "encoder_layers": Choice((1, 2), when={"routing_execution": "sparse"}),
    "decoder_layers": Range(1, 2, when={"encoder_layers": 2}),
    "weight_decay": Choice((0.0, 0.1)),
}
"""Dense: 2. Sparse: with one layer 2, with two layers 2 x 2. In all 8."""


def conditional(**fields):
    return Space("conditional", "?", CONDITIONAL, **fields)


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random", "qmc"])
def test_a_conditional_space_has_each_of_its_eight_configurations_once(tmp_path, sampler):
    run = Search(tmp_path, conditional(sampler=sampler), 30).run()
    assert len(run.book.trials) == run.graph.total == 8
    assert run.graph.whole
    names = ("model.routing_execution", "model.encoder_layers", "model.decoder_layers", "optim.weight_decay")
    points = [tuple(trial.params.get(name) for name in names) for trial in run.book.trials]
    expected = [
        *(("sparse", 1, None, decay) for decay in (0.0, 0.1)),
        *(("sparse", 2, layers, decay) for layers, decay in itertools.product((1, 2), (0.0, 0.1))),
        *(("dense", None, None, decay) for decay in (0.0, 0.1)),
    ]
    assert sorted(points, key=str) == sorted(expected, key=str)
    if sampler == "grid":
        assert points == expected
    assert len({unit.key for trial in run.book.trials for unit in run.plan.units_of(trial.params)}) == 8


def test_a_field_whose_condition_does_not_hold_is_as_in_the_base(tmp_path):
    run = Search(tmp_path, conditional(sampler="grid"), 30).run()
    base = preset("tiny")
    for trial in run.book.trials:
        (unit,) = run.plan.units_of(trial.params)
        if trial.params["model.routing_execution"] == "dense":
            assert unit.config.model.encoder_layers == base.model.encoder_layers
            assert "encoder_layers" not in unit.arm
        if trial.params.get("model.encoder_layers") != 2:
            assert unit.config.model.decoder_layers == base.model.decoder_layers


@pytest.mark.parametrize("killed_after", [2, 14])
def test_a_killed_conditional_search_suggests_what_it_would_have_suggested(tmp_path, killed_after):
    dimensions = {
        "routing_execution": Choice(("sparse", "dense")),
        "learning_rate": Range(1e-4, 1e-2, log=True, when={"routing_execution": "sparse"}),
        "dropout": Range(0.0, 0.4),
    }
    space = Space("half", "?", dimensions)
    (tmp_path / "whole").mkdir()
    whole = Search(tmp_path / "whole", space, 20).run()
    first = Search(tmp_path, space, 20).run(killed_after)
    first.graph.next()
    assert Search(tmp_path, space, 20).run().outcome == whole.outcome
    assert {len(trial.params) for trial in whole.book.trials} == {2, 3}


@pytest.mark.parametrize(
    ("dimensions", "words"),
    [
        ({"dropout": Range(0, 0.3, when={"weight_decay": 0.1})}, "optim.weight_decay is not searched"),
        ({"dropout": Range(0, 0.3, when={"weight_dekay": 0.1})}, "unknown field 'weight_dekay'"),
        ({"dropout": Choice((0.0, 0.1), when={"dropout": 0.1})}, "comes later or is the dimension itself"),
        (
            {
                "dropout": Choice((0.0, 0.1), when={"weight_decay": 0.1}),
                "weight_decay": Choice((0.0, 0.1), when={"dropout": 0.1}),
            },
            "needs an earlier dimension, and optim.weight_decay comes later",
        ),
        (
            {"weight_decay": Range(0, 0.1), "dropout": Range(0, 0.3, when={"weight_decay": 0.1})},
            "needs a Choice, and optim.weight_decay is a Range",
        ),
        (
            {"weight_decay": Choice((0.0, 0.1)), "dropout": Range(0, 0.3, when={"weight_decay": (0.1, 0.2)})},
            "0.2} never holds",
        ),
    ],
)
def test_conditions_that_cannot_hold_are_refused(dimensions, words):
    with pytest.raises(ValueError, match=words):
        check_dimensions(Space("odd", "?", dimensions), preset("tiny"), [])


@pytest.mark.parametrize("sampler", ["gp", "nsga2"])
def test_samplers_that_learn_only_what_all_trials_have_take_no_conditions(sampler):
    with pytest.raises(ValueError, match=f"sampler {sampler} does not learn fields that only some trials have"):
        check_dimensions(conditional(sampler=sampler), preset("tiny"), [])


def test_cma_es_takes_ranges_alone():
    dimensions = {"dropout": Range(0, 0.3), "encoder_layers": Choice((1, 2))}
    with pytest.raises(ValueError, match="sampler cmaes learns ranges alone, got a Choice; give a Range, or use tpe"):
        check_dimensions(Space("s", "?", dimensions, sampler="cmaes"), preset("tiny"), [])


def test_objectives_constraints_and_conditions_make_another_search():
    def name(space):
        return SearchPlan(space, "tiny", preset("tiny"), 1, {}, "").name

    spaces = [
        small_space(),
        small_space(objectives=TWO),
        small_space(objectives=(TWO[0], replace(TWO[1], bound=3.0))),
        small_space(constraints=(Constraint(ERROR, at_most=60),)),
        small_space(dimensions={"encoder_layers": Choice((1, 2)), "dropout": Range(0, 0.4)}),
        small_space(
            dimensions={"encoder_layers": Choice((1, 2)), "dropout": Range(0, 0.4, when={"encoder_layers": 1})}
        ),
    ]
    assert len({name(space) for space in spaces}) == len(spaces)
