"""Pickles of arrays and plain values, read without running anything that is in them.

`pickle.load` calls whatever callable a file names, and numpy's own `__setstate__` takes flags from the file that decide
whether its bytes are pointers. So nothing is imported: a name stands for itself, the few calls by which arrays, dtypes,
numpy scalars, sets and the like are written are done in `safe_pickle_values`, their arguments checked, and everything
else is refused by its name. Protocols 0 to 5, numpy 1 and 2.

`pickle.Unpickler` with a strict `find_class` is not enough: its C code hashes keys of any depth, which overflows the
stack and ends the process, allocates whatever a length or a memo index says, takes objects from the registry of
extensions unasked, and its BUILD sets attributes of any object. Its twin in Python has a method for each opcode.
"""

import pickle
import pickletools
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ups_model.data.format.rules import DAMAGED
from ups_model.data.readers.io import safe_pickle_values
from ups_model.data.readers.io.files import read_npy_header

_RULE = "a pickle may hold arrays and plain values alone"
_WAY_OUT = "have the program that wrote it save arrays, lists, dicts, numbers and text alone"

_DAMAGED_MEMBER: tuple[type[Exception], ...] = (
    *DAMAGED,
    pickle.UnpicklingError,
    IndexError,
    AttributeError,
    MemoryError,
    BufferError,
)
_DAMAGED: tuple[type[Exception], ...] = tuple(kind for kind in _DAMAGED_MEMBER if kind is not OSError)
_BLOCK = 1 << 20
_MAX_MADE_RATIO, _MADE_FREE_BYTES = 8, 1 << 24
"""Calls make at most `_MAX_MADE_RATIO` bytes of values for each byte read, beside the first ones; arrays need two."""

_OPCODES = """PROTO FRAME STOP MARK POP POP_MARK PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8
EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST LIST APPEND APPENDS
EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET FROZENSET ADDITEMS GLOBAL STACK_GLOBAL REDUCE BUILD"""
"""The opcodes that data need. The others make instances, or refer to what is outside of the file."""


def load(stream: IO[bytes], name: str) -> Any:
    """The object that a pickle holds: numpy arrays and builtins alone, whatever the file asks for.

    Memory is at most about 1.5 times the file's size, most of it the arrays. They are writable; long ones that the file
    makes of the same bytes share them. Text of Python 2 is decoded as latin-1. ValueError, which begins with `name`,
    where it is damaged or truncated, or asks for anything but arrays and plain values.

    `stream` is at the pickle's first byte, and is read up to its end, which may come before the file's.
    """
    try:
        return _Unpickler(stream).load()
    except _Refused as refused:
        raise ValueError(f"{name}: {_RULE}, it {refused} (byte {stream.tell()}); {_WAY_OUT}") from refused
    except _DAMAGED as error:
        what = str(error) or type(error).__name__
        raise ValueError(
            f"{name}: not a whole pickle of plain data, {what:.200} (byte {stream.tell()}); get the file again"
        ) from error


def shown(value: Any) -> str:
    """For messages: numbers and text, dtype and shape of arrays; of others the type, as nested text has no bound."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return f"{value!r:.60}" if isinstance(value, (str, int, float, np.number, type(None))) else type(value).__name__


def read_object_array(npz_path: str | Path, member: str) -> Any:
    """An object member of an .npz file: the one object of a 0-d member, an object array [n] of a 1-d one. ValueError
    names the file: no such file or member, damaged, not of object type, or asking for more than data."""
    name = f"{npz_path}[{member}]"
    try:
        with zipfile.ZipFile(npz_path) as archive, archive.open(f"{member}.npy") as stream:
            shape, _, dtype = read_npy_header(stream)
            if dtype != np.dtype(object) or len(shape) > 1:
                raise ValueError(f"it must hold objects of 0 or 1 dimensions, got {dtype} {list(shape)}")
            array = load(stream, name)
    except KeyError as error:
        raise ValueError(f"{npz_path}: has no member {member!r}; is it another file?") from error
    except _DAMAGED_MEMBER as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: not a whole .npz member of objects ({error!s:.200}); get the file again") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name}: its content does not match its header {list(shape)}; get the file again")
    return array.item() if shape == () else array


class _Refused(Exception):
    """What a pickle does that is no data: "calls a list"."""


class _Source:
    """A stream that gives all the bytes asked for or fails, and allocates for no more than it has."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.taken = 0

    def read(self, size: int) -> bytes:
        if size <= _BLOCK:
            data = self._stream.read(size)
        else:  # a buffered file allocates `size` bytes before it reads
            blocks, left = [], size
            while left and (block := self._stream.read(min(left, _BLOCK))):
                blocks.append(block)
                left -= len(block)
            data = b"".join(blocks)
        if len(data) < size:
            raise EOFError("it ends early")
        self.taken += size
        return data

    def readline(self) -> bytes:
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise EOFError("it ends early")
        self.taken += len(line)
        return line


class _Memo(dict[int, Any]):
    """What later opcodes may refer to. An array takes the place of its announcement."""

    def __getitem__(self, index: int) -> Any:
        value = super().__getitem__(index)
        if isinstance(value, safe_pickle_values.Unbuilt):
            if value.array is None:
                raise ValueError("an array contains itself")
            return value.array
        return value


class _Unpickler(pickle._Unpickler):  # private in name, but the only one whose opcodes can be restricted
    """Runs the opcodes of data. Refuses the others, and those that would call, or fill, or set what is no data."""

    if TYPE_CHECKING:  # What typeshed leaves out of it.
        stack: list[Any]
        metastack: list[list[Any]]
        append: Callable[[Any], None]
        read: Callable[[int], bytes]

        def pop_mark(self) -> list[Any]: ...
        def load_binbytes8(self) -> None: ...

    def __init__(self, stream: IO[bytes]) -> None:
        self.source = _Source(stream)
        super().__init__(self.source, encoding="latin-1")
        self.memo = _Memo()
        self.unbuilt = 0  # arrays announced
        self.made = 0  # bytes

    def load(self) -> Any:
        value = super().load()
        if self.stack or self.metastack or self.unbuilt:
            raise ValueError("it ends in the middle of something")
        return value

    def find_class(self, module: str, name: str) -> safe_pickle_values.Global:
        if (module, name) not in safe_pickle_values.GLOBALS:
            raise _Refused(f"asks for {f'{module}.{name}'[:100]}")
        return safe_pickle_values.Global(safe_pickle_values.GLOBALS[module, name])

    def load_reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, safe_pickle_values.Global):
            raise _Refused(f"calls a {type(called).__name__}")
        value = safe_pickle_values.call(called.what, arguments)
        self.unbuilt += isinstance(value, safe_pickle_values.Unbuilt)
        self._push(value)

    def load_build(self) -> None:
        state, value = self.stack.pop(), self.stack.pop()
        if isinstance(value, safe_pickle_values.Dtype):
            value.set_state(state)
        elif isinstance(value, safe_pickle_values.Unbuilt) and value.array is None:
            _version, shape, dtype, fortran, raw = state
            value.array = safe_pickle_values.build_array(shape, dtype, bool(fortran), raw)
            self.unbuilt -= 1
            value = value.array
        else:
            raise _Refused(f"sets a {type(value).__name__}'s state")
        self._push(value)

    def _push(self, value: Any) -> None:
        self.made += value.nbytes if isinstance(value, np.ndarray) else sys.getsizeof(value)
        if self.made > _MAX_MADE_RATIO * self.source.taken + _MADE_FREE_BYTES:
            raise ValueError("the same bytes are made into values again and again")
        self.append(value)

    def load_frame(self) -> None:
        self.read(8)  # a frame's length: how the rest may be buffered

    def load_bytearray8(self) -> None:
        self.load_binbytes8()
        self.append(bytearray(self.stack.pop()))

    def load_dict(self) -> None:
        values = self.pop_mark()
        self.append({})
        self._update(values)

    def load_setitem(self) -> None:
        values = [self.stack.pop(-2), self.stack.pop()]
        self._update(values)

    def load_setitems(self) -> None:
        self._update(self.pop_mark())

    def _update(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("only dicts have keys")
        self.stack[-1].update(zip(safe_pickle_values.checked_keys(values[::2]), values[1::2], strict=True))

    def load_frozenset(self) -> None:
        values = self.pop_mark()  # which changes `append`
        self.append(frozenset(safe_pickle_values.checked_keys(values)))

    def load_additems(self) -> None:
        values = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise ValueError("only sets are added to")
        self.stack[-1].update(safe_pickle_values.checked_keys(values))


def _step(code: int) -> Callable[[_Unpickler], None]:
    """What a byte does at the place of an opcode."""
    opcode = _NAMES.get(code)
    if opcode in _OPCODES.split():
        method = pickle._Unpickler.dispatch[code].__name__
        return getattr(_Unpickler, method)

    def refuse(_: _Unpickler) -> None:
        if opcode is None:
            raise ValueError(f"byte {code:#04x} is no opcode")
        raise _Refused(f"uses {opcode}")

    return refuse


_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_Unpickler.dispatch = {code: _step(code) for code in range(256)}  # type: ignore[misc]  # called with its own kind
