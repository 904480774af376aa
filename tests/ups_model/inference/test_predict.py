"""Predictions of single clips are those that were counted when the model was measured; and what the command refuses."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ups_model
from tests.support.runs import FLAT, POSE, SOLID, options, toy_config, write_toy_sets
from ups_model import predict
from ups_model.data.batching.in_memory import class_set
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.format.writer import Track
from ups_model.data.prepare.catalog import prepare
from ups_model.data.prepare.jobs import Recording
from ups_model.data.readers.detect import clip_names, read_recording
from ups_model.inference.find_weights import find_weights
from ups_model.training.build import load_model
from ups_model.training.run import train

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return write_toy_sets(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def run(tmp_path_factory, paths):
    """The folder and the metrics of a short joint run that reads stored keypoints and predicts every frame."""
    folder = tmp_path_factory.mktemp("runs") / "joint"
    config = toy_config(
        **{
            "pe.detections": "stored",
            "pe.rotation_deg": 0.0,
            "pe.evaluate_stride": 1,
            "evaluation.flip": True,
            "data.validation_subjects": 0,
        }
    )
    result = train(config, paths, options(folder, tmp_path_factory.mktemp("cache")))
    return folder, result.metrics


@pytest.fixture(scope="module")
def model(run):
    loaded, config, _ = load_model(find_weights(str(run[0])), CPU)
    return loaded, config


def test_clips(path):
    clips = ClipSet.open(path)
    return [(str(clips.clip_id[row]), int(clips.label[row])) for row in np.flatnonzero(clips.split_test)]


test_clips.__test__ = False


@pytest.mark.parametrize(
    ("task", "name", "observed", "metric"),
    [
        ("ar3d", SOLID, 1.0, "test/ar3d/top1"),
        ("ar2d", FLAT, 1.0, "test/ar2d/top1"),
        ("eap", SOLID, 0.5, "test/eap/top1@0.5"),
    ],
)
def test_answers_clip_by_clip_are_the_accuracy_that_was_measured(run, model, paths, task, name, observed, metric):
    right = []
    for clip, label in test_clips(paths[name]):
        answer = predict.predict_class(*model, read_recording(paths[name], clip), task, observed=observed)
        assert answer.data_set == name and answer.classes == ("wave", "kick")
        assert answer.probability_K.sum() == pytest.approx(1, abs=1e-12)
        right.append(answer.best[0][0] == answer.classes[label])
    assert 100 * np.mean(right) == pytest.approx(run[1][metric])


@pytest.mark.slow
def test_poses_clip_by_clip_are_the_error_that_was_measured(run, model, paths):
    errors, frames = [], []
    for clip, _ in test_clips(paths[POSE]):
        for camera in (0, 1):
            answer = predict.predict_clip_poses(*model, read_recording(paths[POSE], f"{clip}/{camera}"))
            errors.append((answer.errors["mpjpe_mm"], answer.errors["p_mpjpe_mm"]))
            frames.append(len(answer.pose_NJ3))
            assert np.abs(answer.pose_NJ3[:, 0]).max() < 0.2  # The root is a prediction like any joint, near 0.
    mean = np.average(errors, axis=0, weights=frames)
    expected = [run[1][f"test/pe/frames_{name}"] for name in ("mpjpe_mm", "p_mpjpe_mm")]
    np.testing.assert_allclose(mean, expected, rtol=1e-4)


def test_a_model_that_was_measured_on_projections_is_asked_about_them(run, model, paths):
    clip, _ = test_clips(paths[POSE])[0]
    recording = read_recording(paths[POSE], f"{clip}/0")
    weights, config = model
    projected = config.replace(data=config.data.replace(pe=config.data.pe.replace(detections="project")))
    by_hand = replace(recording, tracks=(recording.projected,), projected=None)
    expected = predict.predict_clip_poses(weights, config, by_hand).errors
    assert predict.predict_clip_poses(weights, projected, recording).errors == expected
    assert predict.predict_clip_poses(weights, config, recording).errors != expected


def test_a_clip_that_goes_on_after_the_person_has_left_is_seen_as_when_it_was_measured(tmp_path):
    pose = np.random.default_rng(0).uniform(100, 400, (17, 2)).tolist()
    seen = {"keypoints": pose, "keypoint_scores": [1.0] * 17}
    frames = [{"frame_id": frame, "instances": [seen] * (frame < 30)} for frame in range(60)]
    for name in ("jump/1", "jump/2", "wave/1", "wave/2"):
        file = tmp_path / "source" / f"{name}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"meta_info": {"width": 640, "height": 480}, "instance_info": frames}))
    prepared = prepare("keypoints", tmp_path / "source", tmp_path / "out")
    assert set(ClipSet.open(prepared).clip_length.tolist()) == {60}
    for recording in (read_recording(prepared, "jump/1"), read_recording(file)):
        assert recording.length == class_set(recording).clip_length[0] == 60


def test_a_person_who_comes_late_is_answered_from_that_frame_on(model, paths):
    clip, _ = test_clips(paths[POSE])[0]
    alone = read_recording(paths[POSE], f"{clip}/0")
    late = Track(alone.tracks[0].positions[:6], offset=5)
    both = replace(alone, tracks=(late, alone.tracks[0]), truth=None)
    first, second = (predict.predict_clip_poses(*model, both, person) for person in (0, 1))
    assert (first.first_frame, len(first.pose_NJ3)) == (0, len(alone.tracks[0].positions))
    assert (second.first_frame, len(second.pose_NJ3)) == (5, 6)
    np.testing.assert_array_equal(first.pose_NJ3, predict.predict_clip_poses(*model, alone).pose_NJ3)
    with pytest.raises(ValueError, match=r"--person must be 0..1"):
        predict.predict_clip_poses(*model, both, 2)


def test_a_joint_that_was_not_seen_is_taken_from_where_it_was_last(model, paths):
    clip, _ = test_clips(paths[POSE])[0]
    recording = read_recording(paths[POSE], f"{clip}/0")
    held = recording.tracks[0].positions.copy()
    held[3:, 16] = held[2, 16]
    missed, confidence = held.copy(), np.ones(held.shape[:2])
    missed[3:, 16], confidence[3:, 16] = 0, 0
    one, other = (
        predict.predict_clip_poses(*model, replace(recording, tracks=(track,), truth=None)).pose_NJ3
        for track in (Track(held), Track(missed, confidence=confidence))
    )
    np.testing.assert_array_equal(one, other)


def test_the_task_is_what_the_coordinates_and_the_training_allow(model):
    config = model[1]
    pose = np.zeros((3, 17, 2), np.float32)
    flat = Recording("a", "coco17", 2, 30, "normalised", "-y", (Track(pose),))
    solid = Recording("b", "h36m17", 3, 30, "metre", "z", (Track(np.zeros((3, 17, 3))),))
    assert predict.choose_task(config, flat) == "ar2d"
    assert predict.choose_task(config, replace(flat, units="pixel")) == "pe"
    assert predict.choose_task(config, solid) == "ar3d"
    alone = config.with_fields({"optim.cycle": ("eap",)})
    assert predict.choose_task(alone, solid) == "eap"
    with pytest.raises(ValueError, match=r"'a' has 2D normalised coordinates, which serve ar2d and pe; .* for eap"):
        predict.choose_task(alone, flat)
    lifting = config.with_fields({"optim.cycle": ("pe",)})
    with pytest.raises(
        ValueError, match=r"'b' has 3D .* for pe; name one of its 4 cameras, the first with --clip 'b/0'"
    ):
        predict.choose_task(lifting, replace(solid, cameras=4))
    with pytest.raises(ValueError, match=r"for pe; give a file of keypoints in pixels, or another --task"):
        predict.choose_task(lifting, solid)
    with pytest.raises(ValueError, match="--task pe: the model was trained for eap alone"):
        predict.choose_task(alone, solid, "pe")


def test_keypoints_of_another_layout_are_lifted_and_the_answer_says_so(model):
    pose = np.random.default_rng(0).uniform(200, 800, (9, 17, 2)).astype(np.float32)
    recording = Recording("mine", "coco17", 2, 30, "pixel", "-y", (Track(pose),), (1000.0, 1000.0))
    answer = predict.predict_clip_poses(*model, recording)
    assert answer.pose_NJ3.shape == (9, 17, 3) and answer.skeleton.name == "h36m17" and answer.errors == {}
    assert "from coco17 keypoints" in answer.text()
    with pytest.raises(ValueError, match="image size of 'mine' is not in the file; give it with --size"):
        predict.predict_clip_poses(*model, replace(recording, size=None))


def command(*arguments) -> int:
    return predict.main([str(argument) for argument in (*arguments, "--device", "cpu")])


@pytest.mark.slow
def test_the_command_writes_json_npz_and_pictures(run, paths, tmp_path, capsys):
    clip, _ = test_clips(paths[SOLID])[0]
    out = [part for ending in ("json", "npz", "png", "gif") for part in ("--out", tmp_path / f"a.{ending}")]
    assert command(run[0], paths[SOLID], "--clip", clip, *out) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["clip"] == clip and content["task"] == "ar3d" and content["best"] in printed
    assert sum(content["probabilities"]) == pytest.approx(1)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["classes"].tolist() == content["classes"]
        np.testing.assert_allclose(arrays["probabilities"], content["probabilities"])
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(1 << 20)) > 20
    frames = len(ClipSet.open(paths[SOLID]).clip(0)[0][1])
    with Image.open(tmp_path / "a.gif") as moving:
        assert moving.n_frames == frames


@pytest.mark.slow
def test_the_command_writes_poses_with_their_layout(run, paths, tmp_path, capsys):
    clip, _ = test_clips(paths[POSE])[0]
    out = [part for ending in ("json", "npz", "png", "gif") for part in ("--out", tmp_path / f"p.{ending}")]
    assert command(run[0], paths[POSE], "--clip", f"{clip}/1", *out) == 0
    assert "mpjpe_mm" in capsys.readouterr().out
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["units"] == "metre" and content["joint_names"][0] == "pelvis" and len(content["parents"]) == 17
    with np.load(tmp_path / "p.npz", allow_pickle=False) as arrays:
        np.testing.assert_allclose(arrays["poses"], content["poses"], atol=1e-6)
        assert json.loads(str(arrays["about"]))["fps"] == 30
    with Image.open(tmp_path / "p.gif") as moving, Image.open(tmp_path / "p.png") as picture:
        assert moving.n_frames == len(content["poses"]) and picture.height > 200


def test_weights_are_found_by_checkpoint_run_unit_and_key(run, tmp_path):
    checkpoint = next((run[0] / "best").iterdir())
    assert find_weights(str(checkpoint)) == checkpoint == find_weights(str(run[0]))
    unit = tmp_path / "units" / "joint-seed0-0123456789abcdef"
    shutil.copytree(run[0], unit)
    (unit / "result.json").unlink()
    (unit / "record.json").write_text(json.dumps({"checkpoint": f"best/{checkpoint.name}"}))
    assert find_weights("01234", tmp_path) == unit / "best" / checkpoint.name == find_weights(str(unit))
    other = tmp_path / "units" / "joint-seed1-01234fffffffffff"
    other.mkdir()
    with pytest.raises(ValueError, match=r"several units have keys that begin with 01234: joint-seed0-.* give more"):
        find_weights("01234", tmp_path)
    with pytest.raises(ValueError, match="joint-seed1-01234fffffffffff: holds no chosen weights, the run has not fin"):
        find_weights("01234f", tmp_path)


def test_a_run_folder_that_was_moved_keeps_its_weights(run, tmp_path):
    moved = tmp_path / "elsewhere"
    shutil.copytree(run[0], moved)
    assert find_weights(str(moved)).parent.parent == moved


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "SOLID"], "nowhere: no such folder; give a checkpoint, a run's folder"),
        (["0123abcd", "SOLID"], "no unit whose key begins with 0123abcd in"),
        (["RUN", "SOLID"], "holds 16 clips; name one with --clip"),
        (["RUN", "SOLID", "--clip", "none"], "has no clip 'none'"),
        (["RUN", "POSE", "--clip", "toy_pose-0/7"], "has 2 cameras, got camera 7"),
        (
            ["RUN", "POSE", "--clip", "toy_pose-0", "--task", "pe"],
            "its 2 cameras, the first with --clip 'toy_pose-0/0'",
        ),
        (["RUN", "/nowhere.bvh"], "/nowhere.bvh: no such file"),
        (["RUN", "FOLDER"], "a folder, but no prepared clip set"),
        (["RUN", "TEXT"], "no known format; known are"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--out", "a.txt"], "--out must end in .json, .npz, .png, .gif"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--out", "/nowhere/a.json"], "no such folder to write to"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--observed", "1.5"], "--observed must lie in (0, 1], got 1.5"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--classes", "ntu60"], "--classes ntu60: the model knows those of"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--task", "ar2d"], "ar2d needs 2D clips, 'toy_solid-0' has 3D; use"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--task", "pe"], "pose estimation needs 2D keypoints in pixels"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--size", "12"], "--size must be WIDTHxHEIGHT in pixels"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--size", "²x³"], "--size must be WIDTHxHEIGHT in pixels"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--size", "8x8"], "--size says nothing to 3D action recognition"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--person", "1"], "--person says nothing to 3D action recognition"),
        (["RUN", "POSE", "--clip", "toy_pose-0/0", "--observed", "0.5"], "--observed says nothing to 3D pose estimat"),
        (["RUN", "POSE", "--clip", "toy_pose-0/²"], "has no clip 'toy_pose-0/²'"),
        (["RUN", "KEYPOINTS", "--out", "KEYPOINTS"], "would write over what is read or written already"),
        (["RUN", "POSE", "--out", "a.png", "--out", "a.png"], "would write over what is read or written already"),
        (["RUN", "SOLID", "--clip", "toy_solid-0", "--top", "0"], "--top must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_ends_with_2_and_one_line(run, paths, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("no motion")
    values = {"RUN": run[0], "SOLID": paths[SOLID], "POSE": paths[POSE], "FOLDER": tmp_path}
    values["TEXT"] = tmp_path / "notes.txt"
    values["KEYPOINTS"] = tmp_path / "keypoints.json"
    assert command(*(values.get(argument, argument) for argument in arguments)) == 2
    output = capsys.readouterr()
    assert message in output.err and output.err.count("\n") == 1 and output.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes.txt"]


def test_clips_are_listed_without_a_model(paths, capsys):
    assert command("nowhere", paths[FLAT], "--list") == 0
    assert capsys.readouterr().out.split() == clip_names(paths[FLAT]) == [f"{FLAT}-{row}" for row in range(16)]


def test_pictures_without_matplotlib_are_refused_in_one_line(run, paths, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "ups_model.inference.visualize", raising=False)
    monkeypatch.delattr(ups_model.inference, "visualize", raising=False)
    clip, _ = test_clips(paths[SOLID])[0]
    assert command(run[0], paths[SOLID], "--clip", clip, "--out", tmp_path / "a.png") == 2
    assert "pip install 'ups-ablate[pictures]'" in capsys.readouterr().err
    assert not Path(tmp_path / "a.png").exists()
