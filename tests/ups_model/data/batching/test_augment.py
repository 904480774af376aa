"""Augmentation: what must not change does not change, and left stays left."""

import pytest
import torch

from ups_model.config import TaskData
from ups_model.data.batching.augment import augment_bodies, augment_clips, mirror_joints, mirror_slots, parents_first
from ups_model.skeletons import SKELETONS, SLOT_NAMES, SLOT_PARENTS

H36M = SKELETONS["h36m17"]
NAMES = H36M.joint_names


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def clips(dims=3, seed=0):
    """[B=6, P=2, N=4, 25, 3] random poses."""
    pose = torch.randn(6, 2, 4, 25, 3, generator=generator(seed), dtype=torch.float64).float()
    pose[..., dims:] = 0
    return pose


def bodies(count=8, seed=0):
    """[B, N=5, 17, 3] metres: people who stand apart, upright, facing anywhere, their joints a little off."""
    rest = torch.zeros(17, 3, dtype=torch.float64)
    height = {"ankle": 0.08, "knee": 0.5, "hip": 0.95, "pelvis": 0.95, "spine": 1.2, "thorax": 1.45, "shoulder": 1.4}
    height |= {"nose": 1.6, "head": 1.75, "elbow": 1.1, "wrist": 0.85}
    for joint, name in enumerate(NAMES):
        side = {"l_": 0.2, "r_": -0.2}.get(name[:2], 0.0)
        rest[joint] = torch.tensor([side, -0.1 * (name == "nose"), height[name.removeprefix("l_").removeprefix("r_")]])
    turn = torch.rand(count, generator=generator(seed + 1), dtype=torch.float64) * 6.28
    cos, sin = turn.cos()[:, None, None], turn.sin()[:, None, None]
    pose = rest + 0.03 * torch.randn(count, 5, 17, 3, generator=generator(seed), dtype=torch.float64)
    x, y, z = pose.unbind(-1)
    place = 2 * torch.randn(count, 1, 1, 2, generator=generator(seed + 2), dtype=torch.float64)
    turned = torch.stack([x * cos - y * sin, x * sin + y * cos, z], dim=-1)
    turned[..., :2] += place
    return turned.float()


def augmented(world, seed=5, **fields):
    middle = torch.full((len(world),), 2)
    return augment_bodies(world, middle, H36M, TaskData(**fields), generator(seed))


def bones(world):
    """[B, N, 16] lengths, metres, of each joint's bone to its parent (the root has none)."""
    parents = list(H36M.parents)
    joints = [joint for joint in range(17) if parents[joint] >= 0]
    return (world[..., joints, :] - world[..., [parents[joint] for joint in joints], :]).norm(dim=-1)


def handedness(world):
    """[B, N] sign of (right to left) x (back to front) . up: the same for every body whose left is on its left."""

    def at(name):
        return world[..., NAMES.index(name), :]

    across = at("l_hip") + at("l_shoulder") - at("r_hip") - at("r_shoulder")
    front = 2 * at("nose") - at("thorax") - at("head")
    up = at("thorax") - at("pelvis")
    return torch.linalg.det(torch.stack([across, front, up], dim=-1)).sign()


def test_a_mirror_twice_is_the_identity():
    assert torch.equal(mirror_slots(mirror_slots(clips())), clips())
    assert torch.equal(mirror_joints(mirror_joints(bodies(), H36M), H36M), bodies())


def test_a_mirror_swaps_left_and_right_and_negates_x():
    pose = clips()
    mirrored = mirror_slots(pose)
    for slot, name in enumerate(SLOT_NAMES):
        other = name.replace("l_", "r_", 1) if name.startswith("l_") else name.replace("r_", "l_", 1)
        other = other if name[:2] in ("l_", "r_") else name
        expected = pose[..., SLOT_NAMES.index(other), :] * torch.tensor([-1.0, 1.0, 1.0])
        assert torch.equal(mirrored[..., slot, :], expected), name


def test_rotation_about_the_vertical_keeps_heights_and_every_distance():
    pose = clips()
    turned = augment_clips(pose, TaskData(rotation_deg=180), 3, generator())
    assert torch.allclose(turned[..., 1], pose[..., 1], atol=1e-6)
    flat = [x.reshape(12, 100, 3).double() for x in (pose, turned)]
    assert torch.allclose(torch.cdist(flat[0], flat[0]), torch.cdist(flat[1], flat[1]), atol=1e-4)
    angle = torch.atan2(turned[..., 0], turned[..., 2]) - torch.atan2(pose[..., 0], pose[..., 2])
    angle = torch.atan2(angle.sin(), angle.cos()).flatten(1)
    assert (angle - angle[:, :1]).abs().max() < 1e-3, "one angle for all persons and frames of a clip"
    assert len(angle[:, 0].round(decimals=2).unique()) == 6, "and another for each clip"


def test_a_tilt_turns_2d_clips_in_their_plane():
    pose = clips(dims=2)
    turned = augment_clips(pose, TaskData(tilt_deg=30, rotation_deg=90), 2, generator())
    assert (turned[..., 2] == 0).all() and not torch.allclose(turned, pose, atol=0.05)
    assert torch.allclose(turned.norm(dim=-1), pose.norm(dim=-1), atol=1e-5)
    cosine = (turned * pose).sum(-1) / pose.square().sum(-1)
    assert cosine.min() >= 0.866 - 1e-3, "cos 30 degrees"


def test_scale_is_one_factor_a_clip_within_its_bounds():
    ratio = (augment_clips(clips(), TaskData(scale=0.2), 3, generator()).norm(dim=-1) / clips().norm(dim=-1)).flatten(1)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4)
    assert ratio.min() >= 0.8 and ratio.max() <= 1.2 and ratio[:, 0].std() > 0.02


@pytest.mark.parametrize("dims", [2, 3])
def test_jitter_displaces_a_joint_alike_in_all_frames_and_only_in_the_axes_there_are(dims):
    pose = torch.zeros(200, 1, 4, 25, 3)
    moved = augment_clips(pose, TaskData(jitter=0.1), dims, generator())
    assert torch.equal(moved, moved[:, :, :1].expand_as(moved))
    assert (moved[..., dims:] == 0).all() and float(moved[..., :dims].std()) == pytest.approx(0.1, rel=0.05)


def test_a_dropped_joint_takes_its_parents_place_for_the_whole_clip():
    pose = clips()
    out = augment_clips(pose, TaskData(joint_drop=0.4), 3, generator())
    parents = torch.tensor(SLOT_PARENTS).clamp(min=0)
    parent = pose[..., parents, :]
    dropped = (out != pose).any(-1).flatten(1, 2)
    whole = dropped.all(dim=1)
    assert torch.equal(whole, dropped.any(dim=1)) and 0.2 < float(whole.float().mean()) < 0.6
    assert torch.equal(out, torch.where(whole[:, None, None, :, None], parent, pose))


def test_half_of_the_clips_are_mirrored_and_the_others_untouched():
    pose = clips()[:1].expand(400, -1, -1, -1, -1)
    out = augment_clips(pose, TaskData(flip=True), 3, generator())
    mirrored = torch.tensor([torch.equal(clip, mirror_slots(pose[0])) for clip in out])
    untouched = torch.tensor([torch.allclose(clip, pose[0], atol=1e-6) for clip in out])
    assert (mirrored ^ untouched).all() and 160 < int(mirrored.sum()) < 240


def test_no_augmentation_asked_changes_nothing():
    assert torch.allclose(augment_clips(clips(), TaskData(), 3, generator()), clips(), atol=1e-7)
    assert torch.allclose(augmented(bodies()), bodies(), atol=1e-6)


def test_one_augmentation_does_not_move_the_draws_of_another():
    # Block design: an arm without jitter sees the very rotations of the arm with it.
    plain = augment_clips(clips(), TaskData(rotation_deg=90), 3, generator())
    noisy = augment_clips(clips(), TaskData(rotation_deg=90, jitter=1e-6, joint_drop=1e-9, scale=1e-9), 3, generator())
    assert torch.allclose(plain, noisy, atol=1e-4)
    plain = augmented(bodies(), rotation_deg=90)
    resized = augmented(bodies(), rotation_deg=90, scale=1e-9, bone_scale=1e-9, translation_m=1e-9)
    assert torch.allclose(plain, resized, atol=1e-5)


def test_bodies_turn_on_the_spot_about_the_vertical():
    world = bodies()
    out = augmented(world, rotation_deg=180)
    assert torch.allclose(out[..., 2], world[..., 2], atol=1e-6) and torch.allclose(bones(out), bones(world), atol=1e-5)
    assert torch.allclose(out[:, 2, 0], world[:, 2, 0], atol=1e-5), "the root of the middle target stays where it was"
    assert not torch.allclose(out, world, atol=0.1)


def test_bodies_move_on_the_ground_within_bounds():
    step = augmented(bodies(), translation_m=0.5) - bodies()
    assert torch.allclose(step, step[:, :1, :1].expand_as(step), atol=1e-5) and (step[..., 2].abs() < 1e-6).all()
    assert step.abs().max() <= 0.5 + 1e-5 and step[:, 0, 0, :2].std() > 0.1


def test_a_bodys_scale_is_about_its_place_on_the_ground():
    world = bodies()
    out = augmented(world, scale=0.2)
    ratio = (bones(out) / bones(world)).flatten(1)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-4)
    assert ratio.min() >= 0.8 and ratio.max() <= 1.2 and ratio[:, 0].std() > 0.02
    assert torch.allclose(out[..., 2], world[..., 2] * ratio[:, :1, None], atol=1e-4), "feet on the ground stay on it"
    assert torch.allclose(out[:, 2, 0, :2], world[:, 2, 0, :2], atol=1e-5)


def test_bone_lengths_change_within_bounds_alike_on_both_sides_and_in_all_frames():
    world = bodies()
    ratio = bones(augmented(world, bone_scale=0.3)) / bones(world)
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), atol=1e-3)
    assert ratio.min() >= 0.7 - 1e-3 and ratio.max() <= 1.3 + 1e-3 and ratio[:, 0].std() > 0.05
    jointed = [name for joint, name in enumerate(NAMES) if H36M.parents[joint] >= 0]
    for left in (name for name in jointed if name.startswith("l_")):
        right = "r_" + left[2:]
        assert torch.allclose(ratio[..., jointed.index(left)], ratio[..., jointed.index(right)], atol=1e-3), (
            f"{left} and {right} must stay a pair"
        )
    assert len(ratio[0, 0].round(decimals=2).unique()) > 5


def test_longer_bones_point_the_same_way_and_the_lowest_joint_keeps_its_height():
    world = bodies()
    out = augmented(world, bone_scale=0.3)
    parents = torch.tensor(H36M.parents[1:])
    before, after = (x[:, :, 1:] - x[:, :, parents] for x in (world, out))
    assert torch.allclose(torch.cosine_similarity(before, after, dim=-1), torch.ones(8, 5, 16), atol=1e-5)
    assert torch.allclose(out[..., 2].amin(dim=2), world[..., 2].amin(dim=2), atol=1e-5)


def test_a_mirrored_bodys_left_is_still_on_its_left():
    world = bodies(count=40)
    out = augmented(world, flip=True)
    changed = (out - world).abs().flatten(1).amax(dim=1) > 1e-3
    assert 10 < int(changed.sum()) < 30, "half of the windows"
    assert (handedness(world) == handedness(world)[0, 0]).all()
    assert torch.equal(handedness(out), handedness(world))
    left, right = NAMES.index("l_wrist"), NAMES.index("r_wrist")
    assert torch.allclose(out[changed][:, :, left, 2], world[changed][:, :, right, 2], atol=1e-6)


def test_parents_come_before_their_joints_in_every_layout():
    for skeleton in SKELETONS.values():
        order = parents_first(skeleton.parents)
        place = {joint: at for at, joint in enumerate(order)}
        assert sorted(order) == list(range(skeleton.joints))
        assert all(place[parent] < place[joint] for joint, parent in enumerate(skeleton.parents) if parent >= 0)
