"""What a recording of NTU RGB+D tells by its name SsssCcccPpppRrrrAaaa, the actions, and the protocols, which go by
the name alone.

Sources: Shahroudy et al., CVPR 2016 (NTU RGB+D); Liu et al., TPAMI 2019 (NTU RGB+D 120).
"""

import re
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from pathlib import Path

from ups_model.data.readers.io.files import packaged_lines

_NAME = re.compile(r"S([0-9]{3})C([0-9]{3})P([0-9]{3})R([0-9]{3})A([0-9]{3})")

NTU120_CLASSES: tuple[str, ...] = packaged_lines("ntu/class_names.txt")
"""The actions of NTU RGB+D in label order: label a - 1 is action Aaaa of a recording's name.

Source: the list of action classes that its publisher, the ROSE Lab of NTU Singapore, keeps with the data set.
"""
NTU60_CLASSES: tuple[str, ...] = NTU120_CLASSES[:60]
CLASSES: Mapping[str, tuple[str, ...]] = {"ntu60": NTU60_CLASSES, "ntu120": NTU120_CLASSES}

_XSUB_60 = frozenset({1, 2, 4, 5, 8, 9, *range(13, 20), 25, 27, 28, 31, 34, 35, 38})
_XSUB_120 = _XSUB_60 | {45, 46, 47, 49, 50, *range(52, 60), 70, 74, 78, *range(80, 87)}
_XSUB_120 |= {89, *range(91, 96), 97, 98, 100, 103}
TRAINING_SUBJECTS: Mapping[str, frozenset[int]] = {"ntu60": _XSUB_60, "ntu120": _XSUB_120}
"""The performers that the cross-subject protocol of a set trains on."""

TRAINING_CAMERAS = frozenset({2, 3})
"""The cameras that NTU60's cross-view protocol trains on. NTU120's cross-setup protocol trains on even setups."""

PROTOCOLS: Mapping[str, tuple[str, str]] = {"ntu60": ("xsub", "xview"), "ntu120": ("xsub", "xset")}
"""Set -> its protocols; the first is the default split."""

PUBLISHED_COUNTS: Mapping[str, Mapping[str, tuple[int, int]]] = {
    "ntu60": {"xsub": (40_091, 16_487), "xview": (37_646, 18_932)},
    "ntu120": {"xsub": (63_026, 50_919), "xset": (54_468, 59_477)},
}
"""Training and test sequences of each protocol, without those listed as missing skeletons."""

PUBLISHED_TOTAL: Mapping[str, int] = {name: sum(counts["xsub"]) for name, counts in PUBLISHED_COUNTS.items()}
"""Sequences of each set: 56,578 and 113,945."""


@dataclass(frozen=True, order=True)
class NtuName:
    """The five numbers of a recording's name, each from 1."""

    setup: int
    camera: int
    performer: int
    replication: int
    action: int

    @property
    def text(self) -> str:
        """SsssCcccPpppRrrrAaaa."""
        return "S{:03d}C{:03d}P{:03d}R{:03d}A{:03d}".format(*astuple(self))


_LIMITS = {"setup": 32, "camera": 3, "performer": 106, "replication": 2, "action": 120}


def parse_name(text: str) -> NtuName:
    """The numbers in a name. Raises ValueError where it is none, or a number is none of NTU RGB+D 120's."""
    match = _NAME.fullmatch(text)
    if match is None:
        raise ValueError(f"names must be SsssCcccPpppRrrrAaaa, such as S001C002P003R001A050, got {text[:60]!r}")
    name = NtuName(*map(int, match.groups()))
    for part, limit in _LIMITS.items():
        if not 1 <= getattr(name, part) <= limit:
            raise ValueError(f"{text}: its {part} must be in 1..{limit}, got {getattr(name, part)}")
    return name


def belongs(name: NtuName, set_name: str) -> bool:
    """Whether a recording is in "ntu60" or "ntu120". NTU60 is setups 1-17 and actions 1-60, and a part of NTU120."""
    return set_name == "ntu120" or (name.setup <= 17 and name.action <= 60)


def is_test(name: NtuName, set_name: str, protocol: str) -> bool:
    """Whether a protocol of a set tests on a recording, else it trains on it."""
    if protocol == "xsub":
        return name.performer not in TRAINING_SUBJECTS[set_name]
    if protocol == "xview":
        return name.camera not in TRAINING_CAMERAS
    if protocol == "xset":
        return name.setup % 2 == 1
    raise ValueError(f"{set_name} has the protocols {', '.join(PROTOCOLS[set_name])}, got {protocol!r}")


def read_names(file: Path) -> tuple[NtuName, ...]:
    """The names that a text file lists, one a line, in its order. Lines before the first name are headings. ValueError
    names FILE:LINE of what is no name, or the file where it has none."""
    names: list[NtuName] = []
    for number, raw in enumerate(file.read_bytes().splitlines(), start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip().removesuffix(".skeleton")
            if line and (names or _NAME.fullmatch(line)):
                names.append(parse_name(line))
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}; give one name a line") from error
    if not names:
        raise ValueError(f"{file}: must list names such as S001C002P003R001A050, one a line, got none")
    return tuple(names)


def read_missing(file: Path) -> frozenset[str]:
    """The names in a published list of recordings whose skeletons are missing or wrong. Raises as `read_names`."""
    return frozenset(name.text for name in read_names(file))
