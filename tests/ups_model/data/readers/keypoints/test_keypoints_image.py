"""What keypoint arrays say of their joints and axes, and the image that keypoints of every format are of."""

import numpy as np
import pytest

from tests.support.writers_ntu import annotation, write_pickle
from tests.support.writers_own import COCO, coco_results, mmpose_frames, person_2d, write_json, write_keypoint_arrays
from ups_model.data.readers.detect import read_recording
from ups_model.data.readers.keypoints import reader as keypoints
from ups_model.skeletons import get_skeleton

POSES = person_2d(6, seed=1)
SIZE = {"width": 1280, "height": 720}
H36M = get_skeleton("h36m17").joint_names


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"skeleton": "h36m17"}, "skeleton must begin with coco or halpe, got 'h36m17'; export COCO's 17 keypoints"),
        ({"skeleton": 3}, "skeleton.npy must hold text"),
        ({"skeleton": ["coco17", "coco"]}, r"\[skeleton\]: must be one name, got \[2\]"),
        ({"joint_names": H36M}, "joint_names must have nose as joint 0, got 'pelvis'; export COCO's 17 keypoints"),
        ({"joint_names": [COCO[0], COCO[2], COCO[1], *COCO[3:]]}, "left_eye as joint 1, got 'right_eye'"),
        ({"joint_names": COCO[:16]}, r"\[joint_names\]: must have a name for each of 17 joints, got 16"),
    ],
)
def test_arrays_that_say_their_joints_are_not_cocos_are_refused(tmp_path, about, message):
    with pytest.raises(ValueError, match=rf"a\.npz.*{message}"):
        read_recording(write_keypoint_arrays(tmp_path / "a.npz", keypoints=POSES, **about))


@pytest.mark.parametrize(
    "about",
    [
        {"skeleton": "coco17"},
        {"skeleton": ["COCO"], "joint_names": COCO},
        {"joint_names": get_skeleton("coco17").joint_names},
    ],
)
def test_arrays_that_say_their_joints_are_cocos_are_read(tmp_path, about):
    (track,) = read_recording(write_keypoint_arrays(tmp_path / "a.npz", keypoints=POSES, **about)).tracks
    assert np.allclose(track.positions, POSES, atol=1e-3)


def test_arrays_without_a_meaning_are_noted(tmp_path):
    write_keypoint_arrays(tmp_path / "a.npz", keypoints=POSES, score=np.ones((6, 17)), boxes=np.array([{}]))
    assert any("a: no meaning is known for boxes, score, known are" in x for x in keypoints.reading(tmp_path).notes)


def test_a_joint_that_is_nan_is_refused_with_the_score_to_give_it(tmp_path):
    poses = POSES.copy()
    poses[2, 5] = np.nan
    with pytest.raises(ValueError, match=r"got nan for person 0, frame 2, joint 5; give a joint .* not seen score 0"):
        read_recording(write_keypoint_arrays(tmp_path / "a.npz", keypoints=poses))


@pytest.mark.parametrize("shape", [(6, 1), (3, 2)])
def test_arrays_of_frames_before_persons_are_refused_with_the_order(tmp_path, shape):
    file = write_keypoint_arrays(tmp_path / "a.npz", keypoints=POSES.reshape(*shape, 17, 2))
    message = (
        rf"order must be \[persons, frames, joints, coordinates\], .* {shape[0]} persons in {shape[1]} frames; swap"
    )
    with pytest.raises(ValueError, match=message):
        read_recording(file)


def written(folder, form, poses, size=None):
    """One person in a format, with the size of the image where the format has a place for it."""
    size = size or {}
    frames = [[(pose, np.ones(17))] for pose in poses]
    ultralytics = [[{"name": "person", "keypoints": dict(zip("xy", pose.T.tolist(), strict=True))}] for pose in poses]
    if form == "npz":
        return write_keypoint_arrays(folder / "a.npz", keypoints=poses, **size)
    if form == "pkl":
        shape = {"img_shape": (size["height"], size["width"])} if size else {}
        return write_pickle(folder / "a.pkl", [annotation("b", poses[None].astype(np.float32), 0) | shape], None)
    if form == "VideoPose3D":
        about = {"video_metadata": {"b": {"w": size.get("width"), "h": size.get("height")}}}
        about = {"layout_name": "coco", "num_joints": 17} | (about if size else {})
        file, videos = folder / "data_2d_custom_a.npz", {"b": {"custom": [poses.astype("float32")]}}
        np.savez(file, positions_2d=np.array(videos, object), metadata=np.array(about, object))
        return file
    lists = {"MMPose": mmpose_frames, "COCO": lambda frames: coco_results(frames, "{}.jpg")}
    content = ultralytics if form == "Ultralytics" else lists[form](frames)
    return write_json(folder / "a.json", {"frames": content, **size})


FORMS = ("npz", "pkl", "VideoPose3D", "MMPose", "COCO", "Ultralytics")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("told", ["the file", "--size", "nothing"])
def test_parts_of_the_image_are_put_into_pixels_where_its_size_is_known(tmp_path, form, told):
    parts = POSES / [1280, 720]
    file = written(tmp_path, form, parts, SIZE if told == "the file" else None)
    recording = read_recording(file, size=(1280.0, 720.0) if told == "--size" else None)
    expected, units = (parts, "normalised") if told == "nothing" else (POSES, "pixel")
    assert recording.units == units and np.allclose(recording.tracks[0].positions, expected, atol=1e-3)
    assert recording.size == (None if told == "nothing" else (1280, 720))


@pytest.mark.parametrize("form", FORMS)
def test_keypoints_that_mostly_lie_outside_the_image_are_refused_with_its_size(tmp_path, form):
    message = (
        r"most joints must lie in the image, which is 720x1280 \(width x height\), got x in 9\d\d.* and y in .*; give"
    )
    poses = POSES + np.array([600, 0])
    with pytest.raises(ValueError, match=message):
        read_recording(written(tmp_path, form, poses, {"width": 720, "height": 1280}))
    with pytest.raises(ValueError, match=message):
        read_recording(written(tmp_path, form, poses), size=(720.0, 1280.0))
    assert read_recording(written(tmp_path, form, poses, SIZE)).size == (1280, 720)


def test_persons_who_are_cut_off_in_part_or_for_some_frames_are_read(tmp_path):
    poses = POSES.copy()
    poses[:, :8, 0] += 1100
    poses[:2, :, 0] += 1500
    (track,) = read_recording(written(tmp_path, "npz", poses, SIZE)).tracks
    assert np.allclose(track.positions, poses, atol=1e-3)


def test_coordinates_around_the_middle_of_the_image_are_no_parts_of_it(tmp_path):
    with pytest.raises(ValueError, match=r"parts of the image, and most must lie in 0\.\.1, got x in -1\..*in pixels"):
        read_recording(written(tmp_path, "npz", POSES / [640, 360] - [1.6, 1.5]))


def test_a_size_that_is_not_the_files_is_refused(tmp_path):
    file = written(tmp_path, "npz", POSES, SIZE)
    with pytest.raises(ValueError, match=r"a\.npz: its image is 1280x720, got --size 720x1280; leave --size out"):
        read_recording(file, size=(720.0, 1280.0))
    assert read_recording(file, size=(1280.0, 720.0)).size == (1280, 720)
