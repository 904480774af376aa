"""Human3.6M: coordinates, labels, splits and truth from exact miniature files; what is left out or refused, and why."""

import copy
import json
import os
import pickle

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.support.writers_h36m import CALIBRATION, CHOSEN, detections, metadata, poses, project, write
from ups_model.data.format.writer import Clip
from ups_model.data.prepare.jobs import LeftOut
from ups_model.data.prepare.runner import prepare_reading
from ups_model.data.readers.h36m import reader as h36m

CPN = "data_2d_h36m_cpn_ft_h36m_dbb.npz"
GT = "data_2d_h36m_gt.npz"
RECORDINGS = {
    "S1": ("Directions 1", "Sitting", "SittingDown 2", "Walking"),
    "S9": ("Walking 1", "WalkTogether"),
    "S11": ("Directions", "Photo 1"),
}


@pytest.fixture(scope="module")
def whole():
    """(positions_3d, positions_2d) of RECORDINGS, of 10 frames and more; S11's Directions has no keypoints."""
    positions_3d, positions_2d, seed = {}, {}, 0
    for subject, actions in RECORDINGS.items():
        positions_3d[subject], positions_2d[subject] = {}, {}
        for action in actions:
            seed += 1
            positions_3d[subject][action] = poses(9 + seed, seed)
            positions_2d[subject][action] = detections(positions_3d[subject][action], subject, seed=seed)
    del positions_2d["S11"]["Directions"]
    return positions_3d, positions_2d


@pytest.fixture
def files(whole):
    """A copy to alter."""
    return copy.deepcopy(whole)


def items(folder, name="h36m"):
    return [item for job in h36m.reading(name, folder).jobs for item in job.read()]


def left_out(folder):
    return {item.name: item for item in items(folder) if isinstance(item, LeftOut)}


def test_a_set_holds_the_files_numbers_labels_subjects_and_split(whole, tmp_path):
    positions_3d, positions_2d = whole
    write(tmp_path, positions_3d, positions_2d)
    clips = prepare_reading(tmp_path / "set", h36m.reading("h36m", tmp_path))
    clips.verify()
    assert clips.clip_id.tolist() == [
        *("S1/Directions 1", "S1/Sitting", "S1/SittingDown 2", "S1/Walking"),
        *("S9/WalkTogether", "S9/Walking 1", "S11/Photo 1"),
    ]
    names = [clips.info.classes[label] for label in clips.label]
    assert names == ["Directions", "Sitting", "SittingDown", "Walking", "WalkTogether", "Walking", "Photo"]
    assert clips.subject.tolist() == [1, 1, 1, 1, 9, 9, 11] and clips.extra["repeat"].tolist() == [1, 0, 2, 0, 0, 1, 1]
    assert clips.split_test.tolist() == [False] * 4 + [True] * 3 and clips.camera_group.tolist() == [0] * 4 + [5, 5, 6]
    assert (clips.info.fps, clips.info.up_axis, clips.origin, len(clips.info.classes)) == (50, "z", "h36m", 15)
    for clip, name in enumerate(clips.clip_id.tolist()):
        subject, action = name.split("/")
        rows = clips.frames(clip)
        assert np.array_equal(clips.positions[rows], positions_3d[subject][action][:, CHOSEN])
        frames = len(positions_3d[subject][action])
        expected = np.stack([view[:frames] for view in positions_2d[subject][action]], axis=1)
        assert np.array_equal(clips.keypoints[rows], expected)


def test_keypoints_of_a_clip_are_near_the_projection_by_its_own_cameras(whole, tmp_path):
    write(tmp_path, *whole)
    clips = prepare_reading(tmp_path / "set", h36m.reading("h36m", tmp_path))
    for clip in range(len(clips)):
        rows = clips.frames(clip)
        for place, camera in enumerate(clips.cameras(clip)):
            R, pose = np.array(camera.R), clips.positions[rows].astype(np.float64)
            seen = (pose - camera.center) @ R.T
            pixels = seen[..., :2] / seen[..., 2:] * camera.f + camera.c
            # Noise of 2 px each way: a Rayleigh distribution, whose median is 2 sqrt(2 ln 2) = 2.35 px.
            distance = np.linalg.norm(pixels - clips.keypoints[rows][:, place], axis=-1)
            assert 1.5 < np.median(distance) < 3.5


def test_the_note_states_the_noise_of_the_keypoints(whole, tmp_path):
    write(tmp_path, *whole)
    (note,) = [note for note in h36m.reading("h36m", tmp_path).notes if "median" in note]
    pixels = float(note.split("median of ")[1].split(" px")[0])
    assert abs(pixels - 2 * np.sqrt(2 * np.log(2))) < 0.2


def test_exact_keypoints_are_a_set_of_their_own_with_the_same_clips(whole, tmp_path):
    positions_3d, _ = whole
    exact = {
        subject: {
            action: [project(world, subject, place) for place in range(4)]  # float64, no frames to spare
            for action, world in actions.items()
        }
        for subject, actions in positions_3d.items()
    }
    write(tmp_path, positions_3d, exact, GT, metadata(layout=None))
    reading = h36m.reading("h36m_gt", tmp_path)
    assert "a median of 0.0 px" in reading.notes[-1]
    assert reading.info.name == "h36m_gt" and reading.info.origin == "h36m"
    assert {item.clip_id for item in items(tmp_path, "h36m_gt")} >= {"S11/Directions", "S1/Sitting"}


def test_what_cannot_be_a_clip_is_left_out_with_its_reason_and_the_others_go_on(files, tmp_path):
    positions_3d, positions_2d = files
    s1 = positions_2d["S1"]
    s1["Waiting"] = s1["Walking"]
    s1["Directions 1"] = s1["Directions 1"][:3]
    s1["Sitting"] = [view[:5] for view in s1["Sitting"]]
    s1["SittingDown 2"][2][4, 7, 1] = np.nan
    positions_3d["S9"]["Walking 1"][3, 8, 0] = 2000.0  # joint 8 of the file is joint 6 of the 17: millimetres
    positions_2d["S2"] = {"Posing": s1["Walking"]}
    write(tmp_path, positions_3d, positions_2d)
    items_left_out = left_out(tmp_path)
    assert {name: item.reason for name, item in items_left_out.items()} == {
        "S1/Waiting": "without 3D poses",
        "S1/Directions 1": "not four cameras",
        "S1/Sitting": "2D shorter than 3D",
        "S1/SittingDown 2": "unreadable",
        "S9/Walking 1": "unreadable",
        "S11/Directions": "without 2D keypoints",
    }
    assert f"{CPN}[S1/SittingDown 2][2]: must be within 1e+06 pixels of 0, got nan in frame 4, joint 7" in (
        items_left_out["S1/SittingDown 2"].detail
    )
    assert "data_3d_h36m.npz[S9/Walking 1]: must be within 100 metres of 0, got 2000.0 in frame 3, joint 6" in (
        items_left_out["S9/Walking 1"].detail
    )
    assert items_left_out["S1/Sitting"].detail.endswith("must have 11 frames, got 5")
    reading = h36m.reading("h36m", tmp_path)
    assert "S2 has no 3D poses; its 1 recordings of 2D keypoints are not used" in reading.notes
    assert any("no 3D poses of S5, S6, S7, S8 here" in note for note in reading.notes)
    assert reading.jobs[0].items == 9 == len(items(tmp_path))


@pytest.mark.parametrize("kind", ["object array", "one array", "confidence", "float64", "big-endian", "tuple"])
def test_keypoints_may_be_kept_in_other_ways(files, tmp_path, kind):
    positions_3d, positions_2d = files
    views = positions_2d["S1"]["Walking"]
    expected = np.stack(views, axis=1)[: len(positions_3d["S1"]["Walking"])]
    if kind == "object array":
        box = np.empty(4, dtype=object)
        box[:] = views
        views = box
    elif kind == "one array":
        views = np.stack(views)
    elif kind == "confidence":
        views = [np.concatenate([view, np.full((*view.shape[:2], 1), 0.5, np.float32)], axis=2) for view in views]
    elif kind == "tuple":
        views = tuple(views)
    else:
        views = [view.astype("f8" if kind == "float64" else ">f4") for view in views]
    positions_2d["S1"]["Walking"] = views
    write(tmp_path, positions_3d, positions_2d)
    (clip,) = [item for item in items(tmp_path) if isinstance(item, Clip) and item.clip_id == "S1/Walking"]
    assert clip.tracks[0].keypoints.dtype == np.float32
    assert np.array_equal(clip.tracks[0].keypoints, expected)


def test_cameras_in_another_order_are_refused_naming_recording_and_camera(files, tmp_path):
    positions_3d, positions_2d = files
    for actions in positions_2d.values():
        for action, views in actions.items():
            actions[action] = [views[place] for place in (1, 0, 2, 3)]
    write(tmp_path, positions_3d, positions_2d)
    message = r"\[S1/Directions 1\]\[0\]: must be keypoints of camera 54138969, got those of 55011271"
    with pytest.raises(ValueError, match=message):
        h36m.reading("h36m", tmp_path)


def test_keypoints_of_other_recordings_are_refused(files, tmp_path):
    positions_3d, positions_2d = files
    for action in positions_2d["S9"]:
        positions_2d["S9"][action] = [view + 150 for view in positions_2d["S9"][action]]
    write(tmp_path, positions_3d, positions_2d)
    message = r"\[S9/WalkTogether\]\[0\]: keypoints of camera 54138969 must lie within 100 px .* got 212 px .*2 of 2"
    with pytest.raises(ValueError, match=message):
        h36m.reading("h36m", tmp_path)


def test_one_recording_whose_poses_lie_beside_the_person_is_taken_and_noted(files, tmp_path):
    positions_3d, positions_2d = files
    positions_2d["S1"]["Walking"] = [view + 150 for view in positions_2d["S1"]["Walking"]]
    write(tmp_path, positions_3d, positions_2d)
    notes = h36m.reading("h36m", tmp_path).notes
    assert any("S1/Walking: keypoints of camera 60457274 lie 212 px from the projected 3D" in note for note in notes)
    assert "S1/Walking" not in left_out(tmp_path)


def test_a_point_behind_a_camera_is_not_where_its_image_would_be(files, tmp_path):
    # A point and its mirror image in the camera's centre lie on one ray, and the formula gives them one pixel.
    centre = np.array(CALIBRATION["extrinsics"]["S1"][0]["translation"]) / 1000
    for action, pose in files[0]["S1"].items():
        files[0]["S1"][action] = (2 * centre - pose).astype(np.float32)
    write(tmp_path, *files)
    with pytest.raises(ValueError, match=r"\[S1/Directions 1\]\[0\]: keypoints .* got inf px"):
        h36m.reading("h36m", tmp_path)


def test_actions_are_the_fifteen_of_the_protocol_in_its_order(whole, tmp_path):
    write(tmp_path, *whole)
    assert " ".join(h36m.reading("h36m", tmp_path).info.classes) == (
        "Directions Discussion Eating Greeting Phoning Photo Posing Purchases Sitting SittingDown Smoking Waiting "
        "WalkDog Walking WalkTogether"
    )


def _poses_mirrored(positions_3d, positions_2d):
    for actions in positions_3d.values():
        for pose in actions.values():
            pose *= (-1, -1, -1)


def _unknown_action(positions_3d, positions_2d):
    positions_3d["S1"]["Walkin 1"] = positions_3d["S1"]["Walking"]


def _prefix_of_an_action(positions_3d, positions_2d):
    positions_2d["S1"]["SittingUp"] = positions_2d["S1"]["Sitting"]


def _unknown_subject(positions_3d, positions_2d):
    positions_3d["S3"] = positions_3d["S1"]


def _nothing_fits(positions_3d, positions_2d):
    for subject, actions in positions_2d.items():
        positions_2d[subject] = {action: [] for action in actions}


def _lists_of_subjects(positions_3d, positions_2d):
    positions_3d["S1"] = list(positions_3d["S1"].values())


def _numbered_actions(positions_3d, positions_2d):
    positions_2d["S1"] = dict(enumerate(positions_2d["S1"].values()))


def _no_subjects(positions_3d, positions_2d):
    positions_3d.clear()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_poses_mirrored, f"{CPN}.*must lie within 100 px"),
        (
            _unknown_action,
            r"data_3d_h36m.npz\[positions_3d\]\['S1'\]: must be an action .* got 'Walkin 1'; try Walking",
        ),
        (_prefix_of_an_action, f"{CPN}.*must be an action of Human3.6M.* got 'SittingUp'; try Sitting"),
        (_unknown_subject, "data_3d_h36m.npz: subjects with a calibration are S1, .* got S3; drop these"),
        (
            _nothing_fits,
            "must have recordings of data_3d_h36m.npz in four cameras, got none; the first: S1/Directions 1",
        ),
        (_lists_of_subjects, r"\[positions_3d\]\['S1'\]: must be a dict of actions, got list of 4"),
        (_numbered_actions, r"\[positions_2d\]\['S1'\]: actions must be names, got 0"),
        (_no_subjects, r"\[positions_3d\]: must be a dict of subjects, got dict of 0"),
    ],
)
def test_files_that_break_the_format_are_refused_before_anything_starts(files, tmp_path, change, message):
    change(*files)
    write(tmp_path, *files)
    with pytest.raises(ValueError, match=message):
        h36m.reading("h36m", tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_joints": 16}, "num_joints must be 17, got 16"),
        ({"num_joints": None}, "num_joints must be 17, got None"),
        ({"layout_name": "coco"}, "the joints must be Human3.6M's.*layout 'coco'"),
        # COCO has 17 joints too.
        ({"keypoints_symmetry": [[1, 3, 5, 7, 9, 11, 13, 15], [2, 4, 6, 8, 10, 12, 14, 16]]}, "must be Human3.6M's"),
        ({"keypoints_symmetry": None}, "must be Human3.6M's"),
        ({"keypoints_symmetry": [[[]], 5]}, "must be Human3.6M's"),
        ({"keypoints_symmetry": [[1] * 18, [2]]}, "must be Human3.6M's.*got layout 'h36m' and list of 2"),
        ({"num_joints": [[17]]}, "num_joints must be 17, got list"),
    ],
)
def test_keypoints_of_other_joints_are_refused(whole, tmp_path, changes, message):
    write(tmp_path, *whole, meta=metadata() | changes)
    with pytest.raises(ValueError, match=message) as error:
        h36m.reading("h36m", tmp_path)
    assert f"{CPN}[metadata]" in str(error.value)


class _Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_file_that_asks_for_code_is_refused_and_nothing_runs(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files[1]["S1"]["Walking"] = _Runs()
    write(tmp_path, *files)
    with pytest.raises(ValueError, match=CPN):
        h36m.reading("h36m", tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("missing", ["data_3d_h36m.npz", CPN])
def test_a_missing_file_is_named(whole, tmp_path, missing):
    write(tmp_path, *whole)
    (tmp_path / missing).unlink()
    with pytest.raises(ValueError, match=f"{missing}: no such file; h36m is prepared from it"):
        h36m.recipe("h36m", tmp_path)


def test_a_recording_is_one_camera_with_truth_in_its_space(whole, tmp_path):
    positions_3d, positions_2d = whole
    write(tmp_path, positions_3d, positions_2d)
    recording = h36m.read_recording(tmp_path / CPN, "S9/Walking 1/60457274")
    pose = positions_3d["S9"]["Walking 1"][:, CHOSEN].astype(np.float64)
    assert (recording.name, recording.units, recording.dims) == ("S9/Walking 1/60457274", "pixel", 2)
    assert recording.size == (1000, 1002) and h36m.read_recording(tmp_path / CPN, "S9/Walking 1/1").size == (1000, 1000)
    assert recording.length == len(pose) and recording.up_axis == "-y"
    assert np.array_equal(recording.tracks[0].positions, positions_2d["S9"]["Walking 1"][3][: len(pose)])
    outer = CALIBRATION["extrinsics"]["S9"][3]
    w, x, y, z = outer["orientation"]
    moved = (pose - np.array(outer["translation"]) / 1000).reshape(-1, 3)
    expected = Rotation.from_quat([x, y, z, w]).inv().apply(moved).reshape(pose.shape)
    assert np.abs(recording.truth.positions - expected).max() < 1e-5
    by_place = h36m.read_recording(tmp_path / CPN, "S9/Walking 1/3")
    assert by_place.name == recording.name and np.array_equal(by_place.truth.positions, recording.truth.positions)


def test_a_recording_without_its_3d_file_has_all_frames_and_no_truth(whole, tmp_path):
    write(tmp_path, *whole)
    (tmp_path / "data_3d_h36m.npz").unlink()
    recording = h36m.read_recording(tmp_path / CPN, "S1/Walking/0")
    assert recording.truth is None and recording.length == len(whole[1]["S1"]["Walking"][0])


def test_clip_names_are_all_recordings_in_all_cameras_and_each_can_be_read(files, tmp_path):
    files[1]["S1"]["Sitting"].pop()
    write(tmp_path, *files)
    names = h36m.clip_names(tmp_path / CPN)
    assert len(names) == (7 - 1) * 4 and names[0] == "S1/Directions 1/54138969"
    assert [h36m.read_recording(tmp_path / CPN, name).name for name in names] == list(names)


@pytest.mark.parametrize("clip", [None, "", "S9", "S9/Walking 1", "S9/Walking 1/4", "S2/Walking/0", "S9/Walkin/0"])
def test_an_unknown_clip_is_refused_with_an_example(whole, tmp_path, clip):
    write(tmp_path, *whole)
    with pytest.raises(ValueError, match="named by subject, action and camera, S1/Directions 1/54138969 for one"):
        h36m.read_recording(tmp_path / CPN, clip)


def test_the_recipe_names_the_files_not_their_place_and_follows_their_changes(whole, tmp_path):
    for folder in ("one", "two"):
        write(tmp_path / folder, *whole)
        for file in (tmp_path / folder).iterdir():
            os.utime(file, ns=(10**18, 10**18))
    first = h36m.recipe("h36m", tmp_path / "one")
    assert first == h36m.recipe("h36m", tmp_path / "two") == h36m.reading("h36m", tmp_path / "one").info.recipe
    assert str(tmp_path) not in json.dumps(first)
    os.utime(tmp_path / "two" / CPN, ns=(10**18, 10**18 + 1))
    assert h36m.recipe("h36m", tmp_path / "two") != first


def test_a_job_pickles_and_gives_the_same_clips_again(whole, tmp_path):
    write(tmp_path, *whole)
    (job,) = h36m.reading("h36m", tmp_path).jobs
    first, again = (
        [item.clip_id for item in one.read() if isinstance(item, Clip)]
        for one in (job, pickle.loads(pickle.dumps(job)))
    )
    assert first == again and len(first) == 7
