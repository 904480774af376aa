"""The on-disk format of motion clips: a folder with a JSON manifest and memory-mapped .npy arrays.

    clips.json        what the set is, its cameras, and dtype, shape and sha256 of every array
    positions.npy     [F, J, C] float16 or float32: the frames of all tracks, end to end
    confidence.npy    [F, J], optional: detector confidence, 0 = not seen
    keypoints.npy     [F, K, J, 2], optional: 2D keypoints in pixels of K cameras, aligned with positions
    track_*.npy       [T] one row per person and clip: start, length (frames), clip (index), offset (in the clip)
    clip_*.npy, ...   [M] one row per clip: clip_id, label, subject, split_test, clip_length, camera_group
    column_*.npy      [M] further integer columns

See docs/data.md. Writing is in `ups_model.data.format.writer`, splits in `ups_model.data.format.splits`.

Shape suffixes: F frames of the set, N frames of a track, K cameras, J joints, C coordinates, T tracks, M clips.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.format.cameras import Camera, project, to_camera
from ups_model.data.format.clip_data import ClipData
from ups_model.data.format.info import ClipSetInfo
from ups_model.data.format.rules import (
    CLIP_TABLE,
    DAMAGED,
    FRAME_ARRAYS,
    TRACK_TABLE,
    count_non_finite,
    sha256_of,
    shape_faults,
    table_faults,
)
from ups_model.data.format.splits import Split, check_no_leak, split_clips, without_leaks

__all__ = [
    "Camera",
    "ClipSet",
    "ClipSetInfo",
    "Split",
    "check_no_leak",
    "project",
    "to_camera",
    "without_leaks",
]

FORMAT = "ups-clips"
VERSION = 1
MANIFEST = "clips.json"


@dataclass(frozen=True, eq=False, repr=False)
class ClipSet(ClipData):
    """An opened clip set: its manifest and its arrays, memory mapped and read-only.

    Pickles as its path, so that worker processes map the same files and receive no copies.
    """

    path: Path
    fingerprint: str
    """sha256 of the manifest's content and every array's hash; the same wherever the folder lies."""
    arrays: Mapping[str, Mapping[str, Any]]
    """dtype, shape and sha256 of each array, as in the manifest."""

    @classmethod
    def open(cls, path: str | Path) -> ClipSet:
        """Opens a clip set without reading its frames.

        Checks the manifest, and size, dtype and shape of every file; `verify` checks contents.

        Raises:
            ValueError: the folder, the manifest or an array is missing, damaged or of another version; names the file.
        """
        path = Path(path)
        manifest = read_manifest(path)
        file = path / MANIFEST
        try:
            info = ClipSetInfo.from_json(manifest)
            described = dict(manifest["arrays"])
            fingerprint = manifest["fingerprint"]
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{file}: damaged manifest ({error!r}); prepare the set again") from error
        if fingerprint != fingerprint_of(manifest):
            raise ValueError(f"{file}: content does not match its fingerprint, so it was edited; prepare the set again")
        if unsafe := [key for key in described if not key.isidentifier()]:
            raise ValueError(f"{file}: array names must be identifiers, got {unsafe}")
        required = {"positions", *TRACK_TABLE, *CLIP_TABLE}
        if missing := sorted(required - set(described)):
            raise ValueError(f"{file}: lists no array {', '.join(missing)}; prepare the set again")
        arrays = {key: _map_array(path / f"{key}.npy", spec) for key, spec in described.items()}
        extra = {key.removeprefix("column_"): array for key, array in arrays.items() if key.startswith("column_")}
        named = {key: arrays.get(key) for key in (*FRAME_ARRAYS, *TRACK_TABLE, *CLIP_TABLE)}
        clips = cls(
            path=path,
            info=info,
            fingerprint=fingerprint,
            arrays=described,
            extra=extra,
            **named,  # type: ignore[arg-type]  # `missing` is empty
        )
        if faults := shape_faults(info, arrays):
            raise ValueError(f"{path}: " + "; ".join(faults))
        if read_manifest(path).get("fingerprint") != fingerprint:
            # Another process replaced the set in between, so that some arrays may be the new ones.
            return cls.open(path)
        return clips

    def __repr__(self) -> str:
        return f"ClipSet({self.name!r}, {len(self)} clips, fingerprint {self.fingerprint[:16]}, at {self.path})"

    def __reduce__(self) -> tuple[Any, ...]:
        return ClipSet.open, (self.path,)

    def split(self, validation_subjects: int, seed: int = 0, protocol: str = "default", fold: int = 0) -> Split:
        """Training, validation and test clips.

        Test clips are those of the protocol: `split_test`, or the column `split_test_<protocol>`. Of the others,
        `validation_subjects` subjects are held out, chosen by (seed, set name, fold) and nothing else. Where subjects
        are unknown (-1), a fraction validation_subjects / 10 of the clips of each label is held out instead, in whole
        groups where the set has a column `group`: 2 gives 20 %. Each fold holds out others until all have had their
        turn. 0 subjects give an empty validation part.

        Raises:
            ValueError: unknown protocol, no training or test clips, or as many validation subjects as there are.
        """
        return split_clips(self, validation_subjects, seed, protocol, fold)

    def verify(self) -> None:
        """Reads everything and checks hashes, finiteness, index bounds, label range, unique ids and lengths.

        Raises:
            ValueError: lists all faults, each with its file.
        """
        faults = []
        for key, spec in self.arrays.items():
            array = getattr(self, key, None) if not key.startswith("column_") else self.extra[key[7:]]
            if sha256_of(array) != spec["sha256"]:  # type: ignore[arg-type]  # listed, so there
                faults.append(f"{key}.npy: content differs from the sha256 in {MANIFEST}")
        for key in FRAME_ARRAYS:
            array = getattr(self, key)
            if array is not None and (bad := count_non_finite(array)):
                faults.append(f"{key}.npy: {bad} values are not finite")
        columns = {f"column_{key}": value for key, value in self.extra.items()}
        tables = {key: getattr(self, key) for key in (*TRACK_TABLE, *CLIP_TABLE)} | columns
        faults += table_faults(self.info, tables, len(self.positions), self.keypoints)
        if faults:
            raise ValueError(f"{self.path}: " + "; ".join(faults))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of the clip set at `path`, its format and version checked. Raises ValueError naming the file."""
    file = path / MANIFEST
    try:
        manifest = json.loads(file.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file}: no such file, so {path} is not a clip set; prepare one first") from error
    except OSError as error:
        raise ValueError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error}); prepare the set again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise ValueError(f"{file}: not a manifest of format {FORMAT!r}")
    if manifest.get("version") != VERSION:
        raise ValueError(f"{file}: format version must be {VERSION}, got {manifest.get('version')!r}; prepare it again")
    return manifest


def fingerprint_of(manifest: Mapping[str, Any]) -> str:
    """sha256 of the manifest in canonical form, without provenance and the fingerprint itself."""
    content = {key: value for key, value in manifest.items() if key not in ("fingerprint", "provenance")}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _map_array(file: Path, spec: Mapping[str, Any]) -> np.ndarray:
    """Maps one array read-only and checks that the whole of it is there."""
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
        expected = (np.dtype(spec["dtype"]), tuple(spec["shape"]))
    except FileNotFoundError as error:
        raise ValueError(f"{file}: missing; prepare the set again") from error
    except DAMAGED as error:
        raise ValueError(f"{file}: truncated or damaged ({error}); prepare the set again") from error
    if (array.dtype, array.shape) != expected:
        raise ValueError(f"{file}: must be {expected[0]} {list(expected[1])}, got {array.dtype} {list(array.shape)}")
    if file.stat().st_size != (size := array.offset + array.nbytes):
        raise ValueError(f"{file}: must be {size} bytes, got {file.stat().st_size}; prepare the set again")
    return array.view(np.ndarray)
