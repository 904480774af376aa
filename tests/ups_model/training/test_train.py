"""Training: a run that was killed ends with the bits of one that was not; what is chosen, refused, kept and learnt."""

import itertools
import json
import logging
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import ups_model.evaluation.measure
import ups_model.training.run
from tests.support.runs import (
    FLAT,
    FRONT,
    POSE,
    SOLID,
    assert_same_run,
    assert_same_tensors,
    make_feed,
    motion,
    newest,
    options,
    set_info,
    stop_at,
    toy_config,
    train_alone,
    weights,
    write_toy_sets,
)
from ups_model.config import EvalConfig
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.evaluation.measure import measure
from ups_model.tasks import TASK_INDEX
from ups_model.training import base_run
from ups_model.training.base_run import BaseRun
from ups_model.training.build import load_model
from ups_model.training.checkpoint import newest_checkpoint
from ups_model.training.finite import NonFiniteLoss
from ups_model.training.run import train

VARIANTS = {
    "joint": {},
    "dense routing": {"routing_execution": "dense", "ema": 0.5},
    "no routing": {"routing": False},
    "cycle update": {"update": "cycle", "ema": 0.5},
    "masked inputs": {"mask_inputs": True, "bin_sigma": 1.0, "label_smoothing": 0.1, "optim.cycle": ("pe", "ar2d")},
    "task norm": {"normalisation": "task_batch", "ema": 0.5, "optim.cycle": ("ar3d", "eap", "ar3d"), "steps": 9},
}


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_toy_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def finished(paths, cache, tmp_path_factory):
    """The folder and result of the plain joint run."""
    out = tmp_path_factory.mktemp("finished")
    return out, train(toy_config(), paths, options(out, cache))


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(variant, paths, cache, tmp_path):
    config = toy_config(evaluate_every=4, **({"steps": 8} | VARIANTS[variant]))
    train(config, paths, options(tmp_path / "whole", cache))
    # Step 5: after a validation, in the middle of a cycle.
    stopped = train(config, paths, options(tmp_path / "parts", cache), should_stop=stop_at(5))
    assert stopped.status == "stopped" and 5 <= stopped.step < config.optim.steps and not stopped.metrics
    resumed = train(config, paths, options(tmp_path / "parts", cache))
    assert resumed.status == "finished" and resumed.step == config.optim.steps
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"update": "cycle", "ema": 0.5}], ids=["joint", "cycle update"])
def test_a_run_killed_at_random_moments_equals_an_uninterrupted_one(changes, paths, cache, tmp_path):
    config = toy_config(steps=16, evaluate_every=5, **changes)
    # A server that has imported the trainer and never trained: children start in milliseconds and share no state.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.support.runs"])
    torch.set_num_threads(1)
    train(config, paths, options(tmp_path / "whole", cache, test=False))
    out = tmp_path / "killed"
    draw = random.Random(0)
    reached = []
    for target in (1, 6, 11):
        process = context.Process(
            target=train_alone, args=(config, paths, options(out, cache, checkpoint_every=1, test=False))
        )
        process.start()
        deadline = time.monotonic() + 120
        while process.is_alive() and not any(
            int(path.name[5:]) >= target for path in (out / "checkpoints").glob("step-*")
        ):
            assert time.monotonic() < deadline, f"step {target} not reached"
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.06))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        reached.append(newest_checkpoint(out / "checkpoints")[2]["step"])
    assert len(set(reached)) == 3 and reached[0] < 16, f"kills must come during the run, got {reached}"
    train(config, paths, options(out, cache, checkpoint_every=1, test=False))
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(finished, paths, cache, tmp_path):
    out, result = finished
    # Drawing from the global generator before must not matter.
    torch.manual_seed(999)
    again = train(toy_config(), paths, options(tmp_path / "again", cache))
    assert_same_run(out, tmp_path / "again")
    assert again.key == result.key
    other = train(toy_config(seed=1), paths, options(tmp_path / "other", cache))
    assert other.key != result.key
    one, two = weights(result.checkpoint), weights(other.checkpoint)
    assert not torch.equal(one["project_text.weight"], two["project_text.weight"])


@pytest.mark.slow
def test_run_options_change_no_bit(finished, paths, cache, tmp_path):
    out, result = finished
    again = train(
        toy_config(),
        paths,
        options(tmp_path, cache, log_every=1, checkpoint_every=3, keep=1),
        on_metrics=lambda *_: None,
    )
    assert again.key == result.key
    assert_same_run(out, tmp_path)


@pytest.mark.slow
def test_a_corrupted_newest_checkpoint_is_passed_over_and_the_run_still_ends_the_same(
    finished, paths, cache, tmp_path, caplog
):
    train(toy_config(), paths, options(tmp_path, cache, checkpoint_every=4, keep=3), should_stop=stop_at(10))
    file = newest(tmp_path) / "optimizer.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with caplog.at_level(logging.INFO):
        train(toy_config(), paths, options(tmp_path, cache))
    text = caplog.text
    assert "step-00000010" in text and "trying an older checkpoint" in text and "resuming at step 8 of 12" in text
    assert_same_run(finished[0], tmp_path)


@pytest.mark.slow
def test_another_configuration_in_the_same_folder_is_refused_and_changes_nothing(finished, paths, cache):
    out, result = finished
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=f"holds another run .{result.key}, this one is .*give another --out"):
        train(toy_config(learning_rate=1e-3), paths, options(out, cache))
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


@pytest.mark.slow
def test_a_finished_run_asked_for_again_trains_no_step_and_reports_the_same(paths, cache, tmp_path, monkeypatch):
    config = toy_config(steps=4)
    first = train(config, paths, options(tmp_path, cache))
    monkeypatch.setattr(
        ups_model.training.run, "sequence_loss", lambda *_: pytest.fail("a finished run must not train")
    )
    second = train(config, paths, options(tmp_path, cache))
    assert (second.status, second.step, second.key) == ("finished", 4, first.key)
    assert second.metrics == first.metrics and second.checkpoint == first.checkpoint


def test_only_sets_that_a_run_was_trained_and_measured_on_are_called_synthetic(paths, cache, tmp_path):
    config = toy_config(**{"optim.cycle": ("ar3d",), "steps": 2})
    assert train(config, paths, options(tmp_path, cache)).about["synthetic"] == [SOLID]


def test_the_result_file_holds_what_is_returned(finished):
    out, result = finished
    written = json.loads((out / "result.json").read_text())
    assert written == json.loads(json.dumps(vars(result)))
    assert written["about"]["synthetic"] == [FLAT, POSE, SOLID] and written["about"]["parameters"] > 0
    assert {f"test/{name}" for name in ("ar2d/top1", "eap/top1@0.5", "ar3d/top1", "pe/mpjpe_mm")} <= written[
        "metrics"
    ].keys()


# -- choosing ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_step_that_validates_best_is_chosen_and_test_is_measured_once_on_it(paths, cache, tmp_path, monkeypatch):
    scores = iter([1.0, 5.0, 3.0, 0.0])
    measured = []
    measure = ups_model.training.run.measure

    def recorded(model, feeds, part, config, outcomes=None, max_clips=0):
        if not max_clips:  # The points of the health curve are no candidates.
            measured.append((part, model.project_text.weight.detach().clone()))
        return measure(model, feeds, part, config, outcomes, max_clips)

    for module in (ups_model.training.run, ups_model.evaluation.measure):  # Measuring the test split is in the second.
        monkeypatch.setattr(module, "measure", recorded)
    monkeypatch.setattr(ups_model.training.run, "score", lambda *_: next(scores))
    config = toy_config(evaluate_every=4, ema=0.9)
    result = train(config, paths, options(tmp_path, cache, checkpoint_every=4, keep=9))
    assert [part for part, _ in measured] == ["validation", "validation", "validation", "test"]
    assert result.about["chosen_step"] == 8 and result.checkpoint.endswith("best/step-00000008")
    assert os.listdir(tmp_path / "best") == ["step-00000008"]
    average = load_file(tmp_path / "checkpoints" / "step-00000008" / "ema.safetensors")
    assert_same_tensors(
        weights(result.checkpoint),
        {name.removeprefix("module."): value for name, value in average.items() if name != "n_averaged"},
    )
    assert torch.equal(measured[-1][1], weights(result.checkpoint)["project_text.weight"])
    assert result.metrics["validation/score"] == 5.0


@pytest.mark.slow
def test_without_validation_subjects_the_last_step_is_taken(paths, cache, tmp_path, monkeypatch):
    measured = []
    measure = ups_model.training.run.measure
    for module in (ups_model.training.run, ups_model.evaluation.measure):
        monkeypatch.setattr(module, "measure", lambda *args: measured.append(args[2]) or measure(*args))
    config = toy_config(validation_subjects=0, evaluate_every=4)
    result = train(config, paths, options(tmp_path, cache))
    assert measured == ["test"] and result.about["chosen_by"] == "last step" and result.about["chosen_step"] == 12
    assert not [name for name in result.metrics if name.startswith("validation/")]
    assert_same_tensors(weights(result.checkpoint), weights(newest(tmp_path)))


def test_a_run_asked_not_to_test_measures_no_test_clip(paths, cache, tmp_path):
    result = train(toy_config(steps=4), paths, options(tmp_path, cache, test=False))
    assert result.metrics and all(name.startswith("validation/") for name in result.metrics)


# -- fine-tuning -------------------------------------------------------------------------------------------------------


def test_fine_tuning_starts_from_the_parents_weights(finished, paths, cache, tmp_path):
    _, parent = finished
    # At a rate of 1e-30 no float32 weight moves.
    config = toy_config(**{"optim.cycle": ("ar3d",), "steps": 3, "learning_rate": 1e-30})
    child = train(config, paths, options(tmp_path, cache), parent=Path(parent.checkpoint))
    assert_same_tensors(weights(child.checkpoint), weights(parent.checkpoint))


def test_a_task_that_the_parent_does_not_know_keeps_the_input_statistics_of_its_own_clips(paths, cache, tmp_path):
    parent = train(toy_config(**{"optim.cycle": ("ar3d",), "steps": 2}), paths, options(tmp_path / "parent", cache))
    config = toy_config(**{"optim.cycle": ("pe",), "steps": 2, "learning_rate": 1e-30})
    alone = train(config, paths, options(tmp_path / "alone", cache))
    child = train(config, paths, options(tmp_path / "child", cache), parent=Path(parent.checkpoint))
    theirs, own, ours = (weights(one.checkpoint) for one in (parent, alone, child))
    for name in ("input_mean_TC", "input_scale_TC"):
        pose, known = TASK_INDEX["pe"], TASK_INDEX["ar3d"]
        assert torch.equal(ours[name][pose], own[name][pose]) and torch.equal(ours[name][known], theirs[name][known])
        assert not torch.equal(ours[name][pose], theirs[name][pose])


def test_fine_tuning_keeps_the_parents_routes(finished, paths, cache, tmp_path):
    _, parent = finished
    config = toy_config(**{"optim.cycle": ("eap",), "steps": 6, "learning_rate": 0.3}, freeze_routes=True)
    child = train(config, paths, options(tmp_path / "child", cache), parent=Path(parent.checkpoint))
    assert child.routes == parent.routes and child.routes
    router = "encoder.router.task_TQ"
    assert weights(child.checkpoint)["encoder.router.frozen_TL"].min() >= 0
    # The start token is made from the task embedding, so that embedding moves while the routes do not.
    assert not torch.equal(weights(child.checkpoint)[router], weights(parent.checkpoint)[router])


@pytest.mark.slow
def test_the_key_of_a_fine_tuned_run_depends_on_its_parent(finished, paths, cache, tmp_path):
    _, parent = finished
    config = toy_config(**{"optim.cycle": ("ar3d",), "steps": 2})
    other = train(toy_config(steps=4, seed=3), paths, options(tmp_path / "other", cache))
    children = [
        train(config, paths, options(tmp_path / f"child{index}", cache), parent=start).key
        for index, start in enumerate((None, Path(parent.checkpoint), Path(other.checkpoint)))
    ]
    assert len({*children, parent.key, other.key}) == 5


def test_a_parent_of_another_shape_is_refused(finished, paths, cache, tmp_path):
    _, parent = finished
    with pytest.raises(ValueError, match="weights do not fit this configuration"):
        train(toy_config(encoder_layers=3), paths, options(tmp_path, cache), parent=Path(parent.checkpoint))
    assert not (tmp_path / "checkpoints").exists()


# -- what goes wrong ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["iteration", "cycle"])
def test_a_loss_that_is_not_finite_names_the_step_and_a_way_out_and_spoils_no_checkpoint(
    update, paths, cache, tmp_path
):
    config = toy_config(learning_rate=1e30, update=update)
    with pytest.raises(NonFiniteLoss, match=r"not finite at step \d+ .*[Tt]ry a.*learning_rate") as caught:
        train(config, paths, options(tmp_path, cache, checkpoint_every=1, keep=50))
    failed_at = int(str(caught.value).split("at step ")[1].split()[0])
    checkpoint = newest_checkpoint(tmp_path / "checkpoints")
    if update == "iteration":
        assert checkpoint is not None
    if checkpoint is not None:
        path, tensors, state = checkpoint
        assert state["step"] < failed_at
        assert all(torch.isfinite(value).all() for value in tensors["model"].values()), path
    assert not (tmp_path / "result.json").exists()


def test_a_set_that_no_folder_is_given_for_is_an_error_before_anything_starts(paths, cache, tmp_path):
    with pytest.raises(ValueError, match=f"no folder given for clip set {FLAT}; pass --data {FLAT}=PATH"):
        train(toy_config(), {name: path for name, path in paths.items() if name != FLAT}, options(tmp_path, cache))
    with pytest.raises(ValueError, match=f"expected clip set '{FLAT}', got '{SOLID}'"):
        train(toy_config(), paths | {FLAT: paths[SOLID]}, options(tmp_path, cache))
    assert not list(tmp_path.iterdir())


def test_equal_data_elsewhere_is_the_same_run_and_other_data_another(finished, cache, tmp_path):
    moved = write_toy_sets(tmp_path / "moved")
    config = toy_config()
    same = train(config, moved, options(tmp_path / "same", cache), should_stop=stop_at(1))
    other = write_toy_sets(tmp_path / "other", frames=15)
    different = train(config, other, options(tmp_path / "different", cache), should_stop=stop_at(1))
    assert same.key == finished[1].key != different.key


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_model_learns_eight_clips_by_heart(paths, cache, tmp_path):
    changes = {
        "optim.cycle": ("ar3d",),
        "steps": 90,
        "learning_rate": 1e-2,
        "dropout": 0.0,
        "decoder_dropout": 0.0,
        "validation_subjects": 1,
    }
    plain = {"crop_min": 1.0, "rotation_deg": 0, "jitter": 0, "batch_size": 8}
    config = toy_config(**changes, **{f"data.ar3d.{name}": value for name, value in plain.items()})
    result = train(config, paths, options(tmp_path, cache, test=False))
    model, *_ = load_model(Path(result.checkpoint), torch.device("cpu"))
    model.eval()
    feed = make_feed(ClipSet.open(paths[SOLID]), "ar3d", config.data.ar3d, validation_subjects=1)
    metrics = measure(model, {"ar3d": feed}, "train", EvalConfig())
    assert metrics["ar3d/clips"] == 8
    assert metrics["ar3d/top1"] == 100 and metrics["ar3d/free_top1"] == 100 and metrics["ar3d/ended"] == 100


@pytest.mark.slow
def test_a_small_model_learns_eight_poses_by_heart(cache, tmp_path):
    world_NJ3 = motion(0, 1, 8, 17)
    clips = [Clip(str(row), (Track(world_NJ3),), 0, row, split_test=row > 0, camera_group=0) for row in range(2)]
    info = set_info(POSE, "h36m17", up_axis="z", camera_groups=((FRONT,),))
    pose_set = write_clip_set(tmp_path / POSE, info, clips)
    plain = {"frames": 3, "rotation_deg": 0, "batch_size": 8, "evaluate_targets": 1, "evaluate_stride": 1}
    config = toy_config(
        **{
            "optim.cycle": ("pe",),
            "steps": 160,
            "learning_rate": 1e-2,
            "dropout": 0.0,
            "decoder_dropout": 0.0,
            "validation_subjects": 0,
        },
        **{
            "decoder_width": 64,
            "encoder_layers": 1,
            "blocks_per_layer": 1,
            "n_bins": 20,
            "evaluation.coordinates": "argmax",
            "data.ar2d.sources": (),
        },
        **{"data.eap.sources": (), "data.ar3d.sources": ()},
        **{f"data.pe.{name}": value for name, value in plain.items()},
    )
    result = train(config, {POSE: pose_set.path}, options(tmp_path / "run", cache, test=False))
    model, *_ = load_model(Path(result.checkpoint), torch.device("cpu"))
    model.eval()
    feed = make_feed(pose_set, "pe", config.data.pe)
    metrics = measure(model, {"pe": feed}, "train", config.evaluation)
    # The best that arg-max decoding can do is the centre of the right bin.
    assert metrics["pe/poses"] == 8 and metrics["pe/mpjpe_mm"] < 2 * metrics["pe/floor_mm"]
    assert result.about["mean_pose_mm"] > 4 * metrics["pe/floor_mm"] and metrics["pe/in_grammar"] > 99


@pytest.mark.slow
def test_a_loss_scaler_that_never_scaled_does_not_stop_a_run_from_going_on_in_fp16(paths, cache, tmp_path):
    # On the CPU autocast takes fp16 too; the scaler of an fp32 run has an empty state, which a scaler refuses to load.
    config = toy_config()
    train(config, paths, options(tmp_path, cache), should_stop=stop_at(config.optim.steps // 2))
    result = train(config, paths, options(tmp_path, cache, precision="fp16"))
    assert result.status == "finished" and result.step == config.optim.steps


def test_gradients_of_half_a_cycle_that_fp16_has_scaled_go_on_in_fp32(paths, cache, tmp_path, monkeypatch):
    norms, update = [], BaseRun.update
    monkeypatch.setattr(BaseRun, "update", lambda run: norms.append(float(update(run))) or torch.tensor(norms[-1]))
    config = toy_config(**{"optim.update": "cycle", "optim.steps": 4, "data.validation_subjects": 0})
    train(config, paths, options(tmp_path / "whole", cache, test=False))
    train(config, paths, options(tmp_path / "moved", cache, precision="fp16", test=False), should_stop=stop_at(2))
    train(config, paths, options(tmp_path / "moved", cache, test=False))
    whole, moved = norms
    assert moved == pytest.approx(whole, rel=0.05)


def test_the_last_line_of_progress_counts_the_steps_since_the_one_before(paths, cache, tmp_path, monkeypatch):
    rows, clock = {}, itertools.count(0.0, 0.5)
    monkeypatch.setattr(base_run, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    take = lambda step, row: rows.setdefault(step, row)  # noqa: E731
    config = toy_config(**{"optim.cycle": ("ar3d",), "steps": 6, "data.validation_subjects": 0})
    train(config, paths, options(tmp_path, cache, log_every=4, test=False), None, take)
    per_step = [row["steps_per_second"] for row in rows.values() if "steps_per_second" in row]
    assert per_step[1] == pytest.approx(per_step[0] / 2), "the clock goes on alike from line to line"


@pytest.mark.slow
def test_a_run_that_goes_on_in_another_precision_says_both(paths, cache, tmp_path):
    config = toy_config()
    train(config, paths, options(tmp_path, cache, precision="bf16"), should_stop=stop_at(6))
    result = train(config, paths, options(tmp_path, cache, precision="fp32"))
    assert result.status == "finished"
    assert result.about["precision"] == "bf16 then fp32"
    assert result.about["device"] == "cpu"
