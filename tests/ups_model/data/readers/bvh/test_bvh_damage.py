"""BVH files that break the format: each fault is named with file, line, rule and value."""

import pytest
from test_bvh import read

from tests.support.writers_own import (
    CMU,
    JOINT_CHANNELS,
    ROOT_CHANNELS,
    bvh_text,
    channels_of,
    rest_frames,
    write_json,
    write_text,
)
from ups_model.data.readers.bvh import reader as bvh


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("HIERARCHY", "HIERARCHIE", r":1: a BVH file must begin with HIERARCHY"),
        ("ROOT Hips", "JOINT Hips", r":2: there must be one ROOT"),
        ("ROOT Hips", "ROOT", r":3: a name must follow ROOT"),
        ("JOINT LHipJoint", "ROOT LHipJoint", r":6: there must be one ROOT"),
        ("OFFSET 0 90 0", "OFFSET 0 90", r":5: an offset of Hips must be a number within 1e\+06, got 'CHANNELS'"),
        ("OFFSET 0 90 0", "OFFSET 0 nan 0", r":4: an offset of Hips must be a number"),
        ("OFFSET 0 90 0", "OFFSET 0 1e7 0", r":4: an offset of Hips must be a number within 1e\+06, got '1e7'"),
        ("\tOFFSET 0 90 0\n", "", r":145: Hips \(line 2\) must have an OFFSET"),
        ("CHANNELS 6", "CHANNELS 10", r":5: the number of channels of Hips must be in 0\.\.9, got '10'"),
        ("CHANNELS 6", "CHANNELS 7", r":6: channels of Hips must be Xposition .. Zrotation, got 'JOINT'"),
        ("CHANNELS 6 Xposition", "CHANNELS 6 Yposition", r":5: Hips must have each position channel once"),
        ("CHANNELS 6 Xposition", "CHANNELS 6 Xscale", r":5: channels of Hips must be Xposition"),
        ("Frames: 2", "Frames: 0", r":148: Frames must be in 1\.\.1000000, got 0"),
        ("Frames: 2", "Frames: 99999999", r":148: Frames must be in 1\.\.1000000"),
        ("Frames: 2", "Frames: 1000000", r":151: there must be 78000000 values, frames times channels, got \d+ bytes"),
        ("Frames: 2", "Frames: -1", r":148: Frames must be"),
        ("Frame Time: 0.0083333", "Frame Time: 0", r":149: Frame Time must be seconds in 0\.001\.\.1, got 0"),
        ("Frame Time: 0.0083333", "Frame Time: nan", r":149: Frame Time must be seconds"),
        ("Frame Time: 0.0083333", "Frame: 0.0083333", r':148: "Frames: COUNT" and "Frame Time: SECONDS" must follow'),
        ("MOTION", "MOTIONS", r"a line MOTION must follow the hierarchy"),
    ],
)
def test_what_breaks_the_format_is_named_with_its_line(tmp_path, old, new, message):
    text = bvh_text()
    assert text.count(old) >= 1
    # The line after the hierarchy is the same in all cases but one, as the writer puts one thing on a line.
    file = write_text(tmp_path / "a.bvh", text.replace(old, new, 1))
    hierarchy = text[: text.index("MOTION")].count("\n")
    message = message.replace(":145:", f":{hierarchy - 1}:").replace(":148:", f":{hierarchy + 2}:")
    message = message.replace(":149:", f":{hierarchy + 3}:").replace(":151:", f":{hierarchy + 5}:")
    with pytest.raises(ValueError, match=r"a\.bvh.*" + message):
        bvh.read_recording(file)


@pytest.mark.parametrize("word", ["nan", "inf", "-1e7", "1_0", "1,5", "x", "0x10", "--1", "٣"])
def test_a_value_that_is_no_number_in_bounds_is_named_with_its_line(tmp_path, word):
    lines = bvh_text(frames=rest_frames(count=5)).splitlines()
    at = len(lines) - 2  # the last frame but one
    lines[at] = lines[at].replace(" 0 ", f" {word} ", 1)
    with pytest.raises(ValueError, match=rf"a\.bvh:{at + 1}: values must be numbers within 1e\+06"):
        read(tmp_path, "\n".join(lines), "a.bvh")


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (4, "there must be 312 values.*got 234"),
        (2, "there must be 156 values, frames times channels, and there are more"),
    ],
)
def test_another_number_of_frames_than_declared_is_refused(tmp_path, declared, message):
    frames = rest_frames(count=3)
    frames[:] += 0.125  # longer than a digit each, so that the values are counted
    with pytest.raises(ValueError, match=rf"a\.bvh:\d+: {message}"):
        read(tmp_path, bvh_text(frames=frames, declared=declared), "a.bvh")


def test_joints_beyond_100_metres_are_refused_with_the_frame(tmp_path):
    frames = rest_frames(count=3)
    frames[2, 0] = 20_000
    with pytest.raises(ValueError, match=r"within 100 m of the origin, got \[200\.0.*pelvis in frame 2"):
        read(tmp_path, bvh_text(frames=frames))


def test_names_that_are_not_utf8_are_refused_with_the_line(tmp_path):
    raw = bvh_text().encode().replace(b"JOINT LowerBack", b"JOINT \x83\x5a\x83\x93")
    line = raw[: raw.index(b"\x83")].count(b"\n") + 1
    with pytest.raises(ValueError, match=rf"a\.bvh:{line}: names must be UTF-8, got the byte 0x83"):
        read(tmp_path, raw, "a.bvh")


def test_a_second_root_is_refused(tmp_path):
    head, tail = bvh_text().split("MOTION")
    second = "ROOT Prop\n{\n\tOFFSET 0 0 0\n\tCHANNELS 0\n}\n"
    with pytest.raises(ValueError, match=r"there must be one ROOT, with all joints in it, got 'ROOT'"):
        read(tmp_path, head + second + "MOTION" + tail)


def test_a_very_deep_hierarchy_is_refused_and_exhausts_no_stack(tmp_path):
    deep = "".join(f"JOINT j{index} {{ OFFSET 0 1 0\n" for index in range(100_000))
    with pytest.raises(ValueError, match="at most 2000 joints"):
        read(tmp_path, f"HIERARCHY\nROOT r {{ OFFSET 0 0 0\n{deep}\nMOTION\nFrames: 1\nFrame Time: 1\n0")


def test_joint_channels_of_the_writer_are_those_of_published_files():
    assert sum(len(own) for _, own in channels_of(CMU)) == len(ROOT_CHANNELS) + 24 * len(JOINT_CHANNELS)


def test_a_folder_in_which_no_file_can_be_read_says_why_the_first_cannot(tmp_path):
    write_text(tmp_path / "set" / "a.bvh", "nothing")
    write_json(tmp_path / "set" / "b.bvh", {})
    with pytest.raises(ValueError, match=r"none of the 2 files can be read; the first: .*a\.bvh:1: a BVH file must"):
        bvh.reading(tmp_path / "set")
