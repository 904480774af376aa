"""What keypoint files say of their joints: COCO's 17 in their order, or the file is refused."""

import numpy as np
import pytest

from tests.support.writers_own import COCO, coco_results, landmarks_of, mmpose_frames, person_2d, write_json
from ups_model.data.prepare.runner import prepare_reading, read_left_out
from ups_model.data.readers.keypoints import reader as keypoints

POSES = person_2d(3, seed=1)
SCORES = np.linspace(0.2, 0.9, 3 * 17).reshape(3, 17)
ONE = [[(pose, score)] for pose, score in zip(POSES, SCORES, strict=True)]

# The joints of Human3.6M as MMPose names them, 17 too.
H36M = [
    "root",
    "right_hip",
    "right_knee",
    "right_foot",
    "left_hip",
    "left_knee",
    "left_foot",
    "spine",
    "thorax",
    "neck_base",
    "head",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
]


def with_meta(**meta):
    return {"meta_info": meta, "instance_info": mmpose_frames(ONE)}


def by_number(names):
    return {str(index): name for index, name in enumerate(names)}


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"dataset_name": "h36m", "keypoint_id2name": by_number(H36M)}, "nose as joint 0, got 'root'"),
        ({"dataset_name": "coco", "keypoint_id2name": H36M}, "nose as joint 0, got 'root'"),
        ({"keypoint_name2id": {name: index for index, name in enumerate(H36M)}}, "nose as joint 0, got 'root'"),
        # The right and the left eye in the other order.
        ({"keypoint_id2name": [COCO[0], COCO[2], COCO[1], *COCO[3:]]}, "left_eye as joint 1, got 'right_eye'"),
        ({"keypoint_id2name": by_number(COCO[:16])}, "right_ankle as joint 16, got none"),
        ({"keypoint_id2name": [*COCO[:16], 5]}, "right_ankle as joint 16, got 5"),
        ({"keypoint_id2name": [*COCO, "left_big_toe"]}, "must have 17 joints, .* are kept, got 18, 'left_big_toe'"),
        ({"keypoint_id2name": "nose"}, "must hold the names of joints, got str"),
        ({"dataset_name": "h36m"}, "dataset_name must begin with coco or halpe, got 'h36m'"),
        ({"dataset_name": 7}, "dataset_name must begin with coco or halpe, got 7"),
    ],
)  # fmt: skip
def test_a_file_that_says_its_joints_are_not_cocos_is_refused(tmp_path, meta, message):
    file = write_json(tmp_path / "a.json", with_meta(**meta))
    with pytest.raises(ValueError, match=rf"a\.json: .*{message}; export COCO's 17 keypoints"):
        keypoints.read_recording(file)


@pytest.mark.parametrize(
    "meta",
    [
        {},
        {"dataset_name": None},
        {"dataset_name": "COCO"},
        {"dataset_name": "coco_wholebody"},
        {"dataset_name": "mine", "keypoint_id2name": by_number(COCO)},
        {"keypoint_id2name": COCO},
        {"keypoint_id2name": [name.title().replace("_", " ") for name in COCO]},
        {"keypoint_id2name": [name.replace("_", "") for name in COCO]},
        {"keypoint_name2id": {name: index for index, name in reversed(list(enumerate(COCO)))}},
    ],
)
def test_a_file_that_says_its_joints_are_cocos_or_nothing_is_read(tmp_path, meta):
    (track,) = keypoints.read_recording(write_json(tmp_path / "a.json", with_meta(**meta))).tracks
    assert np.allclose(track.positions, POSES, atol=1e-4)


def test_coco_results_that_say_their_joints_are_others_are_refused_and_mediapipes_have_their_own(tmp_path):
    about = {"meta_info": {"dataset_name": "mine", "keypoint_id2name": H36M}}
    with pytest.raises(ValueError, match="nose as joint 0, got 'root'"):
        keypoints.read_recording(write_json(tmp_path / "a.json", about | {"frames": coco_results(ONE, "{}.jpg")}))
    landmarks = [landmarks_of(POSES[0] / 1000, SCORES[0])]
    (track,) = keypoints.read_recording(write_json(tmp_path / "b.json", about | {"frames": landmarks})).tracks
    assert np.allclose(track.positions[0], POSES[0] / 1000, atol=1e-6)


def test_a_file_of_other_joints_is_left_out_of_a_set_by_name(tmp_path):
    write_json(tmp_path / "set" / "a.json", mmpose_frames(ONE))
    write_json(tmp_path / "set" / "b.json", with_meta(dataset_name="h36m", keypoint_id2name=by_number(H36M)))
    clips = prepare_reading(tmp_path / "out", keypoints.reading(tmp_path / "set"))
    (left_out,) = read_left_out(clips.path)
    assert clips.clip_id.tolist() == ["a"] and (left_out.name, left_out.reason) == ("b", "unreadable")
    assert "nose as joint 0, got 'root'" in left_out.detail
