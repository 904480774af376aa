"""Parser of BVH files: a hierarchy of joints, then a table of their channels' values.

    HIERARCHY
    ROOT Hips
    {
      OFFSET 0 0 0
      CHANNELS 6 Xposition Yposition Zposition Zrotation Xrotation Yrotation
      JOINT Spine
      { OFFSET ... CHANNELS 3 ...  End Site { OFFSET ... } }
    }
    MOTION
    Frames: 2
    Frame Time: 0.0083333
    (a value for each channel, frame by frame)

Keywords in any case, any white space, joints with any number and order of channels, values over any lines.
Shape suffixes: N frames, C channels.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import numpy as np

from ups_model.data.readers.io.files import FPS_BOUNDS

MAX_BYTES = 512 << 20
"""An hour at 120 frames per second has about 300 MB."""
MAX_FRAMES = 1_000_000
MAX_NODES = 2000
MAX_VALUE = 1e6
"""Bound of offsets (in the file's units) and of values (units or degrees)."""
END_SITE = " End Site"
"""An end site is called after its joint: "Head End Site"."""

_BLOCK_BYTES = 1 << 20
_MOTION = re.compile(rb"^([ \t}]*)MOTION[ \t]*\r?$", re.IGNORECASE | re.MULTILINE)
_TABLE = re.compile(rb"\s*Frames\s*:?\s*([^\s:]+)\s+Frame\s*Time\s*:?\s*([^\s:]+)", re.IGNORECASE)
_SPACE = re.compile(rb"\s")
_CHANNEL = re.compile(r"([xyz])(position|rotation)", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)
_WAY_OUT = "export the file again"


@dataclass
class Node:
    """A joint or an end site."""

    name: str
    parent: int
    """Index of the node above; -1 for the root. Parents come before their children."""
    line: int
    is_end: bool
    offset: Sequence[float] = ()
    """From the parent, in its axes, in the file's units."""
    channels: Sequence[tuple[str, int]] = ()
    """("position" or "rotation", axis 0..2) in the order of the file."""
    first_channel: int = 0


@dataclass(frozen=True, eq=False)
class BvhFile:
    """What a file holds."""

    nodes: list[Node]
    fps: float
    values_NC: np.ndarray
    """float64, units and degrees."""


@dataclass
class _Words:
    """The hierarchy's words, with their lines."""

    file: Path
    words: list[tuple[str, int]]
    at: int = 0
    line: int = 1
    last: str = field(default="", init=False)

    def take(self, what: str) -> str:
        if self.at == len(self.words):
            raise _fault(self.file, self.line, f"the hierarchy must go on with {what}, it ends")
        self.last, self.line = self.words[self.at]
        self.at += 1
        return self.last

    def number(self, what: str) -> float:
        word = self.take(what)
        if not _NUMBER.fullmatch(word) or abs(float(word)) > MAX_VALUE:
            raise self.fault(f"{what} must be a number within {MAX_VALUE:g}", word)
        return float(word)

    def fault(self, rule: str, got: str | None = None) -> ValueError:
        return _fault(self.file, self.line, f"{rule}, got {self.last if got is None else got!r:.60}")


def _fault(file: Path, line: int, what: str) -> ValueError:
    return ValueError(f"{file}:{line}: {what}; {_WAY_OUT}")


def read_bvh(file: Path) -> BvhFile:
    """Reads and checks one file. ValueError names the file, the line, the rule and the value."""
    if (size := file.stat().st_size) > MAX_BYTES:
        raise ValueError(f"{file}: must have at most {MAX_BYTES} bytes, got {size}; cut it into several")
    raw = file.read_bytes()
    if b"\n" not in raw:
        raw = raw.replace(b"\r", b"\n")
    if not raw.removeprefix(b"\xef\xbb\xbf").lstrip()[:9].upper() == b"HIERARCHY":
        raise ValueError(f"{file}:1: a BVH file must begin with HIERARCHY, got {raw[:20]!r}; is it one?")
    motion = _MOTION.search(raw)
    if motion is None:
        raise _fault(file, _line(raw, len(raw)), "a line MOTION must follow the hierarchy, the file ends")
    # Braces that close the hierarchy may stand before the word.
    nodes = _hierarchy(file, raw[: motion.end(1)])
    channels = sum(len(node.channels) for node in nodes)
    table = _TABLE.match(raw, motion.end())
    if table is None:
        rule = '"Frames: COUNT" and "Frame Time: SECONDS" must follow MOTION'
        raise _fault(file, _line(raw, motion.end()) + 1, rule)
    frames, fps = _frames(file, raw, table), _fps(file, raw, table)
    return BvhFile(nodes, fps, _values(file, raw, table.end(), frames * channels).reshape(frames, channels))


def _hierarchy(file: Path, raw: bytes) -> list[Node]:
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        rule = f"names must be UTF-8, got the byte 0x{raw[error.start]:02x}"
        raise _fault(file, _line(raw, error.start), rule) from error
    words = [
        (word, number)
        for number, line in enumerate(text.split("\n"), start=1)
        for word in line.replace("{", " { ").replace("}", " } ").split()
    ]
    source = _Words(file, words)
    if source.take("HIERARCHY").upper() != "HIERARCHY":
        raise source.fault("a BVH file must begin with HIERARCHY")
    nodes: list[Node] = []
    stack: list[int] = []
    with_channels: set[int] = set()
    channels = 0
    while stack or source.at < len(words) or not nodes:
        word = source.take("ROOT" if not nodes else "}").upper()
        if word in ("ROOT", "JOINT", "END"):
            if (word == "ROOT") == bool(nodes):
                raise source.fault("there must be one ROOT, with all joints in it")
            if not stack and nodes:
                raise source.fault("joints must be inside of the ROOT")
            if stack and nodes[stack[-1]].is_end:
                raise source.fault("an end site must have no joints in it")
            if len(nodes) == MAX_NODES:
                raise source.fault(f"there must be at most {MAX_NODES} joints")
            nodes.append(_opened(source, word, nodes, stack))
            stack.append(len(nodes) - 1)
            continue
        if not stack:
            raise source.fault("nothing but MOTION must follow the hierarchy")
        node = nodes[stack[-1]]
        if word == "OFFSET":
            if node.offset:
                raise source.fault(f"{node.name} must have one OFFSET")
            node.offset = [source.number(f"an offset of {node.name}") for _ in range(3)]
        elif word == "CHANNELS":
            if stack[-1] in with_channels or node.is_end:
                raise source.fault(f"{node.name} must have {'no' if node.is_end else 'one'} CHANNELS")
            with_channels.add(stack[-1])
            node.channels, node.first_channel = _channels(source, node.name), channels
            channels += len(node.channels)
        elif word == "}":
            if not node.offset:
                raise source.fault(f"{node.name} (line {node.line}) must have an OFFSET")
            stack.pop()
        else:
            raise source.fault("a joint must hold OFFSET, CHANNELS, JOINT, End Site or }")
    if not channels:
        raise ValueError(f"{file}: at least one joint must have CHANNELS, none has; {_WAY_OUT}")
    return nodes


def _opened(source: _Words, word: str, nodes: list[Node], stack: list[int]) -> Node:
    """The node that begins with this word: its name may have spaces in it, and a brace follows."""
    line = source.line
    parts: list[str] = []
    while (part := source.take("{")) != "{":
        if source.line != line or part == "}":
            raise source.fault(f"{{ must follow {word} {' '.join(parts)}".rstrip())
        parts.append(part)
    parent = stack[-1] if stack else -1
    if word == "END":
        return Node(nodes[parent].name + END_SITE, parent, line, True)
    if not parts:
        raise source.fault(f"a name must follow {word}")
    return Node(" ".join(parts), parent, line, False)


def _channels(source: _Words, name: str) -> list[tuple[str, int]]:
    word = source.take("a number of channels")
    if not (word.isascii() and word.isdigit()) or int(word[:3]) > 9 or len(word) > 3:
        raise source.fault(f"the number of channels of {name} must be in 0..9")
    channels = []
    for _ in range(int(word)):
        match = _CHANNEL.fullmatch(source.take("a channel"))
        if match is None:
            raise source.fault(f"channels of {name} must be Xposition .. Zrotation")
        channels.append((match[2].lower(), "xyz".index(match[1].lower())))
    positions = [channel for channel in channels if channel[0] == "position"]
    if len(set(positions)) < len(positions):
        raise source.fault(f"{name} must have each position channel once")
    return channels


def _frames(file: Path, raw: bytes, table: re.Match[bytes]) -> int:
    text = table[1]
    if not text.isdigit() or not 1 <= int(text[:9]) <= MAX_FRAMES or len(text) > 9:
        rule = f"Frames must be in 1..{MAX_FRAMES}, got {text.decode('ascii', 'replace'):.30}"
        raise _fault(file, _line(raw, table.start(1)), rule)
    return int(text)


def _fps(file: Path, raw: bytes, table: re.Match[bytes]) -> float:
    """1 / Frame Time; a whole number where it is one but for the digits that were written: 0.0083333 is 120."""
    text = table[2].decode("ascii", "replace")
    low, high = FPS_BOUNDS
    if not _NUMBER.fullmatch(text) or len(text) > 40 or not 1 / high <= float(text) <= 1 / low:
        rule = f"Frame Time must be seconds in {1 / high:g}..{1 / low:g}, got {text:.30}"
        raise _fault(file, _line(raw, table.start(2)), rule)
    seconds = float(text)
    whole = round(1 / seconds)
    exponent = Decimal(text).as_tuple().exponent
    assert isinstance(exponent, int), "a finite decimal has an exponent"
    return float(whole) if abs(1 / whole - seconds) <= 10.0**exponent else 1 / seconds


def _values(file: Path, raw: bytes, start: int, count: int) -> np.ndarray:
    """The `count` values from byte `start` on, block by block: a word of text takes eight times its number's room."""

    def too_few(got: str) -> ValueError:
        line = _line(raw, len(raw.rstrip()))
        rule = f"there must be {count} values, frames times channels"
        return ValueError(f"{file}:{line}: {rule}, got {got}; the file is cut short, or {_WAY_OUT}")

    # A digit and a space each: no memory is taken for values that can't be there.
    if 2 * count - 1 > (room := len(raw) - start):
        raise too_few(f"{room} bytes")
    values = np.empty(count, dtype=np.float64)
    filled, place = 0, start
    while place < len(raw):
        space = _SPACE.search(raw, place + _BLOCK_BYTES)
        stop = len(raw) if space is None else space.start()
        block = raw[place:stop]
        words = block.split()
        try:
            if b"_" in block:  # float() takes "1_0".
                raise ValueError("no number")
            numbers = np.fromiter(map(float, words), dtype=np.float64, count=len(words))
        except ValueError:
            texts = (word.decode("ascii", "replace") for word in words)
            bad = next(index for index, text in enumerate(texts) if not _NUMBER.fullmatch(text))
            raise _value_fault(file, raw, start, filled + bad, words[bad]) from None
        good = np.abs(numbers) <= MAX_VALUE
        if not good.all():
            bad = int(np.argmin(good))
            raise _value_fault(file, raw, start, filled + bad, words[bad])
        if filled + len(words) > count:
            rule = f"there must be {count} values, frames times channels, and there are more"
            raise _fault(file, value_line(raw, start, count), rule)
        values[filled : filled + len(words)] = numbers
        filled += len(words)
        place = stop
    if filled < count:
        raise too_few(str(filled))
    return values


def _value_fault(file: Path, raw: bytes, start: int, index: int, word: bytes) -> ValueError:
    rule = f"values must be numbers within {MAX_VALUE:g}, got {word.decode('ascii', 'replace'):.30}"
    return _fault(file, value_line(raw, start, index), rule)


def value_line(raw: bytes, start: int, index: int) -> int:
    """The line of the value number `index` after byte `start`."""
    for number, line in enumerate(raw[start:].split(b"\n"), start=_line(raw, start)):
        index -= len(line.split())
        if index < 0:
            return number
    return _line(raw, len(raw))


def _line(raw: bytes, place: int) -> int:
    return raw.count(b"\n", 0, place) + 1
