"""Undetected joints: filled from the track's own past, never from its future or from another track."""

import numpy as np

from ups_model.data.readers.fill_missing import fill_undetected


def case():
    """Two tracks of three frames, two joints, one coordinate; values name their place."""
    positions = np.array(
        [[[1.0], [2.0]], [[0.0], [4.0]], [[5.0], [0.0]], [[0.0], [8.0]], [[9.0], [0.0]], [[11.0], [12.0]]]
    )
    confidence = np.array([[1, 1], [0, 0.5], [1, 0], [0, 1], [1, 0], [1, 1]], dtype=np.float32)
    return positions, confidence, np.array([0, 3])


def test_a_missed_joint_stands_where_its_track_last_saw_it():
    filled = fill_undetected(*case())
    assert filled[1, 0, 0] == 1.0 and filled[2, 1, 0] == 4.0 and filled[4, 1, 0] == 8.0


def test_before_it_was_ever_seen_it_stands_amid_the_joints_seen_and_never_at_another_tracks_place():
    filled = fill_undetected(*case())
    assert filled[3, 0, 0] == 8.0


def test_later_frames_change_no_earlier_one():
    positions, confidence, start = case()
    whole = fill_undetected(positions, confidence, start)
    positions[5], confidence[5] = -99.0, 0
    np.testing.assert_array_equal(fill_undetected(positions, confidence, start)[:5], whole[:5])


def test_what_was_seen_stays_and_a_frame_without_any_joint_too():
    positions, confidence, start = case()
    confidence[0] = 0
    filled = fill_undetected(positions, confidence, start)
    np.testing.assert_array_equal(filled[0], positions[0])
    np.testing.assert_array_equal(filled[confidence > 0], positions[confidence > 0])
