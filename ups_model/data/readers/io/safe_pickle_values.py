"""What a pickle of data is made of beside literals and lists: arrays, dtypes, numpy scalars, sets and the like.

A part of `safe_pickle`. Messages show no value of unknown type: the text of nested ones has no bound.
"""

import math
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

_NUMPY_GLOBALS = {"multiarray": ("_reconstruct", "scalar"), "numeric": ("_frombuffer",)}
GLOBALS = {
    ("numpy", "ndarray"): "ndarray",
    ("numpy", "dtype"): "dtype",
    ("_codecs", "encode"): "encode",
    ("collections", "OrderedDict"): "OrderedDict",
    **{
        (f"numpy.{core}.{module}", name): name
        for core in ("core", "_core")  # numpy 1 and 2
        for module, names in _NUMPY_GLOBALS.items()
        for name in names
    },
    **{
        (module, name): name
        for module in ("builtins", "__builtin__")  # protocols below 3 write Python 2's name
        for name in ("set", "frozenset", "bytearray", "bytes", "complex", "slice", "range")
    },
    ("__builtin__", "xrange"): "range",
}
"""(module, name) as a pickle writes it -> what it stands for here. Nothing is imported."""

_DTYPE = re.compile(r"[<>|=]?(?:\?|b1|[iu][1248]|f[248]|c8|c16|[SU][1-9][0-9]{0,6}|O[48]?)")
_MAX_RANGE = 1 << 20
"""A range is a few bytes, but who goes through it makes all of its numbers."""
_MAX_COPIED_BYTES = 1000
"""Bytes up to this size are copied. Python shares the shortest, which must not change."""


@dataclass(frozen=True, slots=True)
class Global:
    """A name that a pickle asks for; stands for itself and does nothing."""

    what: str


class Dtype:
    """A dtype, whose byte order a later opcode may set."""

    __slots__ = ("dtype",)

    def __init__(self, spec: Any, *flags: Any) -> None:
        if isinstance(spec, bytes):
            spec = spec.decode("latin-1")
        if not isinstance(spec, str) or not _DTYPE.fullmatch(spec) or len(flags) > 2:
            got = f"the dtype {spec[:20]!r}" if isinstance(spec, str) else f"a {type(spec).__name__}"
            raise ValueError(f"arrays must be of numbers, text or objects, got {got}")
        self.dtype = np.dtype("O" if spec.endswith(("O4", "O8")) else spec)

    def set_state(self, state: Any) -> None:
        version, order, *inner, size, _align = state[:7]  # the rest are flags, which the type itself has
        if version not in (3, 4) or len(inner) != 3 or any(part is not None for part in inner):
            raise ValueError("arrays must be of plain types, got a dtype with fields")
        if size not in (-1, self.dtype.itemsize):
            raise ValueError(f"{self.dtype} has items of {self.dtype.itemsize} bytes, got another size")
        if (order := _text(order)) not in ("<", ">", "|", "="):
            raise ValueError("byte orders are < > | =, got another")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]  # one of two, see above


@dataclass(slots=True, eq=False)
class Unbuilt:
    """An array announced, of which the shape and the data come later."""

    array: np.ndarray | None = None


def build_array(shape: Any, dtype: Any, fortran: bool, raw: Any) -> np.ndarray:
    """A new array of `shape` from its bytes, or from a list of its objects. Raises ValueError where they do not fit."""
    if not isinstance(shape, tuple) or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("shapes must be tuples of counts, none below 0")
    if not isinstance(dtype, Dtype):
        raise ValueError("an array's dtype must be a dtype")
    order: Literal["F", "C"] = "F" if fortran else "C"
    count = math.prod(shape)
    if dtype.dtype == np.dtype(object):
        if not isinstance(raw, list) or len(raw) != count:
            raise ValueError(f"an object array of shape {list(shape)} needs a list of {count} objects")
        if any(isinstance(value, np.ndarray) and value.dtype == object for value in raw):
            raise ValueError("object arrays must not hold object arrays")  # freeing a deep nest overflows the stack
        flat = np.empty(count, dtype=object)
        for index, value in enumerate(raw):
            flat[index] = value
        return flat.reshape(shape, order=order)
    raw = _bytes(raw)
    if len(raw) != count * dtype.dtype.itemsize:
        raise ValueError(f"{dtype.dtype} {list(shape)} needs {count * dtype.dtype.itemsize} bytes, got {len(raw)}")
    if isinstance(raw, bytes) and len(raw) > _MAX_COPIED_BYTES and dtype.dtype.isnative:
        # All arguments are checked. The array lies in the bytes, which numpy alone can do and stay writable.
        array = np.ndarray(0, dtype.dtype)
        array.__setstate__((1, shape, dtype.dtype, fortran, raw))  # type: ignore[arg-type]  # takes Python's bool too
        return array
    array = np.frombuffer(raw, dtype=dtype.dtype, count=count).reshape(shape, order=order)
    return array if array.flags.writeable else array.copy(order="K")


def _bytes(raw: Any) -> bytes | bytearray:
    if isinstance(raw, str):  # a string of Python 2
        return raw.encode("latin-1")
    if not isinstance(raw, (bytes, bytearray)):
        raise ValueError(f"an array's data must be bytes, got {type(raw).__name__}")
    return raw


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _plain(key: Any, deep: bool = True) -> bool:
    """Whether a value may be a key: hashing tuples in tuples in tuples overflows the stack."""
    if isinstance(key, tuple) and deep:
        return all(_plain(part, deep=False) for part in key)
    return key is None or isinstance(key, (str, bytes, int, float, complex, np.generic))


def checked_keys(values: Any) -> list[Any]:
    """`values` as keys of a dict or members of a set. Raises ValueError for what cannot be one."""
    if not isinstance(values, (list, tuple)) or not all(map(_plain, values)):
        raise ValueError("keys of dicts and members of sets must be numbers, text or tuples of them")
    return list(values)


def call(what: str, args: Any) -> Any:
    """The value of one of the calls by which data are written. Everything is checked: a file may pass anything."""
    if not isinstance(args, tuple):
        raise ValueError("arguments must be a tuple")
    match what, args:
        case "_reconstruct", (Global(), (0,), b"b" | "b") if args[0].what == "ndarray":
            return Unbuilt()
        case "scalar", (Dtype(), raw) if args[0].dtype != np.dtype(object):
            return build_array((1,), args[0], False, raw)[0]
        case "_frombuffer", (raw, dtype, shape, "C" | "F" as order):
            if isinstance(dtype, Dtype) and dtype.dtype == np.dtype(object):
                raise ValueError("an object array has no bytes")
            return build_array(shape, dtype, order == "F", raw)
        case "dtype", (spec, *flags):
            return Dtype(spec, *flags)
        case "encode", (str() as text, "latin1" | "latin-1"):
            return text.encode("latin-1")
        case "OrderedDict", ():
            return OrderedDict()
        case "set", ():
            return set()
        case "set", (values,):
            return set(checked_keys(values))
        case "frozenset", (values,):
            return frozenset(checked_keys(values))
        case (("bytes" | "bytearray"), ()):
            return b"" if what == "bytes" else bytearray()
        case "bytearray", (bytes() as raw,):
            return bytearray(raw)
        case "bytearray", (str() as text, "latin1" | "latin-1"):
            return bytearray(text, "latin-1")
        case "complex", (float() as real, float() as imaginary):
            return complex(real, imaginary)
        case "slice", (start, stop, step) if all(part is None or isinstance(part, int) for part in args):
            return slice(start, stop, step)
        case "range", (int() as start, int() as stop, int() as step) if len(range(*args)) <= _MAX_RANGE:
            return range(start, stop, step)
    raise ValueError(f"{what} is not called as data are written")
