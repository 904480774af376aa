"""Kinetics skeletons: crowded frames as ST-GCN's tools take them, and what is no fault of a video's content."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest

from tests.support.writers_kinetics import entry, person, to_row, video, write_arrays, write_json
from ups_model.data.prepare.jobs import LeftOut
from ups_model.data.prepare.runner import prepare_reading, read_left_out
from ups_model.data.readers.kinetics import reader as kinetics

WALK = [(index, [person(0.1 + 0.01 * index, 0.9, 0.5)]) for index in range(1, 8)]


def test_of_a_crowd_the_best_two_of_the_first_five_are_kept(tmp_path):
    # Means 0.1 .. 0.7 in the order of the list: the sixth and seventh are not looked at.
    crowd = [person(0.1 * number, 0.5, 0.1 * number) for number in range(1, 8)]
    file = tmp_path / "abc.json"
    file.write_text(json.dumps(video([(0, crowd), (1, crowd[::-1])])))
    first, second = kinetics.read_recording(file).tracks
    assert np.allclose(first.positions[:, 0, 0], [0.5 - 0.5, 0.7 - 0.5])
    assert np.allclose(second.positions[:, 0, 0], [0.4 - 0.5, 0.6 - 0.5])


def test_crowded_frames_give_the_same_clip_in_both_layouts(tmp_path):
    rng = np.random.default_rng(3)
    frames = [
        (index, [person(rng.random(18), rng.random(18), rng.random(18)) for _ in range(index)]) for index in range(12)
    ]
    (tmp_path / "json").mkdir()
    (tmp_path / "npy").mkdir()
    write_json(tmp_path / "json", "train", {"v": video(frames)}, {"v": entry()})
    write_arrays(tmp_path / "npy", "train", [to_row(frames, 20)], ["v"], [0])
    one, other = (next(kinetics.reading(tmp_path / layout).jobs[0].read()) for layout in ("json", "npy"))
    for track, like in zip(one.tracks, other.tracks, strict=True):
        assert track.offset == like.offset and np.allclose(track.positions, like.positions, atol=1e-6)
        assert np.array_equal(track.confidence, like.confidence)


def test_a_person_beyond_the_fifth_is_checked_all_the_same(tmp_path):
    file = tmp_path / "abc.json"
    file.write_text(json.dumps(video([(0, [person(0.5, 0.5, 0.5)] * 5 + [person(99, 0.5, 0.5)])])))
    with pytest.raises(ValueError, match=r"abc.json: data\[0\].skeleton\[5\].pose\[0\] must be in -10..10, got 99.0"):
        kinetics.read_recording(file)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_ends_the_preparation_and_the_next_call_goes_on(tmp_path, monkeypatch, number):
    names = [f"v{index:03d}" for index in range(300)]
    write_json(tmp_path, "train", {name: video(WALK[:2]) for name in names}, {name: entry() for name in names})
    whole, faults, done = Path.read_bytes, {"v280": number}, []

    def read_bytes(file):
        done.append(file.stem)
        if file.stem in faults:
            raise OSError(number, os.strerror(number))
        return whole(file)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(OSError) as caught:
        prepare_reading(tmp_path / "set", kinetics.reading(tmp_path))
    message = str(caught.value)
    assert caught.value.errno == number and str(tmp_path / "kinetics_train" / "v280.json") in message
    assert f"{os.strerror(number)}; what is read so far is kept, run the same command again" in message

    faults.clear()
    done.clear()
    clips = prepare_reading(tmp_path / "set", kinetics.reading(tmp_path))
    assert clips.clip_id.tolist() == names and read_left_out(tmp_path / "set") == []
    assert [name for name in done if name in names] == names[256:]  # the first job's 256 are kept


def test_arrays_that_the_disk_does_not_give_are_not_called_damaged(tmp_path, monkeypatch):
    write_arrays(tmp_path, "train", [to_row(WALK)], ["a"], [0])
    reading = kinetics.reading(tmp_path)

    def fail(*_, **__):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(OSError, match=rf"what is read so far is kept.*'{tmp_path / 'train_data.npy'}'"):
        list(reading.jobs[0].read())


def test_a_link_to_nothing_is_refused_with_where_it_leads(tmp_path):
    write_json(tmp_path, "train", {"a": video(WALK)}, {"a": entry(), "b": entry()})
    link = tmp_path / "kinetics_train" / "b.json"
    link.symlink_to("/mnt/gone")
    for look in (kinetics.reading, kinetics.recipe):
        with pytest.raises(ValueError, match=rf"{link}: links must lead to a file, .* /mnt/gone, which is not there"):
            look(tmp_path)


def test_a_folder_in_the_place_of_a_video_is_left_out_and_ends_nothing(tmp_path):
    write_json(tmp_path, "train", {"a": video(WALK)}, {"a": entry(), "b": entry()})
    (tmp_path / "kinetics_train" / "b.json").mkdir()
    clip, left_out = kinetics.reading(tmp_path).jobs[0].read()
    assert clip.clip_id == "a"
    assert isinstance(left_out, LeftOut) and (left_out.name, left_out.reason) == ("b", "without a file")


@pytest.mark.parametrize("clip", ["²", "٣", "9" * 5000, "1_0", "+1", "", "-1"])
def test_a_row_that_is_no_short_number_is_refused_in_few_words(tmp_path, clip):
    write_arrays(tmp_path, "val", [to_row(WALK)] * 2, ["a", "b"], [0, 0])
    file = tmp_path / "val_data.npy"
    with pytest.raises(ValueError, match="give a name such as a, b or a row number") as caught:
        kinetics.read_recording(file, clip)
    assert len(str(caught.value)) < len(str(file)) + 150
