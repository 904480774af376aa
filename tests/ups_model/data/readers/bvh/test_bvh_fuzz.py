"""Damaged BVH files are refused by name, or read as something finite: nothing else happens."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.writers_own import bvh_text, rest_frames, write_text
from ups_model.data.readers.bvh import reader as bvh

FRAMES = rest_frames(count=3) + 0.25
RAW = bvh_text(frames=FRAMES).encode()


def outcome(folder, raw):
    """The poses, or None where the file is refused as it must be."""
    file = write_text(folder / "fuzzed.bvh", raw)
    try:
        recording = bvh.read_recording(file)
    except ValueError as error:
        assert "fuzzed.bvh" in str(error)
        return None
    (track,) = recording.tracks
    assert track.positions.shape[1:] == (17, 3) and np.isfinite(track.positions).all()
    assert np.abs(track.positions).max() <= 400 and 1 <= recording.fps <= 1000
    return track.positions


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bvh")


@settings(max_examples=150)
@given(st.integers(0, len(RAW) - 6))
def test_a_file_cut_short_is_refused(folder, length):
    # The last value is "0.25": without its last digits it is a number still.
    assert outcome(folder, RAW[:length]) is None


@pytest.mark.slow
@settings(max_examples=300)
@given(st.lists(st.tuples(st.integers(0, len(RAW) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_are_refused_or_finite(folder, changes):
    raw = bytearray(RAW)
    for place, value in changes:
        raw[place] = value
    outcome(folder, bytes(raw))


@settings(max_examples=150)
@given(
    st.integers(0, RAW.count(b"\n") - 1),
    st.sampled_from(
        ["", "}", "{", "MOTION", "ROOT x", "End Site", "CHANNELS 3", "OFFSET 1 2 3", "nan", "JOINT", "\x00"]
    ),
    st.booleans(),
)
def test_lines_put_in_or_replaced_are_refused_or_finite(folder, at, line, replace):
    lines = RAW.decode().split("\n")
    lines[at : at + replace] = [line]
    outcome(folder, "\n".join(lines).encode())


@settings(max_examples=100)
@given(st.integers(0, FRAMES.size - 1), st.sampled_from(["nan", "-inf", "1e999", "1e7", "-2000001", "1e", "½"]))
def test_a_value_that_is_no_number_in_bounds_is_refused(folder, index, word):
    head, _, values = RAW.decode().partition("0.0083333\n")
    words = values.split()
    words[index] = word
    assert outcome(folder, (head + "0.0083333\n" + " ".join(words)).encode()) is None


@settings(max_examples=100)
@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_no_bvh(folder, raw):
    assert outcome(folder, raw) is None
