"""Names, classes and protocols of NTU RGB+D, against the published names and counts."""

import gzip

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ups_model.data.format.clip_set import without_leaks
from ups_model.data.format.writer import Track, write_clip_set
from ups_model.data.readers.ntu.bodies import Persons
from ups_model.data.readers.ntu.clips import named_clip, set_info
from ups_model.data.readers.ntu.names import (
    NTU60_CLASSES,
    NTU120_CLASSES,
    PUBLISHED_COUNTS,
    PUBLISHED_TOTAL,
    belongs,
    is_test,
    parse_name,
    read_missing,
    read_names,
)

PUBLISHED = {  # training and test sequences, as the papers and every code base count them
    ("ntu60", "xsub"): (40_091, 16_487),
    ("ntu60", "xview"): (37_646, 18_932),
    ("ntu120", "xsub"): (63_026, 50_919),
    ("ntu120", "xset"): (54_468, 59_477),
}


def _available(open_data, name):
    with gzip.open(open_data / "published" / f"{name}_available.txt.gz", "rt") as stream:
        return [parse_name(line.strip()) for line in stream]


@pytest.mark.open_data
@pytest.mark.parametrize("set_name", ["ntu60", "ntu120"])
def test_the_published_names_split_into_the_published_counts(open_data, set_name):
    names = _available(open_data, set_name)
    assert len(names) == PUBLISHED_TOTAL[set_name] and all(belongs(name, set_name) for name in names)
    for (of, protocol), counts in PUBLISHED.items():
        if of == set_name:
            tests = sum(is_test(name, set_name, protocol) for name in names)
            assert (len(names) - tests, tests) == counts == PUBLISHED_COUNTS[of][protocol]


@pytest.mark.slow
@pytest.mark.open_data
def test_ntu60_is_the_part_of_ntu120_with_its_setups_and_actions(open_data):
    inside = {name for name in _available(open_data, "ntu120") if belongs(name, "ntu60")}
    assert inside == set(_available(open_data, "ntu60"))


@pytest.mark.slow
@pytest.mark.open_data
def test_clip_sets_split_as_published_and_know_each_others_sequences(open_data, tmp_path):
    pose = np.ones((1, 25, 3), dtype=np.float32)
    sets = {}
    for set_name in ("ntu60", "ntu120"):
        clips = (named_clip(name, set_name, Persons((Track(pose),), 0, 0)) for name in _available(open_data, set_name))
        sets[set_name] = write_clip_set(tmp_path / set_name, set_info(set_name, {}), clips)
    splits = {(of, protocol): sets[of].split(0, protocol=protocol) for of, protocol in PUBLISHED}
    assert {key: (len(split.train), len(split.test)) for key, split in splits.items()} == PUBLISHED
    assert np.array_equal(sets["ntu60"].split(0).test, splits["ntu60", "xsub"].test)
    # NTU120's cross-setup training has even setups; NTU60's cross-subject test sequences in those must go.
    tasks = [(sets["ntu60"], splits["ntu60", "xsub"]), (sets["ntu120"], splits["ntu120", "xset"])]
    kept = without_leaks(tasks)[1].train
    tested = set(sets["ntu60"].clip_id[splits["ntu60", "xsub"].test].tolist())
    trained = set(sets["ntu120"].clip_id[splits["ntu120", "xset"].train].tolist())
    assert len(trained & tested) > 5000 and len(kept) == len(trained - tested)


@pytest.mark.open_data
def test_class_names_are_the_published_ones(open_data):
    published = (open_data / "published" / "ntu120_classes.txt").read_text("utf-8").splitlines()
    assert list(NTU120_CLASSES) == published and list(NTU60_CLASSES) == published[:60]


@pytest.mark.open_data
@pytest.mark.parametrize(("set_name", "count"), [("ntu60", 302), ("ntu120", 535)])
def test_the_published_missing_lists_are_read_with_and_without_headings(open_data, tmp_path, set_name, count):
    file = open_data / "published" / f"{set_name}_missing_skeletons.txt"
    names = read_missing(file)
    assert len(names) == count and "S001C002P005R002A008" in names
    headed = tmp_path / "headed.txt"
    headed.write_bytes(
        b"302 samples with missing skeletons\r\n\r\nName\r\n" + file.read_bytes().replace(b"\n", b"\r\n")
    )
    assert read_missing(headed) == names


def test_a_name_tells_setup_camera_performer_replication_and_action():
    name = parse_name("S017C003P020R002A059")
    assert (name.setup, name.camera, name.performer, name.replication, name.action) == (17, 3, 20, 2, 59)
    assert name.text == "S017C003P020R002A059"


def test_protocols_go_by_hand_picked_names():
    # Performer 1 trains in both sets, 3 tests in both, 45 exists in NTU120 alone and trains there.
    for text, set_name, protocol, expected in (
        ("S001C001P001R001A001", "ntu60", "xsub", False),
        ("S001C001P003R001A001", "ntu60", "xsub", True),
        ("S018C001P045R001A061", "ntu120", "xsub", False),
        ("S018C001P044R001A061", "ntu120", "xsub", True),
        ("S001C001P001R001A001", "ntu60", "xview", True),
        ("S001C002P001R001A001", "ntu60", "xview", False),
        ("S001C002P001R001A001", "ntu120", "xset", True),
        ("S002C001P003R001A001", "ntu120", "xset", False),
    ):
        assert is_test(parse_name(text), set_name, protocol) is expected, (text, set_name, protocol)


@pytest.mark.parametrize("text", ["", "S001", "S001C001P001R001A001.", "s001c001p001r001a001", "S001C001P001R001A1"])
def test_what_is_no_name_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="such as S001C002P003R001A050"):
        parse_name(text)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("S033C001P001R001A001", "setup must be in 1..32, got 33"),
        ("S001C004P001R001A001", "camera must be in 1..3, got 4"),
        ("S001C001P000R001A001", "performer must be in 1..106, got 0"),
        ("S001C001P001R003A001", "replication must be in 1..2, got 3"),
        ("S001C001P001R001A121", "action must be in 1..120, got 121"),
    ],
)
def test_numbers_that_ntu_does_not_have_are_refused(text, part):
    with pytest.raises(ValueError, match=part):
        parse_name(text)


def test_an_unknown_protocol_names_those_there_are():
    with pytest.raises(ValueError, match="ntu60 has the protocols xsub, xview, got 'xset2'"):
        is_test(parse_name("S001C001P001R001A001"), "ntu60", "xset2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"list.txt: must list names"),
        (b"only a heading\n", r"list.txt: must list names"),
        (b"S001C001P001R001A001\nS001C001P001R001\n", r"list.txt:2: names must be"),
        (b"S001C001P001R001A001\n\xff\xfe\n", r"list.txt:2: .*decode"),
    ],
)
def test_a_damaged_list_is_refused_with_its_line(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_missing(tmp_path / "list.txt")


@given(st.binary(max_size=80))
def test_any_list_is_read_or_refused(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("lists") / "list.txt"
    file.write_bytes(content)
    try:
        assert read_names(file)
    except ValueError as error:
        assert str(error).startswith(str(file))
