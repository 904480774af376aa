"""Pickles of data are read as pickle itself reads them; nothing that is in a pickle runs; damage is a ValueError."""

import io
import pickle
import re
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ups_model.data.readers.io.safe_pickle import load, read_object_array, shown

PLAIN = {
    "numbers": (1, -2.5, True, False, None, 2**70, 1 + 2j),
    "text": ["", "é", b"", b"\x00\xff", bytearray(b"ab")],
    "sets": [set(), {1, 2}, frozenset("ab")],
    "nested": [[[()]], {"a": {(1, "b"): OrderedDict(x=1)}}],
    "spans": (slice(1, None, 2), range(3, 9, 2)),
}
ARRAYS = {
    "big_endian": np.arange(6, dtype=">f4").reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "half": np.array([0.5, 1.5], dtype=np.float16),
    "empty": np.zeros((0, 3)),
    "flags": np.array([True, False]),
    "text": np.array(["ab", "é"]),
    "bytes": np.array([b"ab"]),
    "scalar": np.array(7, dtype=np.uint8),
    "objects": np.array([1, "x", None, np.arange(2)], dtype=object),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_as_pickle_reads_them(protocol):
    raw = pickle.dumps(PLAIN, protocol)
    loaded = load(io.BytesIO(raw), "file")
    assert loaded == pickle.loads(raw) and repr(loaded) == repr(PLAIN)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_keep_type_shape_order_and_content(protocol, name):
    array = ARRAYS[name]
    twice = load(io.BytesIO(pickle.dumps([array, array], protocol)), "file")
    assert twice[0] is twice[1] and type(twice[0]) is np.ndarray
    assert (twice[0].dtype, twice[0].shape, twice[0].flags.f_contiguous) == (
        array.dtype,
        array.shape,
        array.flags.f_contiguous,
    )
    assert twice[0].flags.writeable
    for got, expected in zip(twice[0].ravel(), array.ravel(), strict=True):
        assert np.array_equal(got, expected)


@pytest.mark.parametrize("protocol", range(6))
def test_numpy_scalars_keep_their_type(protocol):
    values = [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("ab")]
    loaded = load(io.BytesIO(pickle.dumps(values, protocol)), "file")
    assert loaded == values and [type(value) for value in loaded] == [type(value) for value in values]


def test_files_of_numpy_1_and_of_python_2_are_read():
    raw = pickle.dumps(np.arange(3, dtype="<i4"), 2)
    assert b"numpy._core.multiarray" in raw
    assert load(io.BytesIO(raw.replace(b"numpy._core", b"numpy.core")), "file").tolist() == [0, 1, 2]
    # As Python 2 wrote it: the dtype and the data are strings of bytes (opcode U), not unicode.
    python_2 = (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nq\x01K\x00\x85U\x01b\x87R"
        b"(K\x01K\x02\x85cnumpy\ndtype\nU\x02i2K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x04\x01\x00\xff\xfftb."
    )
    assert np.array_equal(pickle.loads(python_2, encoding="latin1"), np.array([1, -1], dtype=np.int16))
    loaded = load(io.BytesIO(python_2), "file")
    assert loaded.dtype == np.int16 and loaded.tolist() == [1, -1]


class Reduced:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def _attacks(target):
    """Pickles each of which makes the file `target` when `pickle.loads` reads it."""
    command = f"touch {target}"
    call = f"open({str(target)!r}, 'w')"
    text = command.encode()
    return {
        "reduce": pickle.dumps(Reduced(eval, (call,)), 2),
        "stack_global": pickle.dumps(Reduced(eval, (call,)), 4),
        "inst": b"(S" + repr(command).encode() + b"\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nX" + len(text).to_bytes(4, "little") + text + b"o.",
        "in_a_list_in_a_dict": pickle.dumps({"a": [np.zeros(3), Reduced(eval, (call,))]}, 5),
        "hidden_in_an_object_array": pickle.dumps(np.array([Reduced(eval, (call,))], dtype=object), 4),
        "popped_before_the_end": pickle.dumps(Reduced(eval, (call,)), 2)[:-1] + b"0N.",
        "by_the_memo": b"cbuiltins\neval\np0\n0g0\n(X" + len(call).to_bytes(4, "little") + call.encode() + b"tR.",
        "numpy_loader": pickle.dumps(Reduced(np.load, (str(target) + ".npy", None, True)), 2),
    }


@pytest.mark.parametrize("name", [name for name in _attacks("x") if name != "numpy_loader"])
def test_what_pickle_would_run_is_refused_and_does_not_run(tmp_path, name):
    target = tmp_path / "made"
    raw = _attacks(target)[name]
    pickle.loads(raw)
    assert target.exists(), "the attack must work where nothing guards against it"
    target.unlink()
    with pytest.raises(ValueError, match="arrays and plain values alone"):
        load(io.BytesIO(raw), "file.pkl")
    assert not target.exists()


def test_numpys_own_loader_that_would_unpickle_a_second_file_is_refused(tmp_path):
    raw = _attacks(tmp_path / "made")["numpy_loader"]
    with pytest.raises(ValueError, match=r"file.pkl: .*asks for numpy.*load \(byte \d+\); have the program"):
        load(io.BytesIO(raw), "file.pkl")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"cos\nsystem\n.", r"asks for os.system"),
        (b"cbuiltins\ngetattr\n.", r"asks for builtins.getattr"),
        (b"c__builtin__\neval\n.", r"asks for __builtin__.eval"),
        (b"cnumpy\nfromfile\n.", r"asks for numpy.fromfile"),
        (b"cnumpy.f2py.diagnose\nrun\n.", r"asks for numpy.f2py.diagnose.run"),
        (b"cnumpy.core.multiarray\n__builtins__\n.", "asks for numpy.core.multiarray.__builtins__"),
        (b"Pid\n.", "uses PERSID"),
        (b"NQ.", "uses BINPERSID"),
        (b"\x82\x01.", "uses EXT1"),
        (b"\x97.", "uses NEXT_BUFFER"),
        (b"cnumpy\nndarray\n(K\x02\x85t\x81.", "uses NEWOBJ"),
        (b"cbuiltins\nset\n)}\x92.", "uses NEWOBJ_EX"),
        (b"(cbuiltins\nset\no.", "uses OBJ"),
        (b"(ibuiltins\nset\n.", "uses INST"),
        (b"]2.", "uses DUP"),
        (b"ccollections\nOrderedDict\n)R}X\x05\x00\x00\x00itemsNsb.", "sets a OrderedDict's state"),
        (b"cbuiltins\nset\nN}X\x04\x00\x00\x00whatNs\x86b.", "sets a Global's state"),
        (b"cbuiltins\nset\n}X\x01\x00\x00\x00aNsb.", "sets a Global's state"),
        (b"]}X\x08\x00\x00\x00__init__Nsb.", "sets a list's state"),
        (b"]\x85]R.", "calls a"),
        (b"cnumpy\nndarray\nJ\xff\xff\xff\x7f\x85R.", "ndarray is not called as data are written"),
        (b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R.", "bytearray is not called as data are written"),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00rot\x86R.", "encode is not called as data are written"),
    ],
)
def test_opcodes_and_names_that_data_do_not_need_are_refused_by_name(raw, message):
    with pytest.raises(ValueError, match=f"^file.pkl: .*{message}"):
        load(io.BytesIO(raw), "file.pkl")


def _with_dtype_state(state):
    """An object array whose dtype's state is forged, its data given as bytes: numpy would take them for pointers."""
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R(K\x01K\x01\x85"
    return head + b"cnumpy\ndtype\nX\x02\x00\x00\x00O8K\x00K\x01\x87R(" + state + b"tb\x89C\x08ABCDEFGHtb."


@pytest.mark.parametrize(
    "state",
    [
        b"K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00",
        b"K\x03X\x01\x00\x00\x00|NNNK\x08K\x08K\x00",
        b"K\x03X\x01\x00\x00\x00|NN}K\x08K\x08K\x00",
    ],
)
def test_bytes_are_never_taken_for_objects_whatever_the_flags_say(state):
    with pytest.raises(ValueError, match=r"needs a list of 1 objects|a dtype with fields"):
        load(io.BytesIO(_with_dtype_state(state)), "file.pkl")


def test_an_array_that_claims_more_than_it_has_is_refused():
    raw = pickle.dumps(np.arange(4, dtype=np.uint8), 2)
    assert raw.count(b"K\x01K\x04\x85") == 1
    for shape in (b"K\x01K\x05\x85", b"K\x01J\xff\xff\xff\xff\x85", b"K\x01J\xff\xff\xff\x7f\x85"):
        with pytest.raises(ValueError, match=r"bytes, got 4|none below 0"):
            load(io.BytesIO(raw.replace(b"K\x01K\x04\x85", shape)), "file.pkl")


@pytest.mark.slow
def test_deep_nesting_is_read_or_refused_without_exhausting_the_stack():
    deep = 200_000
    assert isinstance(load(io.BytesIO(b"]" * deep + b"a" * (deep - 1) + b"."), "file"), list)
    with pytest.raises(ValueError, match="keys of dicts"):
        load(io.BytesIO(b"})" + b"\x85" * deep + b"Ns."), "file")


RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\nndarray\nK\x00\x85C\x01b\x87q\x01"
HUGE = b"\xff\xff\xff\xff\xff\xff\xff\x7f"
DEEP = 200_000


def _object_array(content):
    return b"h\x00h\x01R(K\x01K\x01\x85cnumpy\ndtype\nC\x02O8\x85R\x89" + content + b"tb"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"cbuiltins\nslice\nq\x000N" + b"q\x010h\x00h\x01NN\x87R" * DEEP + b".", "slice is not called as data are"),
        (RECONSTRUCT + b"00N" + (b"q\x030" + _object_array(b"]h\x03a")) * DEEP + b".", "must not hold object arrays"),
        (b"cbuiltins\nfrozenset\nq\x000)" + b"q\x010h\x00h\x01\x85\x85R" * DEEP + b".", "keys of dicts"),
    ],
    ids=["slices", "object_arrays", "frozensets"],
)
def test_nests_that_overflow_the_stack_when_hashed_or_freed_are_refused(raw, message):
    with pytest.raises(ValueError, match=message):
        load(io.BytesIO(raw), "file.pkl")


@pytest.mark.parametrize(
    "raw",
    [
        b"B" + HUGE[4:],
        b"\x8e" + HUGE,
        b"\x96" + HUGE,
        b"\x8d" + HUGE,
        b"X" + HUGE[4:],
        b"T" + HUGE[4:],
        b"\x8b" + HUGE[4:],
    ],
    ids=["BINBYTES", "BINBYTES8", "BYTEARRAY8", "BINUNICODE8", "BINUNICODE", "BINSTRING", "LONG4"],
)
@pytest.mark.parametrize("from_disk", [False, True])
def test_a_length_that_the_file_only_claims_takes_no_memory(tmp_path, raw, from_disk):
    (tmp_path / "file.pkl").write_bytes(raw + b"abc.")
    tracemalloc.start()
    with open(tmp_path / "file.pkl", "rb") as file, pytest.raises(ValueError, match="it ends early"):
        load(file if from_disk else io.BytesIO(raw + b"abc."), "file.pkl")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_memo_numbers_and_frames_take_no_memory_either():
    tracemalloc.start()
    assert load(io.BytesIO(b"\x80\x04\x95" + HUGE + b"]r\xff\xff\xff\x7fj\xff\xff\xff\x7f\x86."), "file") == ([], [])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


BODY = b"B" + (1 << 22).to_bytes(4, "little") + bytes(1 << 22)


@pytest.mark.parametrize(
    "raw",
    [
        b"cbuiltins\nbytearray\nq\x00" + BODY + b"\x85q\x010](" + b"h\x00h\x01R" * 100 + b"e.",
        RECONSTRUCT + b"cnumpy\ndtype\nC\x03>f4\x85Rq\x02" + BODY + b"q\x030]("
        + b"h\x00h\x01R(K\x01J\x00\x00\x10\x00\x85h\x02\x89h\x03tb" * 100 + b"e.",
    ],
    ids=["bytearrays", "arrays"],
)  # fmt: skip
def test_bytes_that_are_there_once_are_not_made_into_many_values(raw):
    with pytest.raises(ValueError, match="made into values again and again"):
        load(io.BytesIO(raw), "file.pkl")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"cbuiltins\nset\ncbuiltins\nrange\n(K\x00M\xff\xffK\x01tRR.", "arguments must be a tuple"),
        (b"cbuiltins\nrange\n(K\x00\x8a\x07\xff\xff\xff\xff\xff\xff\x0fK\x01tR.", "range is not called as data are"),
        (b"cbuiltins\nset\n\x8c\x03abc\x85R.", "keys of dicts"),
        (b"]K\x00Ns.", "only dicts have keys"),
        (b"](K\x00Nu.", "only dicts have keys"),
        (b"](K\x00\x90.", "only sets are added to"),
        (b"](K\x01d.", "zip"),
        (b"cnumpy\ndtype\nC\x02V8\x85R.", "arrays must be of numbers, text or objects"),
        (b"\x07", "byte 0x07 is no opcode"),
        (b"]].", "it ends in the middle"),
        (RECONSTRUCT + b"R.", "it ends in the middle"),
        (
            RECONSTRUCT + b"00h\x00h\x01Rq\x05(K\x01K\x01\x85cnumpy\ndtype\nC\x02O8\x85R\x89]h\x05atb.",
            "contains itself",
        ),
    ],
)
def test_other_abuse_of_what_data_need_is_refused(raw, message):
    with pytest.raises(ValueError, match=f"^file.pkl: not a whole pickle of plain data, .*{message}"):
        load(io.BytesIO(raw), "file.pkl")


def test_an_empty_array_of_a_shape_beyond_all_memory_is_refused():
    shape = b"(K\x00\x8a\x08" + HUGE + b"\x8a\x08" + HUGE + b"t"
    with pytest.raises(ValueError, match=r"^file.pkl: not a whole pickle"):
        load(io.BytesIO(RECONSTRUCT + b"R(K\x01" + shape + b"cnumpy\ndtype\nC\x02f4\x85R\x89C\x00tb."), "file.pkl")


def test_long_arrays_of_the_same_bytes_are_writable_and_short_ones_apart():
    for size, shared in ((5000, True), (100, False)):
        dtype = b"cnumpy\ndtype\nC\x02u1\x85Rq\x020B" + size.to_bytes(4, "little") + bytes(size) + b"q\x030"
        array = b"h\x00h\x01R(K\x01M" + size.to_bytes(2, "little") + b"\x85h\x02\x89h\x03tb"
        one, other = load(io.BytesIO(RECONSTRUCT + b"00" + dtype + array * 2 + b"\x86."), "file")
        assert one.flags.writeable and np.shares_memory(one, other) == shared


@pytest.mark.parametrize(
    "raw", [b"]" * DEEP + b"a" * (DEEP - 1) + b".", b"N" + b"q\x010]h\x01ah\x01a" * 60 + b"."], ids=["deep", "doubling"]
)
def test_values_without_a_bounded_text_are_shown_by_their_type(raw):
    assert shown(load(io.BytesIO(raw), "file")) == "list"
    assert [shown(value) for value in (None, 5, np.int64(5), "a" * 100)] == ["None", "5", "np.int64(5)", "'" + "a" * 59]


def _types(value):
    if isinstance(value, dict):
        return {dict}.union(*(_types(part) for pair in value.items() for part in pair))
    if isinstance(value, (list, tuple, set, frozenset)) or (isinstance(value, np.ndarray) and value.dtype == object):
        return {type(value)}.union(*map(_types, value.tolist() if isinstance(value, np.ndarray) else value))
    return {type(value)}


SAMPLE = pickle.dumps({"a": np.arange(4.0), "b": ["x", (1, 2.5)], "o": np.array([{}, 1], dtype=object)}, 4)


@given(st.integers(0, len(SAMPLE) - 1))
def test_a_truncated_pickle_is_refused(size):
    with pytest.raises(ValueError, match=r"^file: not a whole pickle"):
        load(io.BytesIO(SAMPLE[:size]), "file")


@pytest.mark.parametrize("protocol", [0, 2])
def test_a_pickle_that_ends_amid_a_name_is_called_truncated(protocol):
    raw = pickle.dumps(np.arange(3), protocol)
    for size in range(raw.index(b"multiarray"), raw.index(b"ndarray")):
        with pytest.raises(ValueError, match=r"^file: not a whole pickle of plain data, it ends early"):
            load(io.BytesIO(raw[:size]), "file")


@given(st.lists(st.tuples(st.integers(0, len(SAMPLE) - 1), st.integers(0, 255)), min_size=1, max_size=4))
def test_altered_bytes_give_data_or_a_value_error(changes):
    raw = bytearray(SAMPLE)
    for place, value in changes:
        raw[place] = value
    try:
        loaded = load(io.BytesIO(bytes(raw)), "file")
    except ValueError as error:
        assert str(error).startswith("file: ")
    else:
        assert all(kind.__module__ in ("builtins", "numpy", "collections") for kind in _types(loaded))


@given(st.binary(max_size=60))
def test_any_bytes_give_data_or_a_value_error(raw):
    try:
        load(io.BytesIO(raw), "file")
    except ValueError as error:
        assert str(error).startswith("file: ")


@pytest.mark.parametrize("protocol", range(2, 6))
def test_memory_is_at_most_one_and_a_half_times_the_file(tmp_path, protocol):
    file = tmp_path / "many.pkl"
    rng = np.random.default_rng(0)
    poses = [rng.normal(size=(2, 50, 25, 3)).astype(np.float32) for _ in range(1200)]
    with file.open("wb") as stream:
        pickle.dump(
            {"annotations": [{"frame_dir": f"S{row:06d}", "keypoint": pose} for row, pose in enumerate(poses)]},
            stream,
            protocol,
        )
    size = file.stat().st_size
    assert size > 35e6
    tracemalloc.start()
    with file.open("rb") as stream:
        loaded = load(stream, "many.pkl")["annotations"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.5 * size, f"{peak} bytes for a file of {size}"
    assert all(np.array_equal(item["keypoint"], pose) for item, pose in zip(loaded, poses, strict=True))


def test_object_members_of_an_npz_are_read_as_numpy_reads_them(tmp_path):
    file = tmp_path / "file.npz"
    nested = {"S1": {"Walking 1": np.arange(6, dtype=np.float32).reshape(1, 2, 3)}}
    rows = np.array([[1, 2], None, "x"], dtype=object)
    np.savez(file, positions=nested, rows=rows, numbers=np.arange(3))
    with np.load(file, allow_pickle=True) as archive:
        expected = archive["positions"].item()
    loaded = read_object_array(file, "positions")
    assert loaded.keys() == expected.keys() and np.array_equal(loaded["S1"]["Walking 1"], expected["S1"]["Walking 1"])
    assert read_object_array(file, "rows").tolist() == rows.tolist()
    with pytest.raises(ValueError, match=re.escape(f"{file}: has no member 'poses'")):
        read_object_array(file, "poses")
    with pytest.raises(ValueError, match=r"must hold objects of 0 or 1 dimensions, got int64 \[3\]"):
        read_object_array(file, "numbers")


def test_a_member_that_would_run_code_is_refused(tmp_path):
    file, target = tmp_path / "file.npz", tmp_path / "made"
    np.savez(file, positions=np.array([Reduced(eval, (f"open({str(target)!r}, 'w')",))], dtype=object))
    with pytest.raises(ValueError, match=r"file.npz\[positions\]: .*asks for builtins.eval"):
        read_object_array(file, "positions")
    assert not target.exists()


def test_a_member_whose_header_and_content_differ_is_refused(tmp_path):
    file = tmp_path / "file.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|O", "fortran_order": False, "shape": (2,)})
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("rows.npy", header.getvalue() + pickle.dumps(np.array([1], dtype=object)))
    with pytest.raises(ValueError, match=r"does not match its header \[2\]"):
        read_object_array(file, "rows")


@given(kept=st.floats(0, 0.999))
def test_a_truncated_npz_is_named(tmp_path_factory, kept):
    file = tmp_path_factory.mktemp("npz") / "file.npz"
    np.savez(file, positions={"S1": np.arange(50)})
    raw = file.read_bytes()
    file.write_bytes(raw[: int(kept * len(raw))])
    with pytest.raises(ValueError, match=r"file.npz"):
        read_object_array(file, "positions")
