"""Damaged keypoint files are refused by name, or read as something finite: nothing else happens."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.writers_own import (
    COCO,
    coco_results,
    landmarks_of,
    mediapipe_frames,
    mmpose_frames,
    person_2d,
    write_keypoint_arrays,
    write_text,
)
from ups_model.data.readers.keypoints import reader as keypoints

POSES, SCORES = person_2d(2), np.full((2, 17), 0.5)
FRAMES = [[(pose, score, 1)] for pose, score in zip(POSES, SCORES, strict=True)]
TRIPLES = np.concatenate([POSES, SCORES[..., None]], axis=-1)
LANDMARKS = [landmarks_of(pose / 1000, score) for pose, score in zip(POSES, SCORES, strict=True)]
CONTENTS = {
    "mmpose": {"meta_info": {"width": 640, "height": 480}, "instance_info": mmpose_frames(FRAMES)},
    "coco": coco_results(FRAMES, "{}.jpg", person_key="idx"),
    "mediapipe": {"frames": mediapipe_frames(LANDMARKS), "width": 640, "height": 480, "fps": 25},
    "mmpose_0": [[{"keypoints": triples.tolist(), "track_id": 1}] for triples in TRIPLES],
    "ultralytics": [
        [{"keypoints": dict(zip(("x", "y", "visible"), triples.T.tolist(), strict=True)), "track_id": 1}]
        for triples in TRIPLES
    ],
    "annotations": {
        "images": [{"id": 7 + n, "file_name": f"{n}.jpg", "width": 640, "height": 480} for n in range(2)],
        "annotations": [
            {"image_id": 7 + n, "category_id": 1, "keypoints": triples.ravel().tolist()}
            for n, triples in enumerate(TRIPLES)
        ],
        "categories": [{"id": 1, "keypoints": COCO}],
    },
    "openpose": {
        "people": [{"person_id": [-1], "pose_keypoints_2d": np.tile(TRIPLES[0], (2, 1))[:25].ravel().tolist()}]
    },
}
TEXTS = {name: json.dumps(content).encode() for name, content in CONTENTS.items()}
ODD = st.sampled_from([None, True, -1, 10**7, 10**400, 1e308, "", "a", [], [[]], {}, [None], {"x": 1}, 0.5, "7", -0.0])


def outcome(folder, raw, name="fuzzed.json"):
    """The recording, or None where the file is refused as it must be."""
    file = write_text(folder / name, raw)
    try:
        recording = keypoints.read_recording(file)
    except ValueError as error:
        assert name in str(error)
        return None
    for track in recording.tracks:
        assert track.positions.shape[1:] == (17, 2) and track.confidence.shape == track.positions.shape[:2]
        assert np.isfinite(track.positions).all() and np.isfinite(track.confidence).all()
        assert (track.confidence >= 0).all() and (track.confidence > 0).any()
    assert 1 <= len(recording.tracks) <= 2
    return recording


def places(content, path=()):
    """Paths to all values of a document."""
    yield path
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in pairs:
        yield from places(value, (*path, key))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("keypoints")


@pytest.mark.parametrize("name", CONTENTS)
def test_the_whole_file_is_read(folder, name):
    (track,) = outcome(folder, TEXTS[name]).tracks
    assert len(track.positions) == (1 if name == "openpose" else 2)


@settings(max_examples=60)
@given(st.sampled_from(sorted(TEXTS)), st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_is_refused(folder, name, share):
    raw = TEXTS[name]
    assert outcome(folder, raw[: int(share * len(raw))]) is None


@settings(max_examples=150)
@given(
    st.sampled_from(sorted(TEXTS)), st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3)
)
def test_changed_bytes_are_refused_or_finite(folder, name, changes):
    raw = bytearray(TEXTS[name])
    for share, value in changes:
        raw[int(share * (len(raw) - 1))] = value
    outcome(folder, bytes(raw))


@pytest.mark.slow
@settings(max_examples=300)
@given(st.sampled_from(sorted(CONTENTS)), st.data(), ODD)
def test_any_value_replaced_or_removed_is_refused_or_finite(folder, name, data, odd):
    content = json.loads(TEXTS[name])
    path = data.draw(st.sampled_from([path for path in places(content) if path]))
    place = content
    for key in path[:-1]:
        place = place[key]
    if data.draw(st.booleans()):
        place[path[-1]] = odd
    else:
        del place[path[-1]]
    outcome(folder, json.dumps(content).encode())


@pytest.mark.parametrize("raw", [b"", b"\xff\xfe[]", b"[" * 100_000, b'{"frames": [NaN]}', b"1e999", b"null", b'""'])
def test_what_is_no_document_of_keypoints_is_refused(folder, raw):
    assert outcome(folder, raw) is None


@pytest.fixture(scope="module")
def arrays(folder):
    return write_keypoint_arrays(folder / "whole.npz", keypoints=POSES, scores=SCORES, fps=25).read_bytes()


@settings(max_examples=80)
@given(share=st.floats(0, 1, exclude_max=True))
def test_arrays_cut_short_are_refused(folder, arrays, share):
    assert outcome(folder, arrays[: int(share * len(arrays))], "fuzzed.npz") is None


@settings(max_examples=200)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3))
def test_arrays_with_changed_bytes_are_refused_or_finite(folder, arrays, changes):
    raw = bytearray(arrays)
    for share, value in changes:
        raw[int(share * (len(raw) - 1))] = value
    outcome(folder, bytes(raw), "fuzzed.npz")


COLUMNS = ",".join(f"{value}_{index}" for index in range(33) for value in ("x", "y", "visibility"))
ROWS = [",".join(f"{mark[key]:.6g}" for mark in marks for key in ("x", "y", "visibility")) for marks in LANDMARKS]
TABLE = "\n".join([f"frame,{COLUMNS}", *(f"{number},{row}" for number, row in enumerate(ROWS))]).encode()


def test_a_whole_table_is_read(folder):
    (track,) = outcome(folder, TABLE, "fuzzed.csv").tracks
    assert len(track.positions) == 2


@settings(max_examples=200)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3), cut=st.floats(0.5, 1))
def test_tables_cut_short_or_with_changed_bytes_are_refused_or_finite(folder, changes, cut):
    raw = bytearray(TABLE)
    for share, value in changes:
        raw[int(share * (len(raw) - 1))] = value
    outcome(folder, bytes(raw)[: int(cut * len(raw))], "fuzzed.csv")


@pytest.mark.slow
@settings(max_examples=200)
@given(
    cells=st.lists(
        st.sampled_from(["", "nan", "1e999", "-1", "0.5", "1_0", "0x1", '"', "walk", "1e400", "\x00"]), max_size=9
    ),
    row=st.integers(0, 2),
    data=st.data(),
)
def test_any_cells_of_a_table_replaced_are_refused_or_finite(folder, cells, row, data):
    lines = TABLE.decode().split("\n")
    columns = lines[row].split(",")
    for cell in cells:
        columns[data.draw(st.integers(0, len(columns) - 1))] = cell
    lines[row] = ",".join(columns)
    outcome(folder, "\n".join(lines).encode(), "fuzzed.csv")


@pytest.fixture(scope="module")
def custom(folder):
    """A file of VideoPose3D."""
    videos = np.array({"a": {"custom": [POSES.astype("f4")]}}, object)
    about = {"layout_name": "coco", "num_joints": 17, "video_metadata": {"a": {"w": 640, "h": 480}}}
    file = folder / "data_2d_custom_whole.npz"
    np.savez(file, positions_2d=videos, metadata=np.array(about, object))
    return file.read_bytes()


@settings(max_examples=200)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3), cut=st.floats(0.3, 1))
def test_files_of_videopose3d_cut_short_or_with_changed_bytes_are_refused_or_finite(folder, custom, changes, cut):
    raw = bytearray(custom)
    for share, value in changes:
        raw[int(share * (len(raw) - 1))] = value
    outcome(folder, bytes(raw)[: int(cut * len(raw))], "data_2d_custom_fuzzed.npz")


def test_an_array_that_claims_a_terabyte_takes_no_memory(folder):
    from io import BytesIO
    from zipfile import ZipFile

    header = BytesIO()
    spec = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 17, 2)}
    np.lib.format.write_array_header_1_0(header, spec)
    with ZipFile(folder / "huge.npz", "w") as archive:
        archive.writestr("keypoints.npy", header.getvalue() + bytes(100))
    with pytest.raises(ValueError, match=r"huge\.npz: .*must have at most 1073741824 bytes, got \[1000000000, 17, 2\]"):
        keypoints.read_recording(folder / "huge.npz")
