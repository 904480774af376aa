"""Folders of one's own files: classes, ids, test clips, and what is left out by its place."""

import errno
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from tests.support.writers_own import (
    bvh_text,
    mmpose_frames,
    person_2d,
    rest_frames,
    write_json,
    write_keypoint_arrays,
    write_text,
)
from ups_model.data.prepare.jobs import LeftOut
from ups_model.data.prepare.runner import is_prepared, prepare_reading, read_left_out
from ups_model.data.readers import user_folder as own_motion
from ups_model.data.readers.bvh import reader as bvh
from ups_model.data.readers.keypoints import reader as keypoints

(POSE,) = person_2d(1)


def make(folder, *paths):
    for path in paths:
        write_text(folder / path, path)
    return folder


def look(folder):
    return own_motion.look(folder, (".bvh", ".txt"), ("joints.json",))


def for_testing(own):
    return [file.name for file in own.files if file.split_test]


def test_the_first_folder_is_the_class_and_the_path_is_the_id(tmp_path):
    own = look(make(tmp_path, "walk/a.bvh", "walk/deep/er/a.bvh", "bow/A.BVH", "bow/notes.pdf"))
    assert own.classes == ("bow", "walk")
    assert [(file.name, file.label) for file in own.files] == [("bow/A", 0), ("walk/a", 1), ("walk/deep/er/a", 1)]


def test_files_without_folders_have_no_labels(tmp_path):
    own = look(make(tmp_path, "b.bvh", "a.bvh"))
    assert own.classes == () and [(file.name, file.label) for file in own.files] == [("a", -1), ("b", -1)]
    assert any("no labels" in note for note in own.notes)


# Whose sha256 is divisible by 5, by coreutils' sha256sum: as 16 is 1 more than 15, its hex digits' sum tells.
DIVISIBLE = ["x/02", "x/03", "x/05", "x/09", "y/09"]


def test_a_clip_whose_sha256_is_divisible_by_five_is_for_testing(tmp_path):
    own = look(make(tmp_path, *(f"{name}/{index:02d}.bvh" for name in ("x", "y") for index in range(12))))
    assert for_testing(own) == DIVISIBLE
    assert own.split == "sha256 of the id" and any("sha256 of its id is divisible by 5" in note for note in own.notes)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        ("a", ""),
        ("b", "b"),
        # a is ca97.., c 2e7d.., f 2521..: none is divisible
        ("ac", "c"),
        ("acf", "f"),
        # b is 3e23.., d 18ac.., e 3f79..: all are
        ("bd", "d"),
        ("bde", "bd"),
        ("abde", "bde"),
        ("ab", "b"),
    ],
)
def test_a_class_of_two_or_more_has_clips_to_train_on_and_to_test(tmp_path, names, chosen):
    own = look(make(tmp_path, *(f"{name}.bvh" for name in names)))
    assert for_testing(own) == list(chosen)
    said = any("leaves the set without test or without training clips" in note for note in own.notes)
    assert said == (names in ("ac", "acf", "bd", "bde"))


def test_the_class_in_which_the_rule_leaves_no_choice_is_named(tmp_path):
    own = look(make(tmp_path, *(f"x/{index:02d}.bvh" for index in range(4)), "y/00.bvh", "y/01.bvh"))
    assert for_testing(own) == ["x/02", "x/03", "y/00"]  # y/00 is 9b66.., y/01 f6ed..
    (note,) = [note for note in own.notes if "leaves" in note]
    assert note.startswith("that leaves y without")


def test_a_file_that_is_added_moves_no_clip_between_training_and_testing(tmp_path):
    names = [f"{folder}/{index:02d}" for folder in ("x", "y") for index in range(12)]
    before = look(make(tmp_path, *(f"{name}.bvh" for name in names)))
    tested = set(for_testing(before))
    for added in ["x/000", "x/00 b", "y/05b", "a/00", "a/01", "z/00", "y/zz"]:  # before, between, after; new classes
        after = look(make(tmp_path, f"{added}.bvh"))
        assert set(for_testing(after)) & set(names) == tested, added
    assert len(after.files) == len(names) + 7


def test_without_a_test_clip_a_file_that_is_added_turns_no_trained_clip_into_one(tmp_path):
    make(tmp_path, "walk/a.bvh", "walk/c.bvh")
    trained = {file.name for file in look(tmp_path).files if not file.split_test}
    for added in "defghijklmnb":
        own = look(make(tmp_path, f"walk/{added}.bvh"))
        assert not trained & set(for_testing(own)), added
        trained |= {file.name for file in own.files if not file.split_test}


def test_what_is_left_out_takes_no_place_among_the_test_clips(tmp_path):
    own = look(make(tmp_path, "x/02.bvh", "x/02.txt", "x/01.bvh"))
    assert [(file.path[-6:], file.split_test) for file in own.files] == [
        ("01.bvh", False),
        ("02.bvh", True),
        ("02.txt", False),
    ]


def test_with_a_folder_test_its_clips_alone_are_for_testing(tmp_path):
    own = look(make(tmp_path, *(f"train/walk/{index}.bvh" for index in range(7)), "test/walk/0.bvh", "test/bow/0.bvh"))
    assert own.classes == ("bow", "walk") and own.split == "folders"
    assert for_testing(own) == ["test/bow/0", "test/walk/0"]
    assert [file.label for file in own.files] == [0, 1] + [1] * 7


def test_with_a_folder_train_alone_clips_are_taken_from_it_for_testing(tmp_path):
    own = look(make(tmp_path, *(f"train/walk/{index}.bvh" for index in range(8, 18))))
    assert own.classes == ("walk",) and for_testing(own) == [f"train/walk/{index}" for index in (10, 12, 17)]


def test_clips_beside_train_and_test_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"every clip must be in one of them; bow/a\.bvh is not"):
        look(make(tmp_path, "train/walk/a.bvh", "bow/a.bvh"))


def test_what_is_in_no_class_folder_or_has_an_id_twice_is_left_out_by_name(tmp_path):
    own = look(make(tmp_path, "walk/a.bvh", "walk/a.txt", "stray.bvh"))
    left_out = {file.left_out.name: file.left_out for file in own.files if file.left_out}
    assert left_out["stray"].reason == "in no class folder"
    assert (
        left_out["walk/a.txt"].reason == "duplicate" and "walk/a.bvh has the same id" in left_out["walk/a.txt"].detail
    )
    assert sum(file.left_out is None for file in own.files) == 1


def test_hidden_files_and_folders_are_not_looked_at(tmp_path):
    own = look(make(tmp_path, "walk/a.bvh", "walk/._a.bvh", ".parts/walk/b.bvh"))
    assert [file.name for file in own.files] == ["walk/a"]


def test_a_link_back_to_a_folder_above_ends(tmp_path):
    make(tmp_path, "walk/a.bvh")
    (tmp_path / "walk" / "again").symlink_to(tmp_path)
    assert [file.name for file in look(tmp_path).files] == ["walk/a"]


@pytest.mark.parametrize("target", ["nowhere.bvh", "b.bvh", "a.bvh/x.bvh"], ids=["missing", "itself", "in a file"])
def test_a_link_to_nothing_is_left_out_and_the_others_are_read(tmp_path, target):
    write_text(tmp_path / "set" / "a.bvh", bvh_text())
    (tmp_path / "set" / "b.bvh").symlink_to(tmp_path / "set" / target)
    clips = prepare_reading(tmp_path / "out", bvh.reading(tmp_path / "set"))
    (left_out,) = read_left_out(clips.path)
    assert clips.clip_id.tolist() == ["a"]
    assert (left_out.name, left_out.reason) == ("b", "a link to nothing")
    assert f"set/{target}', where none is; mend or delete the link" in left_out.detail


def test_a_link_that_is_mended_changes_the_digest_and_is_read(tmp_path):
    make(tmp_path, "a.bvh")
    (tmp_path / "b.bvh").symlink_to(tmp_path / "later.pdf")
    before = look(tmp_path)
    make(tmp_path, "later.pdf")
    after = look(tmp_path)
    assert before.digest != after.digest
    assert [[file.name for file in own.files if not file.left_out] for own in (before, after)] == [["a"], ["a", "b"]]


def test_a_joints_json_that_links_to_nothing_is_refused(tmp_path):
    write_text(tmp_path / "a.bvh", bvh_text())
    (tmp_path / "joints.json").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"joints\.json: must be a file, it is a link to '.*nowhere', where none is"):
        bvh.reading(tmp_path)


def test_a_pipe_is_left_out_and_not_waited_for(tmp_path):
    write_text(tmp_path / "b.bvh", bvh_text())
    os.mkfifo(tmp_path / "a.bvh")
    reading = bvh.reading(tmp_path)
    (left_out,) = [item for item in reading.jobs[0].read() if isinstance(item, LeftOut)]
    assert (left_out.name, left_out.reason) == ("a", "not a file")


FAILURES = [
    OSError(errno.EIO, "Input/output error"),  # of reading: it has no file name
    OSError(errno.ESTALE, "Stale file handle"),
    PermissionError(errno.EACCES, "Permission denied", "somewhere"),
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: errno.errorcode[error.errno])
@pytest.mark.parametrize("kind", ["bvh", "json", "npz"])
def test_a_disk_that_fails_ends_the_preparation_and_it_goes_on_when_it_works_again(
    tmp_path, monkeypatch, failure, kind
):
    source = tmp_path / "set"
    for index in range(258):
        if kind == "bvh":
            write_text(source / f"{index:03d}.bvh", bvh_text())
        elif kind == "json":
            write_json(source / f"{index:03d}.json", mmpose_frames([[(POSE, np.ones(17))]]))
        else:
            write_keypoint_arrays(source / f"{index:03d}.npz", keypoints=POSE[None])
    reading = (bvh if kind == "bvh" else keypoints).reading(source)
    bad = source / f"257.{kind}"
    read_bytes, open_zip = Path.read_bytes, zipfile.ZipFile.__init__

    def fail_bytes(self):
        if self == bad:
            raise failure
        return read_bytes(self)

    def fail_zip(self, file, *args, **kwargs):
        if file == bad:
            raise failure
        open_zip(self, file, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail_bytes)
        patch.setattr(zipfile.ZipFile, "__init__", fail_zip)
        with pytest.raises(OSError, match="run the same command again") as caught:
            prepare_reading(tmp_path / "out", reading)
    assert caught.value.errno == failure.errno and caught.value.filename == str(bad)
    assert "\n" not in str(caught.value) and str(bad) in str(caught.value)
    assert not (tmp_path / "out").exists() and (tmp_path / ".out.parts" / "00000.json").exists()
    (source / f"000.{kind}").unlink()  # What the first job read is not read again.
    clips = prepare_reading(tmp_path / "out", reading)
    assert len(clips) == 258 and not clips.info.left_out


def test_a_disk_that_fails_at_the_first_file_is_no_fault_of_its_content(tmp_path):
    own = look(make(tmp_path, "a.bvh", "b.bvh"))

    def read(path):
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match=r"Input/output error; make the file readable.*a\.bvh"):
        own_motion.first_readable(own, read)


@pytest.mark.parametrize("place", ["", "keep/here"])
def test_a_set_prepared_inside_its_source_is_not_read_as_motion(tmp_path, place):
    source = tmp_path / "set"
    write_json(source / "walk" / "a.json", mmpose_frames([[(POSE, np.ones(17))]]))
    write_json(source / "walk" / "b.json", mmpose_frames([[(POSE, np.ones(17))]]))
    first = keypoints.reading(source)
    clips = prepare_reading(source / place / "keypoints", first)
    again = keypoints.reading(source)
    assert dict(again.info.recipe) == dict(first.info.recipe) and again.info.classes == ("walk",)
    expected = f"{place}/keypoints/".lstrip("/") + " is a prepared clip set, so it is not read"
    assert expected in again.notes and expected not in first.notes
    assert is_prepared(clips.path, again.info.recipe)
    with pytest.raises(ValueError, match=r"keypoints: is a prepared clip set; give the folder of the files"):
        keypoints.reading(clips.path)


def test_a_clip_of_ones_own_that_is_called_clips_json_is_read(tmp_path):
    write_json(tmp_path / "walk" / "clips.json", mmpose_frames([[(POSE, np.ones(17))]]))
    write_json(tmp_path / "walk" / "b.json", {"frames": mmpose_frames([[(POSE, np.ones(17))]]), "format": "mine"})
    assert [file.name for file in own_motion.look(tmp_path, (".json",)).files] == ["walk/b", "walk/clips"]


def test_a_name_that_is_no_text_is_left_out(tmp_path):
    make(tmp_path, "walk/a.bvh")
    place = os.fsencode(tmp_path) + b"/walk/\xff.bvh"
    with open(place, "wb"):
        pass
    (bad,) = [file for file in look(tmp_path).files if file.left_out]
    assert bad.left_out.name == r"walk/\udcff" and bad.left_out.reason == "unreadable"


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write_text(folder / "walk/a.bvh", "longer than before"),
        lambda folder: os.utime(folder / "walk/a.bvh", ns=(1, 1)),
        lambda folder: make(folder, "walk/c.bvh"),
        lambda folder: make(folder, "joints.json"),
        lambda folder: (folder / "walk/a.bvh").rename(folder / "walk/z.bvh"),
    ],
    ids=["size", "time", "more", "joints", "name"],
)
def test_the_digest_changes_with_the_files_and_not_with_their_place(tmp_path, change):
    folder = make(tmp_path / "one", "walk/a.bvh", "walk/b.bvh")
    before = look(folder).digest
    folder = folder.rename(tmp_path / "two")
    assert look(folder).digest == before
    make(folder, "walk/unrelated.pdf")
    assert look(folder).digest == before
    change(folder)
    assert look(folder).digest != before


@pytest.mark.parametrize("name", ["missing", "file.bvh"])
def test_what_is_no_folder_is_refused(tmp_path, name):
    write_text(tmp_path / "file.bvh", "")
    with pytest.raises(ValueError, match=r"must be a folder with \*\.bvh or \*\.txt in it"):
        look(tmp_path / name)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there must be \*\.bvh or \*\.txt in it.*there is none"):
        look(tmp_path)


def test_a_clip_that_another_rate_would_blow_up_is_left_out(tmp_path):
    write_text(tmp_path / "set" / "a.bvh", bvh_text(frame_time="0.001"))
    write_text(tmp_path / "set" / "b.bvh", bvh_text(frames=rest_frames(count=1002), frame_time="1"))
    clips = prepare_reading(tmp_path / "out", bvh.reading(tmp_path / "set"))
    assert clips.clip_id.tolist() == ["a"]
    # 1,001 seconds at 1,000 frames a second, and the first frame
    assert "at most 1000000 frames, got 1001001 when put from 1 to 1000" in read_left_out(clips.path)[0].detail


@pytest.mark.slow
def test_more_files_than_a_job_holds_are_parted_and_come_out_in_order(tmp_path):
    text = bvh_text()
    for index in range(258):
        write_text(tmp_path / "set" / f"{index:03d}.bvh", "no" if index == 256 else text)
    reading = bvh.reading(tmp_path / "set")
    assert [job.items for job in reading.jobs] == [256, 2]
    clips = prepare_reading(tmp_path / "out", reading, workers=2)
    assert clips.clip_id.tolist() == [f"{index:03d}" for index in range(258) if index != 256]
    assert [item.name for item in read_left_out(clips.path)] == ["256"]


def test_fps_counts_for_all_bvh_files_whatever_they_say(tmp_path):
    for name, frame_time in (("a", "0.01"), ("b", "0.05")):
        text = bvh_text(frames=rest_frames(count=7), frame_time=frame_time)
        write_text(tmp_path / "set" / f"{name}.bvh", text)
    reading = bvh.reading(tmp_path / "set", fps=60)
    clips = prepare_reading(tmp_path / "out", reading)
    assert clips.info.fps == 60 and clips.clip_length.tolist() == [7, 7]
    assert "60 frames per second, as --fps says of all" in reading.notes
