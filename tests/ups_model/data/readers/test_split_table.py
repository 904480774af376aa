"""splits.csv and subjects.csv beside files of one's own: classes, subjects and splits of every reader."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.writers_own import (
    bvh_text,
    mmpose_frames,
    person_2d,
    rest_frames,
    write_json,
    write_text,
)
from ups_model.data.prepare.runner import is_prepared, prepare_reading, read_left_out
from ups_model.data.readers.bvh import reader as bvh
from ups_model.data.readers.keypoints import reader as keypoints
from ups_model.data.readers.motion import reader as motion
from ups_model.data.readers.split_table import Row, read_tables
from ups_model.skeletons import get_skeleton

NAMES = ("a", "b", "deep/c", "d")
POSE = np.array(
    [[0, 0, 0.9], [-0.1, 0, 0.9], [-0.1, 0, 0.5], [-0.1, 0, 0.1], [0.1, 0, 0.9], [0.1, 0, 0.5], [0.1, 0, 0.1],
     [0, 0, 1.2], [0, 0, 1.45], [0, 0, 1.55], [0, 0, 1.7], [0.2, 0, 1.4], [0.2, 0, 1.1], [0.2, 0, 0.9],
     [-0.2, 0, 1.4], [-0.2, 0, 1.1], [-0.2, 0, 0.9]]
)  # fmt: skip


def bvh_file(file):
    write_text(file.with_suffix(".bvh"), bvh_text(frames=rest_frames(count=3)))


def json_file(file):
    write_json(file.with_suffix(".json"), mmpose_frames([[(pose, np.ones(17))] for pose in person_2d(3)]))


def npz_file(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(
        file.with_suffix(".npz"), positions=np.tile(POSE, (3, 1, 1)), joint_names=get_skeleton("h36m17").joint_names
    )


READERS = {"bvh": (bvh_file, bvh), "keypoints": (json_file, keypoints), "motion": (npz_file, motion)}


def prepared(folder, tables, reader="keypoints", names=NAMES):
    write, module = READERS[reader]
    for name in names:
        write(folder / "set" / name)
    for name, text in tables.items():
        write_text(folder / "set" / name, text)
    reading = module.reading(folder / "set")
    clips = prepare_reading(folder / "out", reading)
    clips.verify()
    return clips, reading


@pytest.mark.parametrize("reader", READERS)
def test_tables_tell_split_subject_and_class_for_every_reader(tmp_path, reader):
    rows = "clip,split,subject,label\na,train,7,wave\nb,test,12,kick\ndeep/c,Train,7,kick\nd,test,12,wave\n"
    clips, _ = prepared(tmp_path, {"splits.csv": rows}, reader)
    assert clips.clip_id.tolist() == ["a", "b", "d", "deep/c"]
    assert clips.split_test.tolist() == [False, True, True, False] and clips.subject.tolist() == [7, 12, 12, 7]
    assert clips.info.classes == ("kick", "wave") and clips.label.tolist() == [1, 0, 1, 0]
    assert clips.info.recipe["split"] == "tables"


def test_subjects_of_one_table_and_their_split_in_the_other_are_cross_subject(tmp_path):
    tables = {
        "subjects.csv": "clip,subject,label\na,Ann,x\nb,Bob,x\ndeep/c,Cid,y\nd,Bob,y\n",
        "splits.csv": "subject,split\nAnn,train\nBob,test\nCid,train\n",
    }
    clips, _ = prepared(tmp_path, tables)
    assert clips.split_test.tolist() == [False, True, True, False] and clips.subject.tolist() == [1, 2, 2, 3]


def test_whole_subjects_are_for_testing_where_no_split_is_told(tmp_path):
    rows = "clip,subject\n" + "".join(f"{name},{number}\n" for number, name in enumerate("abcdefgh"))
    clips, reading = prepared(tmp_path, {"subjects.csv": rows + "i,0\nj,1\n"}, names="abcdefghij")
    for subject in range(8):
        assert len(set(clips.split_test[clips.subject == subject].tolist())) == 1
    assert 0 < clips.split_test.sum() < len(clips)
    assert clips.info.recipe["split"] == "sha256 of the subject"
    assert any("about one subject in 5 is for testing, by the sha256" in note for note in reading.notes)


def test_a_subject_more_moves_no_other_one_to_the_other_side(tmp_path):
    people = ["Bob", "Cid", "Dan", "Eve", "Fay", "Gus", "Hal", "Ida", "12", "Kim"]

    def tested(folder, subjects):
        names = [f"clip{subject}" for subject in subjects]
        rows = "clip,subject\n" + "".join(f"clip{subject},{subject}\n" for subject in subjects)
        clips, _ = prepared(folder, {"subjects.csv": rows}, names=names)
        return set(clips.clip_id[clips.split_test].tolist())

    before = tested(tmp_path / "before", people)
    after = tested(tmp_path / "after", ["Aaa", *people, "Jon"])
    assert before and after - {"clipAaa", "clipJon"} == before
    alone = tested(tmp_path / "numbers", ["12", "7", "3", "4", "5", "6"])
    assert ("clip12" in alone) == ("clip12" in before)  # What number it is doesn't depend on the others.


def test_a_table_counts_more_than_the_folders(tmp_path):
    rows = "clip,split,label\ntrain/wave/a,test,\ntest/wave/b,,bow\n"
    clips, _ = prepared(tmp_path, {"splits.csv": rows}, names=("train/wave/a", "train/wave/c", "test/wave/b"))
    assert clips.clip_id.tolist() == ["test/wave/b", "train/wave/a", "train/wave/c"]
    assert clips.split_test.tolist() == [True, True, False]
    assert [clips.info.classes[label] for label in clips.label] == ["bow", "wave", "wave"]


def test_clips_in_no_row_are_left_out_and_rows_of_no_clip_are_told(tmp_path):
    rows = "clip,split\na,train\nb,test\nnowhere,test\n"
    clips, reading = prepared(tmp_path, {"splits.csv": rows}, names="abcd")
    assert clips.clip_id.tolist() == ["a", "b"]
    left_out = {item.name: item.reason for item in read_left_out(clips.path)}
    assert left_out == {"c": "in no split", "d": "in no split"}
    told = "splits.csv and subjects.csv: no clip here for 1 row, the first of 'nowhere'"
    assert any(told in note for note in reading.notes)


def test_a_changed_table_makes_the_set_anew(tmp_path):
    clips, _ = prepared(tmp_path, {"splits.csv": "clip,split\na,train\nb,test\ndeep/c,test\nd,test\n"})
    write_text(tmp_path / "set" / "splits.csv", "clip,split\na,test\nb,train\ndeep/c,test\nd,test\n")
    assert not is_prepared(clips.path, keypoints.reading(tmp_path / "set").info.recipe)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"splits\.csv:1: columns must be clip and any of split, subject and label, .* got ''"),
        ("clip\na\n", r":1: columns must be"),
        ("clip,fold\na,1\n", r":1: columns must be .* got 'clip, fold'"),
        ("label,split\na,1\n", r":1: columns must be"),
        ("clip,split\na,dev\n", r":2: split must be train or test, got 'dev'"),
        ("clip,split\na,train\na,test\n", r":3: clip must stand in one row, got 'a' again or nothing"),
        ("clip,split\n,train\n", r":2: clip must stand in one row, got '' again or nothing"),
        ("clip,split\na\n", r":2: must have 2 columns as line 1, got 1"),
        ("subject,split\n3,\n", r":2: split must be train or test, got nothing"),
        (b"clip,split\n\xff,train\n", r"splits\.csv: must be a table in UTF-8 with commas"),
    ],
)
def test_a_table_that_breaks_a_rule_is_refused_with_its_line(tmp_path, text, message):
    write_text(tmp_path / "splits.csv", text)
    json_file(tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        keypoints.reading(tmp_path)


def test_a_table_as_spreadsheets_save_it_is_read(tmp_path):
    write_text(tmp_path / "splits.csv", '\ufeffClip,Split\r\n"a, b",train\r\n,\r\nc,testing\r\n')
    tables = read_tables(tmp_path)
    assert {name: row.test for name, row in tables.clips.items()} == {"a, b": False, "c": True}


@pytest.mark.parametrize(
    ("splits", "subjects", "message"),
    [
        ("clip,split\na,train\n", "clip,subject,split\nb,Ann,test\na,Ann,test\n",
         r"subjects\.csv:3: the split of clip 'a' must be told alike, got 'test' and in .*splits\.csv:2 'train'; mend"),
        ("clip,split,subject\na,train,Ann\n", "clip,subject\na,Bob\n",
         r"subjects\.csv:2: the subject of clip 'a' must be told alike, got 'Bob' and in .*splits\.csv:2 'Ann'"),
        ("clip,label\na,wave\n", "clip,subject,label\na,7,kick\n", "the label of clip 'a' .* 'kick' and in .* 'wave'"),
        ("subject,split\nAnn,train\n", "clip,subject,split\na,Ann,test\n",
         r"splits\.csv:2: the split of clip 'a' must be told alike, got 'train' and in .*subjects\.csv:2 'test'"),
        ("subject,split\nAnn,train\n", "subject,split\nAnn,test\n", "split of subject 'Ann' .* 'test' .* 'train'"),
    ],
)  # fmt: skip
def test_tables_that_contradict_each_other_are_refused_with_both_lines(tmp_path, splits, subjects, message):
    write_text(tmp_path / "splits.csv", splits)
    write_text(tmp_path / "subjects.csv", subjects)
    with pytest.raises(ValueError, match=message):
        read_tables(tmp_path)


def test_tables_that_tell_the_same_twice_are_read(tmp_path):
    write_text(tmp_path / "splits.csv", "clip,split,subject\na,train,Ann\n")
    write_text(tmp_path / "subjects.csv", "clip,split,subject,label\na,Training,Ann,wave\n")
    assert read_tables(tmp_path).row("a") == Row(False, "Ann", "wave")


@pytest.mark.parametrize(("separator", "name"), [(";", "semicolons"), ("\t", "tabs")])
def test_a_table_of_another_separator_is_refused_with_what_to_write(tmp_path, separator, name):
    message = rf"{{}}:1: columns must be separated by commas, got {name}; save it again so"
    write_text(tmp_path / "splits.csv", f"clip{separator}split\na{separator}train\n")
    with pytest.raises(ValueError, match=message.format(r"splits\.csv")):
        read_tables(tmp_path)
    for module, names in ((keypoints, ["x_0", "y_0"]), (motion, ["head_x", "head_y", "head_z"])):
        file = write_text(tmp_path / "a.csv", f"{separator.join(names)}\n{separator.join('1' for _ in names)}\n")
        with pytest.raises(ValueError, match=message.format(r"a\.csv")):
            module.read_recording(file)


@pytest.mark.parametrize(("written", "row"), [("deep/c.json", "deep/c.json"), ("deep\\c", "deep\\\\c"), ("x", "x")])
def test_a_table_whose_clips_are_not_ids_is_refused_with_one_beside_the_id(tmp_path, written, row):
    write_text(tmp_path / "splits.csv", f"clip,split\n{written},train\n")
    json_file(tmp_path / "deep" / "c")
    with pytest.raises(ValueError) as error:
        keypoints.reading(tmp_path)
    assert f"its id is 'deep/c', a path without suffix, but a table has '{row}'; write it so" in str(error.value)


CELLS = st.sampled_from(
    ["clip", "split", "subject", "label", "a", "b", "train", "test", "dev", "7", "", '"', "\x00", "é"]
)


@settings(max_examples=300)
@given(rows=st.lists(st.lists(CELLS, max_size=4), max_size=5), raw=st.binary(max_size=9))
def test_any_table_is_refused_by_its_name_or_read(tmp_path_factory, rows, raw):
    folder = tmp_path_factory.mktemp("tables")
    write_text(folder / "splits.csv", "\n".join(",".join(row) for row in rows).encode() + raw)
    try:
        tables = read_tables(folder)
    except ValueError as error:
        assert str(folder / "splits.csv") in str(error)
        return
    assert tables.clips or tables.subjects or len([row for row in rows if any(row)]) < 2
