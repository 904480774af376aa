"""BVH files: coordinates by hand and by a slow reference, spellings, units, frame rates, cameras, and whole sets."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.support.writers_own import CMU, ROOT_CHANNELS, bvh_text, channels_of, rest_frames, write_text
from ups_model.data.format.cameras import project
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.prepare.runner import prepare_reading, read_left_out
from ups_model.data.readers.bvh import reader as bvh

JOINTS = [
    "pelvis",
    "r_hip",
    "r_knee",
    "r_ankle",
    "l_hip",
    "l_knee",
    "l_ankle",
    "spine",
    "thorax",
    "nose",
    "head",
    "l_shoulder",
    "l_elbow",
    "l_wrist",
    "r_shoulder",
    "r_elbow",
    "r_wrist",
]
# The writer's body worked out by hand: metres, z up, left at +x, the ankles (82 cm below the hips) on the floor.
REST = {
    "pelvis": (0, 0, 0.82),
    "l_hip": (0.1, 0, 0.82),
    "l_knee": (0.1, 0, 0.40),
    "l_ankle": (0.1, 0, 0),
    "r_hip": (-0.1, 0, 0.82),
    "r_knee": (-0.1, 0, 0.40),
    "r_ankle": (-0.1, 0, 0),
    "spine": (0, 0, 1.02),
    "thorax": (0, 0, 1.30),
    "nose": (0, 0, 1.41),
    "head": (0, 0, 1.59),
    "l_shoulder": (0.17, 0, 1.29),
    "l_elbow": (0.46, 0, 1.29),
    "l_wrist": (0.71, 0, 1.29),
    "r_shoulder": (-0.17, 0, 1.29),
    "r_elbow": (-0.46, 0, 1.29),
    "r_wrist": (-0.71, 0, 1.29),
}
REST_J3 = np.array([REST[name] for name in JOINTS])
SOURCES = {  # which joints of the writer's body they are; "head" is the end site of Head
    "pelvis": "Hips",
    "r_hip": "RightUpLeg",
    "r_knee": "RightLeg",
    "r_ankle": "RightFoot",
    "l_hip": "LeftUpLeg",
    "l_knee": "LeftLeg",
    "l_ankle": "LeftFoot",
    "spine": "Spine",
    "thorax": "Neck",
    "nose": "Head",
    "head": "Head/end",
    "l_shoulder": "LeftArm",
    "l_elbow": "LeftForeArm",
    "l_wrist": "LeftHand",
    "r_shoulder": "RightArm",
    "r_elbow": "RightForeArm",
    "r_wrist": "RightHand",
}


def read(tmp_path, text, name="clip.bvh"):
    return bvh.read_recording(write_text(tmp_path / name, text))


def pose(recording):
    (track,) = recording.tracks
    return np.asarray(track.positions, dtype=np.float64)


def column(joint, channel, body=CMU, channels=None):
    """Which value of a frame is this channel."""
    flat = [(name, one) for name, own in channels_of(body, channels) for one in own]
    return flat.index((joint, channel))


def slow_reference(body, row, channels=None):
    """Places of all joints in one frame, in the file's units: one joint after the other, by scipy's rotations."""
    values = iter(row)
    placed, turned = {}, {}
    entries = {name: (parent, offset, end) for name, parent, offset, end in body}
    for name, own in channels_of(body, channels):
        parent, offset, end = entries[name]
        offset, rotation = np.array(offset, dtype=float), Rotation.identity()
        for channel in own:
            value = next(values)
            if channel.endswith("position"):
                offset["XYZ".index(channel[0])] = value
            else:
                rotation = rotation * Rotation.from_euler(channel[0].lower(), value, degrees=True)
        before = turned.get(parent, Rotation.identity())
        placed[name] = placed.get(parent, np.zeros(3)) + before.apply(offset)
        turned[name] = before * rotation
        if end is not None:
            placed[f"{name}/end"] = placed[name] + turned[name].apply(end)
    return placed


def test_offsets_alone_give_the_rest_pose_worked_out_by_hand(tmp_path):
    recording = read(tmp_path, bvh_text())
    assert np.allclose(pose(recording), REST_J3, atol=1e-6)
    assert (recording.skeleton, recording.dims, recording.units, recording.up_axis) == ("h36m17", 3, "metre", "z")
    assert recording.name == "clip" and recording.fps == 120 and recording.length == 2


def test_an_arm_turned_by_90_degrees_points_where_it_does_by_hand(tmp_path):
    frames = rest_frames()
    frames[1, column("LeftArm", "Zrotation")] = 90  # about the forward axis, from +x to up
    moved = pose(read(tmp_path, bvh_text(frames=frames)))[1]
    assert np.allclose(moved[JOINTS.index("l_elbow")], (0.17, 0, 1.29 + 0.29), atol=1e-6)
    assert np.allclose(moved[JOINTS.index("l_wrist")], (0.17, 0, 1.29 + 0.29 + 0.25), atol=1e-6)
    assert np.allclose(moved[JOINTS.index("r_wrist")], REST["r_wrist"], atol=1e-6)


@pytest.mark.parametrize(
    ("order", "knee"),
    [
        # The shin's (0, -42, 0) in file axes: Rz Rx sends it to (0, 0, -42), Rx Rz to (42, 0, 0).
        (("Zrotation", "Xrotation"), (0.1, 0.42, 0.82)),
        (("Xrotation", "Zrotation"), (0.52, 0, 0.82)),
    ],
)
def test_rotations_are_made_in_the_order_of_the_channels(tmp_path, order, knee):
    channels = {"LeftUpLeg": order}
    frames = rest_frames(channels=channels)
    for channel in order:
        frames[:, column("LeftUpLeg", channel, channels=channels)] = 90
    moved = pose(read(tmp_path, bvh_text(frames=frames, channels=channels)))
    assert np.allclose(moved[0, JOINTS.index("l_knee")], knee, atol=1e-6)


@pytest.mark.parametrize("seed", range(4))
def test_random_motion_of_any_channels_equals_a_slow_reference(tmp_path, seed):
    rng = np.random.default_rng(seed)
    axes = ["Xrotation", "Yrotation", "Zrotation"]
    moves = ["Xposition", "Yposition", "Zposition"]
    channels = {"Hips": tuple(rng.permutation(moves + axes))}
    for name, parent, _, _ in CMU:
        if parent is not None:
            own = list(rng.permutation(axes))[: rng.integers(0, 4)]
            channels[name] = tuple(own + (moves[: rng.integers(1, 4)] if rng.random() < 0.2 else []))
    frames = rest_frames(count=5, channels=channels)
    flat = [channel for _, own in channels_of(CMU, channels) for channel in own]
    turns = np.array([channel.endswith("rotation") for channel in flat])
    frames[:, turns] = rng.uniform(-180, 180, (5, turns.sum()))
    frames[:, ~turns] += rng.normal(0, 2, (5, (~turns).sum()))
    pose_read = pose(read(tmp_path, bvh_text(frames=frames, channels=channels)))
    expected = []
    for row in frames:
        placed = slow_reference(CMU, row, channels)
        expected.append([placed[SOURCES[joint]] / 100 for joint in JOINTS])
    x, y, z = np.moveaxis(np.array(expected), -1, 0)
    expected = np.stack([x, -z, y], axis=-1)
    shift = expected[0, 0] * (1, 1, 0) + (0, 0, expected[..., 2].min())
    assert np.allclose(pose_read, expected - shift, atol=2e-6)


def test_turning_y_up_to_z_up_keeps_left_on_the_left(tmp_path):
    frames = rest_frames()
    frames[:, column("LeftUpLeg", "Xrotation")] = -90  # lifts the left knee to the front, the file's +z
    joints = dict(zip(JOINTS, pose(read(tmp_path, bvh_text(frames=frames)))[0], strict=True))
    up, front = joints["head"] - joints["pelvis"], joints["l_knee"] - joints["l_hip"]
    left = joints["l_hip"] - joints["r_hip"]
    assert np.dot(np.cross(up, front), left) > 0  # A right-handed world: up x front = left.


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: text.replace("\t", "  "),
        lambda text: text.replace(" ", "\t"),
        lambda text: "\ufeff" + text,
        lambda text: text + "\n \n",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace("{", "{ ").replace("\n\t{", " {").replace("\n{", " {"),
        lambda text: text.replace("Frames: ", "Frames:").replace("Frame Time: ", "Frame Time:\t"),
        lambda text: text.replace("HIERARCHY", "Hierarchy").replace("ROOT", "root").replace("JOINT", "Joint"),
        lambda text: text.replace("OFFSET", "offset").replace("CHANNELS", "channels").replace("End Site", "end site"),
        lambda text: text.replace("position", "POSITION").replace("rotation", "Rotation").replace("MOTION", "motion"),
        lambda text: text.replace("}\nMOTION", "} MOTION"),
        lambda text: text.split("MOTION")[0].replace("\n", " ") + "\nMOTION" + text.split("MOTION")[1],
    ],
    ids=[
        "crlf",
        "cr",
        "spaces",
        "tabs",
        "bom",
        "blank_end",
        "no_newline",
        "brace_on_line",
        "no_space",
        "case1",
        "case2",
        "case3",
        "brace_motion",
        "one_line",
    ],
)
def test_spelling_and_spacing_do_not_matter(tmp_path, change):
    rng = np.random.default_rng(5)
    frames = rest_frames(count=3)
    frames[:, 3:] += rng.normal(0, 10, frames[:, 3:].shape)
    text = bvh_text(frames=frames)
    changed = change(text)
    assert changed != text
    plain, other = read(tmp_path, text), read(tmp_path, changed, "other.bvh")
    assert np.array_equal(pose(plain), pose(other)) and plain.fps == other.fps


@pytest.mark.parametrize("per_line", [1, 7, 10**6])
def test_values_may_stand_on_any_lines(tmp_path, per_line):
    frames = rest_frames(count=4)
    frames[:, 0] = [90, 91, 92, 93]
    expected = pose(read(tmp_path, bvh_text(frames=frames)))
    assert np.array_equal(pose(read(tmp_path, bvh_text(frames=frames, per_line=per_line))), expected)
    assert np.allclose(expected[:, 0, 0], [0, 0.01, 0.02, 0.03], atol=1e-6)


@pytest.mark.parametrize(("scale", "unit"), [(1, 0.01), (0.01, 1), (10, 0.001), (0.3937, 0.0254), (0.17717, 0.0564444)])
def test_the_unit_is_told_from_the_height(tmp_path, scale, unit):
    text = bvh_text(scale=scale)
    assert np.allclose(pose(read(tmp_path, text)), REST_J3, atol=1e-3)
    write_text(tmp_path / "set" / "a.bvh", text)
    notes = bvh.reading(tmp_path / "set").notes
    # Ankle to head along the bones: 40 + 42 + 10 cm to the hips, 53 + 6 + 18 + ... = 77 cm from there on.
    assert any(f"a unit is taken as {unit:g} m in a, whose person is then 1.69 m" in note for note in notes)


def test_bodies_of_no_plausible_height_need_the_unit_given(tmp_path):
    write_text(tmp_path / "set" / "a.bvh", bvh_text(scale=0.6))
    with pytest.raises(ValueError, match=r"a\.bvh.*1\.1\.\.2\.2 m.*got 101\.4 units; give --metres-per-unit"):
        bvh.reading(tmp_path / "set")
    clips = prepare_reading(tmp_path / "out", bvh.reading(tmp_path / "set", metres_per_unit=1 / 60))
    assert np.allclose(clips.positions[0], REST_J3, atol=1e-5)


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), 101])
def test_a_unit_out_of_bounds_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match="--metres-per-unit must be above 0 and at most 100"):
        bvh.reading(tmp_path, metres_per_unit=value)


@pytest.mark.parametrize(
    ("written", "fps"),
    [
        ("0.0083333", 120),
        ("0.008333", 120),
        (".033333", 30),
        ("0.0333", 30),
        ("0.04166667", 24),
        ("0.0166666", 60),
        ("1.0e-2", 100),
        ("0.02", 50),
        ("0.0333667", 29.97),
        ("1", 1),
    ],
)
def test_frame_times_are_rounded_frame_rates(tmp_path, written, fps):
    assert read(tmp_path, bvh_text(frame_time=written)).fps == pytest.approx(fps, rel=1e-5)


def test_files_of_another_rate_are_resampled_linearly(tmp_path):
    slow, fast = rest_frames(count=3), rest_frames(count=5)
    slow[:, 0] = [0, 10, 30]  # the hips go along the file's x, in centimetres
    fast[:, 0] = [0, 1, 2, 3, 4]
    write_text(tmp_path / "set" / "a.bvh", bvh_text(frames=slow, frame_time="0.04"))
    write_text(tmp_path / "set" / "b.bvh", bvh_text(frames=fast, frame_time="0.02"))
    write_text(tmp_path / "set" / "c.bvh", bvh_text(frames=slow, frame_time="0.1"))
    clips = prepare_reading(tmp_path / "out", bvh.reading(tmp_path / "set"))
    assert clips.info.fps == 25
    x = [clips.clip(index)[0][1][:, 0, 0] for index in range(3)]
    assert np.allclose(x[0], [0, 0.1, 0.3], atol=1e-6)
    assert np.allclose(x[1], [0, 0.02, 0.04], atol=1e-6)
    # 10 to 25 frames a second: instants 0, 0.4, 0.8, ... 2 in frames of the file.
    assert np.allclose(x[2], [0, 0.04, 0.08, 0.14, 0.22, 0.3], atol=1e-6)


def moving(distance):
    frames = rest_frames(count=2)
    frames[1, 0] += 100 * distance
    return bvh_text(frames=frames)


def test_clips_that_walk_out_of_the_cameras_view_are_left_out_with_the_distance(tmp_path):
    write_text(tmp_path / "set" / "far.bvh", moving(3.1))
    write_text(tmp_path / "set" / "near.bvh", moving(-2.9))
    low = rest_frames(count=2)
    low[1, 1] += 400  # into the air, over the cameras' heads: still in front of them
    write_text(tmp_path / "set" / "up.bvh", bvh_text(frames=low))
    clips = prepare_reading(tmp_path / "out", bvh.reading(tmp_path / "set"))
    assert clips.clip_id.tolist() == ["near", "up"] and dict(clips.info.left_out) == {"walks out of view": 1}
    (left_out,) = read_left_out(clips.path)
    assert left_out.name == "far" and "it goes 3.10 m away" in left_out.detail


def test_a_joint_that_comes_near_a_camera_leaves_the_clip_out(tmp_path):
    # An arm that reaches 4.2 m along the diagonal, where a camera stands at 5 m.
    body = tuple(
        (name, parent, (380, 0, 0) if name == "LeftForeArm" else offset, end) for name, parent, offset, end in CMU
    )
    frames = rest_frames(body)
    frames[:, 4] = 45  # Hips' Yrotation
    write_text(tmp_path / "set" / "a.bvh", bvh_text(body, frames))
    write_text(tmp_path / "set" / "b.bvh", bvh_text())
    clips = prepare_reading(tmp_path / "out", bvh.reading(tmp_path / "set"))
    assert clips.clip_id.tolist() == ["b"]
    assert "in front of the cameras" in read_left_out(clips.path)[0].detail


def test_four_cameras_5_m_away_look_at_the_middle_and_see_the_whole_person(tmp_path):
    write_text(tmp_path / "set" / "a.bvh", bvh_text())
    clips = prepare_reading(tmp_path / "out", bvh.reading(tmp_path / "set"))
    cameras = clips.cameras(0)
    assert len({camera.center for camera in cameras}) == 4
    for camera in cameras:
        x, y, z = camera.center
        assert np.hypot(x, y) == pytest.approx(5) and abs(x) == pytest.approx(abs(y)) and z == 1.6
        assert np.allclose(project(np.array([0, 0, 1.0]), camera), (512, 512), atol=1e-5)
        # 1 m over the middle from 5 m away, less the camera's small tilt: about 1145 / 5 pixels, upward
        above = project(np.array([0, 0, 2.0]), camera)
        assert above[0] == pytest.approx(512, abs=1e-5) and 512 - above[1] == pytest.approx(229, rel=0.05)
        pixels = project(clips.positions[0], camera)
        assert ((pixels > 0) & (pixels < 1000)).all()


def test_a_set_has_labels_splits_and_the_same_bits_for_any_number_of_processes(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("jump", "walk"):
        for index in range(6):
            frames = rest_frames(count=4)
            frames[:, 3:] += rng.normal(0, 10, frames[:, 3:].shape)
            write_text(tmp_path / "set" / name / f"take {index}.bvh", bvh_text(frames=frames))
    damaged = (tmp_path / "set" / "walk" / "take 0.bvh").read_bytes()[:-100]
    write_text(tmp_path / "set" / "walk" / "take 0.bvh", damaged)
    reading = bvh.reading(tmp_path / "set")
    sets = [prepare_reading(tmp_path / f"out{n}", reading, workers=n) for n in (1, 2)]
    assert sets[0].fingerprint == sets[1].fingerprint
    clips = ClipSet.open(tmp_path / "out1")
    clips.verify()
    assert clips.clip_id.tolist() == [f"jump/take {i}" for i in range(6)] + [f"walk/take {i}" for i in range(1, 6)]
    assert clips.label.tolist() == [0] * 6 + [1] * 5 and (clips.subject == -1).all() and (clips.camera_group == 0).all()
    assert clips.info.classes == ("jump", "walk") and not clips.info.synthetic
    assert clips.clip_id[clips.split_test].tolist() == [
        *(f"jump/take {index}" for index in (1, 2, 5)),
        *(f"walk/take {index}" for index in (1, 2, 3)),
    ]
    (left_out,) = read_left_out(clips.path)
    assert (left_out.name, left_out.reason) == ("walk/take 0", "unreadable")
    assert "take 0.bvh:1" in left_out.detail
    assert str(tmp_path) not in json.dumps(dict(clips.info.recipe))


def test_a_single_file_reads_as_the_set_has_it(tmp_path):
    write_text(tmp_path / "set" / "a" / "x.bvh", moving(1.5))
    clips = prepare_reading(tmp_path / "out", bvh.reading(tmp_path / "set"))
    recording = bvh.read_recording(tmp_path / "set" / "a" / "x.bvh", "x")
    assert bvh.clip_names(tmp_path / "set" / "a" / "x.bvh") == ("x",)
    assert np.array_equal(recording.tracks[0].positions, clips.positions)
    with pytest.raises(ValueError, match=r"x\.bvh: holds one clip, x, got 'y'"):
        bvh.read_recording(tmp_path / "set" / "a" / "x.bvh", "y")


def test_a_person_who_is_tallest_along_z_is_noted(tmp_path):
    frames = rest_frames()
    frames[:, ROOT_CHANNELS.index("Xrotation")] = 90
    write_text(tmp_path / "set" / "a.bvh", bvh_text(frames=frames))
    assert any("tallest along z" in note for note in bvh.reading(tmp_path / "set").notes)


def test_a_file_of_several_megabytes_keeps_the_order_of_its_values(tmp_path):
    frames = rest_frames(count=6000)
    frames[:, 0] = np.arange(6000) / 50
    frames[:, 3:] = 0.1234567
    text = bvh_text(frames=frames)
    assert len(text) > 4 << 20
    x = pose(read(tmp_path, text))[:, 0, 0]
    assert np.allclose(x, np.arange(6000) / 5000, atol=2e-6)
    lines = text.splitlines()
    lines[-2] = lines[-2].replace("0.1234567", "x", 1)
    with pytest.raises(ValueError, match=rf"clip\.bvh:{len(lines) - 1}: values must be numbers"):
        read(tmp_path, "\n".join(lines))
