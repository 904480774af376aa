"""Searches: what is suggested, what survives a crash, what is judged, and that the test split stays untouched."""

from __future__ import annotations

import itertools
import json
import math
import shlex
import statistics
import sys

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from PIL import Image

from orchestrator import ablate
from orchestrator.planning.plan import make_plan
from orchestrator.planning.resolve import resolve
from orchestrator.project import load_project
from orchestrator.record import Record
from orchestrator.scheduling.task_graph import State
from orchestrator.search.best_study import STUDY_FILE, STUDY_SEEDS
from orchestrator.search.dimensions import distribution_of, values_of
from orchestrator.search.figures import figures
from orchestrator.search.journal import Journal, number_of
from orchestrator.search.plan import SearchPlan
from orchestrator.search.resolve_space import check_dimensions, read_search
from orchestrator.search.trial_queue import TrialQueue
from orchestrator.search.trial_report import STATES, caution, closing, markdown, table, write_trials
from orchestrator.search.trials import ranked, spread
from orchestrator.storage.ledger import Ledger
from orchestrator.storage.search_journal import JOURNAL, trials_begun
from orchestrator.storage.source_check import SourceCheck
from orchestrator.tracking.read import fetch
from orchestrator.worker.job import Job
from orchestrator.worker.run_unit import run_unit
from search_spaces import find_space, space_names
from search_spaces.columns import AR3D
from search_spaces.space import Choice, Range, Space
from search_spaces.study import Row, Study, Table
from tests.support.drivers import Driver, mlflow_runs, records, wait_until
from tests.support.fake_driver import FakeDriver
from tests.support.plans import DATA, TEXT, graph_of, new_ledger
from tests.support.runs import FLAT
from tests.support.searches import TRIALS, Search, finish, in_journal, search_bench, small_space, worth
from ups_model.config.presets import preset
from ups_model.training.progress import read_rows


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    return search_bench(tmp_path_factory)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return Search(tmp_path_factory.mktemp("undisturbed")).run()


def test_the_same_seed_suggests_the_same_trials_and_another_seed_others(tmp_path, undisturbed):
    again = Search(tmp_path / "again").run()
    other = Search(tmp_path / "other", small_space(sampler_seed=1)).run()
    assert again.outcome == undisturbed.outcome
    pairs = list(zip(other.outcome, undisturbed.outcome, strict=True))
    assert pairs[0][0][1] == pairs[0][1][1], "the first trial is the base configuration"
    assert all(one[1] != two[1] for one, two in pairs[1:])


def test_the_first_trial_is_the_base_configuration_and_the_search_finds_better(undisturbed):
    base = preset("tiny")
    first = undisturbed.book.trials[0]
    assert first.params == {
        "optim.learning_rate": base.optim.learning_rate,
        "model.dropout": base.model.dropout,
        "model.encoder_layers": base.model.encoder_layers,
    }
    best = ranked(undisturbed.book.trials, "maximize")[0]
    assert best.value > first.value
    assert best.value == max(trial.value for trial in undisturbed.book.trials)
    late = [trial.value for trial in undisturbed.book.trials[10:]]
    early = [trial.value for trial in undisturbed.book.trials[1:10]]
    assert sum(late) / len(late) > sum(early) / len(early), "suggestions learn from results"


@pytest.mark.parametrize("units", [0, 1, 2, 5, 11, 12])
def test_a_search_that_dies_between_units_ends_as_an_undisturbed_one_and_trains_nothing_twice(
    tmp_path, undisturbed, units
):
    first = Search(tmp_path).run(units)
    unit = first.graph.next()  # Running at the time of death.
    assert unit is not None
    second = Search(tmp_path).run()
    assert second.outcome == undisturbed.outcome
    assert second.trained[0] == unit.key, "what was running is taken up first"
    assert sorted(first.trained + second.trained) == sorted(undisturbed.trained)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.31, 0.5, 0.72, 0.9, 0.999])
def test_a_journal_that_ends_anywhere_is_gone_on_with_and_no_value_changes(tmp_path, undisturbed, share):
    Search(tmp_path).run()
    text = (tmp_path / JOURNAL).read_bytes()
    (tmp_path / JOURNAL).write_bytes(text[: int(share * len(text))])
    second = Search(tmp_path).run()
    assert second.outcome == undisturbed.outcome
    assert second.trained == [], "every unit had its record"
    assert Search(tmp_path).outcome == undisturbed.outcome


def test_a_line_that_a_full_disk_cut_short_does_not_spoil_what_comes_after_it(tmp_path, undisturbed):
    one = Search(tmp_path).run(4)
    with one.file.open("ab") as stream:
        stream.write(b'{"op_code":4,"worker')
    one.run()
    assert one.outcome == undisturbed.outcome == Search(tmp_path).outcome


def test_a_journal_of_something_else_is_refused_in_one_line(tmp_path):
    (tmp_path / JOURNAL).write_text("a diary\nof two lines\n")
    with pytest.raises(ValueError, match=r"journal\.log: not the trials of this search.*move it away") as refused:
        Search(tmp_path)
    assert "\n" not in str(refused.value)


def test_more_trials_go_on_from_those_that_are_there(tmp_path, undisturbed):
    assert Search(tmp_path, trials=4).run().graph.complete
    more = Search(tmp_path).run()
    assert more.outcome == undisturbed.outcome
    assert len(more.trained) == TRIALS - 4


def test_a_unit_that_a_study_has_trained_is_not_trained_again(tmp_path):
    space = small_space(first_seed=0)
    ledger = new_ledger(tmp_path)
    row = Row("joint", training="joint")
    study = Study("other", "?", "!", (Table("t", "T", "V", (AR3D,), (row,), "joint"),))
    plan = make_plan(resolve(study, "tiny", {}), 1, DATA, TEXT)
    (unit,) = plan.units.values()
    finish(ledger, unit, **{"validation/score": 33.0, "test/score": 99.0})
    search_run = Search(tmp_path, space, trials=1).run()
    assert search_run.trained == []
    assert search_run.book.trials[0].value == 33.0


def test_several_trials_at_once_differ_and_are_finished_in_any_order(tmp_path):
    search_run = Search(tmp_path, seeds=2, trials=12)
    running = [search_run.graph.next() for _ in range(6)]
    assert len({unit.key for unit in running}) == 6
    assert [unit.seed for unit in running] == [100, 101] * 3
    assert len(search_run.book.trials) == 3
    for unit in reversed(running):
        finish(search_run.ledger, unit)
        search_run.graph.finished(unit.key)
    search_run.run()
    assert search_run.graph.complete
    assert search_run.graph.whole
    for trial in search_run.book.trials:
        values = [worth(unit.config) for unit in search_run.plan.units_of(trial.params)]
        assert len(values) == 2
        assert trial.value == pytest.approx((values[0] + values[1]) / 2)
    assert len({str(trial.params) for trial in search_run.book.trials}) == 12


def test_a_failed_unit_fails_its_trial_alone_and_is_tried_again_with_the_same_parameters(tmp_path):
    one = Search(tmp_path, seeds=2, trials=5)
    units = [one.graph.next() for _ in range(4)]
    for unit in units:
        if unit is units[2]:
            one.graph.failed(unit.key, "the loss was not finite")
        else:
            finish(one.ledger, unit)
            one.graph.finished(unit.key)
    one.run()
    assert one.graph.complete
    assert not one.graph.whole
    assert [STATES[trial.state] for trial in one.book.trials] == [
        "complete",
        "failed",
        "complete",
        "complete",
        "complete",
    ]
    assert "the loss was not finite" in one.graph.reason[1]
    assert [state for state, _ in in_journal(one.file)] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    two = Search(tmp_path, seeds=2, trials=5).run()
    assert two.trained == [units[2].key]
    assert two.graph.whole
    assert [trial.params for trial in two.book.trials] == [trial.params for trial in one.book.trials]
    assert [state for state, _ in in_journal(one.file)] == [*["COMPLETE", "FAIL"], *["COMPLETE"] * 4]
    assert in_journal(one.file)[5][1] == in_journal(one.file)[1][1]


def test_a_trial_whose_unit_is_forgiven_what_a_machine_did_gets_its_value(tmp_path):
    search_run = Search(tmp_path, trials=2)
    unit = search_run.graph.next()
    search_run.graph.failed(unit.key, "its process died")
    assert search_run.book.trials[0].state is TrialState.FAIL
    search_run.graph.again(unit.key)  # The dispatcher has found that the node was at fault.
    search_run.run()
    assert search_run.graph.whole
    assert [state for state, _ in in_journal(search_run.file)] == ["FAIL", "COMPLETE", "COMPLETE"]


@pytest.mark.slow
def test_suggestions_keep_away_from_where_trials_failed(tmp_path):
    def suggestions(failures):
        dropouts = []
        for seed in range(8):
            space = Space("hill", "?", {"dropout": Range(0, 0.9)}, sampler_seed=seed)
            book = Journal(tmp_path / f"{failures}-{seed}", "hill", space, {"model.dropout": Range(0.0, 0.9)}, None)
            for place in range(18):  # The two best are at 0.2 and 0.8.
                trial = book.begin({"model.dropout": place / 20})
                book.complete(trial, 1.0 if place in (4, 16) else 0.0)
            for place in range(failures):
                book.end(book.begin({"model.dropout": 0.77 + place / 200}), TrialState.FAIL)
            dropouts.append(book.suggest()["model.dropout"])
        return dropouts

    assert sum(value > 0.6 for value in suggestions(0)) > 4
    assert all(value < 0.6 for value in suggestions(20))


def test_a_small_space_ends_when_it_has_no_more_configurations(tmp_path):
    choices = {"routing_execution": Choice(("sparse", "dense")), "weight_decay": Choice((0.0, 1.23456e-4))}
    space = Space("tiny_one", "?", {"encoder_layers": Range(1, 3), **choices})
    search_run = Search(tmp_path, space, trials=20).run()
    assert search_run.graph.complete
    assert search_run.graph.whole
    assert len(search_run.book.trials) == len({str(trial.params) for trial in search_run.book.trials}) == 12
    assert {trial.params["optim.weight_decay"] for trial in search_run.book.trials} == {0.0, 1.23456e-4}


def test_a_stopped_trial_is_neither_complete_nor_failed(tmp_path):
    search_run = Search(tmp_path, trials=3)
    unit = search_run.graph.next()
    search_run.graph.stopping = True
    search_run.graph.stopped(unit.key)
    assert search_run.graph.complete
    assert not search_run.graph.whole
    assert search_run.graph.next() is None
    assert [state for state, _ in in_journal(search_run.file)] == ["RUNNING"]


def test_a_journal_that_cannot_be_written_stops_the_search_and_loses_nothing(tmp_path, undisturbed, monkeypatch):
    search_run = Search(tmp_path).run(3)
    unit = search_run.graph.next()
    finish(search_run.ledger, unit)
    with monkeypatch.context() as patch:
        patch.setattr(JournalFileBackend, "append_logs", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
        search_run.graph.finished(unit.key)
    assert search_run.graph.complete
    assert "No space left" in search_run.graph.fault
    assert Search(tmp_path).run().outcome == undisturbed.outcome


def test_values_are_means_with_their_spread_and_best_comes_first():
    # 50 and 54: mean 52, standard deviation sqrt(((-2)^2 + 2^2) / 1) = 2.83.
    assert spread([50.0, 54.0]) == "52 ± 2.8 (n = 2)"
    assert spread([50.0]) == "50 (n = 1)"
    ends = ((TrialState.COMPLETE, 3.0), (TrialState.FAIL, None), (TrialState.COMPLETE, 5.0))
    trials = [
        create_trial(state=state, value=value, user_attrs={"trial": number})
        for number, (state, value) in enumerate(ends)
    ]
    assert [number_of(trial) for trial in ranked(trials, "maximize")] == [2, 0, 1]
    assert [number_of(trial) for trial in ranked(trials, "minimize")] == [0, 2, 1]


def searches(storage):
    """The trials as a search has written them, each seed's value and each key included."""
    (file,) = (storage / "searches").glob("*/trials.csv")
    return file.read_text()


def job(bench, storage, unit, test):
    paths = {name: str(path) for name, path in bench.data.items()}
    return Job(unit, None, str(storage), paths, str(bench.folder / "cache"), device="cpu", test=test)


@pytest.mark.slow
def test_a_study_measures_what_a_search_has_trained_without_training_it_again(bench, tmp_path):
    inputs = bench.inputs("optim.steps=8")
    (unit,) = inputs.plan.units_of(inputs.start)[:1]
    ledger = Ledger.open(str(tmp_path / "searched"))
    assert run_unit(job(bench, ledger.root, unit, test=False), lambda: False).status == "finished"
    before, folder = ledger.finished(unit), ledger.folder(unit)
    progress = (folder / "progress.jsonl").read_text()
    assert any(name.startswith("validation/") for name in before.metrics)
    assert not [name for name in before.metrics if name.startswith("test/")]
    assert "test/" not in (folder / "result.json").read_text() + progress

    table = Table("t", "T", "V", (AR3D,), (Row("joint", training="joint"),), "joint")
    study = Study("after", "?", "!", (table,), inputs.plan.study.base)
    resolved = resolve(study, "tiny", {"optim.steps": 8, "seed": 0})
    study = make_plan(resolved, 101, inputs.plan.data, inputs.plan.inputs)
    assert study.units[unit.key].folder == unit.folder
    graph = graph_of(study, ledger)
    assert graph.state[unit.key] is State.WAITING
    assert run_unit(job(bench, ledger.root, unit, test=True), lambda: False).status == "finished"
    assert graph_of(study, ledger).state[unit.key] is State.FINISHED

    after = ledger.finished(unit)
    direct = Ledger.open(str(tmp_path / "direct"))
    run_unit(job(bench, direct.root, unit, test=True), lambda: False)
    assert after.metrics == direct.finished(unit).metrics
    assert {name: after.metrics[name] for name in before.metrics} == before.metrics
    assert (folder / "progress.jsonl").read_text() == progress, "no step was taken again"
    assert after.about["train_seconds"] == before.about["train_seconds"]
    assert (after.about["started"], after.about["ended"]) == (before.about["started"], before.about["ended"])
    assert after.about["tested"]["started"] >= before.about["ended"]
    # A search that comes back to it takes it as it is, and leaves its test metrics.
    assert run_unit(job(bench, ledger.root, unit, test=False), lambda: False).status == "finished"
    assert ledger.finished(unit) == after


@pytest.mark.slow
def test_weights_that_are_made_again_for_a_search_keep_their_test_metrics(bench, tmp_path):
    inputs = bench.inputs("optim.steps=8")
    (unit,) = inputs.plan.units_of(inputs.start)[:1]
    ledger = Ledger.open(str(tmp_path))
    run_unit(job(bench, tmp_path, unit, test=True), lambda: False)
    before = ledger.finished(unit)
    (ledger.weights(unit, before) / "model.safetensors").write_bytes(b"")
    assert run_unit(job(bench, tmp_path, unit, test=False), lambda: False).status == "finished"
    assert ledger.finished(unit).metrics == before.metrics


def test_the_report_says_what_a_best_value_is_worth(bench, tmp_path):
    inputs = bench.inputs("optim.steps=8", seeds=1, trials=3)
    book = Journal(tmp_path / JOURNAL, inputs.plan.name, inputs.plan.study, inputs.dimensions, inputs.start)
    graph = TrialQueue(inputs.plan, Ledger.open(str(tmp_path)), book, 3)
    while unit := graph.next():
        finish(graph.ledger, unit)
        graph.finished(unit.key)
    assert trials_begun((tmp_path / JOURNAL).read_bytes()) == len(book.trials) == 3
    text = markdown(inputs, graph, {}, "python -m orchestrator.search toy")
    order = ranked(book.trials, "maximize")
    lines = [line for line in text.splitlines() if line.startswith("| ") and "Trial" not in line and "---" not in line]
    assert [int(line.split("|")[1].split()[0]) for line in lines] == [number_of(trial) for trial in order]
    assert all("(n = 1)" in line for line in lines)
    assert all(f"`{inputs.plan.units_of(trial.params)[0].key}`" in text for trial in book.trials)
    assert "looks better than it is" in text
    assert "fresh seeds" in text
    assert "Synthetic data" in text
    assert any("trials can't be told apart" in line for line in caution(inputs, graph, order))
    rows = table(inputs, graph).splitlines()
    assert rows[1].split(",")[0] == str(number_of(order[0]))
    assert float(rows[1].split(",")[2]) == order[0].value


def searched(bench, tmp_path, best):
    """A search of three trials, of which the one with this number is the best."""
    text = (bench.folder / "toy_space.py").read_text()
    assert '"ar2d.sources": ("toy_flat",)' in text
    space = tmp_path / "without_2d.py"
    space.write_text(
        text.replace('"ar2d.sources": ("toy_flat",)', '"ar2d.sources": (), "cycle": ("pe", "eap", "ar3d")')
    )
    data = [f"{name}={path}" for name, path in bench.data.items() if name != FLAT]
    inputs = read_search(str(space), "tiny", data, ["optim.steps=8"], 1, 3)
    book = Journal(tmp_path / JOURNAL, inputs.plan.name, inputs.plan.study, inputs.dimensions, inputs.start)
    graph = TrialQueue(inputs.plan, Ledger.open(str(tmp_path)), book, 3)
    place = 0
    while unit := graph.next():
        graph.ledger.write(unit, Record(unit.key, "finished", {"validation/score": 1.0 + (place == best)}))
        graph.finished(unit.key)
        place += 1
    written = write_trials(inputs, graph, {}, "python -m orchestrator.search toy", [tmp_path])
    return inputs, graph, written


@pytest.mark.slow
def test_the_report_has_optunas_plots_and_none_of_an_earlier_one(bench, tmp_path):
    inputs, graph, written = searched(bench, tmp_path, best=2)
    names = [file.name for file in written if file.suffix == ".png"]
    assert names == ["history.png", "slice.png", "parallel.png", *(["contour.png"] * (len(inputs.dimensions) > 1))]
    text = (tmp_path / "search.md").read_text()
    for name in names:
        assert f"]({name})" in text
        with Image.open(tmp_path / name) as image:
            assert image.format == "PNG" and image.size[0] > 300 and len(np.unique(image.convert("L"))) > 5
    graph.journal.trials = graph.journal.trials[:1]
    assert figures(inputs, graph) == {}
    write_trials(inputs, graph, {}, "python -m orchestrator.search toy", [tmp_path])
    assert not list(tmp_path.glob("*.png")) and ".png" not in (tmp_path / "search.md").read_text()


@pytest.mark.slow
def test_the_printed_command_runs_a_study_of_the_base_and_the_best_trial(bench, tmp_path, monkeypatch, capsys):
    inputs, graph, written = searched(bench, tmp_path, best=2)
    assert tmp_path / STUDY_FILE in written
    told = f"python -m orchestrator.ablate {STUDY_FILE} --preset tiny --data toy_pose=PATH"
    assert told in (tmp_path / "search.md").read_text()
    command = shlex.split(closing(inputs, graph, tmp_path)[-1])
    driver = FakeDriver.install(monkeypatch)
    assert command[:3] == ["python", "-m", "orchestrator.ablate"]
    assert ablate.main(command[3:]) == 0, capsys.readouterr().err
    best = ranked(graph.trials, "maximize")[0]
    steps = {job.unit.config.optim.steps for job in driver.jobs}
    rates = {job.unit.config.optim.learning_rate for job in driver.jobs}
    assert steps == {8} and rates == {inputs.plan.base.optim.learning_rate, best.params["optim.learning_rate"]}
    assert len(driver.jobs) == 2 * STUDY_SEEDS and {job.unit.seed for job in driver.jobs} == set(range(STUDY_SEEDS))


@pytest.mark.slow
def test_where_the_base_is_best_nothing_is_compared(bench, tmp_path):
    (tmp_path / STUDY_FILE).write_text("of an earlier call")
    inputs, graph, written = searched(bench, tmp_path, best=0)
    assert not (tmp_path / STUDY_FILE).exists()
    assert [file.name for file in written if file.suffix != ".png"] == ["search.md", "trials.csv"]
    assert closing(inputs, graph, tmp_path)[-1] == (
        "none of 3 trials is better than the base configuration: nothing to compare"
    )
    assert "orchestrator.ablate" not in (tmp_path / "search.md").read_text()


def test_bad_input_is_one_clear_line_before_anything_starts(bench, tmp_path, capsys):
    storage = tmp_path / "storage"
    own = (bench.folder / "toy_space.py").read_text()

    def refused(old, new, *more):
        assert old in own
        file = tmp_path / "spoilt.py"
        file.write_text(own.replace(old, new))
        return bench.refusal(capsys, storage, *more, space=file)

    assert "near: learning_rate" in bench.refusal(capsys, storage, space="lerning_rate")
    assert "--trials must be at least 1, got 0" in bench.refusal(capsys, storage, "--trials", "0")
    assert "--promote: there is no trial 3; " in bench.refusal(capsys, storage, "--promote", "3")
    assert "--seeds must be at least 1, got 0" in bench.refusal(capsys, storage, "--seeds", "0")
    assert "validation_subjects must be at least 1 for a search, got 0" in bench.refusal(
        capsys, storage, "--set", "validation_subjects=0"
    )
    assert "searched and set" in bench.refusal(capsys, storage, "--set", "dropout=0.2")
    assert "unknown field 'dropuot'; near: dropout" in refused('"dropout"', '"dropuot"')
    assert "dropout must lie in [0, 0.99], got 1.5" in refused("Range(0, 0.3)", "Range(0, 1.5)")
    assert "unequal budgets" in refused('"dropout": Range(0, 0.3)', '"steps": Range(40, 80)')
    assert "unequal budgets" in refused('"dropout": Range(0, 0.3)', '"pe.batch_size": Range(2, 8)')
    assert "seeds instead" in refused('"dropout": Range(0, 0.3)', '"seed": Range(0, 8)')
    assert "whole number" in refused('"dropout": Range(0, 0.3)', '"encoder_layers": Range(1, 2.5)')
    assert "sampler must be one of tpe, gp, cmaes, nsga2, random, qmc, grid, got 'cma'" in refused(
        "seeds=2", 'seeds=2, sampler="cma"'
    )
    assert "grid needs a step, got a range without one" in refused("seeds=2", 'seeds=2, sampler="grid"')
    assert "would spoil it" in refused("seeds=2", 'seeds=2, objective="test/score"')
    assert "is not measured" in refused("seeds=2", 'seeds=2, objective="validation/ar3d/f1"')
    assert "direction of validation/pe/mpjpe_mm must be 'minimize'" in refused(
        "seeds=2", 'seeds=2, objective="validation/pe/mpjpe_mm"'
    )
    assert not storage.exists()


@pytest.mark.parametrize("sampler", ["tpe", "gp", "cmaes", "random", "qmc"])
def test_each_sampler_suggests_the_same_trials_again_and_none_twice(sampler, tmp_path):
    trials = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        search = Search(tmp_path / name, small_space(sampler=sampler)).run()
        trials.append([trial.params for trial in search.book.trials])
    assert trials[0] == trials[1] and len(trials[0]) == TRIALS
    assert len({tuple(params.values()) for params in trials[0]}) == TRIALS


@pytest.mark.slow
def test_generations_of_cma_es_draw_together(tmp_path):
    dimensions = {"learning_rate": Range(1e-4, 1e-2, log=True), "dropout": Range(0, 0.4)}
    search = Search(tmp_path, small_space(sampler="cmaes", dimensions=dimensions), trials=60).run()
    rates = [math.log10(trial.params["optim.learning_rate"]) for trial in search.book.trials]
    assert statistics.pstdev(rates[-12:]) < statistics.pstdev(rates[:12]) / 2
    values = [trial.value for trial in search.book.trials]
    assert statistics.fmean(values[-12:]) > max(values[:6])


@pytest.mark.slow
def test_samplers_that_learn_come_nearer_to_the_best_than_those_that_do_not(tmp_path):
    best = {}
    for sampler in ("tpe", "gp", "random"):
        (tmp_path / sampler).mkdir()
        search = Search(tmp_path / sampler, small_space(sampler=sampler, trials=25), trials=25).run()
        best[sampler] = max(trial.value for trial in search.book.trials)
    assert best["gp"] > best["random"] and best["tpe"] > best["random"]


@pytest.mark.slow
def test_sobols_points_lie_more_evenly_than_random_ones(tmp_path):
    def largest_gap(sampler):
        (tmp_path / sampler).mkdir()
        space = Space("even", "?", {"dropout": Range(0.0, 0.4)}, sampler=sampler, trials=32)
        drawn = sorted(
            trial.params["model.dropout"] for trial in Search(tmp_path / sampler, space, 32).run().book.trials
        )
        return max(after - before for before, after in itertools.pairwise([0.0, *drawn, 0.4]))

    assert largest_gap("qmc") < 0.03 < largest_gap("random")


def test_a_range_with_a_step_has_both_its_ends_whatever_floating_point_says():
    """By it 0.3 has less than three steps of 0.1, and between 0.2 and 0.3 there is less than one."""
    stepped = [Range(0.0, 0.3, step=0.1), Range(0.2, 0.3, step=0.1), Range(0.0, 0.5, step=0.1), Range(1, 8, step=3)]
    values = [values_of(distribution_of(each)) for each in stepped]
    assert values == [[0.0, 0.1, 0.2, 0.3], [0.2, 0.3], [0.0, 0.1, 0.2, 0.3, 0.4, 0.5], [1, 4, 7]]


def test_a_grid_has_each_combination_once_in_order_and_then_ends(tmp_path):
    dimensions = {"dropout": Range(0.0, 0.2, step=0.1), "encoder_layers": Range(1, 2)}
    search = Search(tmp_path, Space("grid", "?", dimensions, sampler="grid", trials=20), 20).run()
    points = [tuple(trial.params.values()) for trial in search.book.trials]
    assert points == list(itertools.product((0.0, 0.1, 0.2), (1, 2)))
    assert search.graph.whole and search.graph.total == 6


def space_of(project, **fields):
    return Space("own", "?", {"learning_rate": Range(1e-4, 1e-2)}, project=f"baselines.{project}", **fields)


def test_a_trial_of_a_project_that_trains_tasks_apart_is_the_run_of_its_objective():
    base = load_project("baselines.project:DD_NET").base("tiny")
    plan = SearchPlan(space_of("project:DD_NET", objective="validation/eap/top1"), "tiny", base, 1, DATA, "")
    (unit,) = plan.units_of({"learning_rate": 2e-3})
    assert (unit.stage, unit.task, unit.config.optim.task) == ("dd_net", "eap", "eap")
    assert unit.project == "baselines.project:DD_NET" and unit.key == unit.trainer.key(
        unit.config, {"synthetic_ntu25": DATA["synthetic_ntu25"].fingerprint}, "", ""
    )
    with pytest.raises(ValueError, match="'validation/score' is of all tasks, and dd_net trains ar2d, eap, ar3d apart"):
        SearchPlan(space_of("project:DD_NET"), "tiny", base, 1, DATA, "").units_of({})
    both = load_project("baselines.multitask.project:MULTITASK").base("tiny")
    plan = SearchPlan(space_of("multitask.project:MULTITASK"), "tiny", both, 1, DATA, "")
    assert [(unit.stage, unit.task) for unit in plan.units_of({})] == [("multitask", "")]


def test_searches_of_two_projects_have_two_names():
    base = load_project("baselines.project:DD_NET").base("tiny")
    names = {
        SearchPlan(space_of(f"project:{project}", objective="validation/eap/top1"), "tiny", base, 1, DATA, "").name
        for project in ("DD_NET", "ST_GCN")
    }
    assert len(names) == 2


def test_the_packaged_spaces_fit_the_presets():
    assert {"learning_rate", "routed_encoder"} <= set(space_names())
    for name in space_names():
        space = find_space(name)
        for preset_name in ("tiny", "small", "paper"):
            base = preset(preset_name).with_fields(space.base)
            assert base.data.validation_subjects >= 1
            assert len(check_dimensions(space, base, [])) == len(space.dimensions)


def test_only_the_search_imports_optuna(repo_root):
    files = [
        file.relative_to(repo_root).as_posix()
        for file in sorted((repo_root / "orchestrator").rglob("*.py"))
        if any(line.strip().startswith(("import optuna", "from optuna")) for line in file.read_text().splitlines())
    ]
    assert files and all(file.startswith("orchestrator/search/") for file in files)
    assert optuna.__version__


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
def test_a_killed_search_resumes_to_the_trials_of_an_undisturbed_one_and_measures_no_test_split(bench, tmp_path):
    reference, storage = tmp_path / "reference", tmp_path / "killed"
    whole: Driver = bench.run(reference)
    assert whole.process.returncode == 0, whole.text

    killed = bench.start(storage)
    killed.wait_for("start   ", times=4)  # The second seed of the second trial.
    wait_until(lambda: len(list((storage / "units").glob("*/checkpoints/step-*"))) > 4)
    killed.kill()
    assert len(records(storage)) < 8
    resumed = bench.run(storage)
    assert resumed.process.returncode == 0, resumed.text
    assert "2 of 4 trials there" in resumed.text
    assert searches(storage) == searches(reference)
    assert records(storage).keys() == records(reference).keys()
    starts = [file.read_text().count("training ") for file in (storage / "units").glob("*/log.txt")]
    assert len(starts) == 8
    assert sum(starts) <= 9, "only the unit that ran may have begun again"

    for root in (storage, reference):
        for file in [*root.glob("units/*/*.json"), *root.glob("units/*/progress.jsonl")]:
            assert '"test/' not in file.read_text(), file
        for content in records(root).values():
            assert any(name.startswith("validation/") for name in json.loads(content)["metrics"])
    units, parents = mlflow_runs(storage)
    assert len(units) == 8
    assert all(status == ["FINISHED"] for status in units.values()), units
    assert parents == ["FINISHED"]
    with pytest.raises(ValueError, match="no study"):  # A report is of studies.
        fetch(f"sqlite:///{storage / 'mlflow.db'}", None)


@pytest.mark.slow
def test_a_killed_search_with_rungs_ends_as_an_undisturbed_one_and_trains_no_step_twice(bench, tmp_path):
    options = ("--early-stopping", "asha", "--trials", "6", "--seeds", "1")
    reference, storage = tmp_path / "reference", tmp_path / "killed"
    whole: Driver = bench.run(reference, *options)
    assert whole.process.returncode == 0, whole.text
    # By hand: six trials to step 9, two on to 27, and one to its end, step 80, since a third of two is none.
    assert f": {4 * 9 + 27 + 80:,} of the {6 * 80:,} steps" in next(reference.glob("searches/*/search.md")).read_text()

    killed = bench.start(storage, *options)
    killed.wait_for("paused  ", times=3)
    killed.wait_for("start   ", times=4)
    killed.kill()
    resumed = bench.run(storage, *options)
    assert resumed.process.returncode == 0, resumed.text
    assert searches(storage) == searches(reference)
    assert len(records(storage)) == 1
    for folder in (storage / "units").iterdir():
        steps = [row["step"] for row in read_rows(folder / "progress.jsonl") if "validation/score" in row]
        assert steps in ([9], [9, 27], [9, 27, 80]), "each rung is measured once"


def test_trials_of_other_code_are_worth_what_their_retrained_units_are_worth(tmp_path):
    first = Search(tmp_path, trials=2).run()  # Its records name no code.
    before = [trial.value for trial in first.book.trials]
    again = Search(tmp_path, trials=2)
    again.graph = TrialQueue(again.plan, again.ledger, again.book, 2, check=SourceCheck(again.ledger, "retrain"))
    assert [STATES[trial.state] for trial in again.book.trials] == ["running", "running"]
    while (unit := again.graph.next()) is not None:
        again.ledger.write(unit, Record(unit.key, "finished", {"validation/score": 7.0}))
        again.graph.finished(unit.key)
    assert before != [7.0, 7.0] == [trial.value for trial in again.book.trials]
    assert [trial.value for trial in Search(tmp_path, trials=2).book.trials] == [7.0, 7.0]
