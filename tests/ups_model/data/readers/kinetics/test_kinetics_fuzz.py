"""Kinetics skeletons, damaged at random: a reading, or an error that names the file. Nothing else, and nothing odd."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.writers_kinetics import entry, person, to_row, video, write_arrays, write_json
from ups_model.data.format.writer import Clip
from ups_model.data.prepare.jobs import LeftOut
from ups_model.data.readers.kinetics import reader as kinetics

FRAMES = [(index, [person(0.1 * index, 0.5, 0.5), person(0.5, 0.1, 0.25)]) for index in range(1, 4)]
WHOLE = json.dumps(video(FRAMES)).encode()
MANY = settings(max_examples=150)

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from([10**400, -1, 300, 10**9, 1e300, [], {}, [[]], "\ud800"]),
    st.lists(st.floats(allow_nan=True), max_size=40),
)


def check(tracks):
    """What every reading must be, whatever the file held."""
    assert 1 <= len(tracks) <= 2
    for track in tracks:
        assert track.positions.dtype == np.float32 and track.positions.shape[1:] == (18, 2)
        assert track.confidence.shape == track.positions.shape[:2] and track.offset >= 0
        assert np.isfinite(track.positions).all() and np.abs(track.positions).max() <= 10.5
        assert (track.confidence >= 0).all() and (track.confidence[[0, -1]].max(axis=1) > 0).all()
        assert track.offset + len(track.positions) <= 10_000


def read_file(folder, raw):
    file = Path(folder) / "abc.json"
    file.write_bytes(raw)
    try:
        check(kinetics.read_recording(file).tracks)
    except ValueError as error:
        assert "abc.json" in str(error) and len(str(error)) < 1000


@pytest.fixture(scope="module")
def folder():
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


@MANY
@given(st.integers(0, len(WHOLE) - 1))
def test_a_cut_file_is_an_error(folder, kept):
    (folder / "abc.json").write_bytes(WHOLE[:kept])
    with pytest.raises(ValueError, match=r"abc.json:1: not whole JSON"):
        kinetics.read_recording(folder / "abc.json")


@MANY
@given(st.lists(st.tuples(st.integers(0, len(WHOLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_changed_bytes_give_a_reading_or_an_error(folder, changes):
    raw = bytearray(WHOLE)
    for place, value in changes:
        raw[place] = value
    read_file(folder, bytes(raw))


@MANY
@given(st.data(), ODD)
def test_any_value_in_place_of_another_gives_a_reading_or_an_error(folder, data, value):
    content = json.loads(WHOLE)
    node, path = content, []
    while isinstance(node, (dict, list)) and node:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        path.append((node, data.draw(st.sampled_from(keys))))
        node = path[-1][0][path[-1][1]]
    parent, key = path[data.draw(st.integers(0, len(path) - 1))]
    parent[key] = value
    read_file(folder, json.dumps(content).encode())


@pytest.mark.slow
@MANY
@given(st.data(), ODD)
def test_any_label_file_gives_clips_or_reasons_or_an_error(folder, data, value):
    said = {"a": entry(), "b": entry(399)}
    where = data.draw(st.sampled_from([None, "file", "a", "has_skeleton", "label", "label_index"]))
    if where == "file":
        said = value
    elif where == "a":
        said["a"] = value
    elif where:
        said["a"][where] = value
    source = folder / "labels"
    write_json(source, "train", {"a": video(FRAMES), "b": video(FRAMES, 399)}, said)
    try:
        items = [item for job in kinetics.reading(source).jobs for item in job.read()]
    except ValueError as error:
        assert "kinetics_train_label.json" in str(error)
    else:
        names = [item.name if isinstance(item, LeftOut) else item.clip_id for item in items]
        assert {"a", "b"} <= set(names) and len(names) == len(set(names))
        assert all(item.label == {"a": 0, "b": 399}[item.clip_id] for item in items if isinstance(item, Clip))
        "".join(names).encode()


def arrays(folder):
    source = folder / "arrays"
    source.mkdir(exist_ok=True)
    write_arrays(source, "train", [to_row(FRAMES, 6)] * 2, ["a.json", "b.json"], [0, 1])
    return source


@MANY
@given(st.data())
def test_damaged_arrays_and_label_pickles_give_clips_or_reasons_or_an_error(folder, data):
    source = arrays(folder)
    file = source / data.draw(st.sampled_from(["train_data.npy", "train_label.pkl"]))
    raw = bytearray(file.read_bytes())
    for _ in range(data.draw(st.integers(0, 3))):
        # Half of the changes go to the head, where one byte changes what all the others mean.
        last = data.draw(st.sampled_from([127, len(raw) - 1]))
        raw[data.draw(st.integers(0, min(last, len(raw) - 1)))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw[: data.draw(st.sampled_from([len(raw), len(raw), len(raw) // 2, 0]))])
    try:
        items = [item for job in kinetics.reading(source).jobs for item in job.read()]
    except ValueError as error:
        assert "train_" in str(error)
    else:
        assert len(items) == 2
        for item in items:
            if isinstance(item, Clip):
                check(item.tracks)
            else:
                assert item.reason in ("unreadable", "label at odds", "nobody seen", "twice")


@MANY
@given(st.floats(width=32), st.integers(0, 2), st.integers(0, 5), st.integers(0, 17))
def test_any_number_in_an_array_is_taken_or_left_out_with_its_place(folder, value, channel, frame, joint):
    source = folder / "numbers"
    source.mkdir(exist_ok=True)
    rows = [to_row(FRAMES, 6), to_row(FRAMES, 6)]
    rows[0][channel, frame, joint, 0] = value
    write_arrays(source, "train", rows, ["a", "b"], [0, 0])
    first, second = [item for job in kinetics.reading(source).jobs for item in job.read()]
    check(second.tracks)
    if (0 if channel == 2 else -10) <= value <= 10:
        check(first.tracks)
    else:
        assert first.reason == "unreadable" and f"frame {frame}, person 0, joint {joint}" in first.detail
