"""NTU RGB+D from miniature files of each layout: the same clips, whatever the layout; damage is told, not swallowed."""

import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.writers_ntu import (
    annotation,
    one_body,
    padded_row,
    skeleton_text,
    standing,
    write_arrays,
    write_pickle,
    write_skeleton,
)
from ups_model.data.format.writer import Clip, write_clip_set
from ups_model.data.prepare.jobs import LeftOut
from ups_model.data.prepare.runner import prepare_reading
from ups_model.data.readers.ntu import reader as ntu
from ups_model.data.readers.ntu.files import sets_in

# Performers 1 and 2 train in cross-subject, 3 tests; camera 1 tests in cross-view.
TRAIN = ("S001C001P001R001A001", "S001C002P002R001A002", "S002C003P001R002A060")
TEST = ("S001C001P003R001A001", "S001C002P003R001A005")
NAMES = tuple(sorted(TRAIN + TEST))
POSES = {name: standing(20 + index, seed=index).astype(np.float32) for index, name in enumerate(NAMES)}


def _read(reading):
    return [item for job in reading.jobs for item in pickle.loads(pickle.dumps(job)).read()]


def _clips(reading):
    clips = _read(reading)
    assert all(isinstance(clip, Clip) for clip in clips), clips
    return {clip.clip_id: clip for clip in clips}


def _raw(folder, names=NAMES):
    for name in names:
        write_skeleton(folder / f"{name}.skeleton", one_body(POSES[name]), digits=9)
    return folder


def _rows(names):
    return [(int(name[-3:]) - 1, padded_row([(0, POSES[name])])) for name in names]


def _arrays(folder, names_file=True, train=TRAIN, **options):
    # CTR-GCN's pre-processing writes subject by subject.
    train = sorted(train, key=lambda name: name[9:12])
    write_arrays(folder / "NTU60_CS.npz", _rows(train), _rows(TEST), 60, **options)
    if names_file:
        (folder / "statistics").mkdir()
        (folder / "statistics" / "skes_available_name.txt").write_text("\n".join(NAMES) + "\n")
    return folder


def _pyskl(folder, annotations=None, split=None, protocol=2):
    annotations = annotations or [annotation(name, POSES[name][None]) for name in NAMES]
    if split is None:
        split = {"xsub_train": list(TRAIN), "xsub_val": list(TEST)}
        split |= {"xview_train": [n for n in NAMES if "C001" not in n], "xview_val": [n for n in NAMES if "C001" in n]}
    write_pickle(folder / "ntu60_3danno.pkl", annotations, split, protocol)
    return folder


def _same(one, other, but=("bodies_dropped",)):
    assert one.keys() == other.keys() == set(NAMES)
    for name in one:
        a, b = one[name], other[name]
        assert (a.label, a.subject, a.split_test) == (b.label, b.subject, b.split_test)
        assert {k: v for k, v in a.extra.items() if k not in but} == {k: v for k, v in b.extra.items() if k not in but}
        assert len(a.tracks) == len(b.tracks)
        for track, like in zip(a.tracks, b.tracks, strict=True):
            assert track.offset == like.offset and np.array_equal(track.positions, like.positions)


@pytest.mark.parametrize("layout", ["raw", "arrays", "compressed", "pickle_2", "pickle_5"])
def test_every_layout_gives_the_clips_of_the_raw_files(tmp_path, layout):
    raw = _clips(ntu.reading("ntu60", _raw(tmp_path / "raw")))
    folder = tmp_path / "other"
    folder.mkdir()
    make = {
        "raw": lambda: _raw(folder / "deep" / "er"),
        "arrays": lambda: _arrays(folder),
        "compressed": lambda: _arrays(folder, compressed=True),
        "pickle_2": lambda: _pyskl(folder),
        "pickle_5": lambda: _pyskl(folder, protocol=5),
    }[layout]
    make()
    reading = ntu.reading("ntu60", folder)
    _same(raw, _clips(reading))
    for name, clip in raw.items():
        assert np.array_equal(clip.tracks[0].positions, POSES[name])
    made = write_clip_set(tmp_path / "set", reading.info, _read(reading))
    made.verify()
    assert made.origin == "ntu" and len(made.info.classes) == 60 and made.info.units == "metre"


ONE_OF_EACH = {  # What a recording of 40 frames holds of a body: [frames, 25, 3].
    "a body of zeros": np.zeros((40, 25, 3)),
    "zeros at the end": np.concatenate([standing(30, seed=8), np.zeros((10, 25, 3))]),
    "zeros inside": np.concatenate([standing(15, seed=8), np.zeros((10, 25, 3)), standing(15, seed=9)]),
}


@pytest.mark.parametrize("second", [False, True], ids=["alone", "second person"])
@pytest.mark.parametrize("case", ONE_OF_EACH)
def test_one_recording_with_zero_poses_is_the_same_clip_in_every_layout(tmp_path, case, second):
    name, odd = "S001C001P001R001A001", ONE_OF_EACH[case].astype(np.float32)
    persons = [standing(40, seed=7, at=(0.8, 0, 2.5), amount=0.3).astype(np.float32), odd] if second else [odd]
    ids = ("72057594037931101", "72057594037931102")
    raw = [[(body, pose) for body, pose in zip(ids, poses, strict=False)] for poses in zip(*persons, strict=True)]
    write_skeleton(tmp_path / "raw" / f"{name}.skeleton", raw, digits=9)
    rows = [(0, padded_row([(0, person) for person in persons]))]
    write_arrays(tmp_path / "arrays" / "NTU60_CS.npz", rows, [(0, padded_row([(0, standing(5))]))], 60)
    (tmp_path / "arrays" / "skes_available_name.txt").write_text(f"{name}\nS001C001P003R001A001\n")
    write_pickle(
        tmp_path / "pickle" / "ntu60_3danno.pkl", [annotation(name, np.stack(persons))], {"xsub_train": [name]}
    )
    read = {layout: _read(ntu.reading("ntu60", tmp_path / layout))[0] for layout in ("raw", "arrays", "pickle")}
    if case == "a body of zeros" and not second:
        assert [(item.name, item.reason) for item in read.values()] == [(name, "empty")] * 3
        return
    for item in read.values():
        assert (item.clip_id, item.label, item.subject) == (name, 0, 1)
        assert [track.offset for track in item.tracks] == [track.offset for track in read["raw"].tracks]
        for track, like in zip(item.tracks, read["raw"].tracks, strict=True):
            assert np.array_equal(track.positions, like.positions) and track.positions.any(axis=(1, 2)).all()
    expected = {"a body of zeros": [40], "zeros at the end": [40, 30], "zeros inside": [40, 40]}[case]
    alone = {"zeros at the end": [30], "zeros inside": [30]}
    assert [len(track.positions) for track in read["raw"].tracks] == (expected if second else alone[case])


@pytest.mark.parametrize("named", ["ntu_rgb120_missings.txt", "NTU_RGBD120_samples_with_missing_skeletons.txt"])
@pytest.mark.parametrize("single", [False, True], ids=["folder", "one file"])
def test_a_list_of_missing_skeletons_beside_the_files_is_used(tmp_path, named, single):
    _pyskl(tmp_path)
    (tmp_path / named).write_text(f"{NAMES[1]}\n")
    reading = ntu.reading("ntu60", tmp_path / "ntu60_3danno.pkl" if single else tmp_path)
    assert any(note.startswith(f"{named}: 1 recordings") for note in reading.notes)
    assert {item.name: item.reason for item in _read(reading) if isinstance(item, LeftOut)} == {
        NAMES[1]: "listed as missing skeletons"
    }


def test_a_clip_has_what_its_name_tells(tmp_path):
    clip = _clips(ntu.reading("ntu60", _raw(tmp_path)))["S002C003P001R002A060"]
    assert (clip.label, clip.subject, clip.split_test) == (59, 1, False)
    assert clip.extra == {
        "split_test_xsub": 0,
        "split_test_xview": 0,
        "setup": 2,
        "camera": 3,
        "replication": 2,
        "bodies_dropped": 0,
        "frames_dropped": 0,
    }


def test_ntu60_takes_its_setups_and_actions_and_ntu120_takes_all(tmp_path):
    extra = ("S018C001P041R001A061", "S018C001P041R001A001", "S017C001P001R001A061")
    for name in extra:
        POSES.setdefault(name, standing(14))
    _raw(tmp_path, NAMES + extra)
    assert sets_in(tmp_path) == ("ntu60", "ntu120")
    assert set(_clips(ntu.reading("ntu60", tmp_path))) == set(NAMES)
    clips = _clips(ntu.reading("ntu120", tmp_path))
    assert set(clips) == {*NAMES, *extra}
    assert clips["S018C001P041R001A061"].extra["split_test_xset"] == 0
    assert clips["S017C001P001R001A061"].extra["split_test_xset"] == 1


def test_what_is_left_out_is_counted_by_its_reason_and_the_others_are_read(tmp_path):
    _raw(tmp_path)
    bad = tmp_path / "bad"
    write_skeleton(bad / "S003C001P001R001A001.skeleton", [[], []])
    (bad / "S003C001P001R001A002.skeleton").write_bytes(b"")
    (bad / "S003C001P001R001A003.skeleton").write_text(skeleton_text(one_body(standing(3)))[:-40])
    (bad / "S003C001P001R001A004.skeleton").write_bytes(b"\xff\xfe\x00")
    (bad / f"{NAMES[0]}.skeleton").write_bytes((tmp_path / f"{NAMES[0]}.skeleton").read_bytes())
    (bad / "holiday.skeleton").write_text("0\n")
    write_skeleton(bad / "S003C001P001R001A005.skeleton", one_body(standing(3)))
    (bad / "NTU_RGBD_samples_with_missing_skeletons.txt").write_text("a heading\nS003C001P001R001A005\n")
    given_list = tmp_path / "mine.txt"
    given_list.write_text(NAMES[1] + "\n")
    reading = ntu.reading("ntu60", tmp_path, [given_list])
    items = _read(reading)
    left_out = sorted((item.name, item.reason) for item in items if isinstance(item, LeftOut))
    assert left_out == [
        (NAMES[0], "duplicate"),
        (NAMES[1], "listed as missing skeletons"),
        ("S003C001P001R001A001", "empty"),
        ("S003C001P001R001A002", "empty"),
        ("S003C001P001R001A003", "unreadable"),
        ("S003C001P001R001A004", "unreadable"),
        ("S003C001P001R001A005", "listed as missing skeletons"),
        ("holiday", "unreadable"),
    ]
    assert {item.clip_id for item in items if isinstance(item, Clip)} == set(NAMES) - {NAMES[1]}
    assert any("with_missing_skeletons.txt: 1 recordings" in note for note in reading.notes)
    assert sum(job.items for job in reading.jobs) == len(items)
    detail = next(item.detail for item in items if getattr(item, "name", "") == "S003C001P001R001A003")
    assert "S003C001P001R001A003.skeleton:85: a joint's line must have 12 fields" in detail


def test_jobs_hold_256_recordings_in_the_order_of_names(tmp_path):
    text = skeleton_text([[("1", standing(1)[0])]])
    names = [f"S001C001P{p:03d}R00{r}A{a:03d}" for p in (1, 3) for r in (1, 2) for a in range(1, 61)]
    names += [f"S001C002P001R001A{a:03d}" for a in range(1, 61)]
    for name in names:
        (tmp_path / f"{name}.skeleton").write_text(text)
    reading = ntu.reading("ntu60", tmp_path)
    assert [job.items for job in reading.jobs] == [256, 44]
    assert [clip.clip_id for clip in _read(reading)] == sorted(names)


def test_the_recipe_changes_with_files_and_lists_and_knows_no_place(tmp_path):
    source = _raw(tmp_path / "a")
    recipe = ntu.recipe("ntu60", source)
    assert recipe == dict(ntu.reading("ntu60", source).info.recipe) and str(tmp_path) not in str(recipe)
    source.rename(tmp_path / "b")
    assert ntu.recipe("ntu60", tmp_path / "b") == recipe
    missing = tmp_path / "missing.txt"
    missing.write_text(NAMES[0])
    assert ntu.recipe("ntu60", tmp_path / "b", [missing]) != recipe
    (tmp_path / "b" / f"{NAMES[0]}.skeleton").unlink()
    assert ntu.recipe("ntu60", tmp_path / "b") != recipe


def test_raw_files_go_before_arrays_and_a_pickle_and_a_note_says_so(tmp_path):
    _pyskl(_arrays(_raw(tmp_path)))
    reading = ntu.reading("ntu60", tmp_path)
    assert reading.info.recipe["layout"] == "raw"
    assert "the raw .skeleton files are read; NTU60_CS.npz, ntu60_3danno.pkl could be too, and are not" in reading.notes


@pytest.mark.parametrize("compressed", [False, True])
def test_arrays_without_names_have_ids_of_their_content_and_one_protocol(tmp_path, compressed):
    twice = (*TRAIN, TRAIN[0])
    _arrays(tmp_path, names_file=False, train=twice, compressed=compressed)
    reading = ntu.reading("ntu60", tmp_path)
    clips = list(_clips(reading).values())
    assert len(clips) == 6 and all(clip.clip_id.startswith("content-") and clip.subject == -1 for clip in clips)
    repeated = [clip for clip in clips if clip.clip_id.endswith("-2")]
    assert len(repeated) == 1 and repeated[0].label == 0
    assert np.array_equal(repeated[0].tracks[0].positions, POSES[TRAIN[0]])
    assert [clip.split_test for clip in clips] == [False] * 4 + [True] * 2
    assert clips[0].extra == {"split_test_xsub": 0, "frames_dropped": 0}
    assert any("can be told by their content alone" in note for note in reading.notes)
    write_clip_set(tmp_path / "set", reading.info, clips).verify()


def test_the_same_content_has_the_same_id_in_the_files_of_both_protocols(tmp_path):
    view_test = [name for name in NAMES if "C001" in name]
    view_train = [name for name in NAMES if "C001" not in name]
    write_arrays(tmp_path / "cv" / "NTU60_CV.npz", _rows(view_train), _rows(view_test), 60)
    write_arrays(tmp_path / "cs" / "NTU60_CS.npz", _rows(TRAIN), _rows(TEST), 60)
    by_view, by_subject = (_clips(ntu.reading("ntu60", tmp_path / place)) for place in ("cv", "cs"))
    assert by_view.keys() == by_subject.keys() and len(by_view) == 5
    both = ntu.reading("ntu60", tmp_path)
    assert _clips(both).keys() == by_subject.keys() and both.notes[0].startswith("NTU60_CS.npz are read; NTU60_CV.npz")


def test_persons_of_arrays_end_and_begin_where_they_are_seen(tmp_path):
    # The second person's coordinates add up to less than 0, as they may where poses were moved to the origin.
    a, b = standing(10, seed=1).astype(np.float32), standing(6, seed=2, at=(0, 0, -2.5)).astype(np.float32)
    row = padded_row([(0, a), (3, b)])
    row[4] = 0  # nobody in frame 4
    row[6, 75:] = 0  # the second person not in frame 6
    nobody = padded_row([])
    write_arrays(tmp_path / "NTU60_CS.npz", [(0, row), (1, nobody)], [(0, padded_row([(2, b)]))], 60)
    clip, empty, late = _read(ntu.reading("ntu60", tmp_path))
    first, second = clip.tracks
    assert np.array_equal(first.positions, np.delete(a, 4, axis=0)) and first.offset == 0
    # The second person is in frames 3..8 of the file; without frame 4 it begins at 3: b0, b2, held b2, b4, b5.
    assert second.offset == 3 and np.array_equal(second.positions, b[[0, 2, 2, 4, 5]])
    assert clip.extra["frames_dropped"] == 1
    assert isinstance(empty, LeftOut) and (empty.name, empty.reason) == ("train:1", "empty")
    assert late.tracks[0].offset == 0 and len(late.tracks) == 1 and late.extra["frames_dropped"] == 2


def test_rows_in_the_order_of_the_names_list_are_named_too(tmp_path):
    _arrays(tmp_path)
    by_subject = _clips(ntu.reading("ntu60", tmp_path))
    assert [row for row, _ in _rows(TRAIN)] != [row for row, _ in _rows(sorted(TRAIN, key=lambda name: name[9:12]))]
    write_arrays(tmp_path / "NTU60_CS.npz", _rows(TRAIN), _rows(TEST), 60)
    _same(by_subject, _clips(ntu.reading("ntu60", tmp_path)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda names: names[:-1], "have 2 sequences of xsub train, .* has 3"),
        (lambda names: [*names[:-1], "S002C003P001R002A059"], r"\[y_train\]\[1\]: has action 60, .* the row is S002"),
        (lambda names: [*names, names[0]], "names must differ, got .* twice"),
    ],
)
def test_a_names_list_that_is_not_the_rows_is_refused(tmp_path, change, message):
    _arrays(tmp_path)
    file = tmp_path / "statistics" / "skes_available_name.txt"
    file.write_text("\n".join(change(list(NAMES))))
    with pytest.raises(ValueError, match=message):
        ntu.reading("ntu60", tmp_path)


def test_bad_rows_are_left_out_and_named(tmp_path):
    rows = [(0, padded_row([(0, standing(5, seed=s))])) for s in range(4)]
    rows[0][1][2, 7] = np.nan
    rows[2][1][3, 7] = 1e6
    file = write_arrays(tmp_path / "NTU60_CS.npz", rows, rows[1:2], 60)
    items = _read(ntu.reading("ntu60", tmp_path))
    left_out = {item.name: item.detail for item in items if isinstance(item, LeftOut)}
    assert left_out.keys() == {"train:0", "train:2"} and len(items) == 5
    assert f"{file}[x_train][0]: frame 2: coordinates must be finite and within 100 m" in left_out["train:0"]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"x_train": np.zeros((2, 300, 149))},
            r"x_train must be floats \[rows, frames, 150\], got <f8 \[2, 300, 149\]",
        ),
        ({"y_train": np.zeros((3, 60))}, r"y_train must be one-hot numbers \[2, 60\], got <f8 \[3, 60\]"),
        ({"y_test": np.zeros((1, 120))}, r"y_test must be one-hot numbers \[1, 60\], got <f8 \[1, 120\]"),
        ({"y_train": np.array([{}, {}], dtype=object)}, "arrays must be numbers in C order"),
        ({"x_train": np.asfortranarray(np.zeros((2, 3, 150)))}, "arrays must be numbers in C order"),
        ({"x_train": None}, "it lacks x_train"),
    ],
)
def test_arrays_of_other_shapes_are_refused_before_anything_starts(tmp_path, arrays, message):
    whole = {"x_train": np.zeros((2, 4, 150)), "y_train": np.eye(60)[:2]}
    whole |= {"x_test": np.zeros((1, 4, 150)), "y_test": np.eye(60)[:1]}
    whole = {key: value for key, value in (whole | arrays).items() if value is not None}
    np.savez(tmp_path / "NTU60_CS.npz", **whole)
    with pytest.raises(ValueError, match=rf"NTU60_CS.npz: .*{message}"):
        ntu.reading("ntu60", tmp_path)


@given(kept=st.floats(0, 0.999))
def test_truncated_arrays_are_refused(tmp_path_factory, kept):
    folder = tmp_path_factory.mktemp("npz")
    file = write_arrays(folder / "NTU60_CS.npz", [(0, np.ones((2, 150)))], [(1, np.ones((2, 150)))], 60)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(ValueError, match=r"NTU60_CS.npz"):
        ntu.reading("ntu60", folder)


@pytest.mark.parametrize("compressed", [False, True])
@given(data=st.data())
def test_altered_arrays_give_clips_reasons_or_a_value_error(tmp_path_factory, compressed, data):
    folder = tmp_path_factory.mktemp("npz")
    file = write_arrays(
        folder / "NTU60_CS.npz",
        [(0, padded_row([(0, standing(3))], 4))],
        [(1, padded_row([(0, standing(3, 1))], 4))],
        60,
        compressed,
    )
    raw = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=5)):
        raw[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(raw))
    try:
        items = _read(ntu.reading("ntu60", folder))
    except ValueError as error:
        assert str(file) in str(error)
    else:
        for clip in items:
            assert isinstance(clip, LeftOut) or all(np.abs(track.positions).max() <= 100 for track in clip.tracks)


def test_bad_annotations_are_left_out_and_named(tmp_path):
    pose = {name: POSES[name][None].astype(np.float16) for name in NAMES}
    annotations = [
        annotation(NAMES[0], np.concatenate([pose[NAMES[0]], np.zeros_like(pose[NAMES[0]])])),
        annotation(NAMES[1], pose[NAMES[1]], label=58),
        annotation(NAMES[2], pose[NAMES[2]]) | {"total_frames": 3},
        annotation(NAMES[3], np.full_like(pose[NAMES[3]], np.nan)),
        annotation(NAMES[4], np.zeros_like(pose[NAMES[4]])),
        annotation(NAMES[0], pose[NAMES[0]].copy()),
        annotation("S001C001P001R001A002", np.zeros((1, 4, 17, 3))),
        {"keypoint": pose[NAMES[0]].copy(), "label": 0},
        annotation("S018C001P001R001A002", pose[NAMES[0]].copy()),
    ]
    clip, *left_out = _read(ntu.reading("ntu60", _pyskl(tmp_path, annotations)))
    assert clip.clip_id == NAMES[0] and len(clip.tracks) == 1  # a person of zeros is none
    assert [(item.name, item.reason) for item in left_out] == [
        (NAMES[1], "unreadable"),
        (NAMES[2], "unreadable"),
        (NAMES[3], "unreadable"),
        (NAMES[4], "empty"),
        (NAMES[0], "duplicate"),
        ("S001C001P001R001A002", "unreadable"),
        ("annotations[7]", "unreadable"),
        ("S018C001P001R001A002", "unreadable"),
    ]
    assert "coordinates must be finite" in left_out[2].detail


@pytest.mark.parametrize("key", ["xsub_train", "xview_val"])
def test_a_split_that_is_not_the_protocols_is_refused_with_the_first_name(tmp_path, key):
    _pyskl(tmp_path, split={key: [TEST[1]]})
    with pytest.raises(ValueError, match=rf"ntu60_3danno.pkl\['split'\]\['{key}'\]: .* {TEST[1]} is not in"):
        ntu.reading("ntu60", tmp_path)


def test_a_pickle_of_2d_keypoints_is_refused_with_the_file_to_give(tmp_path):
    item = annotation(NAMES[0], np.zeros((1, 20, 17, 2), np.float16))
    write_pickle(tmp_path / "ntu60_hrnet.pkl", [item], {})
    with pytest.raises(ValueError, match=r"3D poses of 25 joints, got keypoints \[1, 20, 17, 2\].*ntu60_3danno.pkl"):
        ntu.reading("ntu60", tmp_path)


@given(data=st.data())
def test_altered_pickles_give_clips_reasons_or_a_value_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("pkl")
    file = _pyskl(folder, [annotation(NAMES[0], standing(2)[None]), annotation(NAMES[1], standing(2)[None])])
    file = folder / "ntu60_3danno.pkl"
    raw = bytearray(file.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(raw) - 1), min_size=1, max_size=3)):
        raw[place] ^= data.draw(st.integers(1, 255))
    file.write_bytes(bytes(raw[: data.draw(st.integers(len(raw) // 2, len(raw)))]))
    try:
        items = _read(ntu.reading("ntu60", folder))
    except ValueError as error:
        assert str(error)
    else:
        for clip in items:
            assert isinstance(clip, LeftOut) or all(np.abs(track.positions).max() <= 100 for track in clip.tracks)


@pytest.mark.parametrize("protocol", range(6))
def test_annotations_may_share_names_and_poses_with_each_other_and_the_splits(tmp_path, protocol):
    items = [annotation(name, POSES[TRAIN[0]][None]) for name in TRAIN]
    _pyskl(tmp_path, [{**item, "keypoint": items[0]["keypoint"]} for item in items], protocol=protocol)
    clips = _clips(ntu.reading("ntu60", tmp_path))
    assert sorted(clips) == sorted(TRAIN)
    for clip in clips.values():
        assert np.array_equal(clip.tracks[0].positions, POSES[TRAIN[0]])


@pytest.mark.parametrize(
    ("whole", "message"),
    [
        ([1, 2], "must hold a dict with a list under 'annotations'"),
        ({"other": []}, "must hold a dict with a list under 'annotations'"),
        ({"annotations": 3}, "must hold a dict with a list under 'annotations'"),
        ({"annotations": []}, "its list 'annotations' is empty"),
        ({"annotations": [{}, 3]}, r"\['annotations'\]\[1\]: must be a dict, got int"),
    ],
)
def test_a_pickle_without_a_list_of_annotations_is_refused(tmp_path, whole, message):
    (tmp_path / "ntu60_3danno.pkl").write_bytes(pickle.dumps(whole, 2))
    with pytest.raises(ValueError, match=rf"ntu60_3danno\.pkl.*{message}"):
        ntu.reading("ntu60", tmp_path)


def test_one_recording_of_each_layout_is_read_by_its_name(tmp_path):
    _pyskl(_arrays(_raw(tmp_path)))
    name = NAMES[2]
    row = sorted(TRAIN, key=lambda text: text[9:12]).index(name)
    for file, clip in (
        (tmp_path / f"{name}.skeleton", None),
        (tmp_path / "NTU60_CS.npz", f"train:{row}"),
        (tmp_path / "ntu60_3danno.pkl", name),
    ):
        recording = ntu.read_recording(file, clip)
        assert (recording.skeleton, recording.dims, recording.fps, recording.units) == ("ntu25", 3, 30.0, "metre")
        assert recording.length == len(POSES[name])
        assert np.array_equal(recording.tracks[0].positions, POSES[name])
        assert (clip or name) in ntu.clip_names(file)


@pytest.mark.parametrize(
    ("file", "clip", "message"),
    [
        ("NTU60_CS.npz", None, 'give a clip as "train:0"'),
        ("NTU60_CS.npz", "train:3", r"x_train has rows 0..2, got 3"),
        ("NTU60_CS.npz", "train:-1", 'give a clip as "train:0"'),
        ("ntu60_3danno.pkl", None, "holds many recordings"),
        ("ntu60_3danno.pkl", "S001", "has no recording 'S001'"),
        (f"{NAMES[0]}.skeleton", "other", "holds one recording"),
    ],
)
def test_a_clip_that_is_not_there_is_refused_with_what_is(tmp_path, file, clip, message):
    _pyskl(_arrays(_raw(tmp_path)))
    with pytest.raises(ValueError, match=message):
        ntu.read_recording(tmp_path / file, clip)


@pytest.mark.parametrize("name", ["ntu60", "ntu120"])
def test_a_place_without_the_set_is_refused_with_the_forms_it_comes_in(tmp_path, name):
    with pytest.raises(ValueError, match=r"holds no NTU RGB\+D; there must be \*.skeleton, NTU60_CS.npz"):
        sets_in(tmp_path)
    with pytest.raises(ValueError, match="no such file or folder"):
        ntu.reading(name, tmp_path / "nowhere")
    with pytest.raises(ValueError, match="got 'ntu'"):
        ntu.reading("ntu", _raw(tmp_path))


def test_a_link_to_a_folder_above_ends(tmp_path):
    _raw(tmp_path / "a")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    assert len(_clips(ntu.reading("ntu60", tmp_path))) == len(NAMES)


@pytest.mark.slow
def test_two_processes_make_the_set_that_one_makes(tmp_path):
    reading = ntu.reading("ntu60", _arrays(tmp_path))
    one = prepare_reading(tmp_path / "one" / "ntu60", reading, workers=1)
    two = prepare_reading(tmp_path / "two" / "ntu60", reading, workers=2)
    assert one.fingerprint == two.fingerprint and len(one) == len(NAMES)
