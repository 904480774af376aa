"""Every format that is read can be predicted from, and gives what the prepared set of the same files gives."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from tests.support import writers_h36m, writers_kinetics, writers_ntu, writers_own
from tests.support.runs import options, toy_config, write_toy_sets
from ups_model import predict
from ups_model.data.prepare.catalog import prepare
from ups_model.data.readers.detect import clip_names, read_recording
from ups_model.device import pick_device
from ups_model.inference import visualize
from ups_model.inference.find_weights import find_weights
from ups_model.training.build import load_model
from ups_model.training.run import train

NTU = "S001C001P001R001A001"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of all four tasks on toy sets; what it answers does not matter here, only that it is the same."""
    folder = tmp_path_factory.mktemp("runs")
    train(toy_config(steps=4), write_toy_sets(folder / "clips"), options(folder / "joint", folder / "cache"))
    return folder / "joint"


@pytest.fixture(scope="module")
def model(run):
    loaded, config, _ = load_model(find_weights(str(run)), pick_device("cpu"))
    return loaded, config


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """A folder of files of each format."""
    folder = tmp_path_factory.mktemp("files")
    poses = writers_ntu.standing(20).astype(np.float32)
    writers_ntu.write_skeleton(folder / "raw" / f"{NTU}.skeleton", writers_ntu.one_body(poses), digits=9)
    row = [(0, writers_ntu.padded_row([(0, poses)]))]
    writers_ntu.write_arrays(folder / "arrays" / "NTU60_CS.npz", row, row, 60)
    names = [NTU, "S001C001P003R001A001"]
    split = {"xsub_train": names[:1], "xsub_val": names[1:]}
    annotations = [writers_ntu.annotation(name, poses[None]) for name in names]
    writers_ntu.write_pickle(folder / "pickle" / "ntu60_3danno.pkl", annotations, split)

    frames = [(at, [writers_kinetics.person(0.1 + 0.02 * at, 0.3, 0.5)]) for at in range(1, 12)]
    writers_kinetics.write_json(
        folder / "video", "train", {"abc": writers_kinetics.video(frames)}, {"abc": writers_kinetics.entry()}
    )
    (folder / "rows").mkdir()
    writers_kinetics.write_arrays(folder / "rows", "train", [writers_kinetics.to_row(frames)], ["abc.json"], [0])

    world = writers_h36m.poses(9, seed=1)
    writers_h36m.write(
        folder / "h36m", {"S1": {"Walking 1": world}}, {"S1": {"Walking 1": writers_h36m.detections(world, "S1")}}
    )

    writers_own.write_text(folder / "bvh" / "walk.bvh", writers_own.bvh_text(frames=writers_own.rest_frames(count=30)))
    seen = [[(points, np.full(17, 0.75), 1)] for points in writers_own.person_2d(12)]
    writers_own.write_json(folder / "json" / "mmpose.json", writers_own.mmpose_frames(seen))
    writers_own.write_json(folder / "coco" / "vitpose.json", writers_own.coco_results(seen, "{:d}", number=True))
    landmarks = [writers_own.landmarks_of(points / 800, np.full(17, 0.75)) for points in writers_own.person_2d(12)]
    writers_own.write_json(folder / "mediapipe" / "mediapipe.json", writers_own.mediapipe_frames(landmarks))
    writers_own.write_keypoint_arrays(folder / "npz" / "mine.npz", keypoints=writers_own.person_2d(12))
    pose = np.round(np.random.default_rng(0).uniform(0, 1, (12, 25, 3)), 4)
    np.savez(folder / "motion.npz", positions=pose, skeleton="ntu25", fps=30, up_axis="y")
    writers_ntu.write_pickle(folder / "custom.pkl", [writers_ntu.annotation("kick", pose[None], 0)], None)
    triples = np.concatenate([writers_own.person_2d(12), np.full((12, 17, 1), 0.75)], axis=-1)
    yolo = [[{"keypoints": dict(zip(("x", "y", "visible"), each.T.tolist(), strict=True))}] for each in triples]
    writers_own.write_json(folder / "yolo.json", yolo)
    for number in range(12):
        people = [{"person_id": [-1], "pose_keypoints_2d": np.tile(triples[number], (2, 1))[:25].ravel().tolist()}]
        writers_own.write_json(folder / "openpose" / f"{number:012d}_keypoints.json", {"people": people})
    return {file.name: file for file in folder.rglob("*") if file.is_file()} | {"openpose": folder / "openpose"}


CASES = {
    "skeleton": (f"{NTU}.skeleton", None, "ar3d", ()),
    "CTR-GCN": ("NTU60_CS.npz", "train:0", "ar3d", ()),
    "pyskl": ("ntu60_3danno.pkl", NTU, "ar3d", ()),
    "pyskl, early": ("ntu60_3danno.pkl", NTU, "eap", ("--task", "eap", "--observed", "0.5")),
    "Kinetics JSON": ("abc.json", None, "ar2d", ()),
    "Kinetics npy": ("train_data.npy", "abc", "ar2d", ()),
    "VideoPose3D": ("data_2d_h36m_cpn_ft_h36m_dbb.npz", "S1/Walking 1/0", "pe", ()),
    "BVH": ("walk.bvh", None, "ar3d", ()),
    "MMPose": ("mmpose.json", None, "pe", ("--size", "800x600")),
    "MMPose, action": ("mmpose.json", None, "ar2d", ("--task", "ar2d")),
    "ViTPose": ("vitpose.json", None, "pe", ("--size", "800x600")),
    "MediaPipe": ("mediapipe.json", None, "ar2d", ()),
    "arrays": ("mine.npz", None, "pe", ("--size", "800x600")),
    "Ultralytics": ("yolo.json", None, "pe", ("--size", "800x600")),
    "OpenPose": ("openpose", None, "pe", ("--size", "800x600")),
    "3D arrays": ("motion.npz", None, "ar3d", ()),
    "pyskl, custom": ("custom.pkl", "kick", "ar3d", ()),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_file_of_every_format_is_answered(run, files, name, tmp_path, capsys):
    file, clip, task, more = CASES[name]
    arguments = [run, files[file], "--device", "cpu", "--out", tmp_path / "a.json", "--out", tmp_path / "a.png", *more]
    arguments += [] if clip is None else ["--clip", clip]
    assert predict.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["task"] == task and content["file"] == file
    if task == "pe":
        assert np.isfinite(content["poses"]).all() and len(content["poses"]) == len(content["keypoints"])
    else:
        assert sum(content["probabilities"]) == pytest.approx(1)
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize("name", CASES)
def test_the_clips_that_a_file_lists_are_those_it_takes(files, name):
    file, clip, *_ = CASES[name]
    names = clip_names(files[file])
    assert clip is None or clip in names or clip.rsplit("/", 1)[0] in {one.rsplit("/", 1)[0] for one in names}
    assert read_recording(files[file], names[0]).tracks


@pytest.mark.parametrize(
    ("name", "source", "file", "clip", "made"),
    [
        ("ntu60", "raw", f"{NTU}.skeleton", None, NTU),
        ("kinetics", "video", "abc.json", None, "abc"),
        ("bvh", "bvh", "walk.bvh", None, "walk"),
    ],
)
def test_a_file_and_the_set_made_of_it_get_the_same_answer(model, files, tmp_path, name, source, file, clip, made):
    folder = files[file].parents[1 if name == "kinetics" else 0]
    path = prepare(name, folder, tmp_path)
    one, other = read_recording(files[file], clip), read_recording(path, made)
    task = predict.choose_task(model[1], one)
    answers = [predict.predict_class(*model, recording, task).probability_K for recording in (one, other)]
    np.testing.assert_allclose(*answers, rtol=1e-5)


def test_the_layouts_of_one_recording_get_the_same_answer(model, files):
    answers = [
        predict.predict_class(*model, read_recording(files[file], clip), "ar3d").probability_K
        for file, clip in ((f"{NTU}.skeleton", None), ("ntu60_3danno.pkl", NTU), ("NTU60_CS.npz", "test:0"))
    ]
    np.testing.assert_allclose(answers[1], answers[0], rtol=1e-4)
    np.testing.assert_allclose(answers[2], answers[0], rtol=1e-4)


class Touch:
    """A pickle that would run a command."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple:
        return Path.touch, (self.file,)


def test_a_malicious_pickle_is_refused_by_the_command_and_nothing_runs(run, tmp_path, capsys):
    bad = tmp_path / "ntu60_3danno.pkl"
    bad.write_bytes(pickle.dumps({"annotations": [{"frame_dir": NTU, "keypoint": Touch(tmp_path / "ran")}]}))
    assert predict.main([str(run), str(bad), "--clip", NTU]) == 2
    error = capsys.readouterr().err
    assert "a pickle may hold arrays and plain values alone, it asks for" in error and error.count("\n") == 1
    assert not (tmp_path / "ran").exists()
    pickle.loads(bad.read_bytes())
    assert (tmp_path / "ran").exists()  # So it would have.


def frames_10_to_39(person_key: str) -> list[dict]:
    """COCO results of one person in 10.jpg to 39.jpg, without 20.jpg to 22.jpg."""
    poses = writers_own.person_2d(30)
    persons = [[(pose, np.full(17, 0.75), 1)] for pose in poses]
    persons[10:13] = [], [], []
    return writers_own.coco_results(persons, "{}.jpg", person_key=person_key, first=10)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["coco", "mmpose", "empty entries"])
def test_poses_keep_the_frame_numbers_of_the_file_and_say_which_are_seen(run, tmp_path, capsys, form):
    content = frames_10_to_39("idx")
    if form != "coco":
        people = [[] for _ in range(40)]
        for entry in content:
            values = np.array(entry["keypoints"]).reshape(17, 3)
            people[int(entry["image_id"].removesuffix(".jpg"))] = [(values[:, :2], values[:, 2])]
        content = writers_own.mmpose_frames(people)
        content = content if form == "empty entries" else content[10:]
    file = writers_own.write_json(tmp_path / "alphapose.json", content)
    out = [part for ending in ("json", "npz", "png", "gif") for part in ("--out", str(tmp_path / f"a.{ending}"))]
    assert predict.main([str(run), str(file), "--task", "pe", "--size", "800x600", "--device", "cpu", *out]) == 0
    assert "3 frames without a detection" in capsys.readouterr().out
    written = json.loads((tmp_path / "a.json").read_text())
    assert written["first_frame"] == 10 and len(written["poses"]) == 30
    assert [10 + frame for frame, seen in enumerate(written["seen"]) if not seen] == [20, 21, 22]
    with np.load(tmp_path / "a.npz", allow_pickle=False) as arrays:
        assert arrays["seen"].tolist() == written["seen"] and arrays["seen"].dtype == bool


def test_pictures_mark_frames_without_a_detection(model, tmp_path):
    file = writers_own.write_json(tmp_path / "alphapose.json", frames_10_to_39("idx"))
    recording = replace(read_recording(file), size=(800.0, 600.0))
    answers = [
        predict.predict_clip_poses(*model, recording),
        predict.predict_class(*model, replace(recording, units="normalised"), "ar2d"),
    ]
    for answer in answers:
        scene = visualize._scene(answer, recording)
        assert scene.frames == range(10, 40)
        for panel in scene.panels:
            view = panel.open(Figure(), 1, 1, 1)
            for frame, marked in ((19, False), (20, True), (22, True), (23, False)):
                view.show(frame)
                assert view.axes.get_title().endswith(f"frame {frame}{', not seen' if marked else ''}")
                opacity = {line.get_alpha() for *_, line in view.bones[0]}
                assert opacity == {visualize.UNSEEN_ALPHA if marked else 1}
            # A joint that was not detected is not drawn at the image's corner.
            assert panel.bodies[0].pose_NJC[10].any()


def test_size_puts_parts_of_the_image_into_pixels_and_must_be_that_of_the_file(run, tmp_path, capsys):
    poses = writers_own.person_2d(12)
    parts = writers_own.write_keypoint_arrays(tmp_path / "parts.npz", keypoints=poses / [800, 600])
    sized = writers_own.write_keypoint_arrays(tmp_path / "sized.npz", keypoints=poses, width=800, height=600)
    answers = []
    for file in (parts, sized):
        out = tmp_path / f"{file.stem}.json"
        arguments = [run, file, "--size", "800x600", "--task", "pe", "--device", "cpu", "--out", out]
        assert predict.main([str(argument) for argument in arguments]) == 0, capsys.readouterr().err
        answers.append(np.array(json.loads(out.read_text())["poses"]))
    assert np.allclose(*answers, atol=1e-4)
    assert predict.main([str(run), str(sized), "--size", "600x800", "--device", "cpu"]) == 2
    assert "its image is 800x600, got --size 600x800; leave --size out" in capsys.readouterr().err
