"""What detectors write otherwise than a reader of their format might think, and what is told of it."""

import json

import numpy as np
import pytest

from tests.support.writers_own import COCO, mmpose_frames, person_2d, write_json, write_text
from ups_model.data.readers.detect import read_recording
from ups_model.data.readers.keypoints import reader as keypoints

POSES = person_2d(12, seed=1)
BOX = {"x1": 1.0, "y1": 2.0, "x2": 3.0, "y2": 4.0}


def thing(name="person", pose=None, **more):
    """An entry of Ultralytics."""
    points = {} if pose is None else {"keypoints": {"x": pose[:, 0].tolist(), "y": pose[:, 1].tolist()}}
    return {"name": name, "class": 0, "confidence": 0.9, "box": BOX, **points, **more}


def test_texts_of_each_frame_are_read_as_the_lists_in_them(tmp_path):
    texts = [json.dumps([thing(pose=pose)], indent=2) for pose in POSES]
    texts[3] = "[]"
    (track,) = read_recording(write_json(tmp_path / "a.json", texts)).tracks
    seen = [frame for frame in range(12) if frame != 3]
    assert np.allclose(track.positions[seen], POSES[seen], atol=1e-3) and not track.confidence[3].any()
    with pytest.raises(ValueError, match=r"a\.json\[1\]:1: not whole JSON"):
        read_recording(write_json(tmp_path / "a.json", [texts[0], "[{"]))


def test_one_list_of_a_videos_persons_is_refused_and_of_an_images_noted(tmp_path):
    with pytest.raises(ValueError, match="one image, which must have at most 10, got 12; write a list for each frame"):
        read_recording(write_json(tmp_path / "a.json", [thing(pose=pose) for pose in POSES]))
    assert read_recording(write_json(tmp_path / "a.json", [[thing(pose=pose) for pose in POSES]])).length == 1
    write_json(tmp_path / "a.json", [thing(pose=pose) for pose in POSES[:3]])
    assert "a: 3 persons, in one list, so all are of one image" in keypoints.reading(tmp_path).notes


def test_who_is_not_named_person_is_none_which_is_noted(tmp_path):
    content = [[thing("dog"), thing("cat", pose + 500), thing(pose=pose)] for pose in POSES]
    (track,) = read_recording(write_json(tmp_path / "a.json", content)).tracks
    assert np.allclose(track.positions, POSES, atol=1e-3)
    assert "a: no persons, by their names: 24 objects named 'cat', 'dog'" in keypoints.reading(tmp_path).notes
    with pytest.raises(ValueError, match="name must be person somewhere, got 'cat'"):
        read_recording(write_json(tmp_path / "a.json", [entry[:2] for entry in content]))


@pytest.mark.parametrize("content", [[[thing()], []], [[], [thing(), thing("dog")]], [thing()]])
def test_boxes_without_keypoints_are_refused_as_such(tmp_path, content):
    with pytest.raises(ValueError, match="must have keypoints, got boxes alone; detect with a pose model"):
        read_recording(write_json(tmp_path / "a.json", content))


def test_annotations_without_keypoints_are_refused_as_such(tmp_path):
    content = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1]}]}
    message = r"annotations must have keypoints, got image_id, category_id, bbox; give person_keypoints_\*\.json"
    with pytest.raises(ValueError, match=message):
        read_recording(write_json(tmp_path / "a.json", content))


def test_the_joints_of_a_category_are_named_as_the_file_does_and_none_tell_nothing(tmp_path):
    triples = np.concatenate([POSES[0], np.full((17, 1), 2.0)], axis=1).ravel().tolist()
    content = {"images": [{"id": 1}], "annotations": [{"image_id": 1, "category_id": 1, "keypoints": triples}]}
    with pytest.raises(ValueError, match=r"categories\[\]\.keypoints must have nose as joint 0, got 'right_ankle'"):
        read_recording(write_json(tmp_path / "a.json", content | {"categories": [{"id": 1, "keypoints": COCO[::-1]}]}))
    (track,) = read_recording(
        write_json(tmp_path / "a.json", content | {"categories": [{"id": 1, "keypoints": []}]})
    ).tracks
    assert np.allclose(track.positions[0], POSES[0], atol=1e-3)


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    text = json.dumps(mmpose_frames([[(pose, np.ones(17))] for pose in POSES]))
    (track,) = read_recording(write_text(tmp_path / "a.json", b"\xef\xbb\xbf" + text.encode())).tracks
    assert np.allclose(track.positions, POSES, atol=1e-3)


def test_arrays_that_end_early_are_refused_with_a_way_out(tmp_path):
    np.savez(tmp_path / "a.npz", keypoints=POSES)
    whole = (tmp_path / "a.npz").read_bytes()
    with pytest.raises(ValueError, match=r"a\.npz: not a whole \.npz file .*; get the file again, or write it again"):
        read_recording(write_text(tmp_path / "a.npz", whole[: len(whole) // 2]))
