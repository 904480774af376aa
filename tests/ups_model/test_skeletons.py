"""Joint layouts, held against the layouts as their data sets publish them."""

import numpy as np
import pytest

from ups_model.skeletons import (
    SKELETONS,
    SLOT_EDGES,
    SLOT_FLIP,
    SLOT_NAMES,
    SLOT_PARENTS,
    SLOTS,
    Skeleton,
    get_skeleton,
    to_slots,
)


def test_human36m_joints_land_on_the_published_ntu_joints():
    published_1_based = [1, 17, 18, 19, 13, 14, 15, 2, 21, 3, 4, 5, 6, 7, 9, 10, 11]
    assert get_skeleton("h36m17").native_slot.tolist() == [joint - 1 for joint in published_1_based]


def test_openpose_limbs_land_on_the_published_ntu_joints():
    # nose, neck, right arm, left arm, right leg, left leg, eyes and ears (dropped); NTU joints 1-based.
    published_1_based = [4, 21, 9, 10, 11, 5, 6, 7, 17, 18, 19, 13, 14, 15, 0, 0, 0, 0]
    assert get_skeleton("openpose18").native_slot.tolist() == [joint - 1 for joint in published_1_based]


def test_every_ntu_bone_points_at_the_spine_between_the_shoulders():
    assert len(SLOT_EDGES) == SLOTS - 1
    assert SLOT_PARENTS.count(-1) == 1 and SLOT_PARENTS[20] == -1
    for slot in range(SLOTS):
        steps = 0
        while slot != 20:
            slot, steps = SLOT_PARENTS[slot], steps + 1
            assert steps < SLOTS, "the edges hold a cycle"


def test_flip_exchanges_the_published_left_and_right_joints_of_ntu():
    pairs_1_based = [(5, 9), (6, 10), (7, 11), (8, 12), (13, 17), (14, 18), (15, 19), (16, 20), (22, 24), (23, 25)]
    expected = np.arange(SLOTS)
    for left, right in pairs_1_based:
        expected[[left - 1, right - 1]] = right - 1, left - 1
    assert SLOT_FLIP.tolist() == expected.tolist()


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_mirroring_natively_or_in_slots_is_the_same(name):
    skeleton = SKELETONS[name]
    pose_NJC = np.random.default_rng(3).normal(size=(4, skeleton.joints, 3))
    native_first = to_slots(pose_NJC[:, skeleton.flip], skeleton)
    assert np.allclose(native_first, to_slots(pose_NJC, skeleton)[:, SLOT_FLIP], atol=1e-12)


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_a_rigid_shift_of_the_joints_shifts_present_slots_and_leaves_absent_slots_zero(name):
    skeleton = SKELETONS[name]
    pose_NJC = np.random.default_rng(4).normal(size=(3, skeleton.joints, 2))
    moved = to_slots(pose_NJC + np.array([5.0, -2.0]), skeleton) - to_slots(pose_NJC, skeleton)
    present = list(skeleton.slots_present)
    absent = sorted(set(range(SLOTS)) - set(present))
    assert np.allclose(moved[:, present], [5.0, -2.0], atol=1e-6)
    assert not to_slots(pose_NJC, skeleton)[:, absent].any()


@pytest.mark.parametrize(
    ("name", "present"), [("h36m17", 17), ("ntu25", 25), ("openpose18", 17), ("kinect20", 21), ("jhmdb15", 17)]
)
def test_number_of_slots_each_layout_fills(name, present):
    assert len(SKELETONS[name].slots_present) == present


@pytest.mark.parametrize("name", sorted(SKELETONS))
def test_joints_keep_their_name_in_the_slot_that_holds_them(name):
    skeleton = SKELETONS[name]
    for joint, slot in enumerate(skeleton.native_slot):
        if slot >= 0 and skeleton.joint_names[joint][:2] in ("l_", "r_"):
            assert SLOT_NAMES[slot] == skeleton.joint_names[joint]


def test_openpose_middles_are_the_hand_worked_ones():
    skeleton = get_skeleton("openpose18")
    pose_JC = np.zeros((18, 2))
    pose_JC[8], pose_JC[11] = (2.0, 0.0), (4.0, 0.0)  # hips: middle (3, 0)
    pose_JC[1], pose_JC[0] = (3.0, 8.0), (3.0, 10.0)  # neck, nose
    slots = to_slots(pose_JC, skeleton)
    assert np.allclose(slots[[0, 1, 2, 3, 20]], [(3, 0), (3, 4), (3, 9), (3, 10), (3, 8)])


def test_an_unseen_hip_does_not_pull_the_middle_of_the_hips_to_the_origin():
    skeleton = get_skeleton("openpose18")
    pose_JC, seen_J = np.full((18, 2), 6.0), np.ones(18, dtype=bool)
    pose_JC[8], seen_J[8] = 0.0, False
    pose_JC[[0, 14]], seen_J[[0, 14]] = 0.0, False
    slots = to_slots(pose_JC, skeleton, seen_J)
    assert np.allclose(slots[0], 6.0) and np.allclose(slots[1], 6.0) and np.allclose(slots[2], 6.0)
    assert not slots[3].any() and not slots[16].any()  # head and right hip: nothing seen


def test_a_mistyped_skeleton_lists_near_names():
    with pytest.raises(ValueError, match="unknown skeleton 'h36m-17'; try h36m17"):
        get_skeleton("h36m-17")


def test_a_pose_of_the_wrong_layout_is_refused():
    with pytest.raises(ValueError, match="ntu25 has 25 joints, got a pose of shape"):
        to_slots(np.zeros((2, 17, 3)), get_skeleton("ntu25"))


def test_a_layout_with_an_unknown_slot_and_joint_names_both_faults():
    with pytest.raises(ValueError, match="got 25; slot 0 needs known joints"):
        Skeleton("bad", ("a",), (-1,), {25: {0: 1.0}, 0: {4: 1.0}})
