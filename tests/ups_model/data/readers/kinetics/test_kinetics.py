"""Kinetics skeletons: coordinates, persons and places worked by hand; both layouts; what is left out and why."""

import json
import os
import pickle

import numpy as np
import pytest

from tests.support.writers_kinetics import entry, nobody, person, to_row, video, write_arrays, write_json
from ups_model.data.format.writer import Clip
from ups_model.data.prepare.jobs import LeftOut
from ups_model.data.prepare.runner import prepare_reading
from ups_model.data.readers.kinetics import reader as kinetics
from ups_model.data.readers.kinetics.tracks import KINETICS_CLASSES

WALK = [(index, [person(0.1 + 0.01 * index, 0.9, 0.5)]) for index in range(1, 8)]


def read(folder):
    """(clips by id, left-out items by name) of everything in a folder."""
    items = [item for job in kinetics.reading(folder).jobs for item in job.read()]
    clips = {item.clip_id: item for item in items if isinstance(item, Clip)}
    left = {item.name: item for item in items if isinstance(item, LeftOut)}
    assert len(clips) + len(left) == len(items)
    return clips, left


def one(tmp_path, content):
    file = tmp_path / "abc.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return kinetics.read_recording(file)


def test_class_names_are_the_published_ones_in_label_order(open_data):
    published = (open_data / "published" / "kinetics400_classes.txt").read_text().splitlines()
    assert list(KINETICS_CLASSES) == published and len(set(published)) == 400


def test_coordinates_are_centred_and_a_missed_joint_stays_where_it_was_last_seen(tmp_path):
    xs = [0.25] * 17 + [0.75]
    frames = [(1, [person(xs, 1.0, 0.5)]), (2, [person(0.0, 0.0, [0.75] * 17 + [0])])]
    recording = one(tmp_path, video(frames))
    (track,) = recording.tracks
    assert track.positions.shape == (2, 18, 2) and track.offset == 0 and recording.fps == 30
    assert track.positions[0, 0].tolist() == [-0.25, 0.5] and track.positions[0, 17].tolist() == [0.25, 0.5]
    assert track.positions[1, 0].tolist() == [-0.5, -0.5] and track.positions[1, 17].tolist() == [0.25, 0.5]
    assert track.confidence[:, 0].tolist() == [0.5, 0.75] and track.confidence[:, 17].tolist() == [0.5, 0]


def test_the_two_persons_of_highest_mean_score_are_kept_in_that_order_frame_by_frame(tmp_path):
    weak, good, best = person(0.1, 0.1, 0.25), person(0.2, 0.2, [1.0] * 9 + [0.5] * 9), person(0.3, 0.3, 0.875)
    recording = one(tmp_path, video([(0, [weak, good, best]), (1, [best, weak])]))
    first, second = recording.tracks
    assert np.allclose(first.positions[:, 0, 0], [0.3 - 0.5, 0.3 - 0.5])
    assert np.allclose(second.positions[:, 0, 0], [0.2 - 0.5, 0.1 - 0.5])


def test_of_persons_of_equal_score_the_earlier_comes_first(tmp_path):
    recording = one(tmp_path, video([(0, [person(x, 0.5, 0.5) for x in (0.1, 0.2, 0.3)])]))
    assert np.allclose([track.positions[0, 0, 0] for track in recording.tracks], [-0.4, -0.3])


def test_a_track_runs_from_the_first_to_the_last_frame_of_its_slot_and_holds_still_between(tmp_path):
    two = [person(0.1, 0.5, 0.9), person(0.2, 0.5, 0.5)]
    frames = [(0, []), (1, two[:1]), (2, two), (3, [person(0, 0, 0)]), (4, []), (6, two), (9, []), (5, two[:1])]
    recording = one(tmp_path, video(frames))
    first, second = recording.tracks
    assert (first.offset, len(first.positions)) == (1, 6) and (second.offset, len(second.positions)) == (2, 5)
    assert np.allclose(second.positions[:, 3, 0], -0.3)
    assert (second.confidence[1:4] == 0).all() and recording.length == 7


@pytest.mark.parametrize("first", [0, 1, 7])
def test_places_count_from_the_lowest_frame_index_whatever_the_order(tmp_path, first):
    frames = [(index + first, [person(0.01 * index, 0.5, 0.5)]) for index in (2, 0, 1, 299)]
    (track,) = one(tmp_path, video(frames)).tracks
    assert len(track.positions) == 300
    assert np.allclose(track.positions[[0, 1, 2, 3, 298], 0, 0], np.array([0, 0.01, 0.02, 0.02, 0.02]) - 0.5)
    assert np.isclose(track.positions[299, 0, 0], 2.99 - 0.5)


def test_an_entry_that_stands_twice_counts_once_and_two_different_ones_are_refused(tmp_path):
    frames = [(1, [person(0.1, 0.5, 0.5)]), (2, [person(0.2, 0.5, 0.5)])]
    assert len(one(tmp_path, video([*frames, frames[0]])).tracks) == 1
    with pytest.raises(
        ValueError, match=r"abc.json: a frame must stand once, got frame_index 1 in data\[0\].*data\[2\]"
    ):
        one(tmp_path, video([*frames, (1, [person(0.3, 0.5, 0.5)])]))


GOOD = video([(0, [person(0.5, 0.5, 0.5)])])


def altered(**changes):
    """GOOD with changed values, or without those that are ...: of the file, the entry, or the person."""
    content = json.loads(json.dumps(GOOD))
    for level in (content, content["data"][0], content["data"][0]["skeleton"][0]):
        for key in level.keys() & changes.keys():
            level[key] = changes[key]
            if changes[key] is ...:
                del level[key]
    return content


DAMAGE = {
    "no data": (altered(data=...), "must hold an object with a list under 'data'"),
    "data is text": (altered(data="x"), "must hold an object with a list under 'data'"),
    "an array": ([1], "must hold an object"),
    "entry is a number": (altered(data=[3]), r"data\[0\] must be an object, got int"),
    "no frame_index": (altered(frame_index=...), r"data\[0\].frame_index must be an integer >= 0, got None"),
    "negative frame": (altered(frame_index=-1), "frame_index must be an integer >= 0, got -1"),
    "true for a frame": (altered(frame_index=True), "frame_index must be an integer >= 0, got True"),
    "no skeleton": (altered(skeleton=...), r"data\[0\].skeleton must be a list, got NoneType"),
    "null person": (altered(skeleton=[None]), r"data\[0\].skeleton\[0\] must be an object"),
    "35 numbers": (altered(pose=[0.5] * 35), r"data\[0\].skeleton\[0\].pose must have 36 numbers, got 35"),
    "no score": (altered(score=...), r"score must have 18 numbers, got NoneType"),
    "text in pose": (altered(pose=[0.5] * 35 + ["0.5"]), r"pose\[35\] must be a number, got '0.5'"),
    "null in score": (altered(score=[None] * 18), r"score\[0\] must be a number, got None"),
    "true in score": (altered(score=[True] * 18), r"score\[0\] must be a number, got True"),
    "pixels": (altered(pose=[170.0] * 36), r"pose\[0\] must be in -10..10, got 170.0"),
    "negative score": (altered(score=[0.5] * 17 + [-1]), r"score\[17\] must be in 0..10, got -1"),
    "giant integer": (altered(pose=[10**400] * 36), r"pose\[0\] must be in -10..10, got 1000"),
    "NaN": (altered(pose=[float("nan")] * 36), "numbers must be finite, got NaN"),
    "1e999": (json.dumps(GOOD).replace("0.5", "1e999").encode(), r"pose\[0\] must be in -10..10, got inf"),
    "not UTF-8": (b'{"data":\n"\xff"}', "abc.json:2: must be UTF-8, got the byte 0xff"),
    "deep": (b"[" * 100_000, "nested too deeply"),
    "cut": (json.dumps(GOOD).encode()[:-9], "abc.json:1: not whole JSON"),
    "empty": (b"", "abc.json:1: not whole JSON"),
    "double key": (b'{"data": [], "data": []}', "keys must stand once in an object, got 'data' twice"),
    "far apart": (
        video([(0, [person(0.5, 0.5, 0.5)]), (10_000, [])]),
        "frame_index must span at most 10000 frames, got 10001",
    ),
    "nobody": (video([(0, []), (1, [person(0.5, 0.5, 0)])]), "nobody is seen in abc"),
    "no frames": (nobody(), "nobody is seen in abc"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_refused_naming_file_and_key(tmp_path, case):
    content, message = DAMAGE[case]
    with pytest.raises(ValueError, match=message) as error:
        one(tmp_path, content)
    assert "abc.json" in str(error.value)


def test_what_is_left_out_is_listed_with_its_reason_and_the_others_go_on(tmp_path):
    good = video(WALK)
    train = {
        "-good": (good, entry()),
        "_none": (nobody(), entry(has_skeleton=False)),
        "empty": (video([(1, [])]), entry()),
        "cut": (b'{"data": [', entry()),
        "unlisted": (good, None),
        "fileless": (None, entry()),
        "beyond": (good, {"has_skeleton": True, "label": "abseiling", "label_index": 400}),
        "misnamed": (good, {"has_skeleton": True, "label": "zumba", "label_index": 0}),
        "odd": (good, {"has_skeleton": 1, "label": "abseiling", "label_index": 0}),
        "other": (video(WALK, 1), entry(0)),
        "shared": (good, entry()),
        "spelt": (video(WALK, 196, "Massaging Persons_Head"), entry(196)),
    }
    write_json(
        tmp_path,
        "train",
        {name: content for name, (content, _) in train.items() if content is not None},
        {name: said for name, (_, said) in train.items() if said is not None},
    )
    (tmp_path / "kinetics_train" / "._-good.json").write_bytes(b"\x00\x05\x16\x07")
    write_json(tmp_path, "val", {"shared": good, "v": video(WALK, 399)}, {"shared": entry(), "v": entry(399)})
    items = [item for job in kinetics.reading(tmp_path).jobs for item in job.read()]
    assert [(item.clip_id, item.label, item.split_test) for item in items if isinstance(item, Clip)] == [
        ("-good", 0, False),
        ("spelt", 196, False),
        ("shared", 0, True),
        ("v", 399, True),
    ]
    assert {item.name: item.reason for item in items if isinstance(item, LeftOut)} == {
        "_none": "without a skeleton",
        "empty": "nobody seen",
        "cut": "unreadable",
        "unlisted": "without a label",
        "fileless": "without a file",
        "beyond": "label at odds",
        "misnamed": "label at odds",
        "odd": "without a label",
        "other": "label at odds",
        "shared": "in both parts",
    }


def test_both_layouts_give_the_same_clips_and_a_set_that_verifies(tmp_path):
    rng = np.random.default_rng(0)
    videos = {}
    for name in ("aaa", "bbb", "ccc"):
        frames = []
        for index in range(20):
            persons = [
                person(rng.random(18), rng.random(18), rng.random(18) * (rng.random(18) > 0.3))
                for _ in range(index % 4)
            ]
            frames.append((index, persons))
        videos[name] = frames
    (tmp_path / "json").mkdir()
    (tmp_path / "npy").mkdir()
    for part, names in (("train", ["aaa", "bbb"]), ("val", ["ccc"])):
        write_json(
            tmp_path / "json", part, {name: video(videos[name]) for name in names}, {name: entry() for name in names}
        )
        rows = [to_row(videos[name]) for name in names]
        write_arrays(tmp_path / "npy", part, rows, [f"{name}.json" for name in names], [0] * len(names))
    sets = {
        layout: prepare_reading(tmp_path / f"set_{layout}", kinetics.reading(tmp_path / layout))
        for layout in ("json", "npy")
    }
    for clips in sets.values():
        clips.verify()
        assert clips.clip_id.tolist() == ["aaa", "bbb", "ccc"] and clips.split_test.tolist() == [False, False, True]
        assert clips.info.filled and (clips.subject == -1).all() and clips.track_offset.max() == 2
    assert np.abs(sets["json"].positions - sets["npy"].positions).max() < 1e-6
    assert np.array_equal(sets["json"].confidence, sets["npy"].confidence)
    assert np.array_equal(sets["json"].track_length, sets["npy"].track_length)
    frame = videos["bbb"][3][1]
    best = max(frame, key=lambda one: np.mean(one["score"]))
    seen = np.array(best["score"]) > 0
    track = next(t for t in sets["json"].tracks(1) if sets["json"].track_offset[t] == 1)
    stored = sets["json"].positions[sets["json"].frames(track)][3 - 1]
    assert np.allclose(stored[seen], (np.array(best["pose"]).reshape(18, 2) - 0.5)[seen], atol=1e-6)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_rows_are_cut_at_the_end_not_inside_and_names_lose_their_suffix(tmp_path, protocol):
    rows = [to_row(WALK), np.zeros((3, 300, 18, 2), np.float32), to_row([WALK[0], WALK[4]])]
    rows[2][2, 100, 0, 0] = np.nan
    rows.append(to_row([WALK[0], WALK[4]]))
    names, labels = ["a.json", "b.json", "c.json", "d.json"], np.array([0, 1, 2, 399])
    write_arrays(tmp_path, "val", rows, names, labels, protocol)
    clips, left = read(tmp_path)
    assert list(clips) == ["a", "d"] and left["b"].reason == "nobody seen"
    assert left["c"].reason == "unreadable" and "val_data.npy[2]: scores must be in 0..10, got nan" in left["c"].detail
    (track,) = clips["d"].tracks
    assert track.offset == 1 and len(track.positions) == 5 and clips["d"].label == 399
    assert np.allclose(track.positions[:, 0, 0], np.float32([0.11, 0.11, 0.11, 0.11, 0.15]) - 0.5)
    notes = " ".join(kinetics.reading(tmp_path).notes)
    assert "no train part here, so the set has no training clips" in notes
    assert kinetics.clip_names(tmp_path / "val_data.npy") == ("a", "b", "c", "d")
    by_name, by_row = (kinetics.read_recording(tmp_path / "val_data.npy", clip) for clip in ("d", "3"))
    assert by_name.name == by_row.name == "d"
    assert np.array_equal(by_name.tracks[0].positions, track.positions)
    with pytest.raises(ValueError, match="holds 4 videos; give a name such as a, b, c or a row number, got '4'"):
        kinetics.read_recording(tmp_path / "val_data.npy", "4")


def test_rows_that_stand_twice_or_have_no_known_label_are_left_out(tmp_path):
    write_arrays(tmp_path, "train", [to_row(WALK)] * 5, list("xyxzw"), [0, 400, 0, True, -1])
    write_arrays(tmp_path, "val", [to_row(WALK)], ["y"], [0])
    items = [item for job in kinetics.reading(tmp_path).jobs for item in job.read()]
    reasons = [(i.name, i.reason) if isinstance(i, LeftOut) else i.clip_id for i in items]
    odd = "label at odds"
    assert reasons == ["x", ("y", odd), ("x", "twice"), ("z", odd), ("w", odd), "y"]


def test_rows_of_every_job_are_those_of_its_names(tmp_path):
    rows = [to_row([(0, [person(number / 300, 0.5, 0.5)])], length=1) for number in range(300)]
    write_arrays(tmp_path, "train", rows, [f"v{number}" for number in range(300)], [0] * 300)
    clips, _ = read(tmp_path)
    xs = [clips[f"v{number}"].tracks[0].positions[0, 0, 0] for number in range(300)]
    assert np.allclose(xs, np.arange(300) / 300 - 0.5, atol=1e-3)  # written with 3 decimals


def test_a_name_that_cannot_be_written_is_left_out_in_other_letters(tmp_path):
    write_arrays(tmp_path, "train", [to_row(WALK)] * 3, ["a\ud800", "b", "c\n"], [0, 0, 0])
    clips, left = read(tmp_path)
    assert list(clips) == ["b"] and set(left) == {r"'a\ud800'", r"'c\n'"}
    assert {item.reason for item in left.values()} == {"unreadable"}


def test_a_score_too_small_to_be_kept_is_not_seen(tmp_path):
    rows = [to_row(WALK), to_row(WALK)]
    rows[0][2] = 1e-9
    rows[1][2, 3, 5] = 1e-9
    write_arrays(tmp_path, "train", rows, ["a", "b"], [0, 0])
    clips, left = read(tmp_path)
    (track,) = clips["b"].tracks
    assert left["a"].reason == "nobody seen"
    assert track.confidence[2, 5] == 0 and np.isclose(track.positions[2, 5, 0], 0.12 - 0.5)


@pytest.mark.parametrize(
    ("shape", "dtype", "names", "message"),
    [
        ((2, 3, 300, 17, 2), "f4", ["a", "b"], r"must be of floats \[rows, 3, frames, 18, 2\]"),
        ((2, 3, 300, 18, 2), "i4", ["a", "b"], r"must be of floats .* got int32"),
        ((2, 3, 20000, 18, 2), "f2", ["a", "b"], "must have 1..10000 frames a row, got 20000"),
        ((2, 3, 10, 18, 2), "f4", ["a"], r"_label.pkl\[names\]: must have the 2 rows of the data file, got 1"),
        ((2, 3, 10, 18, 2), "f4", ["a", 5], r"_label.pkl\[names\]\[1\]: must be a video's name, got 5"),
        ((2, 3, 10, 18, 2), "f4", ["a", [[]]], r"_label.pkl\[names\]\[1\]: must be a video's name, got list"),
        ((2, 3, 10, 18, 2), "f4", 5, r"_label.pkl\[names\]: must be a list, got int"),
    ],
)
def test_arrays_of_another_kind_are_refused_before_anything_starts(tmp_path, shape, dtype, names, message):
    write_arrays(tmp_path, "train", np.zeros(shape, dtype), names, [0, 0])
    with pytest.raises(ValueError, match=message):
        kinetics.reading(tmp_path)


class _Runs:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_label_file_that_asks_for_code_is_refused_and_nothing_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_arrays(tmp_path, "train", [to_row(WALK)], ["a"], [0])
    (tmp_path / "train_label.pkl").write_bytes(pickle.dumps((["a"], [_Runs()])))
    with pytest.raises(ValueError, match=r"train_label.pkl"):
        kinetics.reading(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_source_without_files_or_with_half_of_them_is_refused_with_what_is_needed(tmp_path):
    with pytest.raises(ValueError, match=r"no such folder; give the one that holds kinetics_train or train_data.npy"):
        kinetics.reading(tmp_path / "none")
    with pytest.raises(ValueError, match="holds no Kinetics skeletons; they are folders kinetics_train"):
        kinetics.reading(tmp_path)
    write_json(tmp_path, "train", {"a": video(WALK)}, {"a": entry()})
    (tmp_path / "kinetics_train_label.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"kinetics_train_label.json: must hold an object with an entry for each video"
    ):
        kinetics.reading(tmp_path)
    (tmp_path / "kinetics_train_label.json").unlink()
    with pytest.raises(ValueError, match=r"kinetics_train_label.json: no such file; it belongs to"):
        kinetics.reading(tmp_path)


def test_the_recipe_names_the_files_not_their_place_and_follows_their_changes(tmp_path):
    for name in ("one", "two"):
        write_json(tmp_path / name, "val", {"a": video(WALK)}, {"a": entry()})
        for file in (tmp_path / name).rglob("*.json"):
            os.utime(file, ns=(10**18, 10**18))
    first = kinetics.recipe(tmp_path / "one")
    assert first == kinetics.recipe(tmp_path / "two") == kinetics.reading(tmp_path / "one").info.recipe
    assert str(tmp_path) not in json.dumps(first)
    os.utime(tmp_path / "two" / "kinetics_val" / "a.json", ns=(10**18, 10**18 + 1))
    assert kinetics.recipe(tmp_path / "two") != first


@pytest.mark.slow
def test_jobs_hold_256_videos_pickle_and_prepare_the_same_set_in_one_process_and_in_two(tmp_path):
    names = [f"v{number:04d}" for number in range(300)]
    write_json(tmp_path, "train", {name: video(WALK[:2]) for name in names}, {name: entry() for name in names})
    reading = kinetics.reading(tmp_path)
    assert [job.items for job in reading.jobs] == [256, 44]
    again = pickle.loads(pickle.dumps(reading.jobs[1]))
    assert [clip.clip_id for clip in again.read()] == names[256:]
    sets = [prepare_reading(tmp_path / f"set{workers}", reading, workers) for workers in (1, 2)]
    assert sets[0].fingerprint == sets[1].fingerprint and sets[0].clip_id.tolist() == names
