"""The open sets from their authors' own files: samples of them against the packed rows, and files made up here."""

import re

import numpy as np
import pytest
from scipy.io import savemat

from ups_model.data.format.clip_set import ClipSet
from ups_model.data.prepare.catalog import prepare
from ups_model.data.readers import open_sets
from ups_model.data.readers.open_originals import (
    JHMDB_CLASSES,
    JOINTS,
    MARKERS,
    MAX_GAP,
    camera_arrays,
    filled,
    joints_of,
    load_originals,
    original_files,
)


@pytest.fixture(scope="module")
def originals(open_data):
    folder = open_data / "originals"
    if not folder.is_dir():
        pytest.skip(f"no samples of the original files at {folder}")
    return folder


def packed(open_data, name):
    with np.load(open_data / open_sets.OPEN_SETS[name].file, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def rows_of(whole, part):
    """For each clip of the samples, its row in the packed file, by label, subject, repetition and correctness."""
    keys = [key for key in ("label", "subject", "repetition", "correct") if key in part]
    tables = [np.stack([arrays[key] for key in keys], axis=1).tolist() for arrays in (whole, part)]
    return [tables[0].index(row) for row in tables[1]]


@pytest.mark.open_data
@pytest.mark.parametrize(("name", "clips", "tolerance"), [("utd_mhad", 5, 0.0), ("uiprmd", 5, 2e-3)])
def test_samples_of_the_originals_are_the_packed_rows(open_data, originals, name, clips, tolerance):
    whole, part = packed(open_data, name), load_originals(name, original_files(name, originals / name))
    rows = rows_of(whole, part)
    assert len(rows) == clips == len(part["start"]) and rows == sorted(rows)
    for number, row in enumerate(rows):
        ours, theirs = (
            arrays["positions"][arrays["start"][place] : arrays["start"][place] + arrays["length"][place]]
            for arrays, place in ((part, number), (whole, row))
        )
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
        assert difference.max() <= tolerance and (difference == 0).mean() > 0.98
        assert part["split_test"][number] == whole["split_test"][row]


@pytest.mark.open_data
@pytest.mark.parametrize("name", ["utd_mhad", "uiprmd"])
def test_facts_of_a_set_are_those_of_the_packed_file(open_data, originals, name):
    whole, part = packed(open_data, name), load_originals(name, original_files(name, originals / name))
    for key in ("names", "fps", "units", "up_axis", "licence", "parents"):
        assert np.array_equal(whole[key], part[key]), key
    for key in camera_arrays() if name == "uiprmd" else ():
        np.testing.assert_allclose(part[key], whole[key], atol=2e-7)


@pytest.mark.open_data
def test_the_packed_rows_stand_in_the_order_of_the_original_names(open_data):
    arrays = packed(open_data, "utd_mhad")
    keys = zip(arrays["label"], arrays["subject"], arrays["repetition"], strict=True)
    names = [f"a{label + 1}_s{subject}_t{trial}_skeleton.mat" for label, subject, trial in keys]
    assert names == sorted(names)


@pytest.mark.open_data
def test_a_recording_whose_marker_is_missing_for_long_is_left_out_and_said(originals, caplog):
    caplog.set_level("INFO")
    files = original_files("uiprmd", originals / "uiprmd")
    assert any(file.name.startswith("m08_s10_e02") for file in files) and len(files) == 6
    assert len(load_originals("uiprmd", files)["start"]) == 5
    assert "1 recording left out" in caplog.text and "m08_s10_e02" in caplog.text


@pytest.mark.open_data
def test_a_set_is_prepared_from_the_folder_of_its_originals(originals, tmp_path):
    path = prepare("utd_mhad", originals / "utd_mhad", tmp_path)
    clips = ClipSet.open(path)
    clips.verify()
    assert len(clips) == 5 and clips.info.skeleton == "kinect20"
    assert clips.info.recipe["source"] == "5 original files"


# Made-up files


def test_gaps_of_a_marker_are_filled_along_a_line_and_long_ones_refused():
    motion = np.cumsum(np.ones((60, len(MARKERS), 3)), axis=0)
    gap = motion.copy()
    gap[20 : 20 + MAX_GAP, 3] = 0
    np.testing.assert_allclose(filled(gap), motion)
    gap[45, 3] = 0
    assert filled(gap) is None
    start = motion.copy()
    start[:3, 5] = 0
    assert np.array_equal(filled(start)[:3, 5], np.repeat(motion[3:4, 5], 3, axis=0))


def test_a_standing_person_s_joints_by_hand():
    """Facing x, left is y: hips by Harrington's regression, knees and ankles 57 and 42 mm medially of their markers."""
    place = dict.fromkeys(MARKERS, (0.0, 0.0, 1000.0))
    place |= {"LASI": (100, 120, 950), "RASI": (100, -120, 950), "LPSI": (-60, 50, 950), "RPSI": (-60, -50, 950)}
    for side, y in (("L", 150), ("R", -150)):
        place |= {
            f"{side}KNE": (0, y, 500), f"{side}ANK": (0, y, 100), f"{side}TOE": (150, y, 20),
            f"{side}HEE": (-50, y, 20),
            f"{side}SHO": (0, 1.2 * y, 1450), f"{side}FHD": (90, y / 2, 1700), f"{side}BHD": (-90, y / 2, 1700),
        }  # fmt: skip
    place |= {"C7": (-50, 0, 1480), "CLAV": (50, 0, 1480), "T10": (-60, 0, 1200), "STRN": (60, 0, 1200)}
    frames = np.repeat(np.array([[place[name] for name in MARKERS]], float), 4, axis=0)
    joints = dict(zip(JOINTS, joints_of(frames)[0], strict=True))
    assert len(joints_of(frames)) == 2
    depth, width = 160.0, 240.0
    hip = np.array([100 - 0.24 * depth - 9.9, 0.33 * width + 7.3, 950 - 0.30 * width - 10.9])
    np.testing.assert_allclose(joints["l_hip"], hip, atol=1e-9)
    np.testing.assert_allclose(joints["r_hip"], hip * [1, -1, 1], atol=1e-9)
    np.testing.assert_allclose(joints["l_shoulder"], (0, 180, 1410))
    np.testing.assert_allclose(joints["head"], (0, 0, 1790))
    np.testing.assert_allclose(joints["head_base"], (0, 0, 1590))
    for side, sign in (("l", 1), ("r", -1)):
        own = side.upper()
        knee, ankle = joints[f"{side}_knee"], joints[f"{side}_ankle"]
        assert np.linalg.norm(knee - place[f"{own}KNE"]) == pytest.approx(57)
        assert np.linalg.norm(ankle - place[f"{own}ANK"]) == pytest.approx(42)
        assert sign * knee[1] < 100 and sign * ankle[1] < 115
        assert (knee - place[f"{own}KNE"]) @ (joints[f"{side}_hip"] - place[f"{own}KNE"]) == pytest.approx(0, abs=1e-9)


@pytest.fixture
def jhmdb(tmp_path):
    """Two videos of each of three classes, one of which the packed set hasn't."""
    generator = np.random.default_rng(0)
    for action in ("clap", "wave", "brush_hair"):
        for number in (1, 2):
            folder = tmp_path / "joint_positions" / action / f"video_{number}"
            folder.mkdir(parents=True)
            pose = generator.normal(size=(2, 15, 10 + number))
            savemat(folder / "joint_positions.mat", {"pos_world": pose, "pos_img": 100 * pose})
        (tmp_path / "splits").mkdir(exist_ok=True)
        for split in (1, 2, 3):
            text = "".join(f"video_{number}.avi {1 + (number == split)} \n" for number in (1, 2))
            (tmp_path / "splits" / f"{action}_test_split{split}.txt").write_text(text)
    return tmp_path


def test_jhmdb_is_read_from_its_folders_with_its_splits(jhmdb, tmp_path):
    clips = ClipSet.open(prepare("jhmdb", jhmdb, tmp_path / "out"))
    clips.verify()
    assert clips.label.tolist() == [JHMDB_CLASSES.index(name) for name in ("clap", "clap", "wave", "wave")]
    assert clips.clip_length.tolist() == [11, 12, 11, 12]
    assert clips.split_test.tolist() == [True, False, True, False]
    assert clips.split(0, protocol="2").test.tolist() == [1, 3]


def test_jhmdb_without_its_splits_says_what_to_download(jhmdb, tmp_path):
    for file in (jhmdb / "splits").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"no splits/CLASS_test_split1\.txt; download J-HMDB's splits"):
        prepare("jhmdb", jhmdb, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("utd_mhad", "a1_s1_t1_skeleton.mat", b"no matlab", "not a readable MATLAB file with d_skel"),
        (
            "utd_mhad",
            "a1_s1_t1_skeleton.mat",
            {"other": np.zeros((20, 3, 5))},
            "not a readable MATLAB file with d_skel",
        ),
        ("utd_mhad", "a1_s1_t1_skeleton.mat", {"d_skel": np.zeros((3, 20, 5))}, "must have shape [20, 3, frames]"),
        ("utd_mhad", "a1_s1_t1_skeleton.mat", {"d_skel": np.full((20, 3, 5), np.nan)}, "d_skel must be finite"),
        ("utd_mhad", "a28_s1_t1_skeleton.mat", {"d_skel": np.zeros((20, 3, 5))}, "actions are 1 to 27, got 28"),
        ("uiprmd", "m01_s01_e01_positions.txt", b"1,2,3\n", "must have 117 columns, got 3"),
        ("uiprmd", "m01_s01_e01_positions.txt", b"a,b\n", "not a readable table of numbers"),
        ("uiprmd", "m11_s01_e01_positions.txt", b"1\n", "movements are 1 to 10, got 11"),
    ],
)
def test_a_damaged_original_is_named(tmp_path, name, file, content, message):
    path = tmp_path / file
    path.write_bytes(content) if isinstance(content, bytes) else savemat(path, content)
    with pytest.raises(ValueError, match=f"{file}.*{re.escape(message)}"):
        load_originals(name, original_files(name, tmp_path))


def test_without_files_of_either_kind_the_error_names_both(tmp_path):
    with pytest.raises(ValueError, match=r"utd_mhad20\.npz: no such file, and no original files \(aA_sS_tT_skeleton"):
        prepare("utd_mhad", tmp_path, tmp_path / "out")
