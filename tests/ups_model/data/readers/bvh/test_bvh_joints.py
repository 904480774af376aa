"""Which joints of a BVH file are Human3.6M's: each family of names gives the same body."""

import numpy as np
import pytest
from test_bvh import REST_J3, pose

from tests.support.writers_own import CMU, bvh_text, renamed, write_json, write_text
from ups_model.data.prepare.runner import prepare_reading
from ups_model.data.readers.bvh import reader as bvh
from ups_model.data.readers.bvh.joints import name_key

ARMS = {"Arm": "UpperArm", "ForeArm": "Forearm", "Hand": "Hand", "Shoulder": "Clavicle"}
LEGS = {"UpLeg": "Thigh", "Leg": "Calf", "Foot": "Foot", "ToeBase": "Toe0"}


def both(pattern, parts):
    """CMU's sided names to others': pattern gets side and part."""
    return {f"{side}{old}": pattern(side, new) for side in ("Left", "Right") for old, new in parts.items()}


def prefixed(prefix):
    return {name: prefix + name for name, *_ in CMU}


XSENS = {
    **both(
        lambda side, part: side + part,
        {
            "UpLeg": "Hip",
            "Leg": "Knee",
            "Foot": "Ankle",
            "ToeBase": "Toe",
            "Shoulder": "Collar",
            "Arm": "Shoulder",
            "ForeArm": "Elbow",
            "Hand": "Wrist",
        },
    ),
    "LowerBack": "Chest",
    "Spine": "Chest2",
    "Spine1": "Chest3",
}
BIPED = {
    "Hips": "Bip01 Pelvis",
    "LowerBack": "Bip01 Spine",
    "Spine": "Bip01 Spine1",
    "Spine1": "Bip01 Spine2",
    "Neck": "Bip01 Neck",
    "Neck1": "Bip01 Neck0",
    "Head": "Bip01 Head",
    **both(lambda side, part: f"Bip01 {side[0]} {part}", ARMS | LEGS),
}
UNREAL = {
    "Hips": "pelvis",
    "LowerBack": "spine_01",
    "Spine": "spine_02",
    "Spine1": "spine_03",
    "Neck": "neck_01",
    "Neck1": "neck_02",
    "Head": "head",
    **both(
        lambda side, part: f"{part}_{side[0].lower()}",
        {"Arm": "upperarm", "ForeArm": "lowerarm", "Hand": "hand", "Shoulder": "clavicle"}
        | {"UpLeg": "thigh", "Leg": "calf", "Foot": "foot", "ToeBase": "ball"},
    ),
}
DAZ = {
    "Hips": "hip",
    "Neck": "neck",
    "Head": "head",
    **both(
        lambda side, part: side[0].lower() + part,
        {"Arm": "Shldr", "ForeArm": "ForeArm", "Hand": "Hand", "Shoulder": "Collar"}
        | {"UpLeg": "Thigh", "Leg": "Shin", "Foot": "Foot"},
    ),
}
FAMILIES = {
    "cmu": {},
    "mixamo": prefixed("mixamorig:"),
    "mixamo_underscore": prefixed("mixamorig1_"),
    "namespace": prefixed("Actor01:"),
    "character": prefixed("Character1_"),
    "upper": {name: name.upper() for name, *_ in CMU},
    "xsens": XSENS,
    "biped": BIPED,
    "biped_underscore": {old: new.replace(" ", "_") for old, new in BIPED.items()},
    "unreal": UNREAL,
    "daz": DAZ,
    "blender": both(lambda side, part: f"{part}.{side[0]}", ARMS | LEGS),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_each_family_of_names_gives_the_same_body(tmp_path, family):
    body = renamed(CMU, FAMILIES[family])
    file = write_text(tmp_path / "a.bvh", bvh_text(body))
    assert np.allclose(pose(bvh.read_recording(file)), REST_J3, atol=1e-6)


def test_shoulder_is_the_clavicle_beside_arm_and_the_upper_arm_without(tmp_path):
    at = {}
    for family in ("cmu", "xsens"):
        assert any(name == "LeftShoulder" for name, *_ in renamed(CMU, FAMILIES[family]))
        file = write_text(tmp_path / f"{family}.bvh", bvh_text(renamed(CMU, FAMILIES[family])))
        at[family] = pose(bvh.read_recording(file))[0, 11]
    # The clavicle begins at x = 0, the upper arm 17 cm to the left.
    assert np.allclose(at["cmu"], (0.17, 0, 1.29)) and np.allclose(at["xsens"], (0.17, 0, 1.29))


@pytest.mark.parametrize("name", ["mixamorig:HeadTop_End", "Bip01 HeadNub", "head_end"])
def test_a_joint_for_the_top_of_the_head_is_the_head(tmp_path, name):
    body = [(*entry[:3], None) if entry[0] == "Head" else entry for entry in CMU]
    body.append((name, "Head", (0, 18, 0), (0, 3, 0)))
    file = write_text(tmp_path / "a.bvh", bvh_text(tuple(body)))
    assert np.allclose(pose(bvh.read_recording(file)), REST_J3, atol=1e-6)


@pytest.mark.parametrize("end", [None, (0, 0, 0)])
def test_without_a_top_of_the_head_nose_is_half_way_to_the_heads_joint(tmp_path, end):
    body = tuple((*entry[:3], end) if entry[0] == "Head" else entry for entry in CMU)
    pose_read = pose(bvh.read_recording(write_text(tmp_path / "a.bvh", bvh_text(body))))[0]
    assert np.allclose(pose_read[[8, 9, 10]], [(0, 0, 1.30), (0, 0, 1.355), (0, 0, 1.41)], atol=1e-6)


def test_without_a_joint_near_the_middle_of_the_back_spine_is_between_pelvis_and_thorax(tmp_path):
    body = tuple(
        (name, {"Spine": "LowerBack", "Spine1": "LowerBack"}.get(parent, parent), offset, end)
        for name, parent, offset, end in CMU
        if name not in ("Spine", "Spine1")
    )
    pose_read = pose(bvh.read_recording(write_text(tmp_path / "a.bvh", bvh_text(body))))[0]
    # LowerBack is 5 of 18 cm up: 28 % of the way; 2 of 15 cm are 13 %.
    assert pose_read[7, 2] - pose_read[0, 2] == pytest.approx(0.05, abs=1e-6)
    body = tuple(
        (name, parent, (0, 2, 0) if name == "LowerBack" else offset, end) for name, parent, offset, end in body
    )
    pose_read = pose(bvh.read_recording(write_text(tmp_path / "b.bvh", bvh_text(body))))[0]
    assert pose_read[7, 2] - pose_read[0, 2] == pytest.approx(0.075, abs=1e-6)


def test_a_missing_joint_says_what_was_looked_for_and_what_is_there(tmp_path):
    file = write_text(tmp_path / "a.bvh", bvh_text(renamed(CMU, {"LeftLeg": "Bone7"})))
    with pytest.raises(ValueError, match=r"a\.bvh: no joint was found for l_knee \(LeftKnee, LeftLeg") as error:
        bvh.read_recording(file)
    assert "Bone7" in str(error.value) and "joints.json" in str(error.value)


def test_joints_json_names_joints_that_cannot_be_told(tmp_path):
    body = renamed(CMU, {"LeftLeg": "Bone7", "Neck": "Bone8"})
    file = write_text(tmp_path / "set" / "walk" / "a.bvh", bvh_text(body))
    own = {"l_knee": "Bone7", "thorax": "Bone8", "head": "Head End Site", "spine": "Spine1"}
    write_json(tmp_path / "set" / "joints.json", own)
    reading = bvh.reading(tmp_path / "set")
    clips = prepare_reading(tmp_path / "out", reading)
    expected = REST_J3.copy()
    expected[7] = (0, 0, 1.17)  # Spine1, 35 cm over the hips, as wished
    assert np.allclose(clips.positions, expected, atol=1e-6)
    assert np.allclose(pose(bvh.read_recording(file)), expected, atol=1e-6)
    before = reading.info.recipe["files_sha256"]
    write_json(tmp_path / "set" / "joints.json", own | {"spine": "Spine"})
    assert bvh.reading(tmp_path / "set").info.recipe["files_sha256"] != before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"left_knee": "Bone7"}, "keys must be joints of h36m17"),
        ({"l_knee": 7}, "l_knee must be the name of a joint"),
        ({"l_knee": "Bone9"}, r"joints\.json says l_knee is 'Bone9', which is not there; there are Hips"),
        ([], "must hold an object"),
        ({}, "must hold an object"),
    ],
)
def test_a_wrong_joints_json_is_refused(tmp_path, content, message):
    write_text(tmp_path / "set" / "a.bvh", bvh_text())
    write_json(tmp_path / "set" / "joints.json", content)
    with pytest.raises(ValueError, match=message):
        bvh.reading(tmp_path / "set")


def test_joints_that_do_not_hang_on_one_another_are_refused(tmp_path):
    # Left and right shins changed over.
    names = {"LeftLeg": "RightLeg", "RightLeg": "LeftLeg"}
    with pytest.raises(ValueError, match="l_hip must be above l_knee in the hierarchy, got LeftUpLeg and LeftLeg"):
        bvh.read_recording(write_text(tmp_path / "a.bvh", bvh_text(renamed(CMU, names))))


def test_two_joints_of_one_name_are_refused(tmp_path):
    body = (*CMU, ("left_hand", "Hips", (0, 1, 0), None))
    with pytest.raises(ValueError, match="names must tell joints apart, got LeftHand and left_hand"):
        bvh.read_recording(write_text(tmp_path / "a.bvh", bvh_text(body)))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("mixamorig:LeftUpLeg", ("l", "upleg")),
        ("Bip001 R Thigh", ("r", "thigh")),
        ("bip01_l_forearm", ("l", "forearm")),
        ("thigh_l", ("l", "thigh")),
        ("hand.R", ("r", "hand")),
        ("rShldr", ("r", "shldr")),
        ("LowerBack", ("", "lowerback")),
        ("Reference", ("", "reference")),
        ("LHipJoint", ("l", "hipjoint")),
        ("Character1_LeftShoulder", ("l", "shoulder")),
        ("leg_left", ("l", "leg")),
    ],
)
def test_sides_and_prefixes_are_told_from_names(name, key):
    assert name_key(name) == key
