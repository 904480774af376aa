"""Training of the multi-task network: stages, resumption, measures of each exit, configurations and their refusals."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from baselines.build import unmirror
from baselines.config import BaselineOptim
from baselines.multitask.config import MultitaskConfig, MultitaskNetwork, base
from baselines.multitask.learner import Multitask, clip_scores, load_multitask, shape_of
from baselines.multitask.project import MULTITASK
from baselines.train import train
from orchestrator.planning.inputs import read_inputs
from orchestrator.project import Project
from orchestrator.storage.ledger import Ledger
from orchestrator.worker.job import Job
from orchestrator.worker.run_unit import run_unit
from tests.support.runs import FRONT, POSE, assert_same_tensors, motion, newest, set_info, stop_at, weights
from ups_model.config import DataConfig, TaskData
from ups_model.data.batching.batches import Source
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.evaluation.measure import mirror_inputs
from ups_model.evaluation.outcomes import load_outcomes
from ups_model.skeletons import get_skeleton
from ups_model.training.checkpoint import load_checkpoint


def toy(**changes):
    """A configuration that trains a step in milliseconds; changes as `with_fields`."""
    poses = TaskData(
        (POSE,), frames=8, batch_size=4, targets_per_window=4, evaluate_targets=8, evaluate_stride=4, flip=True
    )
    network = MultitaskNetwork(layers=2, joint_width=4, action_width=4, grid=3, kernel=3)
    optim = BaselineOptim("pe", 10, 3e-3, evaluate_every=4)
    return MultitaskConfig(network, data=DataConfig(pe=poses), optim=optim).with_fields(changes)


STAGED = {"pose_share": 0.4, "action_share": 0.3, "action_input": "decoupled", "decouple_at": 0.6}


@pytest.fixture
def run(toy_sets):
    def run(config, folder, **options):
        return train(config, toy_sets, folder=folder, learner=Multitask, device="cpu", **options)

    return run


@pytest.fixture
def clips(toy_sets):
    return ClipSet.open(toy_sets[POSE])


@pytest.fixture
def learner(clips):
    def make(config):
        return Multitask(config, Source(clips, clips.split(0), torch.device("cpu"), POSE))

    return make


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, STAGED, {"tasks": "action"}], ids=["both", "staged", "action"])
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(changes, run, tmp_path):
    config = toy(**changes)
    whole = run(config, tmp_path / "whole", checkpoint_every=3)
    stops = (1, 3, 5, 6, 7)
    for before, step in zip((0, *stops), stops, strict=False):
        stopped = run(config, tmp_path / "stopped", checkpoint_every=3, should_stop=stop_at(step - before))
        assert (stopped.status, stopped.step) == ("stopped", step)
    again = run(config, tmp_path / "stopped", checkpoint_every=3)
    assert whole.metrics == again.metrics and whole.health == again.health and whole.outcomes == again.outcomes
    assert whole.key == again.key and again.status == "finished"
    for name in ("model", "optimizer"):
        one, other = (load_checkpoint(newest(tmp_path / name_of))[0][name] for name_of in ("whole", "stopped"))
        assert_same_tensors(one, other)
    assert_same_tensors(weights(whole.checkpoint), weights(again.checkpoint))


def test_stages_train_poses_then_actions_with_poses_fixed_then_both(run, tmp_path):
    config = toy(**STAGED, validation_subjects=0)
    assert [config.phase(step) for step in range(10)] == ["pose"] * 4 + ["action"] * 3 + ["both"] * 3
    states = {}
    for step in (1, 4, 7, 10):
        run(config, tmp_path, should_stop=stop_at(step - max(states, default=0)), checkpoint_every=100)
        states[step] = load_checkpoint(newest(tmp_path))[0]["model"]

    def changed(first, last):
        names = [name for name in states[first] if not torch.equal(states[first][name], states[last][name])]
        parts = {name.split(".")[1] for name in names}
        return {"poses" if part.startswith(("pose_", "entry")) else part for part in parts}

    assert changed(1, 4) == {"poses"}
    # Replicas leave their originals at step 6, while actions alone are trained. Running statistics are fixed too.
    assert changed(4, 7) == {"action_layers", "action_maps", "decoupled"}
    assert changed(7, 10) == {"poses", "action_layers", "action_maps"}


def test_a_run_of_poses_alone_leaves_actions_as_they_were(run, learner, tmp_path):
    result = run(toy(tasks="pose", validation_subjects=0), tmp_path)
    begun = learner(toy(tasks="pose")).model.state_dict()
    ended = weights(result.checkpoint)
    assert all(torch.equal(begun[name], ended[name]) for name in ended if "action_" in name)
    assert not any(name.startswith("test/action") for name in result.metrics)


@pytest.mark.parametrize(("tasks", "there"), [("both", ("pe", "action")), ("pose", ("pe",)), ("action", ("action",))])
def test_what_is_trained_is_measured_at_every_exit_and_judged(tasks, there, run, clips, tmp_path):
    config = toy(tasks=tasks)
    result = run(config, tmp_path)
    expected = {name for task in there for name in MULTITASK.metrics(config, task, {POSE: clips})} | {"score"}
    for part in ("test", "validation"):
        ours = {name.removeprefix(f"{part}/") for name in result.metrics if name.startswith(f"{part}/")}
        assert ours == expected
    assert result.metrics.get("test/pe/mpjpe_mm") == result.metrics.get("test/pe/mpjpe_mm@exit2")
    assert result.metrics.get("test/action/top1") == result.metrics.get("test/action/top1@exit2")
    assert set(result.health) == set(there)
    outcomes = load_outcomes(tmp_path / "outcomes.npz")
    assert {name.split("/")[0] for name in outcomes} == set(there)
    if "action" in there:
        rank, subject = outcomes[f"action/{POSE}/rank"], outcomes[f"action/{POSE}/subject"]
        assert len(rank) == 4 * 2 and set(subject) == {0}  # The test subject's clips in two cameras.
        assert 100 * np.mean(rank == 0) == pytest.approx(result.metrics["test/action/top1"])


def test_exits_are_measured_on_what_the_exit_says(run, learner, tmp_path):
    config = toy(validation_subjects=0)
    result = run(config, tmp_path)
    model, state = load_multitask(tmp_path / "best" / "step-00000010", torch.device("cpu"))
    assert state["key"] == result.key and model.config == config
    error, count, right = 0.0, 0, []
    for batch in learner(config).feed.evaluate("test"):
        with torch.no_grad():
            (exit_1,) = model.eval()(batch.inputs, exits=1)
        rows = torch.arange(len(batch))[:, None]
        pose_BRJ3 = model.metres(exit_1.pose_BNJ3[rows, batch.inputs.target_frame_BR])
        kept_BR = batch.frame_BR >= 0
        errors_BRJ = (pose_BRJ3 - batch.pose_BRJ3).norm(dim=-1)[kept_BR]
        for label in (0, 1):
            own = (batch.label_B[:, None] == label).expand_as(kept_BR)[kept_BR]
            error += 1000 * errors_BRJ[own].mean().item() / 2
        count += 1
        right.append(exit_1.logits_BK.argmax(dim=1) == batch.label_B)
    assert count == 1
    assert result.metrics["test/pe/mpjpe_mm@exit1"] == pytest.approx(error, rel=1e-5)
    accuracy = 100 * torch.cat(right).float().mean().item()
    assert result.metrics["test/action/window_top1@exit1"] == pytest.approx(accuracy)


def test_with_flip_the_answer_to_a_mirrored_window_is_the_mirrored_answer(learner):
    mirroring = learner(toy(**{"evaluation.flip": True}))
    batch = next(mirroring.feed.evaluate("test"))
    mirrored = replace(batch, inputs=mirror_inputs(batch.inputs))
    mirroring.model.eval()
    with torch.no_grad():
        (poses, scores), (others, same) = mirroring._answer(batch), mirroring._answer(mirrored)
    for one, other in zip(poses, others, strict=True):
        assert torch.allclose(unmirror(other, get_skeleton("h36m17")), one, atol=1e-6)
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(scores, same, strict=True))


def test_a_clip_s_class_is_that_of_the_highest_mean_probability():
    probability_BK = torch.tensor([[0.6, 0.4], [0.1, 0.9], [0.7, 0.3]])
    scores = clip_scores(probability_BK.log(), torch.tensor([1, 1, 0]), torch.tensor([64, 64, 129]))
    np.testing.assert_allclose(scores.logits_VK.exp().numpy(), [[0.35, 0.65], [0.7, 0.3]], rtol=1e-6)
    assert scores.clip_V.tolist() == [1, 2] and scores.label_V.tolist() == [1, 0]
    assert scores.metrics == {"top1": 100.0, "window_top1": pytest.approx(200 / 3), "clips": 2.0}


@pytest.mark.slow
def test_it_learns_two_clips_by_heart(tmp_path):
    tracks = [Track(motion(label, label, 8, 17)) for label in (0, 0, 1, 1)]
    clips = [
        Clip(str(row), (track,), row // 2, row, split_test=row % 2 > 0, camera_group=0)
        for row, track in enumerate(tracks)
    ]
    info = set_info(POSE, "h36m17", up_axis="z", camera_groups=((FRONT,),))
    path = write_clip_set(tmp_path / POSE, info, clips).path
    plain = {"data.pe.flip": False, "data.pe.batch_size": 16, "data.pe.targets_per_window": 8}
    changes = {"validation_subjects": 0, "steps": 80, "dropout": 0.0, "joint_width": 16, "learning_rate": 1e-2}
    config = toy(**plain, **changes, evaluate_every=0, confidence_weight=0.0)
    result = train(config, {POSE: path}, folder=tmp_path / "run", learner=Multitask, device="cpu")
    # The test clips are the training clips: other subjects who move alike.
    assert result.metrics["test/action/window_top1"] == 100
    for number in (1, 2):
        assert result.metrics[f"test/pe/mpjpe_mm@exit{number}"] < 0.1 * result.about["mean_pose_mm"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "ar3d"}, "task must be pe, whose windows have poses and classes, got ar3d"),
        ({"supervision": "first"}, "supervision must be one of all, last, got 'first'"),
        ({"action_input": "both"}, "action_input must be one of poses, features, combined, decoupled, got 'both'"),
        (
            {"pose_share": 0.7, "action_share": 0.4},
            "pose_share and action_share must add up to at most 1, got 0.7 and 0.4",
        ),
        ({"pose_share": 0.7, "tasks": "action"}, "pose_share must be 0 where tasks is action"),
        ({"tasks": "pose", "action_input": "decoupled"}, "action_input decoupled needs tasks both, got pose"),
        ({"tasks": "action", "action_weight": 0.0}, "action_weight must be above 0 where tasks is action"),
        ({"action_weight": -1.0}, "action_weight must be at least 0, got -1.0"),
        ({"decouple_at": 1.5}, "decouple_at must lie in [0, 1], got 1.5"),
        ({"layers": 0}, "layers must be at least 1, got 0"),
        ({"grid": 1}, "grid must be at least 2, got 1"),
        ({"kernel": 4}, "kernel must be odd, got 4"),
        ({"range_m": 0.0}, "range_m must be above 0, got 0.0"),
        ({"data.pe.sources": ()}, "data.pe.sources must name one clip set, got 0"),
        ({"supervison": "last"}, "unknown field 'supervison'; near: "),
    ],
)
def test_a_bad_value_is_refused_in_one_line_that_names_it(changes, message):
    with pytest.raises(ValueError) as error:
        base("small").with_fields(changes)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["tiny", "small", "paper"])
def test_it_is_a_project_whose_settings_come_back(name):
    assert isinstance(MULTITASK, Project)
    settings = MULTITASK.base(name)
    assert MULTITASK.read(settings.canonical()) == settings
    assert MULTITASK.samples(settings) == dict.fromkeys(
        ("pe", "action"), settings.optim.steps * settings.data.pe.batch_size
    )


def test_clips_without_classes_are_refused(clips):
    unlabelled = type("Clips", (), {"info": replace(clips.info, classes=()), "label": clips.label, "name": POSE})
    with pytest.raises(ValueError, match="multitask needs labelled clips, 'toy_pose' has clips without a class"):
        shape_of(toy(), unlabelled)


def test_of_a_preset_that_is_not_there_the_others_are_named():
    with pytest.raises(ValueError, match="preset must be one of tiny, small, paper, got 'large'"):
        base("large")


STUDY = f"""
import dataclasses
from search_spaces.others.multitask import STUDY as WHOLE
SMALL = {{"pe.sources": ("{POSE}",), "pe.frame_stride": 1, "pe.evaluate_stride": 4, "steps": 4,
          "validation_subjects": 0, "pe.rotation_deg": 0, "pe.scale": 0}}
STUDY = dataclasses.replace(WHOLE, name="small", base=SMALL, seeds=1)
"""


@pytest.mark.slow
def test_the_whole_study_is_planned_and_its_runs_leave_what_its_tables_show(toy_sets, tmp_path):
    (tmp_path / "small.py").write_text(STUDY)
    planned = read_inputs(str(tmp_path / "small.py"), "tiny", [f"{POSE}={toy_sets[POSE]}"], [], None)
    units = planned.plan.units
    # One base, shared by six tables; the last exit, three inputs, two single tasks, stages, three of fewer layers.
    assert len(units) == 11
    paths = {name: str(path) for name, path in planned.paths.items()}
    ledger = Ledger(tmp_path)
    for _, lines in planned.plan.tables:
        for line in lines:
            for keys in line.units.values():
                unit = units[keys[0]]
                if ledger.finished(unit) is None:
                    job = Job(unit, None, str(tmp_path), paths, str(tmp_path / "cache"), device="cpu")
                    assert run_unit(job, lambda: False).status == "finished"
    sizes = {key: unit.trainer.sizes(unit.config, planned.sets) for key, unit in units.items()}
    for table, lines in planned.plan.tables:
        for line in lines:
            for column in table.columns:
                unit = units[line.units[column.group][0]]
                record = ledger.finished(unit)
                trained = column.task in unit.samples
                assert (f"test/{column.metric}" in record.metrics) == trained, (table.name, line.row.label)
                assert sizes[unit.key].parameters == record.about["parameters"]
                assert sizes[unit.key].flops.keys() == {"pe", "action"}  # A row's cost is shown for every column.


def test_a_column_of_an_exit_that_is_not_there_is_refused(toy_sets, tmp_path):
    (tmp_path / "small.py").write_text(STUDY.replace('"steps": 4', '"steps": 4, "layers": 3'))
    with pytest.raises(ValueError, match="'pe/mpjpe_mm@exit4' is not measured by multitask of 3 layers; near: "):
        read_inputs(str(tmp_path / "small.py"), "tiny", [f"{POSE}={toy_sets[POSE]}"], [], None)
