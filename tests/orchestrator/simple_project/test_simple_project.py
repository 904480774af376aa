"""What a user's training function must and may do, and what is refused before or after it runs."""

import dataclasses
import functools
import hashlib
import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.planning.plan import make_plan
from orchestrator.planning.plan_file import PlannedColumn
from orchestrator.planning.resolve import resolve
from orchestrator.project import Project, Request, load_project
from orchestrator.report.claims import subject_means
from orchestrator.report.clip_results import check_outcomes
from orchestrator.simple_project import DataSet, Metric, simple_project
from orchestrator.simple_project.source import content_digest, source_files
from search_spaces.study import Column, Row, Study, Table
from ups_model.evaluation.outcomes import load_outcomes


@dataclass(frozen=True)
class Inner:
    frames: int = 8


@dataclass(frozen=True)
class Settings:
    layers: int = 1
    rate: float = 0.1
    name: str = "plain"
    data: Inner = dataclasses.field(default_factory=Inner)
    steps: int = 10
    seed: int = 0


def count_up(settings, run):
    """Counts steps; the metric is their number."""
    count = int((run.checkpoint / "count").read_text()) if run.checkpoint else 0
    for step in range(run.step + 1, settings.steps + 1):
        if run.should_stop():
            return None
        count += 1
        run.log(step, loss=1 / step, score=10.0 * step)
        with run.save(step) as folder:
            (folder / "count").write_text(str(count))
    parts = ("validation", "test") if run.test else ("validation",)
    return {f"{part}/score": float(count) for part in parts}


METRICS = (Metric("score", trivial=0.0),)


def project(train=count_up, settings=Settings, metrics=METRICS, **more):
    return simple_project("counter", train, settings, metrics, **more)


def request(made, folder, **more):
    settings = made.base("tiny")
    return Request(settings, made.key(settings, {}, "", ""), {}, folder, **more)


def test_it_is_a_project():
    assert isinstance(project(), Project)


def test_a_run_goes_on_where_it_was_stopped_and_its_result_is_kept(tmp_path):
    made, asked = project(), []

    def stop_after_four():
        asked.append(1)
        return len(asked) > 4

    assert made.train(request(made, tmp_path, should_stop=stop_after_four)).status == "stopped"
    result = made.train(request(made, tmp_path))
    assert result.status == "finished" and result.metrics == {
        "validation/counter/score": 10.0, "test/counter/score": 10.0,
    }  # fmt: skip
    assert (tmp_path / "best" / "step-00000010" / "count").read_text() == "10"
    assert made.train(request(made, tmp_path)) == result
    assert result.health["counter"]["curve"] == [[2, 20.0], [4, 40.0], [6, 60.0], [8, 80.0], [10, 100.0]]


def test_a_damaged_checkpoint_is_passed_over(tmp_path):
    made, left = project(), iter([False] * 4 + [True] * 9)
    made.train(request(made, tmp_path, should_stop=lambda: next(left)))
    (tmp_path / "checkpoints" / "step-00000004" / "count").write_text("9")
    assert made.train(request(made, tmp_path)).metrics["test/counter/score"] == 10.0


def test_the_test_data_are_measured_later_without_training(tmp_path):
    made = project()
    first = made.train(request(made, tmp_path, test=False))
    assert list(first.metrics) == ["validation/counter/score"]
    steps = []
    later = request(made, tmp_path, sample=lambda step, values: steps.append(step))
    assert made.measure(later, tmp_path / "best", {}, {}).metrics["test/counter/score"] == 10.0
    assert steps == []


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (
            {"test/score": float("nan")},
            "counter: test/score must be a finite number, got nan; did the training diverge",
        ),
        ({"validation/score": 1.0}, "must return test/score"),
        ({"score": 1.0}, "metrics must be named validation/NAME or test/NAME with a NAME of score, got 'score'"),
        ({"test/other": 1.0}, "with a NAME of score, got 'test/other'"),
        (None, "returned None, as if it had been stopped"),
    ],
)
def test_what_a_training_function_returns_is_checked(tmp_path, returned, message):
    made = project(lambda settings, run: returned)
    with pytest.raises(ValueError, match=message):
        made.train(request(made, tmp_path))


def test_measuring_the_test_data_where_they_must_be_left_alone_is_an_error(tmp_path):
    made = project(lambda settings, run: {"test/score": 1.0})
    with pytest.raises(ValueError, match=r"was measured though run\.test is False"):
        made.train(request(made, tmp_path, test=False))


@dataclass(frozen=True)
class Seedless:
    layers: int = 1


@dataclass(frozen=True)
class Needy:
    layers: int
    seed: int = 0


@dataclass
class Thawed:
    seed: int = 0


@dataclass(frozen=True)
class Listed:
    seed: int = 0
    sizes: list = dataclasses.field(default_factory=list)


@dataclass(frozen=True)
class Odd:
    seed: int = 0
    device: object = sys


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": Seedless}, "settings must have a field seed: int = 0; Seedless has none"),
        ({"settings": Needy}, "all fields of Needy must have defaults"),
        ({"settings": dict}, "settings must be a frozen dataclass"),
        ({"settings": Thawed}, "settings must be a frozen dataclass.*write @dataclass.frozen=True."),
        ({"settings": Listed}, "tuples in place of lists"),
        ({"task": "two words"}, "task must be letters, digits and underscores, got 'two words'"),
        ({"settings": Odd}, "has no canonical form"),
        ({"metrics": ()}, "metrics must be at least one"),
        ({"metrics": (Metric("a"), Metric("a"))}, "of different names, got a, a"),
        ({"presets": {"huge": {}}}, "presets must be of tiny, small, paper, got 'huge'"),
        ({"presets": {"tiny": {"layer": 2}}}, "unknown field 'layer'; near: layers"),
    ],
)
def test_a_project_that_cannot_work_is_refused_where_it_is_made(change, message):
    with pytest.raises(ValueError, match=message):
        project(**change)


PROJECT = project(data=[DataSet("numbers", made=True, synthetic=True)], samples=lambda settings: settings.steps)
ADDRESS = f"{__name__}:PROJECT"
NAMESAKE = project(lambda settings, run: None)
SCORE = Column("counter/score", "Score", "%", True)


def study(*rows, column=SCORE, **more):
    table = Table("t", "T", "x", (column,), rows, rows[0].label)
    return Study("s", "?", "!", (table,), project=more.pop("project", ADDRESS), **more)


def plan_of(*rows, **more):
    resolved = resolve(study(*rows, **more), "tiny", {})
    return make_plan(resolved, 2, PROJECT.facts(PROJECT.open({"numbers": Path()})))


def test_keys_hold_settings_data_and_seed_and_equal_rows_are_one_unit():
    plan = plan_of(Row("base"), Row("deep", {"layers": 2}), Row("as base", {"layers": 1}))
    assert len(plan.units) == 4 and len(plan.arms) == 2
    other = plan_of(Row("base"), base={"rate": 0.2})
    assert not plan.units.keys() & other.units.keys()
    assert {unit.seed for unit in plan.units.values()} == {0, 1}


def test_a_unit_comes_back_from_plain_data():
    plan = plan_of(Row("base", {"data.frames": 4}))
    for unit in plan.units.values():
        assert type(unit).from_plain(unit.to_plain()) == unit


@pytest.mark.parametrize(
    ("rows", "more", "message"),
    [
        ([Row("a", {"layer": 1})], {}, "row 'a': unknown field 'layer'; near: layers"),
        ([Row("a", {"layers": "two"})], {}, "layers must be a whole number, got 'two'"),
        ([Row("a", training="joint")], {}, "training must be one of trained, got 'joint'"),
        ([Row("a")], {"column": Column("pe/mpjpe_mm", "E", "mm", False)}, r"must begin with a task \(counter\)"),
        ([Row("a")], {"project": "nowhere.to_be:FOUND"}, "project nowhere.to_be:FOUND: cannot be imported"),
        ([Row("a")], {"project": f"{__name__}:PROJEKT"}, r"test_simple_project\.py has no PROJEKT; near: PROJECT"),
        ([Row("a")], {"project": f"{__name__}:Settings"}, "it lacks base, check"),
        ([Row("a")], {"project": "counter"}, "project must be package.module:NAME, got 'counter'"),
        ([Row("a")], {"column": Column("counter/score", "E", "%", True, {"layers": 2})}, "fields of the section data"),
    ],
)
def test_a_study_of_a_project_is_checked_against_it(rows, more, message):
    with pytest.raises(ValueError, match=message):
        resolve(study(*rows, **more), "tiny", {})


def test_a_module_that_fails_when_it_is_imported_says_where(tmp_path, monkeypatch):
    (tmp_path / "broken_model.py").write_text("x = 1\ny = x / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ValueError, match=r"fails when it is imported \(ZeroDivisionError: .*, broken_model"):
        load_project("broken_model:PROJECT")


def test_a_field_of_the_command_line_that_no_setting_is_says_where_it_comes_from_and_what_there_is():
    with pytest.raises(
        ValueError, match="--set: unknown field 'momentum'; Settings has layers, rate, name, data, steps"
    ):
        resolve(study(Row("a")), "tiny", {"momentum": "0.9"})


def test_a_module_of_the_same_name_elsewhere_is_told_by_its_file():
    with pytest.raises(ValueError, match=r"project wave:PROJECT: .*wave\.py has no PROJECT"):
        load_project("wave:PROJECT")
    with pytest.raises(ValueError, match="project time:PROJECT: time has no PROJECT; near: none"):
        load_project("time:PROJECT")


def test_of_a_project_that_names_its_presets_no_other_is_taken(monkeypatch):
    named = project(presets={"small": {"steps": 20}})
    assert named.base("small").values.steps == 20
    with pytest.raises(ValueError, match=r"preset must be one that counter has \(small\), got 'paper'"):
        named.base("paper")
    assert project().base("paper").values.steps == 10
    monkeypatch.setattr(sys.modules[__name__], "NAMED", named, raising=False)
    with pytest.raises(ValueError, match=r"^preset must be one"):
        resolve(study(Row("a"), project=f"{__name__}:NAMED"), "tiny", {"steps": "5"})


def test_a_metric_that_a_project_does_not_measure_is_refused_with_near_names():
    with pytest.raises(ValueError, match="column 'counter/scores' is not measured by counter; near: counter/score"):
        PROJECT.check_metric(PROJECT.base("tiny"), "counter/scores", {})


def test_data_must_be_named_and_only_data_that_are_read(tmp_path):
    made = project(data=[DataSet("poses")])
    with pytest.raises(ValueError, match="reads the data set 'poses': give --data poses=PATH"):
        made.locate([], ["poses"])
    with pytest.raises(ValueError, match="reads no data set of this name; it reads poses"):
        made.locate(["pose=x"], ["poses"])
    with pytest.raises(ValueError, match="--data noise: counter makes this data set itself; leave it out"):
        project(data=[DataSet("noise", made=True)]).locate(["noise=x"], ["noise"])
    by_preset = project(
        data=lambda settings: [DataSet("noise", made=settings.layers == 1)],
        presets={"tiny": {}, "small": {"layers": 2}},
    )
    assert by_preset.locate([f"noise={tmp_path}"], ["noise"]) == {"noise": tmp_path}
    (tmp_path / "a").write_text("one")
    (tmp_path / "b").write_text("another content")
    opened = [by_preset.open({"noise": path}) for path in (tmp_path / "a", tmp_path / "b", Path())]
    assert len({by_preset.facts(one)["noise"].fingerprint for one in opened}) == 3, "a file counts by its content"
    file, _, invented = opened
    by_preset.check(by_preset.base("small"), file)
    by_preset.check(by_preset.base("tiny"), invented)
    with pytest.raises(ValueError, match="reads the data set 'noise': give --data noise=PATH"):
        by_preset.check(by_preset.base("small"), invented)
    with pytest.raises(ValueError, match="with these settings counter makes it itself; leave it out"):
        by_preset.check(by_preset.base("tiny"), file)
    with pytest.raises(ValueError, match="there is no such file or folder"):
        made.open(made.locate([f"poses={tmp_path / 'none'}"], ["poses"]))


def test_the_content_of_data_counts_and_not_their_place(tmp_path):
    for name, text in (("a", "1"), ("b", "1"), ("c", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(text)
    digests = [content_digest(tmp_path / name) for name in "abc"]
    assert digests[0] == digests[1] != digests[2]


def test_the_code_of_a_project_is_its_module_and_what_that_imports_of_its_package():
    import examples.lifting_mlp.project as outer

    files = {"/".join(file.parts[-3:]) for file in source_files(outer)}
    assert {f"examples/lifting_mlp/{name}.py" for name in ("__init__", "project", "model")} == files


def test_imports_inside_functions_count_as_code_and_other_packages_do_not(tmp_path, monkeypatch):
    package = tmp_path / "lazy_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text("import json\n\ndef f():\n    from lazy_package.late import K\n    return K\n")
    (package / "late.py").write_text("from . import later\nK = 1\n")
    (package / "later.py").write_text("")
    (package / "other.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    names = {file.name for file in source_files(importlib.import_module("lazy_package.main"))}
    assert names == {"__init__.py", "main.py", "late.py", "later.py"}


def other_count(settings, run):
    return {"test/score": 1.0}


def test_two_functions_are_two_trainers_whatever_their_name():
    keys = {made.key(made.base("tiny"), {}, "", "") for made in (project(), project(other_count))}
    assert len(keys) == 2
    partial = functools.partial(other_count)
    assert project(partial).code == project(other_count).code
    assert project(partial).key(PROJECT.base("tiny"), {}, "", "") in keys


def test_projects_of_one_task_stand_in_one_column_and_of_one_name_in_no_study():
    assert project(task="counting").metrics(PROJECT.base("tiny"), "counting", {}) == ["counting/score"]
    with pytest.raises(ValueError, match="are both called 'counter'; give each project a name of its own"):
        resolve(study(Row("a"), Row("b", project=f"{__name__}:NAMESAKE")), "tiny", {})
    with pytest.raises(ValueError, match="a column measures other, which counter doesn't: its task is counter"):
        PROJECT.stages(PROJECT.base("tiny"), "trained", "other", None)


def test_a_row_changes_no_seed():
    with pytest.raises(ValueError, match="row 'a': seed is no setting of a row"):
        resolve(study(Row("a", {"seed": 1})), "tiny", {})


def test_what_is_returned_after_it_was_told_to_stop_does_not_count(tmp_path):
    def breaks(settings, run):
        for step in range(run.step + 1, settings.steps + 1):
            if run.should_stop():
                break
            with run.save(step) as folder:
                (folder / "count").write_text(str(step))
        return {"test/score": 1.0}

    left = iter([False] * 3 + [True] * 9)
    assert project(breaks).train(request(project(breaks), tmp_path, should_stop=lambda: next(left))).status == "stopped"
    assert project(breaks).train(request(project(breaks), tmp_path)).status == "finished"


def test_numbers_of_other_libraries_are_numbers(tmp_path):
    def scalars(settings, run):
        run.set_trivial(score=np.float32(1))
        run.describe(parameters=np.int64(5), device="cpu")
        run.log(np.int64(1), loss=torch.tensor(0.5), score=np.float32(30))
        return {"test/score": torch.tensor(3)}

    result = project(scalars).train(request(project(scalars), tmp_path))
    assert result.metrics == {"test/counter/score": 3} and result.about["parameters"] == 5


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda settings, run: sys.exit(0), "ended its process"),
        (lambda settings, run: {"test/score": "high"}, "counter: test/score must be a number, got 'high'"),
        (lambda settings, run: {"test/score": np.ones(2)}, "test/score must be a number"),
        (lambda settings, run: {1: 2.0}, "metrics must be named validation/NAME or test/NAME"),
        (lambda settings, run: 3.0, "must return a dictionary, got 3.0"),
        (lambda settings, run: run.log(7, loss=float("nan")), "step 7: loss must be a finite number, got nan; did"),
        (lambda settings, run: run.log(7, note="hello"), "step 7: note must be a number, got 'hello'"),
        (lambda settings, run: run.log(1.5, loss=1.0), "log: step must be a whole number from 0 .*, got 1.5"),
        (lambda settings, run: run.log(float("inf"), loss=1.0), "log: step must be a finite number, got inf"),
        (lambda settings, run: run.save(10**8).__enter__(), "save: step must be .* below 100,000,000, got 100000000"),
        (lambda settings, run: run.save(-1).__enter__(), "save: step must be a whole number from 0"),
        (lambda settings, run: run.describe(rate=float("nan")), "describe: rate must be a finite number, got nan"),
        (lambda settings, run: run.set_trivial(score=float("nan")), "set_trivial: score must be a finite number"),
        (lambda settings, run: run.set_trivial(other=1.0), "set_trivial takes declared metrics .score., got 'other'"),
    ],
)
def test_what_a_training_function_gives_is_checked_at_once(tmp_path, function, message):
    with pytest.raises(ValueError, match=message):
        project(function).train(request(project(function), tmp_path))


def test_folders_behind_links_are_content_and_empty_folders_are_no_data(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "real" / "file").write_text("1")
    (tmp_path / "data" / "sub").symlink_to(tmp_path / "real")
    before = content_digest(tmp_path / "data")
    (tmp_path / "real" / "file").write_text("22")
    assert content_digest(tmp_path / "data") != before
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty: holds no file"):
        content_digest(tmp_path / "empty")


def test_comments_and_docstrings_are_no_other_code_and_numbers_are(tmp_path):
    from ups_model.source import files_digest

    texts = {"a": "x = 1\n", "b": '"""About x."""\nx = 1  # one\n', "c": "x = 2\n", "d": "import y\nx = 1\n"}
    for name, text in texts.items():
        (tmp_path / f"{name}.py").write_text(text)
    digests = {name: files_digest([tmp_path / f"{name}.py"]) for name in texts}
    assert digests["a"] == digests["b"] and len(set(digests.values())) == 3


def test_projects_load_once_and_by_address():
    assert load_project(ADDRESS) is PROJECT


VALUES, SUBJECTS = (5.0, 15.0, 10.0, 10.0), (3, 3, 5, 5)


def keeping(values=VALUES, subjects=SUBJECTS, metric="score"):
    """Counts up, and keeps results one by one."""

    def train(settings, run):
        metrics = count_up(settings, run)
        if run.test:
            run.keep_items(metric, values, subjects)
        return metrics

    return train


POSES = (DataSet("poses", made=True),)


def test_results_one_by_one_lie_beside_the_result_and_their_digest_in_it(tmp_path):
    made = project(keeping(), data=POSES)
    result = made.train(request(made, tmp_path))
    content = (tmp_path / "outcomes.npz").read_bytes()
    assert result.outcomes == hashlib.sha256(content).hexdigest()
    arrays = load_outcomes(tmp_path / "outcomes.npz")
    check_outcomes(arrays)
    assert arrays["counter/poses/item:score"].tolist() == list(VALUES)
    assert arrays["counter/poses/subject"].tolist() == list(SUBJECTS)
    assert made.train(request(made, tmp_path)) == result
    column = PlannedColumn("counter/score", "Score", "%", True, {}, "counter", "g", ("poses",))
    assert subject_means(column, arrays) == {3: 10.0, 5: 10.0}


def test_a_run_that_leaves_the_test_data_alone_keeps_nothing_of_them(tmp_path):
    made = project(keeping(), data=POSES)
    assert made.train(request(made, tmp_path, test=False)).outcomes == ""
    assert not (tmp_path / "outcomes.npz").exists()

    def careless(settings, run):
        run.keep_items("score", VALUES, SUBJECTS)

    with pytest.raises(ValueError, match=r"run\.test is False; leave test data alone"):
        project(careless, data=POSES).train(request(made, tmp_path / "other", test=False))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": (5.0, 16.0, 10.0, 10.0)}, "test/score must be the mean of its items, 10.25, got 10"),
        ({"values": (5.0, 15.0, 10.0)}, "must be one-dimensional, of one length above 0, got (3,) and (4,)"),
        ({"values": (), "subjects": ()}, "of one length above 0, got (0,) and (0,)"),
        ({"values": (5.0, 15.0, float("nan"), 10.0)}, "values finite"),
        ({"subjects": (1.5, 1.5, 2.0, 2.0)}, "subjects must be whole numbers"),
        ({"metric": "accuracy"}, "keep_items takes a declared metric (score), got 'accuracy'"),
    ],
)
def test_results_one_by_one_that_contradict_the_metric_or_themselves_are_refused(arguments, message, tmp_path):
    made = project(keeping(**arguments), data=POSES)
    with pytest.raises(ValueError, match=re.escape(message)):
        made.train(request(made, tmp_path))


def test_results_one_by_one_need_a_data_set_to_be_of(tmp_path):
    made = project(keeping())
    with pytest.raises(ValueError, match=re.escape("declare data=[DataSet(...)]")):
        made.train(request(made, tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"subject": None}, "subject must be there"),
        ({"subject": np.array([1, 2])}, "of one length"),
        ({"item:score": np.array([1.0, np.inf, 2.0])}, "finite"),
    ],
)
def test_items_that_no_run_leaves_are_refused_by_the_report(changes, message):
    arrays = {"subject": np.array([1, 1, 2]), "item:score": np.array([1.0, 2.0, 3.0])} | changes
    with pytest.raises(ValueError, match=message):
        check_outcomes({f"counter/poses/{name}": array for name, array in arrays.items() if array is not None})
