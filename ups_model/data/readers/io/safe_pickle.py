"""Pickles of arrays and plain values, read without running anything that is in them.

`pickle.load` calls whatever callable a file names, and numpy's own `__setstate__` takes flags from the file that decide
whether its bytes are pointers. So the opcodes are taken one by one from `pickletools.genops`, which parses and runs
nothing, and the few calls by which arrays, dtypes, numpy scalars, sets and the like are written are recognised and
done here, their arguments checked. Any other call is refused by its name. Protocols 0 to 5, numpy 1 and 2.

The program of opcodes is read front to back, so the dicts of a long list can be handed out as they come (`ItemStream`):
files of several gigabytes that hold one list need little memory.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy

from ups_model.data.format.rules import DAMAGED
from ups_model.data.readers.io.safe_pickle_values import (
    GLOBALS,
    Dtype,
    Global,
    Unbuilt,
    build_array,
    call,
    checked_keys,
)

_WAY_OUT = "have the program that wrote it save arrays, lists, dicts, numbers and text alone"

_DAMAGED = (
    ValueError,  # UnicodeDecodeError too, and what genops raises
    TypeError,
    IndexError,
    KeyError,
    AttributeError,
    OverflowError,
    MemoryError,
    EOFError,
    RecursionError,
    struct.error,
    zlib.error,
    zipfile.BadZipFile,
)
_KEPT_TEXT = 256
"""Longest text, in characters, that a stream of items remembers for later references."""


def load(stream: BinaryIO, name: str) -> Any:
    """The object that a pickle holds: numpy arrays and builtins alone, whatever the file asks for.

    Args:
        stream: at the pickle's first byte; read up to its end, which may come before the file's.
        name: what messages call it, the file's path.

    Returns:
        Arrays are new and writable. Text of Python 2 is decoded as latin-1.

    Raises:
        ValueError: it is damaged or truncated, or asks for anything but arrays and plain values; names what and where.
        OSError: the stream cannot be read.
    """
    machine = _Machine(name)
    for _ in machine.run(stream):
        raise AssertionError("only a stream of items yields")
    return machine.stack[0]


class ItemStream:
    """The dicts of the list under one key of a pickled dict, `{..., key: [{...}, ...], ...}`, one at a time.

        items = ItemStream(stream, name, "annotations")
        for item in items: ...
        items.rest["split"]

    An item is forgotten once handed out, save its short texts, to which later parts of the file may refer (about 200
    bytes for an item that has one). A later reference to anything longer is an error.

    Raises:
        ValueError: while iterating, as `load`; and where there is no list of dicts under `key`.
    """

    def __init__(self, stream: BinaryIO, name: str, key: str) -> None:
        self._stream, self._name, self._key = stream, name, key
        self.rest: dict[Any, Any] = {}
        """The outermost dict without the list: at an item, what the file has before the list; at the end, all."""

    def __iter__(self) -> Iterator[dict[Any, Any]]:
        machine = _Machine(self._name, self._key)
        for index, item in enumerate(machine.run(self._stream)):
            if not isinstance(item, dict):
                raise ValueError(f"{self._name}[{self._key!r}][{index}]: must be a dict, got {type(item).__name__}")
            if index == 0:
                self.rest = machine.read_of_dict()
                self.rest.pop(self._key, None)
            yield item
        whole = machine.stack[0]
        if not isinstance(whole, dict) or not isinstance(whole.get(self._key), list):
            raise ValueError(f"{self._name}: must hold a dict with a list under {self._key!r}; is it another format?")
        if whole[self._key]:
            raise ValueError(f"{self._name}: the list under {self._key!r} must be written in place; save it again")
        self.rest = {key: value for key, value in whole.items() if key != self._key}


def read_object_array(npz_path: str | Path, member: str) -> Any:
    """An object member of an .npz file: the one object of a 0-d member, an object array [n] of a 1-d one.

    Raises:
        ValueError: no such file or member, damaged, not of object type, or asking for more than data; names the file.
    """
    name = f"{npz_path}[{member}]"
    try:
        with zipfile.ZipFile(npz_path) as archive, archive.open(f"{member}.npy") as stream:
            version = npy.read_magic(stream)
            if version not in ((1, 0), (2, 0)):
                raise ValueError(f"its version must be 1.0 or 2.0, got {version[0]}.{version[1]}")
            read_header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
            shape, _, dtype = read_header(stream)
            if dtype != np.dtype(object) or len(shape) > 1:
                raise ValueError(f"it must hold objects of 0 or 1 dimensions, got {dtype} {list(shape)}")
            array = load(stream, name)
    except KeyError as error:
        raise ValueError(f"{npz_path}: has no member {member!r}; is it another file?") from error
    except (*_DAMAGED, *DAMAGED) as error:
        if str(error).startswith(name):
            raise
        raise ValueError(f"{name}: not a whole .npz member of objects ({error!s:.200}); get the file again") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{name}: its content does not match its header {list(shape)}; get the file again")
    return array.item() if shape == () else array


class _Refused(Exception):
    """A pickle asks for what is no data."""


class _Machine:
    """Runs one pickle's opcodes on a stack. `memo` holds what later opcodes may refer to, by number."""

    def __init__(self, name: str, key: str | None = None) -> None:
        self.name, self.key = name, key
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.memoized = 0
        self.unbuilt = 0
        self.items: list[Any] | None = None  # the stack above the mark of the streamed list, while there is one
        self.ready: list[Any] = []  # items complete and not yet handed out

    def run(self, stream: BinaryIO) -> Iterator[Any]:
        """Yields the items of the streamed list, if there is a key, as they are complete."""
        position = 0
        try:
            for opcode, argument, found in pickletools.genops(stream):
                position = found or 0
                if (step := _STEPS.get(opcode.name)) is None:
                    raise _Refused(f"a pickle may hold arrays and plain values alone, it uses {opcode.name}")
                step(self, argument)
                if self.ready:
                    if self.unbuilt:
                        raise ValueError("an array has no content")
                    yield from self.ready
                    self.ready.clear()
            if len(self.stack) != 1 or self.outer or self.unbuilt:
                raise ValueError("it ends in the middle of something")
        except _Refused as refused:
            raise ValueError(f"{self.name}: {refused} (byte {position}); {_WAY_OUT}") from refused
        except _DAMAGED as error:
            what = str(error) or type(error).__name__
            raise ValueError(
                f"{self.name}: not a whole pickle of plain data, {what:.200} (byte {position}); get the file again"
            ) from error

    def read_of_dict(self) -> dict[Any, Any]:
        """The outermost dict as far as it has been read, while the list in it is."""
        levels = [*self.outer, self.stack]
        pairs = levels[1] if len(levels) > 1 else []
        return {**levels[0][0], **dict(zip(pairs[::2], pairs[1::2], strict=False))}

    def streams(self) -> bool:
        """Whether the top of the stack is the list whose items are handed out."""
        stack, depth = self.stack, len(self.outer)
        if self.key is None or depth > 1 or len(stack) < 2 or not isinstance(stack[-1], list):
            return False
        base = self.outer[0] if depth else stack[:-2]
        is_key = isinstance(stack[-2], str) and stack[-2] == self.key
        return is_key and len(base) == 1 and isinstance(base[0], dict) and (depth == 0 or len(stack) % 2 == 0)

    # Marks and the stack

    def mark(self, _: Any) -> None:
        streams = self.streams()
        self.outer.append(self.stack)
        self.stack = []
        if streams:
            self.items = self.stack

    def pop_mark(self, _: Any = None) -> list[Any]:
        values, self.stack = self.stack, self.outer.pop()
        if values is self.items:
            self.items = None
        return values

    def pop(self, _: Any) -> None:
        if self.stack:
            self.stack.pop()
        else:
            self.pop_mark()

    def push_tuple(self, _: Any) -> None:
        values = self.pop_mark()
        self.stack.append(tuple(values))

    def push_list(self, _: Any) -> None:
        values = self.pop_mark()
        self.stack.append(values)

    def push_frozenset(self, _: Any) -> None:
        values = self.pop_mark()
        self.stack.append(frozenset(checked_keys(values)))

    def push_dict(self, _: Any) -> None:
        values = self.pop_mark()
        self.stack.append(dict(zip(checked_keys(values[::2]), values[1::2], strict=True)))

    def push_empty_dict(self, _: Any) -> None:
        # A dict is no key, so the one before this is complete and not waiting for its value.
        if self.stack is self.items and len(self.stack) == 1:
            self.ready.append(self.stack.pop())
        self.stack.append({})

    # Filling containers

    def append(self, _: Any) -> None:
        value = self.stack.pop()
        self.extend([value])

    def appends(self, _: Any) -> None:
        self.extend(self.pop_mark())

    def extend(self, values: list[Any]) -> None:
        if self.streams():
            self.ready += values
        elif isinstance(self.stack[-1], list):
            self.stack[-1] += values
        else:
            raise ValueError("only lists are appended to")

    def add_items(self, _: Any) -> None:
        values = self.pop_mark()
        if not isinstance(self.stack[-1], set):
            raise ValueError("only sets are added to")
        self.stack[-1].update(checked_keys(values))

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key], [value])

    def set_items(self, _: Any) -> None:
        values = self.pop_mark()
        self.update(values[::2], values[1::2])

    def update(self, keys: list[Any], values: list[Any]) -> None:
        if not isinstance(self.stack[-1], dict):
            raise ValueError("only dicts have keys")
        self.stack[-1].update(zip(checked_keys(keys), values, strict=True))

    # References

    def put(self, index: int) -> None:
        self.memoized += 1
        value = self.stack[-1]
        if self.items is None or _kept(value):
            self.memo[index] = value

    def memoize(self, _: Any) -> None:
        self.put(self.memoized)

    def get(self, index: int) -> None:
        if index not in self.memo:
            if self.key is not None and index < self.memoized:
                raise _Refused(
                    f"values of an item of {self.key!r} must not be used again outside of it, value {index} is"
                )
            raise ValueError(f"refers to value {index}, which is not there")
        value = self.memo[index]
        if isinstance(value, Unbuilt):
            if value.array is None:
                raise ValueError("an array contains itself")
            value = value.array
        self.stack.append(value)

    # What would be code

    def global_(self, name: str) -> None:
        self.push_global(*name.split(" ", 1))

    def stack_global(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push_global(module, name)

    def push_global(self, module: Any, name: Any) -> None:
        what = GLOBALS.get((module, name)) if isinstance(module, str) and isinstance(name, str) else None
        if what is None:
            asked = f"{module}.{name}"[:100] if isinstance(module, str) and isinstance(name, str) else "no name"
            raise _Refused(f"a pickle may hold arrays and plain values alone, it asks for {asked}")
        self.stack.append(Global(what))

    def reduce(self, _: Any) -> None:
        arguments, called = self.stack.pop(), self.stack.pop()
        if not isinstance(called, Global):
            raise _Refused(f"a pickle may hold arrays and plain values alone, it calls a {type(called).__name__}")
        value = call(called.what, arguments)
        self.unbuilt += isinstance(value, Unbuilt)
        self.stack.append(value)

    def build(self, _: Any) -> None:
        state, value = self.stack.pop(), self.stack.pop()
        if isinstance(value, Dtype):
            value.set_state(state)
        elif isinstance(value, Unbuilt) and value.array is None:
            _version, shape, dtype, fortran, raw = state
            value.array = build_array(shape, dtype, bool(fortran), raw)
            self.unbuilt -= 1
            value = value.array
        else:
            raise _Refused(f"a pickle may hold arrays and plain values alone, it sets a {type(value).__name__}'s state")
        self.stack.append(value)


def _kept(value: Any) -> bool:
    """Whether a stream of items remembers a value: what repeats in them is short."""
    if isinstance(value, (str, bytes)):
        return len(value) <= _KEPT_TEXT
    if isinstance(value, tuple):
        return len(value) <= 8 and all(isinstance(part, (int, float, bool, type(None))) for part in value)
    return isinstance(value, (Global, Dtype))


def _last_as_tuple(count: int) -> Callable[[_Machine, Any], None]:
    def step(machine: _Machine, _: Any) -> None:
        if len(machine.stack) < count:
            raise ValueError("a tuple lacks its parts")
        machine.stack[-count:] = [tuple(machine.stack[-count:])]

    return step


def _push(make: Callable[[], Any]) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(make())


def _literal(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _nothing(machine: _Machine, _: Any) -> None:
    """PROTO and FRAME say how the rest is written; STOP ends genops."""


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), _nothing),
    **dict.fromkeys(("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"), _literal),
    **dict.fromkeys(("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"), _literal),
    **dict.fromkeys(("STRING", "BINSTRING", "SHORT_BINSTRING"), _literal),
    **dict.fromkeys(("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _literal),
    "NONE": _push(lambda: None),
    "NEWTRUE": _push(lambda: True),
    "NEWFALSE": _push(lambda: False),
    "EMPTY_TUPLE": _push(tuple),
    "EMPTY_LIST": _push(list),
    "EMPTY_SET": _push(set),
    "EMPTY_DICT": _Machine.push_empty_dict,
    "TUPLE1": _last_as_tuple(1),
    "TUPLE2": _last_as_tuple(2),
    "TUPLE3": _last_as_tuple(3),
    "TUPLE": _Machine.push_tuple,
    "LIST": _Machine.push_list,
    "DICT": _Machine.push_dict,
    "FROZENSET": _Machine.push_frozenset,
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "ADDITEMS": _Machine.add_items,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine.get),
    "MEMOIZE": _Machine.memoize,
    "GLOBAL": _Machine.global_,
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
}
"""The opcodes that data need. The others make instances, or refer to what is outside of the file."""
