"""The clip format: what is refused, what is noticed, and what stays the same."""

import json
import multiprocessing
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from ups_model.data.format.cameras import Camera, project, to_camera
from ups_model.data.format.clip_set import ClipSet, ClipSetInfo
from ups_model.data.format.writer import Clip, Track, write_clip_set

# Ten metres from the origin, looking along +y, level: x right, y down, z forward.
CAMERA = Camera(R=[[1, 0, 0], [0, 0, -1], [0, 1, 0]], center=[0, -10, 1], f=[1000, 500], c=[500, 400], wh=[1000, 800])

INFO = ClipSetInfo(
    name="toy",
    skeleton="kinect20",
    dims=3,
    fps=30,
    units="metre",
    up_axis="y",
    licence="none",
    classes=("a", "b"),
    synthetic=True,
    description="synthetic: a toy",
)


def _clip(row, frames=5, **changes):
    positions = np.random.default_rng(row).normal(size=(frames, 20, 3)).astype(np.float32)
    return replace(
        Clip(f"clip{row}", (Track(positions),), label=row % 2, subject=row % 4, split_test=row % 4 >= 2), **changes
    )


def _write(path, rows=8, info=INFO, **changes):
    return write_clip_set(path, info, (_clip(row, **changes) for row in range(rows)))


def _flip_byte(file, position=-1):
    raw = bytearray(file.read_bytes())
    raw[position] ^= 1
    file.write_bytes(raw)


def test_projection_equals_the_hand_worked_pixel():
    # The point is 2 m right of, 1 m above and 8 m before the camera: 500 + 1000 * 2/8, 400 + 500 * -1/8.
    assert to_camera(np.array([2.0, -2.0, 2.0]), CAMERA).tolist() == [2.0, -1.0, 8.0]
    assert project(np.array([[2.0, -2.0, 2.0]]), CAMERA).tolist() == [[750.0, 337.5]]


def test_a_point_behind_the_camera_has_no_pixel():
    with pytest.raises(ValueError, match="got 1 with depth <= 0 m"):
        project(np.array([[0.0, -2.0, 1.0], [0.0, -12.0, 1.0]]), CAMERA)


def test_a_mirrored_camera_is_refused_with_every_fault():
    with pytest.raises(ValueError, match=r"R must be a rotation.*f and wh must be positive"):
        Camera(R=np.diag([1, 1, -1]), center=[0, 0, 0], f=[0, 1], c=[0, 0], wh=[10, 10])


def test_written_clips_are_read_back_exactly(tmp_path):
    two = (Track(np.ones((3, 20, 3)), offset=4), Track(np.full((6, 20, 3), 2.0)))
    clips = write_clip_set(tmp_path / "toy", INFO, [_clip(0), _clip(1, tracks=two, length=9, extra={}), _clip(2)])
    clips.verify()
    assert np.array_equal(clips.clip(0)[0][1], _clip(0).tracks[0].positions)
    assert [(offset, len(pose), float(pose.max())) for offset, pose in clips.clip(1)] == [(4, 3, 1.0), (0, 6, 2.0)]
    assert clips.clip_length.tolist() == [5, 9, 5] and clips.label.tolist() == [0, 1, 0]
    assert clips.info == INFO and not clips.positions.flags.writeable


def test_confidence_keypoints_cameras_and_columns_stay_with_their_clip(tmp_path):
    def clip(row):
        positions = np.random.default_rng(row).normal(size=(row + 2, 20, 3))
        pixels = project(positions, CAMERA)[:, None]
        track = Track(positions, confidence=np.full((row + 2, 20), row / 4), keypoints=pixels)
        return _clip(row, tracks=(track,), camera_group=0, extra={"camera": row * 10})

    clips = write_clip_set(tmp_path / "toy", replace(INFO, camera_groups=((CAMERA,),)), map(clip, range(4)))
    clips.verify()
    rows = clips.frames(clips.tracks(3)[0])
    assert (clips.confidence[rows] == 0.75).all() and clips.extra["camera"].tolist() == [0, 10, 20, 30]
    expected = project(clips.positions[rows], clips.cameras(3)[0])
    assert np.allclose(clips.keypoints[rows, 0], expected, atol=1e-2)


def test_an_altered_byte_of_any_array_is_caught_and_its_file_named(tmp_path):
    for number, file in enumerate(sorted(_write(tmp_path / "names").path.glob("*.npy"))):
        path = _write(tmp_path / f"toy{number}").path
        _flip_byte(path / file.name)
        with pytest.raises(ValueError, match=rf"(?s){file.name}: content differs"):
            ClipSet.open(path).verify()


@pytest.mark.parametrize("name", ["positions.npy", "label.npy", "track_start.npy"])
def test_a_truncated_or_missing_array_is_named_when_opening(tmp_path, name):
    file = _write(tmp_path / "toy").path / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(ValueError, match=f"{name}: truncated"):
        ClipSet.open(tmp_path / "toy")
    file.unlink()
    with pytest.raises(ValueError, match=f"{name}: missing"):
        ClipSet.open(tmp_path / "toy")


def test_trailing_bytes_are_noticed_when_opening(tmp_path):
    with (_write(tmp_path / "toy").path / "positions.npy").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ValueError, match=r"positions.npy: must be \d+ bytes"):
        ClipSet.open(tmp_path / "toy")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda manifest: manifest | {"version": 99}, "format version must be 1, got 99"),
        (lambda manifest: manifest | {"format": "other"}, "not a manifest of format"),
        (lambda manifest: manifest | {"fps": 60.0}, "it was edited"),
        (lambda manifest: {key: value for key, value in manifest.items() if key != "fps"}, "damaged manifest"),
        (lambda manifest: [], "not a manifest of format"),
    ],
)
def test_an_edited_manifest_is_refused_and_named(tmp_path, edit, message):
    file = _write(tmp_path / "toy").path / "clips.json"
    file.write_text(json.dumps(edit(json.loads(file.read_text()))))
    with pytest.raises(ValueError, match=rf"clips.json: .*{message}"):
        ClipSet.open(tmp_path / "toy")


def test_a_half_written_manifest_and_an_empty_folder_are_refused(tmp_path):
    file = _write(tmp_path / "toy").path / "clips.json"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match="not valid JSON"):
        ClipSet.open(tmp_path / "toy")
    with pytest.raises(ValueError, match="is not a clip set; prepare one first"):
        ClipSet.open(tmp_path)


def test_every_broken_rule_is_listed_at_once(tmp_path):
    clips = [_clip(0, label=2), _clip(1, clip_id="clip0", subject=-1), _clip(2, length=4), _clip(3, camera_group=0)]
    with pytest.raises(ValueError, match="ids must be unique") as error:
        write_clip_set(tmp_path / "toy", INFO, clips)
    for rule in ("labels must be in -1..1", "known for every clip or for none", "inside their clip", "groups must be"):
        assert rule in str(error.value)
    assert list(tmp_path.iterdir()) == [], "a refused set leaves nothing behind"


def test_values_that_are_not_finite_in_the_stored_type_are_refused(tmp_path):
    too_large_for_float16 = Track(np.full((2, 20, 3), 1e6))
    with pytest.raises(ValueError, match="clip0: positions must be finite in float16, got 120 values"):
        write_clip_set(tmp_path / "toy", INFO, [_clip(0, tracks=(too_large_for_float16,))], dtype="float16")


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        ([], "at least one clip"),
        ([_clip(0, tracks=())], "at least one clip with frames"),
        ([_clip(0), _clip(1, tracks=())], "every clip must have a track"),
        ([_clip(0), _clip(1, tracks=(Track(np.zeros((5, 19, 3))),))], "clip1: positions must have shape"),
        ([_clip(0), _clip(1, extra={"a": 1})], r"columns must be \[\], got \['a'\]"),
        ([_clip(0, extra={"split_test_2": 3})], "split columns must hold 0 or 1"),
    ],
)
def test_incomplete_clips_are_refused(tmp_path, clips, message):
    with pytest.raises(ValueError, match=message):
        write_clip_set(tmp_path / "toy", INFO, clips)


def test_fingerprint_depends_on_content_and_not_on_place_or_provenance(tmp_path):
    first = _write(tmp_path / "here" / "toy")
    moved = first.path.rename(tmp_path / "there")
    assert ClipSet.open(moved).fingerprint == first.fingerprint
    assert _write(tmp_path / "b", info=replace(INFO, left_out={"empty": 3})).fingerprint == first.fingerprint
    others = [_write(tmp_path / "c", rows=7), _write(tmp_path / "d", info=replace(INFO, classes=("a", "c")))]
    others.append(_write(tmp_path / "e", subject=0))
    assert len({first.fingerprint, *(clips.fingerprint for clips in others)}) == 4


def test_a_set_of_other_content_is_replaced_and_open_readers_keep_the_old_one(tmp_path):
    old = _write(tmp_path / "toy", rows=4)
    before = np.array(old.positions)
    assert len(_write(tmp_path / "toy", rows=6)) == 6
    assert np.array_equal(old.positions, before)
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_folder_that_is_not_a_clip_set_is_never_replaced(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "thesis.tex").write_text("precious")
    with pytest.raises(ValueError, match="holds files that are not a clip set"):
        _write(tmp_path / "toy")
    assert (tmp_path / "toy" / "thesis.tex").read_text() == "precious"


def _write_often(path, rows, barrier):
    barrier.wait()
    for _ in range(15):
        _write(path, rows).verify()


@pytest.mark.parametrize("rows", [(6, 6), (6, 4)], ids=["same content", "other content"])
def test_two_processes_that_write_one_set_at_once_leave_one_whole_set(tmp_path, rows):
    context = multiprocessing.get_context("fork")
    barrier = context.Barrier(2)
    writers = [context.Process(target=_write_often, args=(tmp_path / "toy", count, barrier)) for count in rows]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    if rows[0] == rows[1]:  # With different content the loser may rightly find the other's set, or none, in its place.
        assert [writer.exitcode for writer in writers] == [0, 0]
    clips = ClipSet.open(tmp_path / "toy")
    clips.verify()
    assert len(clips) in rows and [path.name for path in tmp_path.iterdir()] == ["toy"]


def test_a_writer_killed_half_way_leaves_no_set(tmp_path):
    def clips():
        yield _clip(0)
        os._exit(9)

    context = multiprocessing.get_context("fork")
    writer = context.Process(target=lambda: write_clip_set(tmp_path / "toy", INFO, clips()))
    writer.start()
    writer.join(30)
    assert writer.exitcode == 9 and not (tmp_path / "toy").exists()
    assert len(_write(tmp_path / "toy")) == 8


def test_a_clip_set_is_pickled_as_its_path(tmp_path):
    clips = _write(tmp_path / "toy", rows=8, frames=200)
    raw = pickle.dumps(clips)
    assert len(raw) < 1000 and pickle.loads(raw).fingerprint == clips.fingerprint


def test_a_description_with_many_faults_lists_them_all():
    with pytest.raises(ValueError, match=r"dims must be 2 or 3, got 4.*units must be.*'inch'.*try kinect20"):
        replace(INFO, dims=4, units="inch", skeleton="kinect-20")
