"""3D motion of one's own in every format: the same clip, turned to z up, in metres; joints by name; what is refused."""

import csv
import json
import random
from importlib.util import find_spec

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.writers_ntu import annotation, write_pickle
from tests.support.writers_own import write_json, write_text
from ups_model.data.prepare.catalog import Options, check_options
from ups_model.data.prepare.runner import prepare_reading, read_left_out
from ups_model.data.readers.detect import clip_names, read_recording
from ups_model.data.readers.motion import c3d
from ups_model.data.readers.motion import reader as motion
from ups_model.skeletons import get_skeleton

NAMES = get_skeleton("h36m17").joint_names
# A person of 1.7 m who stands at (1, 2), z up.
REST = np.array(
    [[0, 0, 0.9], [-0.1, 0, 0.9], [-0.1, 0, 0.5], [-0.1, 0, 0.1], [0.1, 0, 0.9], [0.1, 0, 0.5], [0.1, 0, 0.1],
     [0, 0, 1.2], [0, 0, 1.45], [0, 0, 1.55], [0, 0, 1.7], [0.2, 0, 1.4], [0.2, 0, 1.1], [0.2, 0, 0.9],
     [-0.2, 0, 1.4], [-0.2, 0, 1.1], [-0.2, 0, 0.9]]
)  # fmt: skip
CLIP = REST + np.array([1, 2, 0.3]) + np.random.default_rng(0).normal(0, 0.01, (12, 17, 3))
EXPECTED = (CLIP - [*CLIP[0, 0, :2], CLIP[..., 2].min()]).astype(np.float32)
# What has z up, told by an axis that is up: from z up to it.
TO_AXIS = {
    "z": lambda x, y, z: (x, y, z),
    "y": lambda x, y, z: (x, z, -y),
    "-y": lambda x, y, z: (x, -z, y),
    "-z": lambda x, y, z: (x, -y, -z),
    "x": lambda x, y, z: (z, x, y),
    "-x": lambda x, y, z: (-z, -x, y),
}


def with_up(axis, pose=CLIP):
    return np.stack(TO_AXIS[axis](*np.moveaxis(pose, -1, 0)), axis=-1)


def npz(file, positions=CLIP, **about):
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, positions=positions, **about)
    return file


def table(file, pose=CLIP, names=NAMES, form="{}_{}"):
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["frame", *(form.format(name, axis) for name in names for axis in "xyz")])
        writer.writerows([[number, *row] for number, row in enumerate(pose.reshape(len(pose), -1).tolist())])
    return file


def assert_is_clip(recording, expected=EXPECTED, atol=1e-5):
    assert (recording.skeleton, recording.dims, recording.units, recording.up_axis) == ("h36m17", 3, "metre", "z")
    (track,) = recording.tracks
    assert track.offset == 0 and np.allclose(track.positions, expected, atol=atol)


@pytest.mark.parametrize("form", ["npz", "persons", "names", "npy", "csv", "csv dots", "pkl"])
def test_every_format_gives_the_clip_that_was_written(tmp_path, form):
    (tmp_path / "motion.json").write_text(json.dumps({"skeleton": "h36m17", "fps": 50}))
    file = {
        "npz": lambda: npz(tmp_path / "a.npz", skeleton="h36m17", fps=50, unit="m", up_axis="z"),
        "persons": lambda: npz(tmp_path / "a.npz", CLIP[None]),
        "names": lambda: npz(tmp_path / "a.npz", CLIP[:, ::-1], joint_names=np.array(NAMES[::-1])),
        "npy": lambda: (np.save(tmp_path / "a.npy", CLIP), tmp_path / "a.npy")[1],
        "csv": lambda: table(tmp_path / "a.csv"),
        "csv dots": lambda: table(tmp_path / "a.csv", form="{}.{}"),
        "pkl": lambda: write_pickle(tmp_path / "a.pkl", [annotation("kick 001", CLIP[None])], None),
    }[form]()
    recording = read_recording(file)
    assert_is_clip(recording)
    assert recording.fps == 50 and clip_names(file) == ["kick 001" if form == "pkl" else "a"]


@pytest.mark.parametrize("axis", TO_AXIS)
@pytest.mark.parametrize("told", [True, False])
def test_motion_is_turned_to_z_up_told_or_from_where_the_head_is(tmp_path, axis, told):
    about = {"up_axis": axis} if told else {}
    recording = read_recording(npz(tmp_path / "a.npz", with_up(axis), skeleton="h36m17", **about))
    (track,) = recording.tracks
    # Turned about the vertical axis at most: heights, lengths and handedness are kept.
    assert np.allclose(track.positions[..., 2], EXPECTED[..., 2], atol=1e-5)
    bones = np.diff(track.positions, axis=1), np.diff(EXPECTED, axis=1)
    assert np.allclose(*(np.linalg.norm(bone, axis=-1) for bone in bones), atol=1e-5)
    triples = [np.linalg.det(bone[:, [3, 9, 13]].astype(float)) for bone in bones]
    assert np.allclose(*triples, atol=1e-6)


@pytest.mark.parametrize(("unit", "scale"), [("mm", 1000), ("cm", 100), ("inch", 1 / 0.0254), ("metre", 1)])
def test_the_unit_of_the_file_is_put_into_metres(tmp_path, unit, scale):
    assert_is_clip(read_recording(npz(tmp_path / "a.npz", CLIP * scale, skeleton="h36m17", unit=unit)))
    with_option = prepare_reading(tmp_path / "out", motion.reading(tmp_path, metres_per_unit=1 / scale))
    assert np.allclose(with_option.clip(0)[0][1], EXPECTED, atol=1e-5)


OTHER_NAMES = {
    "MMPose": (
        "root right_hip right_knee right_foot left_hip left_knee left_foot spine thorax neck_base head "
        "left_shoulder left_elbow left_wrist right_shoulder right_elbow right_wrist"
    ),
    "Mixamo": (
        "mixamorig:Hips mixamorig:RightUpLeg mixamorig:RightLeg mixamorig:RightFoot mixamorig:LeftUpLeg "
        "mixamorig:LeftLeg mixamorig:LeftFoot mixamorig:Spine mixamorig:Neck nose mixamorig:Head mixamorig:LeftArm "
        "mixamorig:LeftForeArm mixamorig:LeftHand mixamorig:RightArm mixamorig:RightForeArm mixamorig:RightHand"
    ),
    "short": (
        "Pelvis RHip RKnee RAnkle LHip LKnee LAnkle Spine Thorax Nose Head LShoulder LElbow LWrist RShoulder RElbow "
        "RWrist"
    ),
}


@pytest.mark.parametrize("family", OTHER_NAMES)
def test_joints_are_found_by_the_names_that_programs_give_them(tmp_path, family):
    names = [*OTHER_NAMES[family].split(), "prop"]
    pose = np.concatenate([CLIP, np.full((12, 1, 3), 7.0)], axis=1)[:, ::-1]
    assert_is_clip(read_recording(npz(tmp_path / "a.npz", pose, joint_names=np.array(names[::-1]))))


def test_joints_of_names_of_ones_own_are_told_by_joints_json(tmp_path):
    names = [f"point {index}" for index in range(17)]
    file = npz(tmp_path / "a.npz", joint_names=np.array(names))
    with pytest.raises(ValueError, match=r"a\.npz: its joints must hold those of one of .*or tell which are h36m17"):
        read_recording(file)
    write_json(tmp_path / "joints.json", dict(zip(NAMES, names, strict=True)))
    assert_is_clip(read_recording(file))


@pytest.mark.parametrize("layout", ["ntu25", "kinect20", "coco17", "openpose18", "jhmdb15"])
def test_other_layouts_are_found_by_their_own_names(tmp_path, layout):
    names = get_skeleton(layout).joint_names
    pose = np.random.default_rng(1).uniform(0, 1, (5, len(names), 3))
    recording = read_recording(npz(tmp_path / "a.npz", pose, joint_names=np.array(names), up_axis="z"))
    assert recording.skeleton == layout
    assert np.allclose(np.diff(recording.tracks[0].positions, axis=1), np.diff(pose, axis=1), atol=1e-5)


def test_a_joint_that_is_not_seen_stays_and_who_is_not_there_is_no_person(tmp_path):
    pose = np.stack([CLIP, CLIP + np.array([0.8, 0, 0]), np.zeros_like(CLIP)])
    pose[0, 5:7, 13] = np.nan
    pose[1, :3], pose[1, 9:] = np.nan, 0
    recording = read_recording(npz(tmp_path / "a.npz", pose, skeleton="h36m17", up_axis="z"))
    first, second = recording.tracks
    assert [(track.offset, len(track.positions)) for track in recording.tracks] == [(0, 12), (3, 6)]
    held = EXPECTED.copy()
    held[5:7, 13] = held[4, 13]
    assert np.allclose(first.positions, held, atol=1e-5)
    assert np.allclose(second.positions - EXPECTED[3:9], [0.8, 0, 0], atol=1e-5)


def test_an_empty_cell_of_a_table_is_a_joint_that_is_not_seen(tmp_path):
    pose = CLIP.copy()
    pose[:2, 4] = np.nan
    file = table(tmp_path / "a.csv", pose)
    file.write_text(file.read_text().replace("nan", ""))
    assert len(read_recording(file).tracks[0].positions) == 10


def test_a_set_has_classes_cameras_and_one_rate(tmp_path):
    npz(tmp_path / "set" / "walk" / "a.npz", skeleton="h36m17", fps=50)
    npz(tmp_path / "set" / "walk" / "b.npz", skeleton="h36m17", fps=25)
    npz(tmp_path / "set" / "bow" / "c.npz", skeleton="coco17", fps=50)
    table(tmp_path / "set" / "sit" / "d.csv")
    write_json(tmp_path / "set" / "motion.json", {"fps": 50})
    clips = prepare_reading(tmp_path / "out", motion.reading(tmp_path / "set"))
    assert clips.clip_id.tolist() == ["bow/c"]  # The first one's layout.
    assert {item.name: item.reason for item in read_left_out(clips.path)} == {
        name: "another layout" for name in ("sit/d", "walk/a", "walk/b")
    }
    (tmp_path / "set" / "bow" / "c.npz").unlink()
    clips = prepare_reading(tmp_path / "out", motion.reading(tmp_path / "set"))
    clips.verify()
    assert clips.clip_id.tolist() == ["sit/d", "walk/a", "walk/b"] and clips.info.fps == 50
    assert clips.clip_length.tolist() == [12, 12, 23] and len(clips.cameras(0)) == 4
    assert np.allclose(clips.clip(2)[0][1][::2], EXPECTED, atol=1e-5)


def test_a_wrong_rate_is_overridden_by_fps(tmp_path):
    npz(tmp_path / "set" / "a.npz", skeleton="h36m17", fps=50)
    npz(tmp_path / "set" / "b.npz", skeleton="h36m17", fps=25)
    clips = prepare_reading(tmp_path / "out", motion.reading(tmp_path / "set", fps=30))
    assert clips.info.fps == 30 and clips.clip_length.tolist() == [12, 12]
    with pytest.raises(ValueError, match=r"--fps must be in 1\.\.1000 frames per second, got 0"):
        check_options(Options(fps=0.0))


# What is refused


@pytest.mark.parametrize(
    ("positions", "about", "message"),
    [
        (CLIP, {}, r"must say which its 17 joints are, got neither joint_names nor skeleton .*motion\.json beside it"),
        (CLIP, {"skeleton": "h36m"}, "skeleton must be one of h36m17, .*, got 'h36m'"),
        (CLIP, {"skeleton": "ntu25"}, "ntu25 has 25 joints, got 17; name another skeleton"),
        (
            CLIP[:, :16],
            {"joint_names": np.array(NAMES[:16])},
            "h36m17 comes nearest and lacks r_wrist, there are pelvis,",
        ),
        (CLIP, {"joint_names": np.array(NAMES[:16])}, "must have 17 joint_names, one a joint, got 16"),
        (CLIP, {"joint_names": np.arange(17)}, "joint_names must be a list of names"),
        (CLIP * 1000, {"skeleton": "h36m17"}, r"joints must be within 100 m of the origin.*say the unit of the file"),
        (
            CLIP * 10,
            {"skeleton": "h36m17"},
            r"a body must be 0\.3\.\.4 m large, got 1\d\.\d+ m at 1 m a unit; write its",
        ),
        (CLIP / 100, {"skeleton": "h36m17"}, r"a body must be 0\.3\.\.4 m large, got 0\.01\d+ m"),
        (CLIP * np.nan, {"skeleton": "h36m17"}, "in no frame all joints of a person have been seen"),
        (
            CLIP[..., :2],
            {"skeleton": "h36m17"},
            r"must be numbers \[frames, joints, 3\] or .*, got float64 \[12, 17, 2\]",
        ),
        (
            CLIP[:0],
            {"skeleton": "h36m17"},
            r"must have 1\.\.20 persons, 1\.\.1000000 frames .* got float64 \[0, 17, 3\]",
        ),
        (CLIP.astype(object), {"skeleton": "h36m17"}, "not a whole .npz file of plain arrays"),
        (CLIP, {"skeleton": "h36m17", "fps": 0}, r"fps must be in 1\.\.1000, got 0; give --fps"),
        (CLIP, {"skeleton": "h36m17", "unit": "foot"}, "unit must be one of m, metre, .*, got 'foot'"),
        (CLIP, {"skeleton": "h36m17", "up_axis": "up"}, "up_axis must be one of x, y, z, -x, -y, -z, got 'up'"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_way_out(tmp_path, positions, about, message):
    with pytest.raises(ValueError, match=rf"a\.npz.*{message}"):
        read_recording(npz(tmp_path / "a.npz", positions, **about))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"must have columns JOINT_x, JOINT_y and JOINT_z of each joint and a row a frame, got 0 lines"),
        ("a_x,a_y\n1,2\n", r"got 2 lines and the columns 'a_x, a_y'"),
        ("a_x,a_y,a_z\n1,2\n", r"a\.csv:2: must have 3 columns, got 2"),
        ("a_x,a_y,a_z\n1,2,up\n", r"a\.csv:2: a_z must be a number or empty, got 'up'"),
        ("a_x,a_y,a_z\n1,2,1_0\n", r"a\.csv:2: a_z must be a number or empty, got '1_0'"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_recording(write_text(tmp_path / "a.csv", text))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "an object with any of the keys skeleton, joint_names, fps, up_axis, unit, got ''"),
        ({"rate": 5}, "got 'rate'"),
        ([], "got 'list'"),
        ({"fps": "30"}, r"fps must be in 1\.\.1000, got '30'"),
    ],
)
def test_a_motion_json_that_breaks_a_rule_is_refused(tmp_path, content, message):
    npz(tmp_path / "a.npz")
    write_json(tmp_path / "motion.json", content)
    with pytest.raises(ValueError, match=rf"motion\.json: .*{message}"):
        motion.reading(tmp_path)


# C3D


def write_c3d(file, unit="m", scale=1):
    import ezc3d

    content = ezc3d.c3d()
    parameters = content["parameters"]["POINT"]
    parameters["UNITS"]["value"], parameters["RATE"]["value"] = [unit], [100.0]
    parameters["LABELS"]["value"] = list(NAMES)
    points = np.ones((4, 17, 12))
    points[:3] = np.moveaxis(CLIP * scale, 2, 0).swapaxes(1, 2)
    content["data"]["points"] = points
    content.write(str(file))


NEEDS_EZC3D = pytest.mark.skipif(find_spec("ezc3d") is None, reason="C3D files need ezc3d, which isn't installed")


@NEEDS_EZC3D
@pytest.mark.parametrize(("unit", "scale"), [("mm", 1000), ("m", 1)])
def test_points_of_a_c3d_file_are_joints_of_their_labels(tmp_path, unit, scale):
    write_c3d(tmp_path / "a.c3d", unit, scale)
    recording = read_recording(tmp_path / "a.c3d")
    assert_is_clip(recording, atol=1e-4)
    assert recording.fps == 100


@NEEDS_EZC3D
@pytest.mark.slow
def test_a_damaged_c3d_file_is_refused_whatever_its_reader_does(tmp_path, monkeypatch):
    monkeypatch.setattr(c3d, "TIMEOUT_SECONDS", 8.0)
    write_c3d(tmp_path / "whole.c3d")
    whole, draw, seen = (tmp_path / "whole.c3d").read_bytes(), random.Random(0), set()
    for number in range(24):
        damaged = bytearray(whole)
        if number % 4 == 0:
            del damaged[draw.randrange(len(whole)) :]
        for _ in range(draw.randrange(1, 6) if number % 4 else 0):
            damaged[draw.randrange(min(len(whole), 2048))] = draw.randrange(256)
        (tmp_path / "a.c3d").write_bytes(damaged)
        try:
            recording = read_recording(tmp_path / "a.c3d")
        except ValueError as error:
            assert "a.c3d" in str(error) and "\n" not in str(error)
            seen.add("reader" if "its reader" in str(error) else "refused")
        else:
            assert np.isfinite(recording.tracks[0].positions).all()
            seen.add("read")
    assert "refused" in seen


@pytest.mark.skipif(find_spec("ezc3d") is not None, reason="ezc3d is installed")
def test_a_c3d_file_without_ezc3d_is_refused_with_what_to_install(tmp_path):
    with pytest.raises(ValueError, match=r"a\.c3d: C3D files need ezc3d, .*pip install 'ups-ablate\[c3d\]'"):
        read_recording(write_text(tmp_path / "a.c3d", "x"))


# Fuzz


def outcome(file):
    try:
        recording = read_recording(file)
    except ValueError as error:
        assert file.name in str(error)
        return
    for track in recording.tracks:
        assert np.isfinite(track.positions).all() and track.positions.shape[1:] == (17, recording.dims)


WHOLE = {
    "a.npz": lambda folder: npz(folder / "whole.npz", skeleton="h36m17", fps=50, joint_names=np.array(NAMES)),
    "a.npy": lambda folder: (np.save(folder / "whole.npy", CLIP[:3]), folder / "whole.npy")[1],
    "a.csv": lambda folder: table(folder / "whole.csv", CLIP[:3]),
    "a.pkl": lambda folder: write_pickle(folder / "whole.pkl", [annotation("a", CLIP[None], 0)], {"train": ["a"]}),
    "flat.pkl": lambda folder: write_pickle(
        folder / "flat.pkl",
        [
            annotation("a", 300 * CLIP[None, :3, :, :2], 0)
            | {"keypoint_score": np.ones((1, 3, 17)), "img_shape": (9, 9)}
        ],
        None,
    ),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    raws = {name: make(folder).read_bytes() for name, make in WHOLE.items()}
    (folder / "motion.json").write_text('{"skeleton": "h36m17"}')
    return folder, raws


@pytest.mark.slow
@settings(max_examples=300)
@given(
    name=st.sampled_from(sorted(WHOLE)),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3),
    cut=st.floats(0.3, 1),
)
def test_files_cut_short_or_with_changed_bytes_are_refused_or_finite(whole, name, changes, cut):
    folder, raws = whole
    raw = bytearray(raws[name])
    for share, value in changes:
        raw[int(share * (len(raw) - 1))] = value
    (folder / name).write_bytes(bytes(raw)[: int(cut * len(raw))])
    outcome(folder / name)


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_arrays_of_frames_before_persons_are_refused_with_the_order(tmp_path, suffix):
    file = npz(tmp_path / "a.npz", CLIP[:, None], skeleton="h36m17")
    if suffix == "npy":
        write_json(tmp_path / "motion.json", {"skeleton": "h36m17"})
        file = tmp_path / "a.npy"
        np.save(file, CLIP[:, None])
    with pytest.raises(ValueError, match=r"must be \[persons, frames, joints, coordinates\], got \[12, 1, 17, 3\]"):
        read_recording(file)


@pytest.mark.parametrize(("told", "seen"), [("z", "y"), ("-y", "y"), ("x", "-z"), ("y", "y")])
def test_an_up_axis_that_the_bodies_contradict_is_noted(tmp_path, told, seen):
    npz(tmp_path / "a.npz", with_up(seen), skeleton="h36m17", up_axis=told)
    note = f"a has up_axis {told}, but heads are above ankles along {seen} in the median frame; correct up_axis"
    assert any(note in each for each in motion.reading(tmp_path).notes) == (told != seen)
