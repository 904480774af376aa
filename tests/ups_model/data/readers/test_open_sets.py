"""The readers of the open sets, against the counts their README states and against damaged files."""

import numpy as np
import pytest

from ups_model.data.format.cameras import project
from ups_model.data.readers import open_sets

pytestmark = pytest.mark.open_data

COUNTS = {  # sequences, classes, test sequences, joints, frames per second: as the data's README states them
    "uiprmd": (1907, 10, 972, 17, 50),
    "utd_mhad": (861, 27, 430, 20, 30),
    "jhmdb": (609, 14, 176, 15, 30),
}


@pytest.fixture(scope="module")
def prepared(open_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")
    return {name: open_sets.prepare(name, open_data, folder / name) for name in COUNTS}


@pytest.mark.parametrize("name", COUNTS)
def test_a_set_has_the_sequences_classes_and_test_split_its_readme_states(prepared, name):
    clips = prepared[name]
    clips.verify()
    info = clips.info
    counts = (len(clips), len(info.classes), int(clips.split_test.sum()), clips.positions.shape[1], info.fps)
    assert counts == COUNTS[name] and not clips.info.synthetic


@pytest.mark.parametrize("name", COUNTS)
def test_clips_are_the_sequences_of_the_file(prepared, open_data, name):
    with np.load(open_data / open_sets.OPEN_SETS[name].file, allow_pickle=False) as archive:
        positions, start, length, label = (archive[key] for key in ("positions", "start", "length", "label"))
    clips = prepared[name]
    for row in (0, 1, len(clips) // 2, len(clips) - 1):
        ((offset, pose_NJC),) = clips.clip(row)
        assert offset == 0 and clips.label[row] == label[row]
        assert np.array_equal(pose_NJC, positions[start[row] : start[row] + length[row]])


@pytest.mark.parametrize(("name", "test_subjects"), [("uiprmd", {2, 4, 6, 8, 10}), ("utd_mhad", {2, 4, 6, 8})])
def test_the_test_subjects_are_the_published_even_ones(prepared, name, test_subjects):
    split = prepared[name].split(validation_subjects=1)
    assert set(prepared[name].subject[split.test].tolist()) == test_subjects
    assert len(np.unique(prepared[name].subject[split.validation])) == 1


def test_jhmdb_has_no_subjects_and_three_official_splits(prepared):
    clips = prepared["jhmdb"]
    assert (clips.subject == -1).all()
    assert np.array_equal(clips.split(0, protocol="1").test, clips.split(0).test)
    assert not np.array_equal(clips.split(0, protocol="2").test, clips.split(0).test)


def test_clips_of_a_jhmdb_group_are_of_one_class_and_on_one_side_of_every_official_split(prepared):
    clips = prepared["jhmdb"]
    group = clips.extra["group"]
    for column in (clips.label, *(clips.extra[f"split_test_{number}"] for number in (1, 2, 3))):
        pairs = np.unique(np.stack([group, column], axis=1), axis=0)
        assert len(pairs) == len(np.unique(group))
    assert 250 < len(np.unique(group)) < 450  # HMDB51 cut most videos into several clips.


@pytest.mark.slow
def test_validation_clips_of_jhmdb_are_about_as_hard_as_its_official_test_clips(prepared):
    """For a nearest-neighbour classifier: clips held out one by one are twice as far or more from the test clips."""
    clips = prepared["jhmdb"]
    poses = np.stack([open_sets._unit_pose(clips.clip(row)[0][1].astype(float)) for row in range(len(clips))])

    def accuracy(queries, gallery):
        distance = np.linalg.norm(poses[queries][:, None] - poses[gallery][None], axis=-1).mean(axis=-1)
        return (clips.label[gallery][distance.argmin(axis=1)] == clips.label[queries]).mean()

    splits = [clips.split(1, fold=fold) for fold in range(5)]
    grouped = np.mean([accuracy(split.validation, split.train) for split in splits])
    pool = np.flatnonzero(~clips.split_test)
    one_by_one = accuracy_of_leaving_one_out(poses[pool], clips.label[pool])
    test = accuracy(splits[0].test, pool)
    assert grouped - test < 0.5 * (one_by_one - test)


def accuracy_of_leaving_one_out(poses, labels):
    distance = np.linalg.norm(poses[:, None] - poses[None], axis=-1).mean(axis=-1)
    np.fill_diagonal(distance, np.inf)
    return (labels[distance.argmin(axis=1)] == labels).mean()


def near_sets():
    """Six clips: 0-2 are nearly one pose, 2 of them tested in split 2; 3 as 0 but of another class; 4, 5 far off."""
    rng = np.random.default_rng(0)
    base, other, third = rng.normal(size=(3, 1, 15, 2))
    clips = [base, base + 0.01, base + 0.02, base, other, third]
    return {
        "positions": np.concatenate([np.repeat(one, 4, axis=0) for one in clips]).astype(np.float32),
        "start": np.arange(6) * 4,
        "length": np.full(6, 4),
        "label": np.array([0, 0, 0, 1, 0, 0]),
        "split_test_2": np.array([0, 0, 1, 0, 0, 0]),
    }


def test_near_clips_of_one_class_and_one_side_of_each_split_are_a_group():
    assert open_sets.near_groups(near_sets(), ("split_test_2",)).tolist() == [0, 0, 2, 3, 4, 5]
    assert open_sets.near_groups(near_sets(), ()).tolist() == [0, 0, 0, 3, 4, 5]


def test_uiprmd_joints_project_by_the_formula_of_its_readme(prepared, open_data):
    with np.load(open_data / "uiprmd_vicon17.npz", allow_pickle=False) as archive:
        point = archive["positions"][500, 3].astype(np.float64)
        R, center, f, c = (archive[f"cam_{key}"][2] for key in ("R", "center", "f", "c"))
    X = R @ (point - center)
    cameras = prepared["uiprmd"].cameras(0)
    assert len(cameras) == 4 and cameras[2].wh == (1000.0, 1002.0)
    assert np.allclose(project(point, cameras[2]), f * X[:2] / X[2] + c, atol=1e-3)


def test_everybody_in_uiprmd_stands_upright_inside_the_images(prepared):
    clips = prepared["uiprmd"]
    frames = clips.positions[::500].astype(np.float64)
    pixels_NJ2 = project(frames, clips.cameras(0)[0])
    assert ((pixels_NJ2 > 0) & (pixels_NJ2 < 1002)).mean() > 0.99
    assert (pixels_NJ2[:, 10, 1] < pixels_NJ2[:, 3, 1]).mean() > 0.99  # y grows downward: heads above ankles


def _altered(open_data, folder, **changes):
    with np.load(open_data / "jhmdb2d15.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files} | changes
    np.savez(folder / "jhmdb2d15.npz", **{key: value for key, value in arrays.items() if value is not None})
    return folder


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_a_truncated_file_is_named(open_data, tmp_path, kept):
    raw = (open_data / "jhmdb2d15.npz").read_bytes()
    (tmp_path / "jhmdb2d15.npz").write_bytes(raw[: int(kept * len(raw))])
    with pytest.raises(ValueError, match=r"jhmdb2d15.npz: not a whole .npz file"):
        open_sets.prepare("jhmdb", tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None, "fps": None}, "it lacks fps, label"),
        ({"positions": np.zeros((5, 17, 2), np.float32)}, r"positions must have shape \[F, 15, 2\]"),
        ({"positions": np.full((21126, 15, 2), np.nan, np.float32)}, "positions must be finite, got 633780 values"),
        ({"length": np.full(609, 10**6)}, "sequences must lie inside the 21126 frames"),
        ({"label": np.zeros(3)}, r"label must have one row per start \[609\], got \[3\]"),
        ({"label": np.full(609, 14)}, "labels must be in -1..13"),
        ({"parents": np.arange(15)}, "parents must be those of jhmdb15"),
        ({"names": np.array([{}], dtype=object)}, "not a whole .npz file of this layout"),
    ],
)
def test_a_file_that_breaks_the_layout_is_refused_with_the_reason(open_data, tmp_path, changes, message):
    folder = _altered(open_data, tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        open_sets.prepare("jhmdb", folder, tmp_path / "out")
    assert "jhmdb" in str(error.value) and not (tmp_path / "out").exists()
