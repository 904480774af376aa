"""NTU RGB+D: what the names of rows rest on, and what is no fault of a recording's content."""

import errno
import gzip
import itertools
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.writers_ntu import padded_row, skeleton_text, standing, write_arrays
from ups_model.data.__main__ import main
from ups_model.data.prepare.runner import prepare_reading, read_left_out
from ups_model.data.readers.ntu import reader as ntu
from ups_model.data.readers.ntu.ctrgcn import match_names, open_arrays
from ups_model.data.readers.ntu.names import parse_name

# Everybody does all of the actions before every camera, as in the published set but for its missing skeletons.
COMPLETE = [
    f"S{s:03d}C{c:03d}P{p:03d}R001A{a:03d}"
    for s, c, p, a in itertools.product((1, 2), (1, 2, 3), (1, 2, 3, 6), range(1, 61))
]


def _pose(name):
    """A body that tells its name: setup, camera and performer by where it stands, in metres."""
    return np.full((1, 25, 3), (int(name[1:4]), int(name[5:8]), int(name[9:12])), dtype=np.float32)


def _complete(folder, names, order):
    rows = {"train": [], "test": []}
    for name in sorted(names, key=order):
        part = "train" if name[8:12] in ("P001", "P002") else "test"
        rows[part].append((int(name[-3:]) - 1, padded_row([(0, _pose(name))], 1)))
    write_arrays(folder / "NTU60_CS.npz", rows["train"], rows["test"], 60)
    (folder / "skes_available_name.txt").write_text("\n".join(names))


def _as_listed(name):
    return 0


def _by_performer(name):
    return name[8:12]


@pytest.mark.parametrize("order", [_as_listed, _by_performer])
def test_rows_whose_labels_fit_both_orders_are_refused_with_the_two_names_of_one(tmp_path, order):
    _complete(tmp_path, COMPLETE, order)
    # Row 60 of the training part, by the list: performer 2 after the 60 actions of performer 1; else camera 2.
    with pytest.raises(
        ValueError,
        match=r"\[y_train\]: the labels do not tell in which order the rows are; .* row 60 is S001C001P002R001A001, or "
        "S001C002P001R001A001 if rows go performer by performer; move the list away",
    ):
        ntu.reading("ntu60", tmp_path)


@pytest.mark.parametrize("order", [_as_listed, _by_performer])
def test_one_missing_recording_tells_the_order_of_both_parts(tmp_path, order):
    # The labels of the test part fit both orders still; those of the training part do not.
    names = [name for name in COMPLETE if name != "S001C002P001R001A007"]
    _complete(tmp_path, names, order)
    reading = ntu.reading("ntu60", tmp_path)
    clips = [clip for job in reading.jobs for clip in job.read()]
    assert {clip.clip_id for clip in clips} == set(names) and len(clips) == 1439
    assert all(np.array_equal(clip.tracks[0].positions, _pose(clip.clip_id)) for clip in clips)


def test_two_orders_that_are_one_are_no_question(tmp_path):
    names = [name for name in COMPLETE if name[:8] == "S001C001"]
    _complete(tmp_path, names, _as_listed)
    clips = [clip for job in ntu.reading("ntu60", tmp_path).jobs for clip in job.read()]
    assert sorted(clip.clip_id for clip in clips) == names


@pytest.mark.slow
@pytest.mark.open_data
def test_the_published_names_tell_the_order_of_their_rows(open_data, tmp_path):
    with gzip.open(open_data / "published" / "ntu60_available.txt.gz", "rt") as stream:
        names = stream.read().split()
    train = {1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38}
    for order in (_as_listed, _by_performer):
        arrays, rows = {}, {}
        for part, of in (("train", True), ("test", False)):
            rows[part] = sorted((name for name in names if (int(name[9:12]) in train) is of), key=order)
            arrays[f"x_{part}"] = np.zeros((len(rows[part]), 1, 150), np.float16)
            arrays[f"y_{part}"] = np.eye(60, dtype=np.uint8)[[int(name[-3:]) - 1 for name in rows[part]]]
        np.savez(tmp_path / "NTU60_CS.npz", **arrays)
        opened = open_arrays(tmp_path / "NTU60_CS.npz")
        names_by_part = match_names(opened, [parse_name(name) for name in names], tmp_path / "skes_available_name.txt")
        assert {part: [name.text for name in names_by_part[part]] for part in names_by_part} == rows


def _raw(folder, names=COMPLETE[:300]):
    folder.mkdir(parents=True, exist_ok=True)
    text = skeleton_text([[("1", standing(1)[0])]])
    for name in names:
        (folder / f"{name}.skeleton").write_text(text)
    return folder


class _Disk:
    """Counts the .skeleton files read, and fails for some."""

    def __init__(self, monkeypatch):
        self.read, self.faults = [], {}
        whole = Path.read_bytes

        def read_bytes(file):
            self.read.append(file.stem)
            if file.stem in self.faults:
                number = self.faults[file.stem]
                # As the system tells it: errors of reading, unlike those of opening, do not name the file.
                raise OSError(number, os.strerror(number))
            return whole(file)

        monkeypatch.setattr(Path, "read_bytes", read_bytes)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_disk_that_fails_ends_the_preparation_and_the_next_call_goes_on(tmp_path, monkeypatch, number):
    source, disk, bad = _raw(tmp_path / "raw"), _Disk(monkeypatch), COMPLETE[280]
    disk.faults[bad] = number
    with pytest.raises(OSError) as caught:
        prepare_reading(tmp_path / "ntu60", ntu.reading("ntu60", source))
    message = str(caught.value)
    assert caught.value.errno == number and str(source / f"{bad}.skeleton") in message and "\n" not in message
    assert f"{os.strerror(number)}; what is read so far is kept, run the same command again" in message

    disk.faults.clear()
    disk.read.clear()
    clips = prepare_reading(tmp_path / "ntu60", ntu.reading("ntu60", source))
    assert clips.clip_id.tolist() == COMPLETE[:300] and read_left_out(tmp_path / "ntu60") == []
    assert disk.read == COMPLETE[256:300]  # the first job's 256 are kept


def test_the_command_says_in_one_line_which_file_the_disk_does_not_give(tmp_path, monkeypatch, capsys):
    source, disk = _raw(tmp_path / "raw", COMPLETE[:3]), _Disk(monkeypatch)
    disk.faults[COMPLETE[1]] = errno.EIO
    arguments = ["prepare", "ntu60", "--source", str(source), "--out", str(tmp_path / "sets"), "--workers", "1"]
    assert main(arguments) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and f"{COMPLETE[1]}.skeleton" in line and "run the same command again" in line


def test_a_file_that_goes_while_others_are_read_is_not_left_out(tmp_path):
    source = _raw(tmp_path, COMPLETE[:3])
    reading = ntu.reading("ntu60", source)
    (source / f"{COMPLETE[1]}.skeleton").unlink()
    with pytest.raises(FileNotFoundError, match=rf"which lists the files anew: '.*{COMPLETE[1]}.skeleton'"):
        list(reading.jobs[0].read())


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_arrays_that_the_disk_does_not_give_are_not_called_damaged(tmp_path, monkeypatch, number):
    file = write_arrays(tmp_path / "NTU60_CS.npz", [(0, np.ones((2, 150)))], [(1, np.ones((2, 150)))], 60, True)
    reading = ntu.reading("ntu60", tmp_path)

    def fail(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(zipfile.ZipExtFile, "read", fail)
    with pytest.raises(OSError, match=rf"what is read so far is kept.*'{file}'"):
        list(reading.jobs[0].read())
    with pytest.raises(OSError, match=os.strerror(number)):
        ntu.reading("ntu60", tmp_path)


def test_a_folder_that_cannot_be_listed_is_refused_by_name(tmp_path, monkeypatch):
    _raw(tmp_path / "a", COMPLETE[:2])
    _raw(tmp_path / "b", COMPLETE[2:4])
    scandir = os.scandir

    def fail(place):
        if Path(place).name == "b":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), os.fspath(place))
        return scandir(place)

    monkeypatch.setattr(os, "scandir", fail)
    with pytest.raises(ValueError, match=rf"{tmp_path / 'b'}: every folder must be readable, got Permission denied; "):
        ntu.reading("ntu60", tmp_path)


@pytest.mark.parametrize("name", [f"{COMPLETE[5]}.skeleton", "nturgb+d_skeletons_s018_to_s032"])
def test_a_link_to_nothing_is_refused_with_where_it_leads(tmp_path, name):
    _raw(tmp_path, COMPLETE[:2])
    (tmp_path / name).symlink_to("/mnt/gone")
    for look in (ntu.reading, ntu.recipe):
        with pytest.raises(ValueError) as caught:
            look("ntu60", tmp_path)
        assert str(caught.value) == (
            f"{tmp_path / name}: links must lead to a file or folder, this one leads to /mnt/gone, which is not there; "
            "bring it back, or delete the link"
        )


@pytest.mark.parametrize("row", ["²", "٣", "9" * 5000, "1_0", "+1", ""])
def test_a_row_that_is_no_short_number_is_refused_in_few_words(tmp_path, row):
    file = write_arrays(tmp_path / "NTU60_CS.npz", [(0, np.ones((2, 150)))], [(1, np.ones((2, 150)))], 60)
    with pytest.raises(ValueError, match='give a clip as "train:0"') as caught:
        ntu.read_recording(file, f"train:{row}")
    assert len(str(caught.value)) < len(str(file)) + 150
