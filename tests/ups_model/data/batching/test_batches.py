"""Batches: which clips and frames, in what coordinates, checked against NumPy and hand-worked numbers in float64."""

import dataclasses
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.support.runs import FLAT, FRONT, POSE, SIDE, SOLID, make_feed, set_info, write_toy_sets
from ups_model.config import TaskData
from ups_model.data.batching.batches import Feed, Source
from ups_model.data.format.cameras import project, to_camera
from ups_model.data.format.clip_set import ClipSet
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.skeletons import SKELETONS, SLOT_NAMES

HEAD, ROOT, L_WRIST, R_WRIST = (SLOT_NAMES.index(name) for name in ("head", "spine_base", "l_wrist", "r_wrist"))
KINECT = SKELETONS["kinect20"].joint_names
H36M = SKELETONS["h36m17"]


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    paths = write_toy_sets(tmp_path_factory.mktemp("sets"))
    return {name: ClipSet.open(path) for name, path in paths.items()}


def counted(frames, row, skeleton="kinect20", dims=3):
    """[N, J, C] poses with the root at 0, the frame's number as the head's x, the row's as the left wrist's y."""
    names = SKELETONS[skeleton].joint_names
    pose = np.zeros((frames, len(names), dims), np.float32)
    pose[:, names.index("head"), 0] = np.arange(frames)
    pose[:, names.index("l_wrist"), 1] = row
    return pose


def write_counted(path, lengths, test=True):
    """One clip a length, of which the first alone is for training (test=True) or for testing."""
    clips = [
        Clip(f"clip{row}", (Track(counted(frames, row)),), row % 2, row, split_test=(row > 0) == test)
        for row, frames in enumerate(lengths)
    ]
    return write_clip_set(path, set_info("counted", "kinect20"), clips)


def all_tensors(batch):
    """Every tensor of a batch by name."""
    tensors = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return tensors | {name: value for name, value in vars(batch.inputs).items() if isinstance(value, torch.Tensor)}


def same(one, other):
    one, other = all_tensors(one), all_tensors(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def screen(world, camera):
    """World points to screen coordinates by the cameras' own float64 projection: x in [-1, 1], aspect kept."""
    width, height = camera.wh
    return project(world, camera) * 2 / width - [1, height / width]


def native(pose_XSC):
    """The h36m17 joints out of the 25 slots."""
    return pose_XSC[..., torch.tensor(H36M.native_slot), :]


EVERYTHING = {
    "pe": (
        POSE,
        TaskData(frames=8, batch_size=6, targets_per_window=2, evaluate_targets=4, rotation_deg=90, flip=True),
    ),
    "ar2d": (FLAT, TaskData(frames=8, batch_size=6, crop_min=0.5, tilt_deg=10, jitter=0.1)),
    "eap": (SOLID, TaskData(frames=8, batch_size=6, crop_min=0.2, rotation_deg=30)),
    "ar3d": (SOLID, TaskData(frames=8, batch_size=6, crop_min=0.5, joint_drop=0.2, flip=True)),
}


@pytest.mark.parametrize("task", EVERYTHING)
def test_the_batch_of_a_turn_does_not_depend_on_what_was_asked_before(sets, task):
    name, data = EVERYTHING[task]
    feed = make_feed(sets[name], task, data)
    in_order = [feed.train(turn) for turn in range(9)]
    for turn in (8, 0, 5):
        assert same(make_feed(sets[name], task, data).train(turn), in_order[turn])
        assert same(feed.train(turn), in_order[turn])


@pytest.mark.parametrize("task", EVERYTHING)
def test_a_set_too_large_for_the_device_is_read_from_disk_and_gives_the_same_batches(sets, task, monkeypatch):
    name, data = EVERYTHING[task]
    loaded = make_feed(sets[name], task, data)
    monkeypatch.setattr("ups_model.data.batching.device_clips.room_bytes", lambda device: 0)
    mapped = make_feed(sets[name], task, data)
    assert isinstance(mapped.sources[0].positions_FJC, np.ndarray)
    for turn in range(3):
        assert same(mapped.train(turn), loaded.train(turn))


@pytest.mark.parametrize("task", EVERYTHING)
def test_the_shares_of_all_processes_interleaved_are_the_whole_batch(sets, task):
    name, data = EVERYTHING[task]
    feed = make_feed(sets[name], task, data)
    whole = all_tensors(feed.train(3))
    for processes in (2, 3):
        parts = [all_tensors(feed.train(3, (rank, processes))) for rank in range(processes)]
        for key, value in whole.items():
            if key == "slot_mask_S":
                assert all(torch.equal(part[key], value) for part in parts)
                continue
            woven = torch.stack([part[key] for part in parts], dim=1).flatten(0, 1)
            assert torch.equal(woven, value), key


@pytest.mark.parametrize("task", EVERYTHING)
def test_another_seed_gives_other_batches_and_the_same_seed_the_same(sets, task):
    name, data = EVERYTHING[task]
    first = make_feed(sets[name], task, data, seed=0).train(0)
    assert same(first, make_feed(sets[name], task, data, seed=0).train(0))
    assert not same(first, make_feed(sets[name], task, data, seed=1).train(0))


def test_each_training_clip_is_visited_once_an_epoch_in_another_order_each_time(sets):
    feed = make_feed(sets[SOLID], "ar3d", TaskData(frames=4, batch_size=5))
    train = sets[SOLID].split(0).train.tolist()
    visited = torch.cat([feed.train(turn).clip_B for turn in range(len(train))]).tolist()
    epochs = [visited[first : first + len(train)] for first in range(0, len(visited), len(train))]
    assert len(epochs) == 5 and all(sorted(epoch) == train for epoch in epochs)
    assert len(set(map(tuple, epochs))) == 5


def test_each_training_frame_is_visited_once_an_epoch_in_each_camera(sets):
    clips = sets[POSE]
    feed = make_feed(clips, "pe", TaskData(frames=4, batch_size=8))
    expected = {
        (row, camera, frame)
        for row in clips.split(0).train.tolist()
        for camera in range(2)
        for frame in range(int(clips.clip_length[row]))
    }
    seen = Counter()
    for turn in range(-(-len(expected) // 8)):
        batch = feed.train(turn)
        seen.update(zip(*(x.tolist() for x in (batch.clip_B, batch.camera_B, batch.frame_BR[:, 0])), strict=True))
    assert expected <= seen.keys() and sum(seen.values()) - len(expected) < 8


@pytest.mark.parametrize("task", EVERYTHING)
def test_no_validation_or_test_clip_is_ever_in_a_training_batch(sets, task):
    name, data = EVERYTHING[task]
    feed = make_feed(sets[name], task, data, validation_subjects=1)
    held_out = [clip for clip in range(len(sets[name])) if sets[name].subject[clip] == 0]
    validation = {clip for batch in feed.evaluate("validation") for clip in batch.clip_B.tolist()}
    test = {clip for batch in feed.evaluate("test") for clip in batch.clip_B.tolist()}
    assert test == set(held_out) and len(validation) == 4
    trained = {clip for turn in range(60) for clip in feed.train(turn).clip_B.tolist()}
    trained |= set(feed.statistics_batch().clip_B.tolist())
    assert trained == set(range(len(sets[name]))) - test - validation


def test_sources_are_drawn_in_proportion_to_their_clips(tmp_path):
    sources = []
    for name, count in (("one", 3), ("two", 9)):
        clips = [Clip(f"{name}{row}", (Track(counted(3, row)),), 0, row, row == 0) for row in range(count + 1)]
        clips = write_clip_set(tmp_path / name, set_info(name, "kinect20"), clips)
        sources.append(Source(clips, clips.split(0), torch.device("cpu")))
    feed = Feed("ar3d", TaskData(("one", "two"), frames=2, batch_size=2), sources, 0)
    drawn = Counter(feed.train(turn).source for turn in range(300))
    assert drawn["one"] + drawn["two"] == 300
    assert abs(drawn["two"] - 225) < 4 * math.sqrt(300 * 0.75 * 0.25)
    assert [batch.source for batch in feed.evaluate("test")] == ["one", "two"]


@pytest.mark.parametrize("ratio", ["0.1", "0.2", "0.3", "0.4", "0.6", "0.7", "0.9", "1"])
def test_early_prediction_shows_exactly_the_first_ceil_of_ratio_times_length_frames(tmp_path, ratio):
    lengths = list(range(1, 41))
    feed = make_feed(write_counted(tmp_path / "counted", [5, *lengths]), "eap", TaskData(frames=64, batch_size=16))
    shown = torch.cat([batch.inputs.pose_BPNSC[:, 0, :, HEAD, 0] for batch in feed.evaluate("test", float(ratio))])
    # In exact arithmetic: the product of floats 0.6 * 5 is above 3 for some roundings of 0.6.
    assert shown.amax(dim=1).tolist() == [math.ceil(Fraction(ratio) * length) - 1 for length in lengths]
    assert (shown[:, 0] == 0).all() and (shown.diff(dim=1) >= 0).all()


@pytest.mark.parametrize("frames", [1, 5, 16])
def test_resizing_is_linear_interpolation_between_the_observed_frames(tmp_path, frames):
    rng = np.random.default_rng(3)
    head = KINECT.index("head")
    poses = []
    for length in (1, 2, 7, 16, 30):
        pose = counted(length, 0)
        pose[:, head] = rng.normal(size=(length, 3))
        poses.append(pose)
    clips = [Clip(f"{row}", (Track(pose),), 0, row, split_test=row > 0) for row, pose in enumerate([poses[0], *poses])]
    feed = make_feed(
        write_clip_set(tmp_path / "set", set_info("set", "kinect20"), clips), "eap", TaskData(frames=frames)
    )
    for ratio in (1.0, 0.5):
        (batch,) = feed.evaluate("test", ratio)
        for pose, pose_seen in zip(poses, batch.inputs.pose_BPNSC[:, 0, :, HEAD].double().numpy(), strict=True):
            kept = math.ceil(ratio * len(pose))
            time = np.clip((np.arange(frames) + 0.5) / frames * kept - 0.5, 0, kept - 1)
            for axis in range(3):
                expected = np.interp(time, np.arange(kept), pose[:kept, head, axis].astype(np.float64))
                assert np.allclose(pose_seen[:, axis], expected, atol=1e-5)


def test_a_crop_keeps_at_least_its_share_and_never_leaves_its_clip(tmp_path):
    lengths = [3, 1, 2, 9, 20, 33]
    clips = write_counted(tmp_path / "counted", lengths, test=False)
    feed = make_feed(clips, "ar3d", TaskData(frames=64, batch_size=50, crop_min=0.3))
    firsts, lasts, kept_shares = set(), set(), []
    for turn in range(4):
        batch = feed.train(turn)
        pose_BNSC = batch.inputs.pose_BPNSC[:, 0]
        assert torch.equal(pose_BNSC[:, :, L_WRIST, 1], batch.clip_B[:, None].float().expand(-1, 64))
        for row, head_N in zip(batch.clip_B.tolist(), pose_BNSC[:, :, HEAD, 0], strict=True):
            first, last = float(head_N.min()), float(head_N.max())
            assert first == int(first) and last == int(last) and 0 <= first <= last <= lengths[row] - 1
            assert last - first + 1 >= math.ceil(0.3 * lengths[row] - 1e-6)
            if lengths[row] == 33:
                firsts.add(first)
                lasts.add(last)
                kept_shares.append((last - first + 1) / 33)
    assert 0.0 in firsts and 32.0 in lasts and len(firsts) > 5, "crops reach both ends and lie everywhere between"
    assert min(kept_shares) < 0.45 and max(kept_shares) > 0.85


def test_an_early_prediction_crop_in_training_always_starts_at_the_first_frame(tmp_path):
    clips = write_counted(tmp_path / "counted", [3, 30, 30, 30], test=False)
    batch = make_feed(clips, "eap", TaskData(frames=64, batch_size=60, crop_min=0.2)).train(0)
    head_BN = batch.inputs.pose_BPNSC[:, 0, :, HEAD, 0]
    assert (head_BN[:, 0] == 0).all() and len(head_BN.amax(dim=1).unique()) > 8


# -- normalisation of class tasks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("up_axis", "up"), [("y", (0, 1, 0)), ("z", (0, 0, 1)), ("-y", (0, -1, 0))])
def test_up_becomes_y_and_the_body_stays_right_handed(tmp_path, up_axis, up):
    pose = np.zeros((4, 20, 3), np.float32)
    pose[:, [KINECT.index(name) for name in ("head", "l_wrist", "r_wrist")]] = np.eye(3)
    pose += [3.0, -2.0, 5.0]
    clips = [Clip(str(row), (Track(pose),), 0, row, split_test=row > 0) for row in range(2)]
    clips = write_clip_set(tmp_path / "axes", set_info("axes", "kinect20", up_axis=up_axis), clips)
    (batch,) = make_feed(clips, "ar3d", TaskData(frames=3)).evaluate("test")
    pose_SC = batch.inputs.pose_BPNSC[0, 0, 1].double().numpy()
    assert np.allclose(pose_SC[ROOT], 0, atol=1e-6)
    rotation = np.stack([pose_SC[slot] for slot in (HEAD, L_WRIST, R_WRIST)], axis=1)
    assert np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-5)
    assert np.linalg.det(rotation) == pytest.approx(1, abs=1e-5), "a mirrored body has left and right swapped"
    assert np.allclose(rotation @ up, [0, 1, 0], atol=1e-5)


def test_3d_clips_are_centred_on_the_mean_root_and_keep_their_size(tmp_path):
    pose = counted(4, 0)
    pose[:, :, 0] += np.array([0.0, 1.0, 2.0, 3.0])[:, None]  # The whole body walks along x.
    clips = [Clip(str(row), (Track(pose),), 0, row, split_test=row > 0) for row in range(2)]
    clips = write_clip_set(tmp_path / "walk", set_info("walk", "kinect20"), clips)
    (batch,) = make_feed(clips, "ar3d", TaskData(frames=4)).evaluate("test")
    pose_NSC = batch.inputs.pose_BPNSC[0, 0]
    assert pose_NSC[:, ROOT, 0].tolist() == [-1.5, -0.5, 0.5, 1.5]
    assert (pose_NSC[:, HEAD, 0] - pose_NSC[:, ROOT, 0]).tolist() == [0, 1, 2, 3]
    present = batch.inputs.slot_mask_S
    assert present.sum() == 21 and (pose_NSC[:, ~present] == 0).all(), (
        "20 joints fill 21 slots: the neck is made of two"
    )


def test_2d_clips_have_unit_spread_y_up_and_no_third_coordinate(sets):
    feed = make_feed(sets[FLAT], "ar2d", TaskData(frames=8, batch_size=8))
    (batch,) = feed.evaluate("test")
    pose_BNSC = batch.inputs.pose_BPNSC[:, 0].double().numpy()
    present = batch.inputs.slot_mask_S.numpy()
    assert (pose_BNSC[..., 2] == 0).all()
    spread = np.sqrt((pose_BNSC[:, :, present] ** 2).sum(-1).mean((1, 2)))
    assert np.allclose(spread, 1, atol=1e-5)
    clip = int(batch.clip_B[0])
    raw_NJ2 = sets[FLAT].clip(clip)[0][1]
    names = SKELETONS["jhmdb15"].joint_names
    above = raw_NJ2[0, names.index("l_wrist"), 1] < raw_NJ2[0, names.index("r_wrist"), 1]  # y grows downward.
    assert (pose_BNSC[0, 0, L_WRIST, 1] > pose_BNSC[0, 0, R_WRIST, 1]) == above


# -- several persons ---------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path):
    """Test clips of ten frames: a short track listed before a long one; one person; one who comes at frame 5."""

    def track(row, frames, offset=0):
        pose = counted(frames, row)
        pose[:, KINECT.index("head"), 0] += offset  # The number of the clip's frame.
        return Track(pose, offset)

    several = [
        (track(1, 10),),
        (track(7, 4, offset=6), track(8, 10)),
        (track(9, 10),),
        (track(5, 5, offset=5),),
    ]
    clips = [Clip(f"{row}", tracks, 0, row, split_test=row > 0, length=10) for row, tracks in enumerate(several)]
    return write_clip_set(tmp_path / "pairs", set_info("pairs", "kinect20"), clips)


def test_who_is_there_longest_is_the_first_person_and_an_early_frame_of_a_late_one_is_held(pairs):
    (batch,) = make_feed(pairs, "ar3d", TaskData(frames=10)).evaluate("test")
    assert batch.inputs.person_mask_BP.tolist() == [[True, True], [True, False], [True, False]]
    pose_PNSC = batch.inputs.pose_BPNSC[0]
    assert pose_PNSC[0, :, L_WRIST, 1].unique().tolist() == [8] and pose_PNSC[1, :, L_WRIST, 1].unique().tolist() == [7]
    assert pose_PNSC[0, :, HEAD, 0].tolist() == pytest.approx(list(range(10)), abs=1e-5)
    assert pose_PNSC[1, :, HEAD, 0].tolist() == pytest.approx([6, 6, 6, 6, 6, 6, 6, 7, 8, 9], abs=1e-5)


def test_absent_persons_are_masked_and_zero(pairs):
    (batch,) = make_feed(pairs, "eap", TaskData(frames=10)).evaluate("test", 0.6)
    assert batch.inputs.person_mask_BP.tolist() == [[True, False]] * 3
    assert (batch.inputs.pose_BPNSC[~batch.inputs.person_mask_BP] == 0).all()
    assert batch.inputs.pose_BPNSC[0, 0, :, HEAD, 0].max() == 5


def test_nothing_is_shown_of_a_person_who_comes_after_the_observed_part(pairs):
    (batch,) = make_feed(pairs, "eap", TaskData(frames=10)).evaluate("test", 0.4)
    assert batch.clip_B.tolist() == [1, 2, 3]
    assert (batch.inputs.pose_BPNSC[2] == 0).all(), "frame 5 lies in the future"
    assert batch.inputs.person_mask_BP[2].tolist() == [True, False], "attention needs one person to look at"


@pytest.mark.parametrize("stay", [(100, 60, 5), (60, 100, 5), (60, 5, 100), (30, 40, 50)])
def test_who_stays_longer_later_changes_nothing_of_what_is_seen_early(tmp_path, stay):
    """Three persons, of whom the third comes at frame 5; the first 20 of 100 frames are the same in all cases."""
    tracks = [Track(counted(max(20, frames), person), 5 * (person == 2)) for person, frames in enumerate(stay)]
    clips = [Clip(str(row), tuple(tracks), 0, row, split_test=row > 0, length=130) for row in range(2)]
    clips = write_clip_set(tmp_path / "three", set_info("three", "kinect20"), clips)
    (batch,) = make_feed(clips, "eap", TaskData(frames=10)).evaluate("test", 0.15)
    assert batch.inputs.person_mask_BP.tolist() == [[True, True]]
    assert [pose[:, L_WRIST, 1].unique().tolist() for pose in batch.inputs.pose_BPNSC[0]] == [[0], [1]]


def test_a_batch_of_evaluation_does_not_grow_with_that_of_training(sets):
    feed = make_feed(sets[SOLID], "ar3d", TaskData(frames=4, batch_size=1024))
    one, other = Source(sets[SOLID], feed.sources[0].split, torch.device("cpu")), feed.sources[0]
    many = np.resize(other.split.test, 300)
    one.split = dataclasses.replace(other.split, test=many)
    sizes = [len(batch.clip_B) for batch in Feed("ar3d", feed.data, [one], 0).evaluate("test")]
    assert sizes == [128, 128, 44]


def test_a_person_who_left_before_the_crop_is_masked(tmp_path):
    tracks = (Track(counted(30, 0)), Track(counted(4, 1)))
    clips = [Clip(str(row), tracks, 0, row, split_test=row > 0) for row in range(2)]
    clips = write_clip_set(tmp_path / "left", set_info("left", "kinect20"), clips)
    batch = make_feed(clips, "ar3d", TaskData(frames=64, batch_size=64, crop_min=0.1)).train(0)
    first_B = batch.inputs.pose_BPNSC[:, 0, :, HEAD, 0].amin(dim=1)
    assert torch.equal(batch.inputs.person_mask_BP[:, 1], first_B < 4) and 0 < int((first_B < 4).sum()) < 64


# -- pose estimation ---------------------------------------------------------------------------------------------------


def test_2d_input_equals_the_hand_worked_screen_coordinates(tmp_path):
    # (1, 3, 2) is 1 m right of the front camera's axis, 1 m above it and 8 m away: pixel (510 + 1000/8, 390 - 900/8);
    # of an image of 1000 x 800 the screen is 2x/1000 - 1 and 2y/1000 - 0.8. The root, (0, 3, 1), is at (510, 390).
    pose = np.tile(np.array([0.0, 3.0, 1.0], np.float32), (2, 17, 1))
    pose[:, H36M.joint_names.index("head")] = 1, 3, 2
    clips = [Clip(str(row), (Track(pose),), 0, row, row > 0, camera_group=0) for row in range(2)]
    info = set_info("one", "h36m17", up_axis="z", camera_groups=((FRONT,),))
    (batch,) = make_feed(write_clip_set(tmp_path / "one", info, clips), "pe", TaskData(frames=3)).evaluate("test")
    shown = batch.inputs.pose_BPNSC[0, 0, 1]
    assert shown[HEAD].tolist() == pytest.approx([0.27, -0.245, 0], abs=1e-6)
    assert shown[ROOT].tolist() == pytest.approx([0.02, -0.02, 0], abs=1e-6)
    # Root-relative, x right, y down, z forward.
    assert batch.pose_BRJ3[0, 0, H36M.joint_names.index("head")].tolist() == pytest.approx([1, -1, 0], abs=1e-6)


@pytest.mark.parametrize(("frames", "stride"), [(8, 1), (9, 2), (1, 1)])
def test_a_window_is_centred_on_its_frame_and_repeats_the_frames_at_the_clips_ends(sets, frames, stride):
    clips = sets[POSE]
    feed = make_feed(clips, "pe", TaskData(frames=frames, frame_stride=stride, batch_size=24))
    batch = feed.train(0)
    assert torch.equal(batch.inputs.target_frame_BR, torch.full((24, 1), (frames - 1) // 2))
    ends = 0
    for b in range(24):
        centre = int(batch.frame_BR[b, 0])
        world_NJ3 = clips.clip(int(batch.clip_B[b]))[0][1]
        wanted = centre + stride * (np.arange(frames) - (frames - 1) // 2)
        shown = np.clip(wanted, 0, len(world_NJ3) - 1)
        ends += int((shown != wanted).any())
        camera = (FRONT, SIDE)[int(batch.camera_B[b])]
        pose_seen = native(batch.inputs.pose_BPNSC[b, 0]).double().numpy()
        assert np.allclose(pose_seen[..., :2], screen(world_NJ3[shown], camera), atol=1e-5)
        assert (pose_seen[..., 2] == 0).all()
        pose_J3 = to_camera(world_NJ3[centre], camera)
        assert np.allclose(batch.pose_BRJ3[b, 0].double(), pose_J3 - pose_J3[0], atol=2e-6)
    assert frames == 1 or 0 < ends < 24, "windows inside and windows past an end are both tried"


def test_training_targets_lie_among_the_frames_that_evaluation_predicts_and_show_their_own_poses(sets):
    clips = sets[POSE]
    data = TaskData(frames=9, frame_stride=2, batch_size=24, targets_per_window=2, evaluate_targets=4)
    batch = make_feed(clips, "pe", data).train(0)
    target_BR = batch.inputs.target_frame_BR
    assert target_BR.shape == (24, 2) and (target_BR.diff(dim=1) > 0).all()
    assert set(target_BR.flatten().tolist()) == {2, 3, 4, 5}
    for b, r in itertools.product(range(24), range(2)):
        world_NJ3 = clips.clip(int(batch.clip_B[b]))[0][1]
        camera = (FRONT, SIDE)[int(batch.camera_B[b])]
        frame = int(batch.frame_BR[b, r])
        pose_J3 = to_camera(world_NJ3[frame], camera)
        assert np.allclose(batch.pose_BRJ3[b, r].double(), pose_J3 - pose_J3[0], atol=2e-6)
        pose_seen = native(batch.inputs.pose_BPNSC[b, 0, target_BR[b, r]]).double().numpy()
        assert np.allclose(pose_seen[..., :2], screen(world_NJ3[frame], camera), atol=1e-5)


@pytest.mark.parametrize(
    ("frames", "frame_stride", "evaluate_targets", "evaluate_stride"),
    [(8, 1, 1, 1), (9, 1, 4, 1), (8, 2, 4, 1), (8, 2, 4, 2), (8, 2, 8, 16), (9, 1, 9, 3), (8, 4, 2, 2), (7, 6, 5, 2)],
)
def test_evaluation_predicts_each_evaluated_frame_once_in_each_camera(
    sets, frames, frame_stride, evaluate_targets, evaluate_stride
):
    clips = sets[POSE]
    data = TaskData(
        frames=frames,
        frame_stride=frame_stride,
        evaluate_targets=evaluate_targets,
        evaluate_stride=evaluate_stride,
        batch_size=2,
    )
    seen = Counter()
    for batch in make_feed(clips, "pe", data).evaluate("test"):
        for b, r in zip(*(batch.frame_BR >= 0).nonzero(as_tuple=True), strict=True):
            row, camera, frame = int(batch.clip_B[b]), int(batch.camera_B[b]), int(batch.frame_BR[b, r])
            seen[row, camera, frame] += 1
            position = int(batch.inputs.target_frame_BR[b, r])
            world_J3 = clips.clip(row)[0][1][frame]
            pose_J3 = to_camera(world_J3, (FRONT, SIDE)[camera])
            assert np.allclose(batch.pose_BRJ3[b, r].double(), pose_J3 - pose_J3[0], atol=2e-6)
            pose_seen = native(batch.inputs.pose_BPNSC[b, 0, position])[:, :2].double().numpy()
            assert np.allclose(pose_seen, screen(world_J3, (FRONT, SIDE)[camera]), atol=1e-5)
    expected = {
        (row, camera, frame)
        for row in clips.split(0).test.tolist()
        for camera in range(2)
        for frame in range(0, int(clips.clip_length[row]), evaluate_stride)
    }
    assert seen.keys() == expected and set(seen.values()) == {1}


def root_by_least_squares(pose_J3, screen_J2, camera):
    """Root in camera axes at which a root-relative pose projects onto a screen, and the residual in screen units."""
    (fx, fy), (cx, cy), (width, height) = camera.f, camera.c, camera.wh
    pixel_J2 = (screen_J2 + np.array([1, height / width])) * width / 2
    rows, right = [], []
    for (x, y, z), (u, v) in zip(pose_J3, pixel_J2, strict=True):
        rows += [[fx, 0, cx - u], [0, fy, cy - v]]
        right += [(u - cx) * z - fx * x, (v - cy) * z - fy * y]
    root, *_ = np.linalg.lstsq(np.array(rows), np.array(right), rcond=None)
    at = pose_J3 + root
    pose_seen = np.stack([fx * at[:, 0] / at[:, 2] + cx, fy * at[:, 1] / at[:, 2] + cy], axis=1) * 2 / width
    return root, np.abs(pose_seen - [1, height / width] - screen_J2).max()


@pytest.mark.parametrize(
    "augmentation", [{}, {"rotation_deg": 180, "translation_m": 0.5}, {"bone_scale": 0.3, "scale": 0.2}]
)
@pytest.mark.parametrize("flip", [False, True])
def test_an_augmented_target_projects_onto_its_augmented_input(sets, augmentation, flip):
    data = TaskData(frames=5, batch_size=12, targets_per_window=2, evaluate_targets=3, flip=flip, **augmentation)
    batch = make_feed(sets[POSE], "pe", data).train(1)
    for b, r in itertools.product(range(12), range(2)):
        shown = native(batch.inputs.pose_BPNSC[b, 0, batch.inputs.target_frame_BR[b, r]])[:, :2].double().numpy()
        camera = (FRONT, SIDE)[int(batch.camera_B[b])]
        root, residual = root_by_least_squares(batch.pose_BRJ3[b, r].double().numpy(), shown, camera)
        assert residual < 2e-4 and 2 < root[2] < 9


def test_stored_detections_are_the_input_where_asked(sets):
    batch = make_feed(sets[POSE], "pe", TaskData(frames=4, batch_size=8, detections="stored")).train(0)
    for b in range(8):
        world_NJ3 = sets[POSE].clip(int(batch.clip_B[b]))[0][1]
        shown = native(batch.inputs.pose_BPNSC[b, 0, 1])[:, :2].double().numpy()
        exact = screen(world_NJ3[int(batch.frame_BR[b, 0])], (FRONT, SIDE)[int(batch.camera_B[b])])
        assert np.allclose(shown - exact, 3 * 2 / 1000, atol=1e-5), "stored keypoints are 3 pixels off in both axes"


def test_mirrored_detections_have_mirrored_targets(sets):
    plain = TaskData(frames=4, batch_size=16, detections="stored")
    one = make_feed(sets[POSE], "pe", plain).train(0)
    other = make_feed(sets[POSE], "pe", plain.replace(flip=True)).train(0)
    mirrored = 0
    for b in range(16):
        shown = [native(batch.inputs.pose_BPNSC[b, 0])[..., :2] for batch in (one, other)]
        if torch.equal(*shown):
            assert torch.equal(one.pose_BRJ3[b], other.pose_BRJ3[b])
            continue
        mirrored += 1
        assert torch.equal(shown[1], shown[0][:, H36M.flip.tolist()] * torch.tensor([-1.0, 1.0]))
        back = other.pose_BRJ3[b][:, H36M.flip.tolist()] * torch.tensor([-1.0, 1.0, 1.0])
        assert torch.allclose(back, one.pose_BRJ3[b], atol=1e-6)
    assert 0 < mirrored < 16


def test_stored_detections_of_a_track_that_starts_late_are_those_of_the_same_frame(tmp_path):
    world_NJ3 = np.random.default_rng(0).normal(size=(5, 17, 3)).astype(np.float32)
    keypoints = project(world_NJ3, FRONT)[:, None]
    track = Track(world_NJ3, offset=3, keypoints=keypoints)
    clips = [Clip(str(row), (track,), 0, row, row > 0, camera_group=0, length=9) for row in range(2)]
    info = set_info("late", "h36m17", up_axis="z", camera_groups=((FRONT,),))
    clips = write_clip_set(tmp_path / "late", info, clips)
    stored, projected = (
        next(make_feed(clips, "pe", TaskData(frames=1, batch_size=9, detections=kind)).evaluate("test"))
        for kind in ("stored", "project")
    )
    assert stored.frame_BR[:, 0].tolist() == list(range(3, 8)), "where nobody is there is nothing to predict"
    assert make_feed(clips, "pe", TaskData(frames=1, batch_size=64)).train(0).frame_BR.unique().tolist() == [
        *range(3, 8)
    ]
    assert torch.allclose(stored.inputs.pose_BPNSC, projected.inputs.pose_BPNSC, atol=1e-4)


@pytest.mark.parametrize("change", [{"rotation_deg": 5}, {"scale": 0.1}, {"bone_scale": 0.1}, {"translation_m": 0.1}])
def test_turning_or_resizing_stored_detections_is_an_error_that_names_the_field(sets, change):
    with pytest.raises(ValueError, match=rf"stored detections cannot be turned.*{next(iter(change))}"):
        make_feed(sets[POSE], "pe", TaskData(frames=4, detections="stored", **change))


def test_a_feed_refuses_clips_that_its_task_cannot_use(sets, tmp_path):
    with pytest.raises(ValueError, match="pe needs 3D clips with cameras, 'toy_solid' has none"):
        make_feed(sets[SOLID], "pe", TaskData())
    with pytest.raises(ValueError, match="ar2d needs 2D clips, 'toy_solid' has 3D"):
        make_feed(sets[SOLID], "ar2d", TaskData())
    pose = np.zeros((2, 17, 3), np.float32)
    tracks = (Track(pose),)
    info = set_info("odd", "h36m17", up_axis="y", camera_groups=((FRONT,),))
    unlabelled = write_clip_set(tmp_path / "odd", info, [Clip(str(row), tracks, -1, row, row > 0) for row in range(2)])
    with pytest.raises(ValueError, match="ar3d needs labelled clips"):
        make_feed(unlabelled, "ar3d", TaskData())
    with pytest.raises(ValueError, match="pe needs cameras for each clip, got none for '0'"):
        make_feed(unlabelled, "pe", TaskData())
    seen = [Clip(str(row), tracks, 0, row, row > 0, camera_group=0) for row in range(2)]
    clips = write_clip_set(tmp_path / "odd", info, seen)
    with pytest.raises(ValueError, match=r"worlds with z up, 'odd' has y up; set rotation_deg, scale to 0"):
        make_feed(clips, "pe", TaskData(rotation_deg=10, scale=0.1))
    with pytest.raises(ValueError, match="needs stored keypoints, 'odd' has none"):
        make_feed(clips, "pe", TaskData(detections="stored"))


def test_camera_groups_may_differ_in_size(tmp_path):
    world_NJ3 = np.random.default_rng(0).normal(size=(2, 17, 3)).astype(np.float32)
    groups = ((SIDE,), (), (FRONT, SIDE))
    info = set_info("groups", "h36m17", up_axis="z", camera_groups=groups)
    rows = [
        Clip(str(row), (Track(world_NJ3),), 0, row, row > 0, camera_group=group) for row, group in enumerate((0, 0, 2))
    ]
    feed = make_feed(write_clip_set(tmp_path / "groups", info, rows), "pe", TaskData(frames=1, batch_size=8))
    (batch,) = feed.evaluate("test")
    assert list(zip(batch.clip_B.tolist(), batch.camera_B.tolist(), strict=True))[::2] == [(1, 0), (2, 0), (2, 1)]
    for b, camera in ((0, SIDE), (2, FRONT), (4, SIDE)):
        pose_seen = native(batch.inputs.pose_BPNSC[b, 0, 0])[:, :2].double().numpy()
        assert np.allclose(pose_seen, screen(world_NJ3[0], camera), atol=1e-5)


def test_input_statistics_come_from_training_clips_and_are_the_same_in_every_seed(sets):
    name, data = EVERYTHING["ar3d"]
    one, other = (make_feed(sets[name], "ar3d", data, seed=seed).statistics_batch() for seed in (0, 1))
    assert same(one, other) and len(one.clip_B) == 512
