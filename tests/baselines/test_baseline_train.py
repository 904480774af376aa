"""The baselines' trainer: stopped runs end with the bits of those that were not; what is chosen, measured and left."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from baselines import learner
from baselines.build import load_baseline, network_size
from baselines.config import LIFTERS, SYSTEMS
from baselines.project import BaselineProject
from baselines.schedule import learning_rate, norm_momentum
from baselines.train import Run, train
from orchestrator.project import Request
from tests.support.runs import FRONT, POSE, SOLID, assert_same_tensors, motion, newest, set_info, stop_at, weights
from ups_model.config import EvalConfig
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.evaluation.metric_names import metric_names
from ups_model.training.checkpoint import load_checkpoint
from ups_model.training.finite import NonFiniteLoss
from ups_model.training.progress import read_rows
from ups_model.training.run_state import make_optimizer

NOT_OURS = ("free_top1", "ended", "clip_rate", "floor_mm", "in_grammar")
"""UPS's diagnostics of tokens, which these networks have none of."""


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_stopped_run_ends_with_the_bits_of_one_that_was_not(system, toy_baseline, run_toy, tmp_path):
    config = toy_baseline(system)
    whole = run_toy(config, tmp_path / "whole", checkpoint_every=5)
    for step in (1, 4, 7):
        stopped = run_toy(config, tmp_path / "stopped", checkpoint_every=5, should_stop=stop_at(1 if step == 1 else 3))
        assert (stopped.status, stopped.step) == ("stopped", step)
    again = run_toy(config, tmp_path / "stopped", checkpoint_every=5)
    assert (whole.status, again.status) == ("finished", "finished")
    assert whole.metrics == again.metrics and whole.health == again.health and whole.outcomes == again.outcomes
    assert whole.key == again.key
    assert {**whole.about, "train_seconds": 0} == {**again.about, "train_seconds": 0}
    for name in ("model", "optimizer"):
        one, other = (load_checkpoint(newest(tmp_path / run))[0][name] for run in ("whole", "stopped"))
        assert_same_tensors(one, other)
    assert_same_tensors(weights(whole.checkpoint), weights(again.checkpoint))


@pytest.mark.parametrize("system", ["residual_mlp", "dd_net"])
def test_what_is_measured_in_passing_changes_and_chooses_nothing(system, toy_baseline, run_toy, toy_sets, tmp_path):
    config = toy_baseline(system)
    plain = run_toy(config, tmp_path / "plain")
    request = Request(config, plain.key, toy_sets, tmp_path / "passing", device="cpu", measure_at=(5, 8))
    passing = BaselineProject(system).train(request)
    measured = [row["step"] for row in read_rows(tmp_path / "passing" / "progress.jsonl") if "validation/score" in row]
    assert measured == [4, 5, 8, 12] and passing.metrics == plain.metrics
    assert passing.about["chosen_step"] == plain.about["chosen_step"]
    assert_same_tensors(weights(plain.checkpoint), weights(passing.checkpoint))


def test_kept_weights_are_measured_again_without_a_step_or_a_checkpoint(
    toy_baseline, run_toy, toy_sets, tmp_path, monkeypatch
):
    config = toy_baseline("dd_net")
    first = run_toy(config, tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")  # As `storage gc` leaves a finished unit.
    kept = weights(first.checkpoint)
    request = Request(config, first.key, toy_sets, tmp_path, device="cpu")
    monkeypatch.setattr(Run, "train_step", lambda run: pytest.fail("trained a step"))
    again = BaselineProject("dd_net").measure(request, Path(first.checkpoint), first.about, first.health)
    assert again.metrics == first.metrics and again.outcomes == first.outcomes and again.health == first.health
    assert again.about == first.about and again.checkpoint == first.checkpoint
    assert_same_tensors(weights(again.checkpoint), kept)
    measure_answers = learner.measure_answers
    changed = lambda *given: {name: value + 7 for name, value in measure_answers(*given).items()}  # noqa: E731
    monkeypatch.setattr(learner, "measure_answers", changed)
    other = BaselineProject("dd_net").measure(request, Path(first.checkpoint), first.about, first.health)
    for part in ("validation", "test"):
        assert other.metrics[f"{part}/ar3d/top1"] == first.metrics[f"{part}/ar3d/top1"] + 7
    with pytest.raises(ValueError, match="weights of another run"):
        seed = replace(request, settings=config.replace(seed=1))
        BaselineProject("dd_net").measure(seed, Path(first.checkpoint), first.about, first.health)


@pytest.mark.parametrize(
    ("system", "task"), [("residual_mlp", "pe"), ("dd_net", "ar3d"), ("dd_net", "ar2d"), ("dd_net", "eap")]
)
def test_metrics_and_outcomes_bear_the_names_that_ups_gives_them(system, task, toy_baseline, run_toy, tmp_path):
    config = toy_baseline(system, task=task, steps=2, ratios=(0.2, 0.5))
    result = run_toy(config, tmp_path)
    data = config.task_data
    expected = metric_names(task, data, EvalConfig(ratios=(0.2, 0.5)), ("wave", "kick"))
    expected = [name for name in expected if not any(word in name for word in NOT_OURS)] + ["score"]
    for part in ("test", "validation"):
        ours = {name.removeprefix(f"{part}/") for name in result.metrics if name.startswith(f"{part}/")}
        assert ours == set(expected), part
    with np.load(tmp_path / "outcomes.npz") as outcomes:
        names = {name.removeprefix(f"{task}/{data.sources[0]}/") for name in outcomes.files}
        subject = outcomes[f"{task}/{data.sources[0]}/subject"]
    assert set(subject) == {0}  # the toy sets' test subject
    if task == "pe":
        assert {"clip", "camera", "subject", "error_sum_mm", "frames", "frame_error", "example_pose_mm"} <= names
    else:
        ranks = {"rank@0.2", "rank@0.5"} if task == "eap" else {"rank"}
        assert {"clip", "subject", "label", *ranks} <= names


def test_the_best_validated_weights_are_measured_on_test_subjects_once(toy_baseline, run_toy, tmp_path, monkeypatch):
    import baselines.learner

    measured = []
    measure = baselines.learner.measure_answers

    def recorded(answers, feeds, part, ratios, outcomes, max_clips):
        if not max_clips:  # The points of the health curve are no candidates.
            measured.append(part)
        return measure(answers, feeds, part, ratios, outcomes, max_clips)

    scores = iter([1.0, 5.0, 3.0, 4.0])
    monkeypatch.setattr(baselines.learner, "measure_answers", recorded)
    monkeypatch.setattr(baselines.learner, "score", lambda *_: next(scores))
    result = run_toy(toy_baseline("dd_net"), tmp_path)
    assert measured == ["validation", "validation", "validation", "test"]
    assert result.about["chosen_step"] == 8 and result.checkpoint.endswith("best/step-00000008")
    assert result.about["chosen_by"] == "validation subjects"
    assert run_toy(toy_baseline("dd_net"), tmp_path).metrics == result.metrics  # Nothing is measured again.
    assert len(measured) == 4


def test_without_validation_subjects_the_last_step_is_taken(toy_baseline, run_toy, tmp_path):
    result = run_toy(toy_baseline("dd_net", validation_subjects=0), tmp_path)
    assert result.about["chosen_by"] == "last step" and result.about["chosen_step"] == 12 and not result.health
    assert not [name for name in result.metrics if name.startswith("validation/")]


def test_a_run_without_test_is_measured_later_without_another_step(toy_baseline, run_toy, tmp_path):
    config = toy_baseline("dd_net")
    untested = run_toy(config, tmp_path, test=False)
    assert not untested.tested and not (tmp_path / "outcomes.npz").exists()
    before = weights(untested.checkpoint)
    tested = run_toy(config, tmp_path)
    assert tested.tested and tested.outcomes and tested.step == 12
    assert_same_tensors(before, weights(tested.checkpoint))


def test_health_is_judged_at_each_fifth(toy_baseline, run_toy, tmp_path):
    health = run_toy(toy_baseline("residual_mlp", steps=10), tmp_path).health["pe"]
    assert [step for step, _ in health["curve"]] == [2, 4, 6, 8, 10]
    assert {"learnt", "converged", "collapsed"} <= health.keys() and health["metric"] == "pe/mpjpe_mm"


@pytest.mark.parametrize("system", SYSTEMS)
def test_chosen_weights_make_the_network_again_without_data(system, toy_baseline, toy_sets, run_toy, tmp_path):
    config = toy_baseline(system)
    result = run_toy(config, tmp_path)
    model, state = load_baseline(tmp_path / "best" / f"step-{result.about['chosen_step']:08d}", torch.device("cpu"))
    assert model.config == config and state["key"] == result.key
    assert_same_tensors(dict(model.state_dict()), weights(result.checkpoint))
    about = json.loads((tmp_path / "result.json").read_text())["about"]
    assert about["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    clips = ClipSet.open(toy_sets[config.task_data.sources[0]])
    assert network_size(config, clips) == (about["parameters"], about["flops"])


def test_the_operations_of_a_prediction_are_those_of_its_matrix_products(toy_baseline, toy_sets):
    _, flops = network_size(toy_baseline("residual_mlp"), ClipSet.open(toy_sets[POSE]))
    # 3 frames of 17 joints in, two layers of a block, 17 joints out; 8 units.
    assert flops == 2 * (3 * 17 * 2 * 8 + 2 * 8 * 8 + 8 * 17 * 3)


def test_a_folder_of_another_run_is_refused(toy_baseline, run_toy, tmp_path):
    run_toy(toy_baseline("dd_net"), tmp_path, should_stop=stop_at(2))
    with pytest.raises(ValueError, match="holds another run"):
        run_toy(toy_baseline("dd_net", seed=1), tmp_path)
    with pytest.raises(ValueError, match="not a checkpoint of a baseline's weights; give one from the folder best/"):
        load_baseline(newest(tmp_path), torch.device("cpu"))


def test_a_finished_run_whose_weights_are_damaged_says_so(toy_baseline, run_toy, tmp_path):
    config = toy_baseline("residual_mlp")
    whole = run_toy(config, tmp_path)
    file = tmp_path / "best" / f"step-{whole.about['chosen_step']:08d}" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"model.safetensors: corrupted checkpoint .*; delete .*step-"):
        run_toy(config, tmp_path)


def test_a_clip_set_without_a_folder_is_refused(toy_baseline, toy_sets, tmp_path):
    with pytest.raises(ValueError, match="no folder given for clip set toy_solid"):
        train(toy_baseline("dd_net"), {POSE: toy_sets[POSE]}, folder=tmp_path, device="cpu")
    with pytest.raises(ValueError, match="checkpoint_every must be at least 1, got 0"):
        train(toy_baseline("dd_net"), toy_sets, folder=tmp_path, checkpoint_every=0)
    assert not list(tmp_path.iterdir())


def test_only_the_clip_set_of_the_trained_task_is_asked_for(toy_baseline, toy_sets, tmp_path):
    result = train(toy_baseline("dd_net", steps=1), {SOLID: toy_sets[SOLID]}, folder=tmp_path, device="cpu")
    assert result.status == "finished"


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(toy_baseline, run_toy, tmp_path):
    with pytest.raises(NonFiniteLoss, match="not finite at step"):
        run_toy(toy_baseline("residual_mlp", learning_rate=1e30, warmup_share=0.0), tmp_path)


def test_the_seed_decides_weights_and_batches(toy_baseline, run_toy, tmp_path):
    one, same, other = (
        weights(run_toy(toy_baseline("dd_net", seed=seed, steps=2), tmp_path / name).checkpoint)
        for seed, name in ((0, "one"), (0, "same"), (1, "other"))
    )
    assert_same_tensors(one, same)
    assert not torch.equal(one["network.scores.weight"], other["network.scores.weight"])


def test_rate_and_momentum_follow_the_schedules(toy_baseline):
    cosine = toy_baseline("residual_mlp", steps=100, warmup_share=0.1)
    assert learning_rate(cosine, 9, 50) == pytest.approx(3e-3) and learning_rate(cosine, 0, 50) == pytest.approx(3e-4)
    assert learning_rate(cosine, 55, 50) == pytest.approx(1.5e-3)
    # 4 windows of 2 targets a step: a pass over 40 frames takes 5 steps.
    decaying = toy_baseline("residual_mlp", steps=100, schedule="exponential", warmup_share=0.0, decay=0.5)
    rates = [learning_rate(decaying, step, 40) for step in (0, 4, 5, 9, 10)]
    assert rates == pytest.approx([3e-3, 3e-3, 1.5e-3, 1.5e-3, 7.5e-4])
    assert learning_rate(decaying.with_fields({"decay_samples": 8}), 2, 40) == pytest.approx(7.5e-4)
    falling = decaying.with_fields({"norm_momentum_end": 0.001})
    assert norm_momentum(falling, 0) == pytest.approx(0.1) and norm_momentum(falling, 50) == pytest.approx(0.01)


def test_vectors_have_no_weight_decay(toy_baseline):
    layer = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    optimizer = make_optimizer(layer, toy_baseline("dd_net", weight_decay=0.5).optim)
    decay = {parameter.ndim: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert decay == {2: 0.5, 1: 0.0}


@pytest.mark.slow
@pytest.mark.parametrize("system", [name for name in SYSTEMS if name not in LIFTERS])
def test_a_recogniser_learns_a_small_set_by_heart(system, toy_baseline, run_toy, tmp_path):
    plain = {"crop_min": 1.0, "rotation_deg": 0, "jitter": 0.0, "batch_size": 12}
    changes = {"validation_subjects": 0, "steps": 100, "dropout": 0.0, "width": 16, "learning_rate": 1e-2}
    config = toy_baseline(system, **changes, **{f"data.ar3d.{key}": value for key, value in plain.items()})
    result = run_toy(config, tmp_path)
    (loss,) = [row["train/ar3d_loss"] for row in read_rows(tmp_path / "progress.jsonl") if row["step"] == 100]
    assert loss < 0.1 and result.metrics["test/ar3d/top1"] == 100


@pytest.mark.slow
@pytest.mark.parametrize("system", LIFTERS)
def test_a_lifter_learns_eight_poses_by_heart(system, toy_baseline, tmp_path):
    world_NJ3 = motion(0, 1, 8, 17)
    clips = [Clip(str(row), (Track(world_NJ3),), 0, row, split_test=row > 0, camera_group=0) for row in range(2)]
    info = set_info(POSE, "h36m17", up_axis="z", camera_groups=((FRONT,),))
    path = write_clip_set(tmp_path / POSE, info, clips).path
    plain = {"frames": 3, "targets_per_window": 1, "evaluate_targets": 1, "evaluate_stride": 1, "batch_size": 64}
    changes = {"validation_subjects": 0, "steps": 200, "dropout": 0.0, "width": 64, "learning_rate": 1e-2}
    config = toy_baseline(system, **changes, **{f"data.pe.{key}": value for key, value in plain.items()})
    config = config.with_fields({"data.pe.flip": False, "evaluation.flip": False})
    result = train(config, {POSE: path}, folder=tmp_path / "run", device="cpu")
    # The test clip is the training clip: both subjects move alike.
    assert result.metrics["test/pe/poses"] == 8
    # Not 0: batch normalisation's running variance is that of a sample, 1 / 63 above the batch's own.
    assert result.metrics["test/pe/mpjpe_mm"] < 0.06 * result.about["mean_pose_mm"]
