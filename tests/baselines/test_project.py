"""Baselines as rows beside UPS: the same clips and measures, runs of their own, one ledger."""

from dataclasses import replace

import pytest

from baselines.project import DD_NET, RESIDUAL_MLP, ST_GCN, VIDEOPOSE3D
from orchestrator.planning.inputs import read_inputs
from orchestrator.planning.resolve import resolve
from orchestrator.project import Project, load_project
from orchestrator.search.plan import SearchPlan
from orchestrator.storage.ledger import Ledger
from orchestrator.worker.job import Job
from orchestrator.worker.run_unit import run_unit
from search_spaces.columns import MPJPE
from search_spaces.space import Range, Space
from search_spaces.study import UPS, Row, Study, Table
from tests.support.runs import FLAT, POSE, SOLID, stop_at, write_toy_sets
from ups_model.source import FORMER, present_form
from ups_model.training.checkpoint import load_checkpoint

PROJECTS = (RESIDUAL_MLP, VIDEOPOSE3D, DD_NET, ST_GCN)

STUDY = """
from search_spaces.columns import AR2D, AR3D, MPJPE
from search_spaces.study import Row, Study, Table

DATA = {"pe.sources": ("toy_pose",), "pe.frame_stride": 1}
SOLID = {"ar3d.sources": ("toy_solid",), "eap.sources": ("toy_solid",), "ar2d.sources": ("toy_flat",)}
SMALL = {"steps": 8, "validation_subjects": 0}
LIFT = {**DATA, **SMALL, "receptive_field": 9, "pe.frames": 16, "pe.evaluate_targets": 8, "pe.evaluate_stride": 8,
        "evaluation.flip": False}
CLASS = {**SOLID, **SMALL, **{f"{task}.frames": 8 for task in ("ar3d", "eap", "ar2d")}}
STUDY = Study(
    "beside", "?", "!",
    (
        Table("lifting", "Lifting", "System", (MPJPE,),
              (Row("UPS", training="joint"),
               Row("MLP", LIFT, project="baselines.project:RESIDUAL_MLP")), "UPS"),
        Table("recognition", "Recognition", "System", (AR3D, AR2D[0]),
              (Row("UPS", training="joint"), Row("DD-Net", CLASS, project="baselines.project:DD_NET")), "UPS"),
    ),
    base={**DATA, **SOLID, **SMALL, "pe.frames": 8, "pe.evaluate_targets": 8, "pe.evaluate_stride": 8,
          **{f"{task}.frames": 8 for task in ("ar3d", "eap", "ar2d")}},
    seeds=2,
)
"""


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    folder = tmp_path_factory.mktemp("beside")
    sets = write_toy_sets(folder / "clips")
    (folder / "beside.py").write_text(STUDY)
    data = [f"{name}={sets[name]}" for name in (POSE, SOLID, FLAT)]
    return read_inputs(str(folder / "beside.py"), "tiny", data, [], None)


@pytest.mark.parametrize("project", PROJECTS, ids=lambda project: project.name)
def test_each_is_a_project_whose_settings_come_back(project):
    assert isinstance(project, Project)
    for preset in ("tiny", "small", "paper"):
        settings = project.base(preset)
        assert project.read(settings.canonical()) == settings


def test_rows_of_other_projects_have_runs_of_their_own_a_task_and_share_the_clips(planned):
    plan = planned.plan
    projects = {unit.stage: unit.project for unit in plan.units.values()}
    assert projects == {
        "joint": UPS, "residual_mlp": "baselines.project:RESIDUAL_MLP", "dd_net": "baselines.project:DD_NET",
    }  # fmt: skip
    runs = sorted((unit.stage, unit.task, unit.seed) for unit in plan.units.values())
    assert runs == [
        *(("dd_net", task, seed) for task in ("ar2d", "ar3d") for seed in (0, 1)),
        *(("joint", "", seed) for seed in (0, 1)),
        *(("residual_mlp", "pe", seed) for seed in (0, 1)),
    ]
    assert set(plan.data) == {POSE, SOLID, FLAT}


def test_a_run_of_one_task_does_not_depend_on_another_tasks_settings():
    settings = DD_NET.base("tiny")
    other = settings.with_fields({"data.ar2d.frames": 4})
    keys = [
        DD_NET.key(DD_NET.stages(one, "separate", "ar3d", None)[0].settings, {}, "", "") for one in (settings, other)
    ]
    assert keys[0] == keys[1]


def test_sizes_are_those_of_the_network_that_is_trained(planned, tmp_path):
    unit = next(unit for unit in planned.plan.units.values() if unit.stage == "dd_net")
    paths = {name: str(path) for name, path in planned.paths.items()}
    job = Job(unit, None, str(tmp_path), paths, str(tmp_path / "cache"), device="cpu")
    assert run_unit(job, stop_at(3)).status == "stopped"
    assert run_unit(job, lambda: False).status == "finished"
    ledger = Ledger(tmp_path)
    record = ledger.finished(unit)
    sizes = unit.trainer.sizes(unit.config, planned.sets)
    tensors, _ = load_checkpoint(ledger.weights(unit, record))
    trained = sum(
        value.numel()
        for name, value in tensors["model"].items()
        if "running_" not in name and "num_batches" not in name
    )
    assert sizes.parameters == record.about["parameters"] == trained
    assert record.about["project"] == "baselines.project:DD_NET"
    assert f"test/{unit.task}/top1" in record.metrics and record.outcomes


def test_a_trial_of_a_search_is_trained_under_the_key_that_it_was_planned_with(planned, tmp_path):
    unit = next(unit for unit in planned.plan.units.values() if unit.stage == "dd_net" and unit.task == "ar3d")
    base = unit.config.with_fields({"validation_subjects": 1, "data.ar2d.sources": (FLAT,)})
    space = Space(
        "rate", "?", {"learning_rate": Range(1e-4, 1e-2)}, objective="validation/ar3d/top1", project=unit.project
    )
    trial = SearchPlan(space, "tiny", base, 1, planned.plan.data, "").unit_of({"learning_rate": 2e-3}, 100)
    assert len(planned.paths) == 3, "the trial needs one of them"
    paths = {name: str(path) for name, path in planned.paths.items()}
    job = Job(trial, None, str(tmp_path), paths, str(tmp_path / "cache"), device="cpu", test=False)
    assert run_unit(job, lambda: False).status == "finished"
    assert "validation/ar3d/top1" in Ledger(tmp_path).finished(trial).metrics


def test_the_test_split_is_measured_later_without_training(planned, tmp_path):
    unit = next(unit for unit in planned.plan.units.values() if unit.stage == "residual_mlp")
    paths = {name: str(path) for name, path in planned.paths.items()}
    job = Job(unit, None, str(tmp_path), paths, str(tmp_path / "cache"), device="cpu", test=False)
    assert run_unit(job, lambda: False).status == "finished"
    ledger = Ledger(tmp_path)
    before = ledger.finished(unit)
    assert not before.tested
    assert run_unit(replace(job, test=True), lambda: False).status == "finished"
    after = ledger.finished(unit)
    assert after.tested and after.about["train_seconds"] == before.about["train_seconds"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('Row("MLP", LIFT', 'Row("MLP", {**LIFT, "pe.sources": ("toy_flat",)}', "row 'MLP': .*toy_flat"),
        ('Row("DD-Net", CLASS', 'Row("DD-Net", {**CLASS, "receptive": 1}', "row 'DD-Net': unknown field 'receptive'"),
        ("(AR3D, AR2D[0])", "(AR3D, MPJPE)", "a column measures pe, which dd_net doesn't train"),
        ("baselines.project:DD_NET", "baselines.project:DDNET", "project.py has no DDNET; near: DD_NET"),
        ('Row("DD-Net", CLASS', 'Row("DD-Net", CLASS, "joint"', "training must be one of separate, got 'joint'"),
    ],
)
def test_a_row_of_another_project_is_checked_against_it(planned, tmp_path, old, new, message):
    assert old in STUDY
    (tmp_path / "beside.py").write_text(STUDY.replace(old, new))
    data = [f"{name}={path}" for name, path in planned.paths.items()]
    with pytest.raises(ValueError, match=message):
        read_inputs(str(tmp_path / "beside.py"), "tiny", data, [], 1)


def test_a_project_s_code_counts_ups_s_batches_and_schedule_too(monkeypatch):
    before = load_project("baselines.project:DD_NET").identity()
    monkeypatch.setattr("baselines.project.source_digest", lambda part: f"another {part}")
    after = DD_NET.identity()
    assert before.training != after.training and before.evaluation != after.evaluation


def test_the_network_of_another_system_is_not_a_system_s_code(monkeypatch):
    seen = []
    monkeypatch.setattr("baselines.project.files_digest", lambda own: seen.append({file.name for file in own}) or "")
    for project in (DD_NET, load_project("baselines.project:VIDEOPOSE3D")):
        project.identity()
    assert seen[0] - seen[1] == {"dd_net.py"} and seen[1] - seen[0] == {"videopose3d.py"}
    assert {"train.py", "config.py"} <= seen[0]


def test_ups_code_that_trains_the_same_is_the_same_code_to_a_baseline():
    own, ups = DD_NET.identity().training.split("+")
    former = next(old for old, new in FORMER.items() if new == ups)
    assert present_form(f"{own}+{former}") == DD_NET.identity().training
    assert present_form(f"{own}+{'0' * 16}") != DD_NET.identity().training


def lifters(base, changes=None):
    """UPS beside VideoPose3D, in one table of a study with this base."""
    rows = (
        Row("UPS", training="separate"),
        Row("VideoPose3D", changes or {}, project="baselines.project:VIDEOPOSE3D"),
    )
    table = Table("lifting", "Lifting", "System", (MPJPE,), rows, "UPS")
    return resolve(Study("lifters", "?", "!", (table,), base=base), "small", {})


def test_rows_of_another_project_are_measured_on_the_same_frames_and_split_or_say_so():
    with pytest.raises(ValueError) as caught:
        lifters({"pe.evaluate_stride": 2, "evaluation.flip": True})
    told = (
        "row 'VideoPose3D': is measured otherwise than the baseline row 'UPS': data.pe.evaluate_stride is 16, there 2"
    )
    assert told in str(caught.value) and "give the row data.pe.evaluate_stride=2, or say with" in str(caught.value)
    with pytest.raises(ValueError, match=r"evaluation\.flip is True, there False"):
        lifters({})
    with pytest.raises(ValueError, match=r"data\.split_seed is 0, there 3"):
        lifters({"split_seed": 3, "evaluation.flip": True})
    lifters({"split_seed": 3, "evaluation.flip": True}, {"split_seed": 3})
    lifters({}, {"evaluation.flip": True})  # It says itself that it is meant.
