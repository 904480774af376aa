"""Raw .skeleton files: the same coordinates back, whatever the spacing; damage is a ValueError with its line."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.writers_ntu import one_body, skeleton_text, standing, write_skeleton
from ups_model.data.readers.ntu.skeleton_file import read_skeleton

IDS = ("72057594037931101", "72057594037931102")  # equal as floats


def _written(text):
    """Coordinates as the file has them, by plain Python: [(frame, id, [[x, y, z], ...]), ...]."""
    lines = iter(text.split("\n"))
    bodies = []
    for frame in range(int(next(lines))):
        for _ in range(int(next(lines))):
            body = next(lines).split()[0]
            joints = [next(lines).split()[:3] for _ in range(int(next(lines)))]
            bodies.append((frame, body, [[float(value) for value in joint] for joint in joints]))
    return bodies


@pytest.fixture
def file(tmp_path):
    return tmp_path / "S001C001P001R001A001.skeleton"


def test_bodies_come_and_go_and_keep_frames_and_coordinates(file):
    a, b = standing(6, seed=1), standing(6, seed=2)
    frames = [[], [(IDS[0], a[1])], [(IDS[0], a[2]), (IDS[1], b[2])], [], [(IDS[1], b[4]), (IDS[0], a[4])], []]
    recording = read_skeleton(write_skeleton(file, frames))
    assert recording.length == 6 and list(recording.bodies) == list(IDS)
    assert recording.bodies[IDS[0]].frames_N.tolist() == [1, 2, 4]
    assert recording.bodies[IDS[1]].frames_N.tolist() == [2, 4]
    for frame, body, joints in _written(skeleton_text(frames)):
        place = recording.bodies[body].frames_N.tolist().index(frame)
        assert np.array_equal(recording.bodies[body].joints_NJ3[place], np.array(joints, dtype=np.float32))


def test_numbers_are_parsed_as_python_parses_them(file):
    joints = np.array([[1e-7, -3.25e-5, 12.5], [0, -0.0, 99.999]] * 12 + [[0.1, 0.2, 0.3]])[None]
    text = skeleton_text(one_body(joints), digits=17)
    file.write_text(text)
    (body,) = read_skeleton(file).bodies.values()
    assert "e-0" in text and np.array_equal(body.joints_NJ3, joints.astype(np.float32))


NUMBERS = st.one_of(
    st.from_regex(r"-?[0-9]\.[0-9]{1,16}", fullmatch=True),
    st.floats(-9.9, 9.9, allow_nan=False).map(lambda value: f"{value:.7g}"),
    st.floats(-99, 99, allow_nan=False).map(repr),
    st.sampled_from(["+1.5", "1e-3", "2", "00.25", ".5", "-5.", "1.25E1", "-0.0"]),
)
ANYTHING = st.from_regex(r"[-+0-9.e_:/nainf\x00\x80]{1,18}", fullmatch=True)
FLOAT = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?(nan|inf)")


@given(
    st.lists(st.tuples(NUMBERS, NUMBERS, NUMBERS), min_size=1, max_size=25),
    st.lists(st.tuples(NUMBERS, NUMBERS | ANYTHING, NUMBERS), max_size=2),
)
def test_coordinates_equal_pythons_floats_bit_for_bit_and_other_forms_are_refused(tmp_path_factory, texts, more):
    texts = (texts + more)[:25]
    file = tmp_path_factory.mktemp("raw") / "a.skeleton"
    lines = skeleton_text(one_body(standing(1))).split("\n")
    for number, xyz in enumerate(texts, start=4):
        lines[number] = " ".join([*xyz, *lines[number].split()[3:]])
    file.write_bytes("\n".join(lines).encode("latin-1"))
    odd = [line for line, xyz in enumerate(texts, start=5) if not all(map(FLOAT.fullmatch, xyz))]
    far = [] if odd else [line for line, xyz in enumerate(texts, start=5) if not _within(xyz)]
    if odd or far:
        rule = "must be numbers" if odd else "must be finite and within 100 m"
        with pytest.raises(ValueError, match=rf"a\.skeleton:{(odd or far)[0]}: coordinates {rule}"):
            read_skeleton(file)
    else:
        (body,) = read_skeleton(file).bodies.values()
        exact = np.array([[float(text) for text in xyz] for xyz in texts]).astype(np.float32)
        assert body.joints_NJ3[0, : len(texts)].tobytes() == exact.tobytes()


def _within(xyz):
    return all(abs(float(text)) <= 100 for text in xyz)


def test_odd_numbers_among_plain_ones_are_read_in_their_place(file):
    text = skeleton_text(one_body(standing(4)))
    lines = text.split("\n")
    for number, xyz in ((5, "+1.5 1e-3 2"), (7, "-0.0 00.25 10.125"), (62, ".5 -5. 1.25E1"), (80, "0.1 -0.2 1.0e0")):
        lines[number - 1] = " ".join([xyz, *lines[number - 1].split()[3:]])
    file.write_text("\n".join(lines))
    (body,) = read_skeleton(file).bodies.values()
    exact = np.array([joints for _, _, joints in _written("\n".join(lines))], dtype=np.float32)
    assert (
        body.joints_NJ3[0, 0].tolist() == [1.5, np.float32(0.001), 2] and body.joints_NJ3.tobytes() == exact.tobytes()
    )


LENGTHS = st.one_of(st.integers(1, 6), st.integers(20, 140))


@pytest.mark.slow
@given(st.lists(st.tuples(LENGTHS, st.permutations("abc"), st.integers(0, 3)), min_size=1, max_size=6))
def test_long_runs_of_the_same_bodies_and_every_change_between_them_are_kept(tmp_path_factory, runs):
    pose = standing(1)[0]
    frames = []
    for length, order, bodies in runs:
        for _ in range(length):
            at = len(frames) / 1000
            frames.append([(str(ord(name)), pose + at + index) for index, name in enumerate(order[:bodies])])
    file = write_skeleton(tmp_path_factory.mktemp("raw") / "a.skeleton", frames)
    recording = read_skeleton(file)
    expected = {}
    for frame, body, joints in _written(file.read_text()):
        expected.setdefault(body, []).append((frame, joints))
    assert recording.length == len(frames) and list(recording.bodies) == list(expected)
    for name, body in recording.bodies.items():
        assert body.frames_N.tolist() == [frame for frame, _ in expected[name]]
        assert np.array_equal(body.joints_NJ3, np.array([joints for _, joints in expected[name]], dtype=np.float32))


# Line 1 frames; then 28 lines a frame: the count of bodies, the body, the count of joints, 25 joints.
@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (2 + 28 * 150, "2", ":4230: a body's line must have 10 fields, got 1"),
        (3 + 28 * 150, "7205 0", ":4203: a body's line must have 10 fields, got 2"),
        (3 + 28 * 150, "7205x 0 0 0 0 0 0 0 0 0", ":4203: a body's id must be a number"),
        (4 + 28 * 150, "26", ":4204: bodies must have 25 joints, got '26'"),
        (4 + 28 * 150, "25 ", None),
        (5 + 28 * 150, "0 0 0", ":4205: a joint's line must have 12 fields, got 3"),
        (5 + 28 * 150, "0 x 0 0 0 0 0 0 0 0 0 0", ":4205: coordinates must be numbers, got '0 x 0"),
        (5 + 28 * 150, "0 0 1e3 0 0 0 0 0 0 0 0 0", ":4205: coordinates must be finite and within 100 m"),
    ],
)
def test_a_fault_amid_two_hundred_equal_frames_is_refused_with_its_line(file, number, change, message):
    file.write_text(_line(skeleton_text(one_body(standing(200))), number, change))
    if message is None:
        assert len(read_skeleton(file).bodies[IDS[0]].frames_N) == 200
    else:
        with pytest.raises(ValueError, match=f"{file.name}{message}"):
            read_skeleton(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text + "\n \n\n",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace(" 277.4281", "  277.4281"),
        lambda text: text.replace("\n", " \n"),
        lambda text: text.replace(" ", "\t"),
        lambda text: text.replace("\n", "\n  "),
        lambda text: " " + text,
    ],
    ids=[
        "crlf",
        "blank_lines_after",
        "no_last_newline",
        "two_spaces",
        "spaces_at_the_end",
        "tabs",
        "indented",
        "indented_start",
    ],
)
def test_spacing_does_not_matter(file, change):
    text = skeleton_text(one_body(standing(3)))
    file.write_text(text)
    plain = read_skeleton(file)
    file.write_bytes(change(text).encode())
    assert file.read_bytes() != text.encode()
    changed = read_skeleton(file)
    assert changed.length == plain.length == 3 and changed.bodies.keys() == plain.bodies.keys()
    for body, other in zip(plain.bodies.values(), changed.bodies.values(), strict=True):
        assert np.array_equal(body.joints_NJ3, other.joints_NJ3)


def test_a_recording_without_any_body_has_none(file):
    assert read_skeleton(write_skeleton(file, [[], [], []])).bodies == {}
    file.write_text("0\n")
    assert read_skeleton(file).length == 0


def _line(text, number, replacement):
    lines = text.split("\n")
    lines[number - 1] = replacement(lines[number - 1]) if callable(replacement) else replacement
    return "\n".join(lines)


# Three frames of one body: line 1 frames, 2 bodies, 3 the body, 4 its joints' count, 5..29 joints, 30 bodies, ...
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", r":?: must have a number of frames on its first line, is empty"),
        (lambda text: _line(text, 1, "3 frames"), ":1: must be a number of frames, got '3 frames'"),
        (lambda text: _line(text, 1, "-3"), ":1: must be a number of frames, got '-3'"),
        (lambda text: _line(text, 1, "3.0"), ":1: must be a number of frames"),
        (lambda text: _line(text, 1, "4"), ":86: ends at frame 3 of 4"),
        (lambda text: _line(text, 1, "1000000000"), ":1: must be a number of frames"),
        (lambda text: _line(text, 1, "999999999"), ":1: 999999999 frames need as many lines, got 84"),
        (lambda text: _line(text, 1, "2"), ":58: 2 frames end here, but 28 lines follow"),
        (lambda text: _line(text, 30, "1000000000"), ":30: must be a number of bodies"),
        (lambda text: _line(text, 30, "100000000"), ":30: 100000000 bodies need 2700000000 lines, 55 are left"),
        (lambda text: _line(text, 30, "-1"), ":30: must be a number of bodies, got '-1'"),
        (lambda text: _line(text, 30, "0"), ":31: must be a number of bodies"),
        (lambda text: _line(text, 31, lambda line: line + " 1"), ":31: a body's line must have 10 fields, got 11"),
        (lambda text: _line(text, 31, lambda line: "x" + line[1:]), ":31: a body's id must be a number, got 'x2"),
        (lambda text: _line(text, 32, "24"), ":32: bodies must have 25 joints, got '24'"),
        (lambda text: _line(text, 40, lambda line: line + " 1"), ":40: a joint's line must have 12 fields, got 13"),
        (lambda text: _line(text, 40, lambda line: line[:-2]), ":40: a joint's line must have 12 fields, got 11"),
        (lambda text: _line(text, 40, lambda line: line[:-2].replace(" ", "  ", 1)), ":40: .* 12 fields, got 11"),
        (lambda text: _line(text, 40, lambda line: "nan" + line[line.index(" ") :]), ":40: coordinates must be finite"),
        (lambda text: _line(text, 40, lambda line: "-inf" + line[line.index(" ") :]), ":40: coordinates must be fin"),
        (lambda text: _line(text, 40, lambda line: "1e30" + line[line.index(" ") :]), ":40: .* within 100 m"),
        (
            lambda text: _line(text, 40, lambda line: "1_0" + line[line.index(" ") :]),
            ":40: coordinates must be numbers",
        ),
        (
            lambda text: _line(text, 40, lambda line: "0,1" + line[line.index(" ") :]),
            ":40: coordinates must be numbers",
        ),
        (lambda text: _line(text, 40, lambda line: "\0".join(line.rsplit(" ", 1))), ":40: .* 12 fields, got 11"),
        (lambda text: _line(text, 40, ""), ":40: a joint's line must have 12 fields, got 0"),
        (lambda text: text + "more\n", ":86: 3 frames end here, but 1 lines follow"),
    ],
)
def test_what_breaks_the_format_is_refused_with_its_line(file, change, message):
    text = skeleton_text(one_body(standing(3)))
    assert text.count("\n") == 85
    file.write_text(change(text))
    with pytest.raises(ValueError, match=f"{file.name}{message}"):
        read_skeleton(file)


def test_a_body_twice_in_a_frame_and_bytes_that_are_no_text_are_refused(file):
    pose = standing(1)[0]
    with pytest.raises(ValueError, match=rf":30: body '{IDS[0]}' is twice in frame 0"):
        read_skeleton(write_skeleton(file, [[(IDS[0], pose), (IDS[0], pose)]]))
    raw = skeleton_text(one_body(standing(2))).encode()
    file.write_bytes(raw.replace(b"72057594037931101", b"7205759403793110\xff", 1))
    with pytest.raises(ValueError, match=r":3: a body's id must be a number, got '7205759403793110\\\\xff'"):
        read_skeleton(file)


RAW = skeleton_text([[], *one_body(standing(2)), [(IDS[0], standing(1)[0]), (IDS[1], standing(1)[0])]]).encode()


@given(st.integers(0, len(RAW) - 30))
def test_a_truncated_file_is_refused(tmp_path_factory, size):
    file = tmp_path_factory.mktemp("raw") / "a.skeleton"
    file.write_bytes(RAW[:size])
    with pytest.raises(ValueError, match=r"a\.skeleton:"):
        read_skeleton(file)


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(RAW) - 1),
            st.sampled_from([b"\n", b" ", b"-", b"9999", b"nan", b"1e99", b"\xff", b"\x00", b".", b"300 frames"]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_altered_files_are_refused_or_read_with_finite_coordinates(tmp_path_factory, changes):
    file = tmp_path_factory.mktemp("raw") / "a.skeleton"
    raw = RAW
    for place, text in changes:
        raw = raw[:place] + text + raw[place + len(text) :]
    file.write_bytes(raw)
    try:
        recording = read_skeleton(file)
    except ValueError as error:
        assert str(error).startswith(f"{file}:")
    else:
        for body in recording.bodies.values():
            assert np.abs(body.joints_NJ3).max() <= 100 and body.joints_NJ3.shape == (len(body.frames_N), 25, 3)
            assert body.frames_N.max() < recording.length
