"""From bodies to at most two persons: each rule on bodies for which its outcome is plain."""

import numpy as np
import pytest

from tests.support.writers_ntu import standing
from ups_model.data.readers.ntu.bodies import persons_of, tracks_of
from ups_model.data.readers.ntu.skeleton_file import Body, SkeletonFile


def _body(frames, seed=0, amount=0.05, wide=False):
    frames = np.array(list(frames), dtype=np.int64)
    pose = standing(int(frames.max()) + 1, seed=seed, amount=amount)
    if wide:
        pose[..., 0], pose[..., 1] = pose[..., 1].copy(), pose[..., 0].copy()
    return Body(frames, pose[frames].astype(np.float32))


def _persons(length, *bodies):
    return persons_of(SkeletonFile(length, {str(index): body for index, body in enumerate(bodies)}))


def _poses(track):
    return track.positions.tolist()


def test_one_body_is_taken_however_short_wide_or_still():
    body = _body([3], wide=True, amount=0)
    selection = _persons(5, body)
    assert _poses(selection.tracks[0]) == body.joints_NJ3.tolist()
    assert (selection.tracks[0].offset, selection.bodies_dropped, selection.frames_dropped) == (0, 0, 4)


@pytest.mark.parametrize(("frames", "persons"), [(11, 1), (12, 2)])
def test_of_several_bodies_those_of_at_most_eleven_frames_are_noise(frames, persons):
    selection = _persons(30, _body(range(30)), _body(range(frames), seed=1, amount=3))
    assert len(selection.tracks) == persons and selection.bodies_dropped == 2 - persons


# 14/20 = 0.7; 279/400 = 0.6975 and 30/43 = 0.69767 are on either side of the published 0.69754.
@pytest.mark.parametrize(
    ("wide_frames", "frames", "persons"), [(13, 20, 2), (14, 20, 1), (279, 400, 2), (280, 400, 1), (30, 43, 1)]
)
def test_bodies_wide_in_the_published_share_of_their_frames_are_noise(wide_frames, frames, persons):
    mixed = _body(range(frames), seed=1).joints_NJ3.copy()
    mixed[:wide_frames, :, 0] *= 20
    selection = _persons(frames, _body(range(frames)), Body(np.arange(frames), mixed))
    assert len(selection.tracks) == persons and selection.bodies_dropped == 2 - persons


def test_of_bodies_that_are_all_wide_the_last_to_appear_stays():
    bodies = [_body(range(20), seed, amount, wide=True) for seed, amount in ((1, 1.0), (2, 3.0), (3, 0.1))]
    selection = _persons(20, *bodies)
    assert [_poses(track) for track in selection.tracks] == [bodies[2].joints_NJ3.tolist()]
    assert selection.bodies_dropped == 2


def test_a_wide_body_that_is_the_last_but_not_the_only_one_left_is_noise():
    upright, wide = _body(range(20), seed=1), _body(range(20), seed=2, amount=3, wide=True)
    for bodies in ((upright, wide), (wide, upright), (wide, upright, wide)):
        selection = _persons(20, *bodies)
        assert [_poses(track) for track in selection.tracks] == [upright.joints_NJ3.tolist()]


def _rod(zs, wide):
    """A body of joints on a line of 1 m, upright or, in the frames `wide`, lying along x; moved to `zs` along z."""
    line = np.linspace(-0.5, 0.5, 25)
    pose = np.zeros((len(zs), 25, 3), dtype=np.float32)
    for frame, z in enumerate(zs):
        pose[frame, :, 0 if frame in wide else 1] = line
        pose[frame, :, 2] = z
    return Body(np.arange(len(zs)), pose)


def test_motion_is_that_of_the_frames_in_which_a_body_is_not_wide_where_that_is_less():
    # Along z: 8 of 20 frames lie at 5 m, the rest at 0, which is a variance of 25 * 0.4 * 0.6 = 6 over all frames and
    # 0 over the upright ones; the line itself adds at most 1/12 each. The other moves between +-1: a variance of 1.
    furniture = _rod([5.0] * 8 + [0.0] * 12, wide=range(8))
    person = _rod([1.0, -1.0] * 10, wide=())
    selection = _persons(20, furniture, person)
    assert [_poses(track) for track in selection.tracks] == [person.joints_NJ3.tolist(), furniture.joints_NJ3.tolist()]


def test_motion_is_that_of_all_frames_where_the_upright_ones_have_more():
    # Upright frames move between +-2 (a variance of 4 over 10 frames), wide ones stand: 2 over all 20. So 3 is more.
    half = _rod([2.0, -2.0] * 5 + [0.0] * 10, wide=range(10, 20))
    person = _rod([3**0.5, -(3**0.5)] * 10, wide=())
    selection = _persons(20, half, person)
    assert [_poses(track) for track in selection.tracks] == [person.joints_NJ3.tolist(), half.joints_NJ3.tolist()]


def test_the_two_that_move_most_are_kept_the_most_moving_first():
    still, lively, middling = (_body(range(20), seed, amount) for seed, amount in ((1, 0.01), (2, 1.0), (3, 0.3)))
    selection = _persons(20, still, lively, middling)
    assert [_poses(track) for track in selection.tracks] == [lively.joints_NJ3.tolist(), middling.joints_NJ3.tolist()]
    assert (selection.bodies_dropped, selection.frames_dropped) == (1, 0)


def test_a_body_that_shares_no_frame_with_a_person_continues_it():
    before, after = _body(range(0, 20), 1, 1.0), _body(range(20, 40), 2, 0.5)
    other = _body(range(5, 35), 3, 0.01)
    selection = _persons(40, other, after, before)
    assert selection.bodies_dropped == 0 and [track.offset for track in selection.tracks] == [0, 5]
    assert _poses(selection.tracks[0]) == [*before.joints_NJ3.tolist(), *after.joints_NJ3.tolist()]
    assert _poses(selection.tracks[1]) == other.joints_NJ3.tolist()


def test_frames_in_which_no_kept_person_is_seen_are_no_part_of_the_clip():
    a, b = _body([2, 3, 7, 8]), _body([3, 9])
    tracks, frames = tracks_of([a, b])
    # Timeline 2 3 7 8 9: the second person is seen at its places 1 and 4.
    assert frames == 5 and [(track.offset, len(track.positions)) for track in tracks] == [(0, 4), (1, 4)]
    held = [b.joints_NJ3[place].tolist() for place in (0, 0, 0, 1)]
    assert _poses(tracks[1]) == held


def test_a_gap_holds_the_last_pose_and_nothing_later_changes_what_was_before():
    pose = standing(30, seed=4).astype(np.float32)
    person, seen = Body(np.arange(30), pose), np.array([0, 1, 2, 10, 11, 20])
    other = Body(seen, pose[seen] + 1)
    tracks, _ = tracks_of([person, other])
    changed, _ = tracks_of([person, Body(seen, np.concatenate([other.joints_NJ3[:3], other.joints_NJ3[3:] + 5]))])
    assert tracks[1].positions[:10].tolist() == changed[1].positions[:10].tolist()
    assert tracks[1].positions[3:10].tolist() == [other.joints_NJ3[2].tolist()] * 7


def test_a_recording_in_which_nobody_is_seen_has_no_person():
    selection = _persons(7)
    assert (selection.tracks, selection.frames_dropped) == ((), 7)
