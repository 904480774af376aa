"""Equal tuning of a study's arms: which searches there are, what they choose, what is said of it, what a kill costs."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator import ablate
from orchestrator.planning.inputs import read_inputs
from orchestrator.planning.plan_file import PlanFile
from orchestrator.record import Record
from orchestrator.report import __main__ as report_command
from orchestrator.report import build, markdown, views
from orchestrator.report.figures import draw
from orchestrator.report.tuning import rankings, tuning_view
from orchestrator.report.wording import MINUS
from orchestrator.scheduling.task_graph import State
from orchestrator.search.journal import Journal
from orchestrator.search.plan import SearchPlan
from orchestrator.search.resolve_space import check_dimensions
from orchestrator.search.trial_queue import TrialQueue
from orchestrator.search.tuning.graph import TuningGraph
from orchestrator.search.tuning.searches import read_tuning
from orchestrator.storage.ledger import Ledger
from orchestrator.tracking.read import fetch
from search_spaces import find_study
from search_spaces.space import Choice, Range, Space
from search_spaces.study import Claim, Study, Tuning
from tests.support import fake_driver
from tests.support.drivers import Bench, records, wait_until
from tests.support.fake_driver import FakeDriver
from tests.support.plans import DATA, TEXT, plan_of, small_study
from ups_model.config.presets import preset
from ups_model.evaluation.health import TaskHealth

RATE = {"learning_rate": Range(1e-4, 1e-2, log=True)}
TUNING = Tuning(RATE, trials=3, seeds=1)

PROJECT = '''
"""Takes no data: a hill over the logarithm of the rate, elsewhere for each depth."""

import math
import time
from dataclasses import dataclass

from orchestrator.simple_project import Metric, simple_project


@dataclass(frozen=True)
class Settings:
    depth: int = 1
    rate: float = 0.01
    noise: float = 0.0
    steps: int = 10
    seed: int = 0


def train(settings, run):
    for step in range(run.step + 1, settings.steps + 1):
        if run.should_stop():
            return None
        time.sleep(PAUSE)
        run.log(step, loss=1 / step)
        if run.is_due(step, settings.steps):
            with run.save(step) as folder:
                (folder / "nothing").write_text("")
    return worth(settings, run.test)


def worth(settings, test):
    # At the untuned rate of 0.01 the shallow one is better, each at its best rate the deep one.
    distance = math.log10(settings.rate) + (2 if settings.depth == 1 else 3)
    value = 60 + 3 * settings.depth - 10 * abs(distance) + 0.1 * (settings.seed % 3)
    if settings.noise and settings.rate > settings.noise:
        raise ValueError("the loss is not finite")
    return {f"{part}/accuracy": value for part in ("validation", *(["test"] if test else []))}


PROJECT = simple_project(
    "hill", train, Settings, [Metric("accuracy", trivial=0.0)], presets={"tiny": {}, "small": {"steps": 20}}
)
'''
STUDY = """
name: hill
question: Is deep better than shallow?
expectation: With a rate of its own.
project: tuned_hill:PROJECT
tables:
  - name: depth
    title: Depth
    varies: Depth
    columns: [{metric: hill/accuracy, title: Accuracy, unit: "%", higher_is_better: true}]
    rows: [{label: "1", changes: {depth: 1}}, {label: "2", changes: {depth: 2}}]
    baseline: "1"
claims:
  - {text: better, table: depth, arm: "2, tuned", baseline: "1, tuned", column: hill/accuracy, kind: superior}
seeds: 3
tuning: {dimensions: {rate: {low: 0.0001, high: 0.1, log: true}}, trials: 5, seeds: 2}
"""


@pytest.fixture
def hill(tmp_path, monkeypatch):
    """A study file of a project that takes no data; its arms have other best rates."""
    monkeypatch.delitem(sys.modules, "tuned_hill", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    from orchestrator.project import load_project

    load_project.cache_clear()
    (tmp_path / "tuned_hill.py").write_text(PROJECT.replace("PAUSE", "0"))
    file = tmp_path / "hill.yaml"
    file.write_text(STUDY)
    return file


@pytest.fixture
def driver(monkeypatch):
    """Units take no time and are worth what the project says."""
    fake = FakeDriver.install(monkeypatch)

    def finish(ledger, unit, **metrics):
        module = sys.modules["tuned_hill"]
        values = module.worth(unit.config.values, unit.key in TESTED)
        named = {name.replace("/", "/hill/"): value for name, value in values.items()}
        about = {"train_seconds": 2.0, "device": "cpu", "project": unit.project, "source": CODE(unit)}
        ledger.write(unit, Record(unit.key, "finished", named, about=about, checkpoint="best/step-1"))

    TESTED = set()
    plain = FakeDriver.execute

    def execute(self, graph, *more, **others):
        TESTED.update(graph.tested)
        plain(self, graph, *more, **others)

    def CODE(unit):
        identity = unit.trainer.identity()
        return {"training": identity.training, "evaluation": identity.evaluation}

    from orchestrator.execution import driver as real

    monkeypatch.setattr(fake_driver, "finish", finish)
    monkeypatch.setattr(real, "execute", lambda *values, **named: execute(fake, *values, **named))
    return fake


def run(hill, *more, status=0):
    assert ablate.main([str(hill), "--storage", str(hill.parent / "storage"), *more]) == status


def inputs_of(study, bench, *sets):
    data = [f"{name}={path}" for name, path in bench.data.items()]
    return read_inputs(str(study), "tiny", data, list(sets), None)


def toy(bench, tmp_path, tuning, old="", new=""):
    """The toy study with tuning, as a file of the user's."""
    text = bench.study.read_text().replace("    seeds=1,", f"    seeds=1,\n    tuning={tuning},")
    text = text.replace("import Column,", "import Tuning, Column,")
    text = text.replace(
        "from search_spaces.columns", "from search_spaces.space import Choice, Range\nfrom search_spaces.columns"
    )
    assert old in text
    file = tmp_path / "toy_tuned.py"
    file.write_text(text.replace(old, new))
    return file


TOY_TUNING = 'Tuning({"learning_rate": Range(1e-3, 1e-1, log=True)}, trials=2, seeds=1)'


def test_tuning_makes_another_plan_of_the_same_units():
    plain, tuned = plan_of(small_study()), plan_of(small_study(tuning=TUNING))
    other = plan_of(small_study(tuning=replace(TUNING, trials=4)))
    assert len({plain.name, tuned.name, other.name}) == 3
    assert list(plain.units) == list(tuned.units)


def test_a_study_refuses_tuning_that_spoils_its_tables():
    with pytest.raises(ValueError, match=r"seeds of the tables must not be those of tuning \(1 to 2\), got 1"):
        small_study(seeds=2, tuning=Tuning(RATE, trials=2, seeds=2, first_seed=1))
    with pytest.raises(ValueError, match="trials must be at least 1, got 0"):
        Tuning(RATE, trials=0, seeds=1)
    with pytest.raises(ValueError, match="objective must be a validation metric, got 'test/ar3d/top1'"):
        Tuning(RATE, trials=1, seeds=1, objective="test/ar3d/top1")
    (table,) = small_study().tables
    clash = replace(table, rows=(*table.rows, replace(table.rows[0], label="1, tuned")))
    with pytest.raises(ValueError, match="row '1, tuned' has the label that row '1' gets with tuned values"):
        small_study(tables=(clash,), tuning=TUNING)
    claim = Claim("Deeper is better", "depth", "2, tuned", "1, tuned", "ar3d/top1", "superior")
    assert small_study(tuning=TUNING, claims=(claim,)).claims == (claim,)
    with pytest.raises(ValueError, match="has no row '2, tuned'"):
        small_study(claims=(claim,))


def test_a_study_file_gives_tuning_too(hill):
    assert find_study(str(hill)).tuning == Tuning({"rate": Range(0.0001, 0.1, log=True)}, 5, 2)
    for old, new, message in (
        ("low: 0.0001", "low: 1e-4", "low must be a number, got '1e-4'; write 0.001 or 1.0e-3"),
        ("trials: 5, ", "", "tuning: trials is missing"),
        ("trials: 5", "trails: 5", "tuning: no field 'trails'; near: trials"),
        ("dimensions:", "space:", "dimensions must be fields and where each is searched, got None"),
    ):
        hill.write_text(STUDY.replace(old, new))
        with pytest.raises(ValueError, match=re.escape(message)):
            find_study(str(hill))
    hill.write_text(STUDY.replace("{low: 0.0001, high: 0.1, log: true}", "[0.001, 0.01]"))
    assert find_study(str(hill)).tuning.dimensions == {"rate": Choice((0.001, 0.01))}


def test_every_arm_has_the_same_search_and_each_task_trained_alone_its_own(bench, tmp_path):
    study = toy(bench, tmp_path, TOY_TUNING)
    inputs = inputs_of(study, bench)
    searches = read_tuning(inputs, inputs.plan.study.tuning)
    told = {(one.arm.name, one.task): one.inputs.plan.study.objective for one in searches}
    assert told == {
        ("routing=False", ""): "validation/score",
        ("base", ""): "validation/score",
        ("separate", "ar3d"): "validation/ar3d/top1",
        ("separate", "pe"): "validation/pe/mpjpe_mm",
        ("separate", "eap"): "validation/eap/top1",
    }
    assert {one.inputs.plan.study.direction for one in searches if one.task == "pe"} == {"minimize"}
    assert all(one.inputs.trials == 2 and one.inputs.plan.seeds == 1 for one in searches)
    assert len({one.name for one in searches}) == 5
    # A trial is the arm's first run: with the study's seed it would be its unit.
    roots = {unit.key for unit in inputs.plan.units.values() if not unit.parent}
    for one in searches:
        plan = one.inputs.plan
        plan.study = replace(plan.study, first_seed=0)
        assert {unit.key for unit in plan.units_of(one.inputs.start)} <= roots


def test_arms_that_begin_with_the_same_run_have_one_search(bench, tmp_path):
    # 16 steps jointly are what is left of 20 before fine-tuning takes its share.
    row = 'Row("with"), Row("short", {"steps": 12}, training="joint"),'
    study = toy(bench, tmp_path, TOY_TUNING, 'Row("with"),', row)
    inputs = inputs_of(study, bench)
    searches = read_tuning(inputs, inputs.plan.study.tuning)
    shared = next(one for one in searches if ("toy", "with", "ar3d") in one.rows)
    assert ("toy", "short", "ar3d") in shared.rows and len(searches) == 5


@pytest.mark.parametrize(
    ("tuning", "sets", "message"),
    [
        (
            'Tuning({"routing": Choice((True, False))}, trials=2, seeds=1)',
            (),
            "row 'without': the row sets model.routing, and tuning searches it: the search would undo what the table "
            "varies; take 'routing' out of tuning's dimensions",
        ),
        (TOY_TUNING, ("validation_subjects=0",), "data.validation_subjects must be at least 1 for a search, got 0"),
        (TOY_TUNING, ("learning_rate=0.01",), "optim.learning_rate is searched and set"),
        (TOY_TUNING.replace("learning_rate", "lerning_rate"), (), "near: learning_rate"),
        (TOY_TUNING.replace("learning_rate", "steps").replace("1e-3, 1e-1, log=True", "40, 80"), (), "unequal budgets"),
        (
            TOY_TUNING.replace("seeds=1)", 'seeds=1, objective="validation/ar3d/top1")'),
            (),
            "row 'separate': its first run trains pe alone and measures no validation/ar3d/top1",
        ),
    ],
)
def test_what_can_not_be_tuned_is_refused_before_anything_starts(bench, tmp_path, capsys, tuning, sets, message):
    study = toy(bench, tmp_path, tuning)
    data = [f"--data={name}={path}" for name, path in bench.data.items()]
    more = [text for one in sets for text in ("--set", one)]
    assert ablate.main([str(study), *data, "--storage", str(tmp_path / "storage"), *more]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "storage").exists()


def test_seeds_of_a_call_are_not_those_of_tuning(hill, capsys):
    run(hill, "--seeds", "0,101", status=2)
    assert "must not be those of tuning (100 to 101), got 101" in capsys.readouterr().err


@pytest.mark.slow
def test_a_tuned_study_searches_each_arm_and_then_trains_its_tables(hill, driver, capsys):
    run(hill, "--plan")
    before = capsys.readouterr().out
    assert "2 arms, 5 trials x 2 seeds over rate 0.0001 to 0.1, log (qmc) each" in before
    assert before.count("10 units of") == 2 and before.count("0 of 5 trials done") == 2
    assert "20 units of trials come first" in before
    assert "are not chosen yet" in before and "2, tuned" not in before
    assert not (hill.parent / "storage").exists()

    run(hill)
    text = capsys.readouterr().out
    trials = [job for job in driver.jobs if job.unit.seed >= 100]
    tables = [job for job in driver.jobs if job.unit.seed < 100]
    assert len(trials) == 20 and not any(job.test for job in trials)
    assert len({job.unit.key for job in driver.jobs}) == len(driver.jobs), "nothing is trained twice"
    assert all(job.test for job in tables)
    points = {depth: [] for depth in (1, 2)}
    for job in trials:
        points[job.unit.config.values.depth].append((job.unit.seed, job.unit.config.values.rate))
    assert sorted(points[1]) == sorted(points[2]), "the same points for every arm"
    assert (100, 0.01) in points[1], "the first trial is the arm as the study has it"
    module = sys.modules["tuned_hill"]

    def value(depth, rate):
        return module.worth(module.Settings(depth, rate), False)["validation/accuracy"]

    best = {depth: max((value(depth, rate), rate) for _, rate in each)[1] for depth, each in points.items()}
    assert best[1] == 0.01 and best[2] < 0.01
    assert {(job.unit.config.values.depth, job.unit.config.values.rate) for job in tables} == {
        (1, 0.01), (2, 0.01), (2, best[2]),
    }  # fmt: skip
    assert len(tables) == 9, "the tuned row of an arm that is best as it is shares its runs"
    assert f"rate={best[2]}" in text and "no trial is better" in text

    (folder,) = (hill.parent / "storage" / "studies").iterdir()
    plan = PlanFile.from_json((folder / "plan.json").read_text())
    assert [row.label for row in plan.tables[0].rows] == ["1", "1, tuned", "2", "2, tuned"]
    assert [arm.chosen["rate"] for arm in plan.tuning.arms] == [0.01, best[2]]
    assert PlanFile.from_json(plan.to_json()) == plan and plan.ended_before == 0
    with (folder / "report" / "claims.csv").open() as stream:
        assert [line["arm"] for line in csv.DictReader(stream)] == ["2, tuned"]

    made = (folder / "report" / "report.md").read_text()
    assert f"Accuracy: 1 > 2 untuned, 2 > 1 tuned. Ranked otherwise: “1” {MINUS} “2”" in made.replace("&gt;", ">")
    assert "The ranking of rows changes in 1 of 1 column with values" in made
    assert "20 runs, 0:00:40" in made
    out = hill.parent / "again"
    assert report_command.main(["--storage", str(hill.parent / "storage"), "--out", str(out)]) == 0
    for file in folder.glob("report/*.*"):
        assert file.name == "report.sha256" or (out / file.name).read_bytes() == file.read_bytes(), file.name

    jobs = len(driver.jobs)
    run(hill)
    run(hill, "--plan")
    after = capsys.readouterr().out
    assert len(driver.jobs) == jobs, "the same command again trains nothing"
    assert "2, tuned" in after and "9 done already" in after and "not chosen yet" not in after
    run(hill, "--seeds", "4")
    assert [job.unit.seed for job in driver.jobs[jobs:]] == [3, 3, 3], "more seeds are no more trials"


def test_a_trial_that_fails_costs_its_arm_that_trial_and_no_more(hill, driver, capsys):
    hill.write_text(STUDY.replace("changes: {depth: 2}", "changes: {depth: 2, noise: 0.005}"))
    driver.becomes = lambda unit: (
        "failed" if unit.config.values.noise and unit.config.values.rate > unit.config.values.noise else "finished"
    )
    run(hill, status=1)
    (folder,) = (hill.parent / "storage" / "studies").iterdir()
    plan = PlanFile.from_json((folder / "plan.json").read_text())
    one, two = plan.tuning.arms
    assert (one.complete, one.failed) == (5, 0) and two.failed > 0 and two.complete + two.failed == 5
    assert two.chosen["rate"] < 0.005 and two.start_values == ()
    assert "failed and gave no value" in (folder / "report" / "report.md").read_text()


def test_an_arm_without_any_value_is_an_error_that_names_it(hill, driver, capsys):
    driver.becomes = lambda unit: "failed" if unit.config.values.depth == 2 else "finished"
    run(hill, status=1)
    assert "tuning of arm 'depth=2': none of its 5 trials has a value" in capsys.readouterr().out
    assert not list(hill.parent.glob("storage/studies/*"))


@pytest.mark.slow
def test_stopped_searches_choose_nothing(hill, driver, capsys):
    driver.becomes = lambda unit: "finished" if len(driver.jobs) < 4 else "stopped"
    run(hill, status=1)
    assert "tuning stopped; the same command goes on from here" in capsys.readouterr().out
    assert not list(hill.parent.glob("storage/studies/*"))
    driver.becomes = lambda unit: "finished"
    run(hill)
    assert len([job for job in driver.jobs if job.unit.seed >= 100]) == 21, "the one that was stopped goes on"


def report_of(hill, values, collapsed=""):
    """The report of the tuned study whose rows have these test values, one a seed."""
    plan = PlanFile.from_json(next((hill.parent / "storage" / "studies").glob("*/plan.json")).read_text())
    rows = plan.tables[0].rows
    bad = TaskHealth("hill/accuracy", 10.0, ((1, 10.0), (2, 10.0), (3, 10.0), (4, 10.0), (5, 10.0)), 100.0).to_plain()
    records = {}
    for row in rows:
        for seed, key in enumerate(row.units["hill"]):
            health = {"hill": bad} if row.label == collapsed else {}
            if (value := values[row.label][seed]) is None:
                records[key] = Record(key, "failed", error="NonFiniteLoss")
                continue
            records[key] = Record(key, "finished", {"test/hill/accuracy": value}, health=health)
    return build(plan, records)


@pytest.mark.slow
def test_a_ranking_says_what_changes_with_its_uncertainty(hill, driver):
    # Both arms get values of their own, so that four rows have runs of their own.
    hill.write_text(
        STUDY.replace("depth: 1}", "depth: 1, noise: 9}").replace("project:", "base: {rate: 0.05}\nproject:")
    )
    run(hill)
    values = {"1": (60, 62, 64), "1, tuned": (70, 71, 72), "2": (59, 60, 61), "2, tuned": (72, 71, 76)}
    report = report_of(hill, values)
    (ranking,) = rankings(report.tables[0])
    assert (ranking.untuned, ranking.tuned) == ((("1",), ("2",)), (("2",), ("1",)))
    ((one, two, before, after),) = ranking.swapped
    assert (one, two) == ("1", "2")
    assert before.by_seed == {0: 1, 1: 2, 2: 3} and after.by_seed == {0: -2, 1: 0, 2: -4}
    # Mean 2 and sd 1 of 1, 2, 3: 2 -+ 4.303 / sqrt(3) = [-0.48, 4.48].
    text = tuning_view(report).tables[0].rankings[0]
    assert f"“1” {MINUS} “2”: untuned Δ +2.00 [{MINUS}0.48, +4.48], tuned Δ {MINUS}2.00 [{MINUS}6.97, +2.97]" in text
    same = rankings(report_of(hill, values | {"2, tuned": (70, 70, 70)}).tables[0])[0]
    assert not same.changed and same.swapped == ()
    tie = rankings(report_of(hill, values | {"2, tuned": (71, 71, 71)}).tables[0])[0]
    assert tie.tuned == (("1", "2"),) and tie.changed and len(tie.swapped) == 1
    short = report_of(hill, values, collapsed="1, tuned")
    assert "Δ +2.00, no statement" in str(tuning_view(short).tables[0].lines)
    assert "No statement: not all runs trained out" in tuning_view(short).tables[0].rankings[0]
    assert "1 of them rests on runs that did not all train out" in tuning_view(short).summary
    broken = report_of(hill, values | {"1, tuned": (70, 71, None)})  # Those that are left are chosen by the failure.
    assert "no statement" in str(tuning_view(broken).tables[0].lines)
    assert "No statement: not all runs trained out" in tuning_view(broken).tables[0].rankings[0]
    page = markdown(report, views(report, {}), draw(report))
    assert "no verdict" in page and f"| **2** | untuned Δ {MINUS}2.00" in page


def test_a_name_that_another_study_has_is_refused_before_its_searches(hill, driver, capsys):
    run(hill)
    other = hill.with_name("other.yaml")
    jobs = len(driver.jobs)
    other.write_text(STUDY.replace("changes: {depth: 2}", "changes: {depth: 2, noise: 9}"))
    run(other, status=2)
    assert "another study of this name and base is on storage" in capsys.readouterr().err and len(driver.jobs) == jobs
    (hill.parent / "taken").write_text("")
    run(hill, "--out", str(hill.parent / "taken"), status=2)
    assert "taken: cannot be written to" in capsys.readouterr().err


def test_tables_that_other_code_has_trained_are_refused_before_there_is_a_search(hill, driver, capsys):
    run(hill)
    storage = hill.parent / "storage"
    for file in storage.glob("units/*-seed0-*/record.json"):
        record = json.loads(file.read_text())
        record["about"]["source"] = {"training": "0" * 16, "evaluation": "0" * 16}
        file.write_text(json.dumps(record))
    shutil.rmtree(storage / "searches")
    run(hill, status=2)
    assert "2 finished units (commit unknown) were trained by other code" in capsys.readouterr().err
    assert not (storage / "searches").exists()


def test_a_study_without_tuning_has_no_section(hill, driver):
    hill.write_text(STUDY[: STUDY.index("claims:")])
    run(hill)
    (folder,) = (hill.parent / "storage" / "studies").iterdir()
    assert "Equal tuning" not in (folder / "report" / "report.md").read_text()
    assert not (hill.parent / "storage" / "searches").exists()


class Searches:
    """Two searches over the same fields whose configurations are equal, in one graph."""

    def __init__(self, folder: Path, trials: int = 3) -> None:
        self.ledger = Ledger.open(str(folder / "storage"))
        self.queues = []
        for name in ("one", "two"):
            space = Space(name, "?", RATE, sampler="qmc", trials=trials)
            plan = SearchPlan(space, "tiny", preset("tiny"), 1, DATA, TEXT)
            dimensions = check_dimensions(space, plan.base, [])
            journal = Journal(folder / f"{name}.log", name, space, dimensions, plan.start)
            self.queues.append(TrialQueue(plan, self.ledger, journal, trials))
        self.graph = TuningGraph(self.queues, self.ledger)

    def finish(self, unit):
        self.ledger.write(unit, Record(unit.key, "finished", {"validation/score": unit.config.optim.learning_rate}))
        self.graph.finished(unit.key)

    @property
    def values(self):
        return [[(trial.params, trial.value) for trial in queue.trials] for queue in self.queues]


def test_a_trial_that_two_searches_share_runs_once_and_both_get_its_value(tmp_path):
    both = Searches(tmp_path)
    keys = []
    while (unit := both.graph.next()) is not None:
        keys.append(unit.key)
        both.finish(unit)
    assert len(keys) == len(set(keys)) == 3
    assert both.graph.complete and both.graph.whole
    assert both.values[0] == both.values[1] and all(value is not None for _, value in both.values[0])


def test_shared_trials_that_run_at_once_wait_for_each_other_and_fail_together(tmp_path):
    both = Searches(tmp_path)
    running = []
    while (unit := both.graph.next()) is not None:
        running.append(unit)
    assert len({unit.key for unit in running}) == len(running) == 3
    assert not both.graph.complete
    both.graph.failed(running[0].key, "the loss was not finite")
    both.graph.busy(running[1].key)
    assert both.graph.state[running[1].key] is State.ELSEWHERE
    both.graph.again(running[1].key)
    assert both.graph.next() is running[1] or both.graph.units[running[1].key] == running[1]
    for unit in running[1:]:
        both.finish(unit)
    assert both.graph.complete and not both.graph.whole
    for queue in both.queues:
        assert [trial.value is None for trial in queue.trials] == [True, False, False]
    again = Searches(tmp_path)
    assert again.graph.next().key == running[0].key, "the failed one alone is tried again"
    assert again.graph.next() is None


def test_a_graph_that_is_stopped_stops_all_searches(tmp_path):
    both = Searches(tmp_path)
    unit = both.graph.next()
    both.graph.stopping = True
    assert both.graph.next() is None and not both.graph.complete
    both.graph.stopped(unit.key)
    assert both.graph.complete and not both.graph.whole and all(queue.stopping for queue in both.queues)


def test_table_7_is_tuned_in_the_rates_of_the_small_presets():
    study = find_study("table_7_tuned")
    assert isinstance(study, Study) and study.tuning is not None
    where = study.tuning.dimensions["learning_rate"]
    for name in ("tiny", "small"):
        rate = preset(name).optim.learning_rate
        assert where.low <= rate / 4 and 4 * rate <= where.high
        units = plan_of(study, seeds=2, name=name).units.values()
        assert len(units) == 6 and {unit.stage for unit in units} == {"joint"}


class HillBench(Bench):
    """Drivers of the hill, whose steps take a moment."""

    def command(self, storage: Path, *more: str) -> list[str]:
        return [sys.executable, "-m", "orchestrator.ablate", str(self.study), "--storage", str(storage),
                "--address", "local", "--max-concurrent", "1", *more]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes through /proc")
def test_a_killed_tuning_goes_on_and_chooses_as_an_undisturbed_one(tmp_path):
    (tmp_path / "tuned_hill.py").write_text(PROJECT.replace("PAUSE", "0.2"))
    study = tmp_path / "hill.yaml"
    study.write_text(STUDY.replace("trials: 5, seeds: 2", "trials: 3, seeds: 1").replace("seeds: 3\n", "seeds: 2\n"))
    bench = HillBench(tmp_path, {}, study)
    reference, storage = tmp_path / "reference", tmp_path / "killed"
    whole = bench.run(reference)
    assert whole.process.returncode == 0, whole.text

    killed = bench.start(storage)
    killed.wait_for("start   ", times=3)
    wait_until(lambda: len({file.parent for file in storage.glob("units/*/checkpoints/step-*")}) >= 3)
    killed.kill()
    assert len(records(storage)) < 6 and not list(storage.glob("studies/*")), "it was killed in the searches"
    resumed = bench.run(storage)
    assert resumed.process.returncode == 0, resumed.text
    assert records(storage).keys() == records(reference).keys()
    starts = {file.parent.name: file.read_text().count("training ") for file in storage.glob("units/*/log.txt")}
    assert sum(starts.values()) <= len(starts) + 1, "only the unit that ran may have begun again"

    plans = [
        PlanFile.from_json(next((root / "studies").glob("*/plan.json")).read_text()) for root in (storage, reference)
    ]
    assert [arm.chosen for arm in plans[0].tuning.arms] == [arm.chosen for arm in plans[1].tuning.arms]
    assert [arm.complete for arm in plans[0].tuning.arms] == [3, 3]
    for root in (storage, reference):
        for folder, content in records(root).items():
            is_trial = "seed100" in folder
            assert is_trial != any(name.startswith("test/") for name in json.loads(content)["metrics"]), folder

    out = tmp_path / "report"
    assert report_command.main(["hill", "--storage", str(storage), "--out", str(out)]) == 0
    text = (out / "report.md").read_text()
    assert "**2, tuned**" in text and "## Equal tuning" in text
    ((plan, of_mlflow),) = fetch(f"sqlite:///{storage / 'mlflow.db'}", "hill")
    assert plan == plans[0] and of_mlflow.keys() == plan.units.keys()
