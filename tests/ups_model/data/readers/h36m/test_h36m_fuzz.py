"""Human3.6M's files, damaged at random: clips, reasons, or an error that names the file. Nothing else."""

import copy
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.support.writers_h36m import metadata, write
from ups_model.data.prepare.jobs import LeftOut
from ups_model.data.readers.h36m import reader as h36m
from ups_model.data.readers.h36m.cameras import cameras_of

CPN = "data_2d_h36m_cpn_ft_h36m_dbb.npz"
MANY = settings(max_examples=100)
ACTIONS = ("Walking", "Walking 1")

ODD = st.one_of(
    st.none(),
    st.integers(),
    st.floats(),
    st.text(max_size=3),
    st.sampled_from(
        [[], {}, [[]], [None] * 4, np.array(3.0), np.array(None, dtype=object), b"x", {"S1": {"Walking": 0}}]
    ),
    hnp.arrays(
        st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.uint8, np.bool_, np.complex64, "U3"]),
        st.sampled_from(
            [(5, 32, 3), (5, 17, 3), (5, 17, 2), (0, 17, 2), (0, 32, 3), (4, 5, 17, 2), (17, 2), (32,), ()]
        ),
    ),
)


def content():
    """Still people at the middle of the room, seen by the reader's own cameras: those are tested elsewhere."""
    rng = np.random.default_rng(0)
    poses = {action: rng.uniform(0, 1, (5, 32, 3)).astype(np.float32) for action in ACTIONS}
    chosen = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
    views = {}
    for action, pose in poses.items():
        views[action] = []
        for camera in cameras_of("S1"):
            seen = (pose[:, chosen] - np.array(camera.center)) @ np.array(camera.R).T
            views[action].append((seen[..., :2] / seen[..., 2:] * camera.f + camera.c).astype(np.float32))
    return {"S1": poses}, {"S1": views}


WHOLE = content()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("h36m")


def check(folder):
    """Reads everything; whatever is there must be clips, reasons, or an error that names one of the files."""
    try:
        items = [item for job in h36m.reading("h36m", folder).jobs for item in job.read()]
        names = h36m.clip_names(folder / CPN)
    except ValueError as error:
        assert "data_2d_h36m" in str(error) or "data_3d_h36m" in str(error)
        return None
    for name in names[:1]:
        left = any(isinstance(item, LeftOut) and name.startswith(f"{item.name}/") for item in items)
        try:
            assert np.isfinite(h36m.read_recording(folder / CPN, name).tracks[0].positions).all()
        except ValueError as error:
            assert left and "_h36m" in str(error)
    for item in items:
        if isinstance(item, LeftOut):
            assert item.reason in (
                *("unreadable", "not four cameras", "2D shorter than 3D"),
                *("without 2D keypoints", "without 3D poses"),
            )
            continue
        (track,) = item.tracks
        frames = len(track.positions)
        assert frames and track.positions.shape == (frames, 17, 3) and track.keypoints.shape == (frames, 4, 17, 2)
        assert np.isfinite(track.positions).all() and np.abs(track.positions).max() <= 100
        assert np.isfinite(track.keypoints).all() and np.abs(track.keypoints).max() <= 1e6
    return items


def test_the_undamaged_files_are_two_clips(folder):
    write(folder, *WHOLE)
    assert [item.clip_id for item in check(folder)] == ["S1/Walking", "S1/Walking 1"]


@pytest.mark.slow
@MANY
@given(st.data(), ODD)
def test_any_value_in_place_of_another_gives_clips_or_reasons_or_an_error(folder, data, value):
    files = [*copy.deepcopy(WHOLE), metadata()]
    node, path = files, []
    while isinstance(node, (dict, list)) and node:
        path.append((node, data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))))
        node = path[-1][0][path[-1][1]]
    parent, key = path[data.draw(st.integers(0, len(path) - 1))]
    parent[key] = value
    (folder / "odd").mkdir(exist_ok=True)
    box = [np.empty((), dtype=object) for _ in files]
    for one, held in zip(box, files, strict=True):
        one[()] = held
    np.savez(folder / "odd" / "data_3d_h36m.npz", positions_3d=box[0])
    np.savez(folder / "odd" / CPN, positions_2d=box[1], metadata=box[2])
    check(folder / "odd")


@pytest.mark.slow
@MANY
@given(st.floats(), st.sampled_from([np.float32, np.float64]), st.integers(0, 4), st.integers(0, 16), st.integers(0, 1))
def test_any_number_is_taken_or_its_recording_left_out(folder, value, dtype, frame, joint, side):
    poses, views = copy.deepcopy(WHOLE)
    with np.errstate(over="ignore"):
        if side:
            poses["S1"]["Walking"] = poses["S1"]["Walking"].astype(dtype)
            poses["S1"]["Walking"][frame, joint, 1] = value  # of the 32, so not all are kept
        else:
            views["S1"]["Walking"][2] = views["S1"]["Walking"][2].astype(dtype)
            views["S1"]["Walking"][2][frame, joint, 1] = value
    write(folder / "numbers", poses, views)
    first, second = check(folder / "numbers")
    kept = joint in (0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15)
    if (side and not kept) or abs(value) <= (100 if side else 1e6):
        assert first.clip_id == "S1/Walking"
    else:
        assert first.reason == "unreadable" and f"in frame {frame}, joint" in first.detail
    assert second.clip_id == "S1/Walking 1"


@pytest.mark.slow
@MANY
@given(st.data(), st.booleans())
def test_cut_files_and_changed_bytes_give_clips_or_reasons_or_an_error(folder, data, compressed):
    folder = folder / "bytes"
    write(folder, *WHOLE)
    file = folder / data.draw(st.sampled_from(["data_3d_h36m.npz", CPN]))
    if not compressed:
        with zipfile.ZipFile(file) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(file, "w") as archive:
            for name, raw in members.items():
                archive.writestr(name, raw)
    raw = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file.write_bytes(raw)
    check(folder)


@pytest.mark.slow
@MANY
@given(st.data())
def test_changed_bytes_that_the_archive_does_not_notice_do_no_harm(folder, data):
    """As above, with checksums made right, so that the damage reaches the pickle."""
    folder = folder / "inner"
    write(folder, *WHOLE)
    file = folder / data.draw(st.sampled_from(["data_3d_h36m.npz", CPN]))
    with zipfile.ZipFile(file) as archive:
        members = {name: bytearray(archive.read(name)) for name in archive.namelist()}
    raw = members[data.draw(st.sampled_from(sorted(members)))]
    for _ in range(data.draw(st.integers(1, 3))):
        # Half of them in the head: the header of the array, and the names and shapes of the pickle.
        last = data.draw(st.sampled_from([400, len(raw) - 1]))
        raw[data.draw(st.integers(0, min(last, len(raw) - 1)))] = data.draw(st.integers(0, 255))
    with zipfile.ZipFile(file, "w") as archive:
        for name, raw in members.items():
            archive.writestr(name, bytes(raw))
    check(folder)
