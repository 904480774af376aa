"""From bodies to at most two persons: each rule on bodies for which its outcome is plain."""

import numpy as np
import pytest

from tests.data.writers_ntu import standing
from ups_model.data.ntu_bodies import persons_of, tracks_of
from ups_model.data.ntu_skeleton import Body, SkeletonFile


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
    found = _persons(5, body)
    assert _poses(found.tracks[0]) == body.joints_NJ3.tolist()
    assert (found.tracks[0].offset, found.bodies_dropped, found.frames_dropped) == (0, 0, 4)


@pytest.mark.parametrize(("frames", "persons"), [(11, 1), (12, 2)])
def test_of_several_bodies_those_of_at_most_eleven_frames_are_noise(frames, persons):
    found = _persons(30, _body(range(30)), _body(range(frames), seed=1, amount=3))
    assert len(found.tracks) == persons and found.bodies_dropped == 2 - persons


@pytest.mark.parametrize(("wide_frames", "persons"), [(14, 2), (15, 1)])
def test_bodies_wide_in_more_than_seventy_percent_of_twenty_frames_are_noise(wide_frames, persons):
    mixed = _body(range(20), seed=1).joints_NJ3.copy()
    mixed[:wide_frames, :, 0] *= 20
    found = _persons(20, _body(range(20)), Body(np.arange(20), mixed))
    assert len(found.tracks) == persons and found.bodies_dropped == 2 - persons


def test_bodies_that_are_all_wide_are_all_kept():
    found = _persons(20, _body(range(20), wide=True), _body(range(20), seed=1, wide=True))
    assert len(found.tracks) == 2 and found.bodies_dropped == 0


def test_the_two_that_move_most_are_kept_the_most_moving_first():
    still, lively, middling = (_body(range(20), seed, amount) for seed, amount in ((1, 0.01), (2, 1.0), (3, 0.3)))
    found = _persons(20, still, lively, middling)
    assert [_poses(track) for track in found.tracks] == [lively.joints_NJ3.tolist(), middling.joints_NJ3.tolist()]
    assert (found.bodies_dropped, found.frames_dropped) == (1, 0)


def test_a_body_that_shares_no_frame_with_a_person_continues_it():
    before, after = _body(range(0, 20), 1, 1.0), _body(range(20, 40), 2, 0.5)
    other = _body(range(5, 35), 3, 0.01)
    found = _persons(40, other, after, before)
    assert found.bodies_dropped == 0 and [track.offset for track in found.tracks] == [0, 5]
    assert _poses(found.tracks[0]) == [*before.joints_NJ3.tolist(), *after.joints_NJ3.tolist()]
    assert _poses(found.tracks[1]) == other.joints_NJ3.tolist()


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
    found = _persons(7)
    assert (found.tracks, found.frames_dropped) == ((), 7)
