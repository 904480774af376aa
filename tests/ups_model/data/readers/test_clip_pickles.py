"""Pickles of pyskl and mmaction2 of one's own: classes, splits and names, in 3D and in 2D; what is refused."""

import pickle

import numpy as np
import pytest

from tests.support.writers_ntu import annotation, write_pickle
from ups_model.data.prepare.runner import prepare_reading, read_left_out
from ups_model.data.readers.detect import clip_names, read_recording
from ups_model.data.readers.keypoints import reader as keypoints
from ups_model.data.readers.motion import reader as motion


def pickled(file, names, split=None, joints=25, dims=3, **more):
    rng = np.random.default_rng(0)
    entries = []
    for index, name in enumerate(names):
        pose = np.concatenate([rng.uniform(0, 1, (1, 6, joints, dims)), np.zeros((1, 6, joints, dims))])
        pose = pose if dims == 3 else 400 * pose
        entries.append({**annotation(name, pose.astype(np.float32), index % 2), **more})
    return write_pickle(file, entries, split)


NAMED = ["a/1", "b", "c", "d"]
SPLITS = {
    "train and val": ({"train": ["a/1", "b"], "val": ["c", "d"]}, [0, 0, 1, 1]),
    "protocols": (
        {"xsub_train": ["c"], "xsub_test": ["b", "d"], "xview_train": NAMED, "xview_test": []},
        [None, 1, 0, 1],
    ),
    "three parts": ({"train": ["a/1"], "val": ["b"], "test": ["c", "d"]}, [0, 0, 1, 1]),
}


@pytest.mark.parametrize("case", SPLITS)
def test_pickles_of_pyskl_bring_their_classes_and_splits(tmp_path, case):
    split, tests = SPLITS[case]
    pickled(tmp_path / "set" / "mine.pkl", NAMED, split)
    clips = prepare_reading(tmp_path / "out", motion.reading(tmp_path / "set"))
    kept = [name for name, test in zip(NAMED, tests, strict=True) if test is not None]
    assert clips.clip_id.tolist() == [f"mine/{name}" for name in kept]
    assert clips.split_test.tolist() == [bool(test) for test in tests if test is not None]
    assert clips.info.classes == ("0", "1") and clips.info.skeleton == "ntu25"
    assert clips.label.tolist() == [NAMED.index(name) % 2 for name in kept]
    left_out = {item.name: item.reason for item in read_left_out(clips.path)} if None in tests else {}
    assert left_out == {f"mine/{name}": "in no split" for name in NAMED if name not in kept}


def test_a_list_of_annotations_alone_is_split_by_hash_and_predicted_from_by_name(tmp_path):
    file = pickled(tmp_path / "set" / "mine.pkl", NAMED)
    content = [annotation(name, np.random.default_rng(0).uniform(0, 1, (1, 6, 25, 3)), 0) for name in NAMED]
    file.write_bytes(pickle.dumps(content))
    assert clip_names(file) == NAMED and read_recording(file, "c").skeleton == "ntu25"
    with pytest.raises(ValueError, match=r"mine\.pkl: holds 4 clips; name one with --clip, such as a/1, got None"):
        read_recording(file)


def test_a_class_is_one_whatever_the_largest_number_of_each_file(tmp_path):
    """Labels up to 11 in one file and up to 3 in the other."""
    for part, labels in (("train", range(12)), ("test", range(4))):
        (tmp_path / "set" / part).mkdir(parents=True)
        pose = np.random.default_rng(0).uniform(0, 1, (1, 6, 25, 3)).astype(np.float32)
        content = [annotation(f"{part}{label}", pose, label) for label in labels]
        (tmp_path / "set" / part / "a.pkl").write_bytes(pickle.dumps(content))
    clips = prepare_reading(tmp_path / "out", motion.reading(tmp_path / "set"))
    assert clips.info.classes == tuple(f"{label:02}" for label in range(12))
    by_name = dict(zip(clips.clip_id.tolist(), clips.label.tolist(), strict=True))
    assert [by_name[f"test/a/test{label}"] for label in range(4)] == [0, 1, 2, 3]
    assert [by_name[f"train/a/train{label}"] for label in range(12)] == list(range(12))


@pytest.mark.parametrize("joints", [17, 18, 25])
def test_pickles_in_2d_become_keypoints(tmp_path, joints):
    scores = np.tile(np.linspace(0.1, 0.9, joints, dtype=np.float32), (2, 6, 1))
    file = pickled(
        tmp_path / "set" / "hrnet.pkl", NAMED, {"train": NAMED[:2], "val": NAMED[2:]}, joints, 2,
        keypoint_score=scores, img_shape=(480, 640),
    )  # fmt: skip
    recording = read_recording(file, "b")
    assert (recording.skeleton, recording.size) == ("coco17", (640.0, 480.0)) and len(recording.tracks) == 2
    clips = prepare_reading(tmp_path / "out", keypoints.reading(tmp_path / "set"))
    assert clips.split_test.tolist() == [False, False, True, True] and clips.info.classes == ("0", "1")
    with pytest.raises(ValueError, match=r"must hold 3D poses, got 2D ones; prepare keypoints reads these"):
        motion.reading(tmp_path / "set")


@pytest.mark.parametrize(
    ("annotations", "split", "message"),
    [
        ([], None, "must hold a list of annotations"),
        ([{"frame_dir": 3}], None, r"\[0\]: frame_dir must be a name that stands once, got 3"),
        ([annotation("a", np.zeros((1, 2, 25, 3)), 0)] * 2, None, r"\[1\]: frame_dir must be a name that stands once"),
        (
            [annotation("a", np.zeros((1, 2, 25, 4)), 0)],
            None,
            r"keypoint must be an array \[persons, frames, joints, 2",
        ),
        (
            [annotation("a", np.zeros((1, 2, 25, 3)), -7)],
            None,
            r"\[a\]: label must be a number of a class in 0\.\.10000",
        ),
        (
            [annotation("a", np.zeros((1, 2, 25, 3)), 0)],
            {"all": ["a"]},
            "must have train and test .or val., .* got 'all'",
        ),
        (
            [annotation("a", np.zeros((1, 2, 25, 3)), 0)],
            {"train": 5, "val": []},
            "train must be a list of names, got 5",
        ),
        (
            [annotation("a", np.zeros((1, 2, 25, 3)), 0)],
            [1],
            r"\['split'\]: must be a dict of lists of names, got list",
        ),
    ],
)
def test_a_pickle_that_breaks_a_rule_is_refused(tmp_path, annotations, split, message):
    write_pickle(tmp_path / "mine.pkl", annotations, split)
    with pytest.raises(ValueError, match=rf"mine\.pkl.*{message}"):
        motion.reading(tmp_path)


def test_a_clip_in_a_training_and_a_test_part_is_refused_and_absent_names_are_told(tmp_path):
    split = {"xsub_train": ["a/1", "b", "gone"], "xsub_val": ["c", "b", "lost"], "xview_train": ["c"]}
    pickled(tmp_path / "set" / "mine.pkl", NAMED, split)
    with pytest.raises(
        ValueError, match=r"mine\.pkl\['split'\]: a clip must be in one of train and val, got 'b' in both"
    ):
        motion.reading(tmp_path / "set")
    pickled(tmp_path / "set" / "mine.pkl", NAMED, split | {"xsub_val": ["c", "lost"]})
    told = "mine.pkl['split']: no annotation here for 2 names, the first 'gone'"
    assert any(told in note for note in motion.reading(tmp_path / "set").notes)


@pytest.mark.parametrize("label", [-3, 2.5, "x"])
def test_an_annotation_whose_label_is_damaged_is_left_out_alone(tmp_path, label):
    file = pickled(tmp_path / "set" / "mine.pkl", NAMED)
    content = pickle.loads(file.read_bytes())
    content["annotations"][1]["label"] = label
    file.write_bytes(pickle.dumps(content))
    clips = prepare_reading(tmp_path / "out", motion.reading(tmp_path / "set"))
    assert clips.clip_id.tolist() == ["mine/a/1", "mine/c", "mine/d"] and clips.info.classes == ("0", "1")
    (left_out,) = read_left_out(clips.path)
    assert (left_out.name, left_out.reason) == ("mine/b", "unreadable")
    assert "mine.pkl[b]: label must be a number of a class in 0..10000, got" in left_out.detail
