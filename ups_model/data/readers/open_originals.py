"""The open sets from the files that their authors publish, as the arrays of the packed .npz files (`open_sets`).

    UTD-MHAD  Skeleton/aA_sS_tT_skeleton.mat
    UI-PRMD   Segmented Movements/Vicon/Positions/mMM_sSS_eEE_positions.txt
              Incorrect Segmented Movements/Vicon/Positions/mMM_sSS_eEE_positions_inc.txt
    J-HMDB    joint_positions/CLASS/VIDEO/joint_positions.mat and splits/CLASS_test_splitK.txt

Shape suffixes: N frames, M markers, J joints, C coordinates.
"""

import hashlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ups_model.data.format.cameras import Camera
from ups_model.data.readers.io.files import damage_named, packaged_table
from ups_model.skeletons import get_skeleton
from ups_model.wording import count

logger = logging.getLogger(__name__)

UTD_FILE = re.compile(r"a\d+_s\d+_t\d+_skeleton\.mat")
PRMD_FILE = re.compile(r"m\d\d_s\d\d_e\d\d_positions(_inc)?\.txt")


@dataclass(frozen=True)
class OpenSet:
    """What an open set is, where it is and what of it is kept: a table of open_sets.toml."""

    file: str
    """The packed .npz file."""
    originals: str
    """Names of the files that its authors publish."""
    skeleton: str
    dims: int
    fps: float
    units: str
    up_axis: str
    columns: Sequence[str]
    """Integer columns kept beside the common ones."""
    description: str
    licence: str
    classes: Sequence[str]
    has_subjects: bool = True
    has_cameras: bool = False


OPEN_SETS: Mapping[str, OpenSet] = {name: OpenSet(**facts) for name, facts in packaged_table("open_sets.toml").items()}
JHMDB_CLASSES = OPEN_SETS["jhmdb"].classes

_MARKERS = """
LFHD RFHD LBHD RBHD C7 T10 CLAV STRN RBAK LSHO LUPA LELB LFRM LWRA LWRB LFIN RSHO RUPA RELB RFRM RWRA RWRB RFIN LASI
RASI LPSI RPSI LTHI LKNE LTIB LANK LHEE LTOE RTHI RKNE RTIB RANK RHEE RTOE
"""
MARKERS = tuple(_MARKERS.split())
"""UI-PRMD's columns: x, y and z in mm of each."""
JOINTS = tuple({"nose": "head_base"}.get(joint, joint) for joint in get_skeleton("h36m17").joint_names)
"""In the order of the skeleton h36m17, whose neck is the base of the head."""
MAX_GAP = 25
"""Frames without a marker that are interpolated; a recording with a longer gap is left out."""
EVERY = 2
"""Of UI-PRMD's 100 frames a second, one in so many is kept."""
CAMERAS = ((5.3, 70.0, 1.55), (5.0, -70.0, 1.6), (5.2, 110.0, 1.45), (5.4, -110.0, 1.5))
"""Virtual cameras of UI-PRMD: distance from the origin in metres, direction in degrees, height in metres."""
TARGET = (0.0, 0.0, 0.9)
"""Where they look, in metres."""
FOCAL, CENTRE, SIZE = 1145.0, (512.0, 515.0), (1000, 1002)
"""In pixels, as Human3.6M's."""

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class _Clip:
    name: str
    positions_NJC: np.ndarray
    columns: Mapping[str, int]


def original_files(name: str, source: Path) -> list[Path]:
    """The original files of an open set in a folder or below it, if any, in the order of the packed set."""
    if not source.is_dir():
        return []
    if name == "jhmdb":
        return sorted(source.glob("**/joint_positions/*/*/joint_positions.mat"), key=lambda file: file.parts[-3:-1])
    pattern = UTD_FILE if name == "utd_mhad" else PRMD_FILE
    files = (file for file in source.rglob("*") if pattern.fullmatch(file.name))
    # Correct movements stand before incorrect ones.
    return sorted(files, key=lambda file: (file.stem.endswith("_inc"), file.name))


def content_digest(files: list[Path]) -> str:
    """SHA-256 of the files' names and contents."""
    whole = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            whole.update(f"{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


def load_originals(name: str, files: list[Path]) -> Arrays:
    """The arrays of the packed file, made from the originals. ValueError names a damaged file or missing splits."""
    read = {"utd_mhad": _utd_clips, "uiprmd": _prmd_clips, "jhmdb": _jhmdb_clips}[name]
    clips = list(read(files))
    if not clips:
        raise ValueError(f"{files[0].parent}: no recording of {name} can be used")
    spec = OPEN_SETS[name]
    skeleton = get_skeleton(spec.skeleton)
    lengths = np.array([len(clip.positions_NJC) for clip in clips], np.int32)
    arrays = {
        "positions": np.concatenate([clip.positions_NJC for clip in clips]),
        "start": np.cumsum(lengths, dtype=np.int64) - lengths,
        "length": lengths,
        "joint_names": np.array(skeleton.joint_names),
        "parents": np.array(skeleton.parents),
        **{key: np.array([clip.columns[key] for clip in clips], np.int16) for key in clips[0].columns},
        "names": np.array(spec.classes),
        **{key: np.array(getattr(spec, key)) for key in ("fps", "units", "up_axis", "licence")},
    }
    arrays["split_test"] = arrays["split_test_1"] if name == "jhmdb" else arrays["subject"] % 2 == 0
    return arrays | (camera_arrays() if name == "uiprmd" else {})


# UTD-MHAD


def _utd_clips(files: list[Path]) -> Iterator[_Clip]:
    for file in files:
        action, subject, trial = map(int, re.findall(r"\d+", file.name))
        if not 1 <= action <= (last := len(OPEN_SETS["utd_mhad"].classes)):
            raise ValueError(f"{file}: actions are 1 to {last}, got {action}")
        positions_JCN = _matrix(file, "d_skel", (20, 3))
        columns = {"label": action - 1, "subject": subject, "repetition": trial}
        yield _Clip(file.name, positions_JCN.transpose(2, 0, 1).astype(np.float32), columns)


def _matrix(file: Path, name: str, shape: tuple[int, int]) -> np.ndarray:
    """[*shape, N] of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    what = f"{file}: not a readable MATLAB file with {name}"
    try:
        with damage_named(what, "download it again"):
            value = np.asarray(loadmat(file, variable_names=[name])[name], np.float64)
    except MatReadError as error:
        raise ValueError(f"{what} ({error}); download it again") from error
    if value.shape[:2] != shape or value.ndim != 3 or not value.shape[2]:
        raise ValueError(f"{file}: {name} must have shape [{shape[0]}, {shape[1]}, frames], got {list(value.shape)}")
    if not np.isfinite(value).all():
        raise ValueError(f"{file}: {name} must be finite; download it again")
    return value


# UI-PRMD


def _prmd_clips(files: list[Path]) -> Iterator[_Clip]:
    left_out = []
    for file in files:
        movement, subject, episode = map(int, re.findall(r"\d+", file.name))
        if not 1 <= movement <= (last := len(OPEN_SETS["uiprmd"].classes)):
            raise ValueError(f"{file}: movements are 1 to {last}, got {movement}")
        markers_NM3 = filled(read_markers(file))
        if markers_NM3 is None:
            left_out.append(file.name)
            continue
        columns = {"label": movement - 1, "subject": subject, "repetition": episode}
        columns["correct"] = int(not file.stem.endswith("_inc"))
        yield _Clip(file.name, (joints_of(markers_NM3) / 1000).astype(np.float16), columns)
    if left_out:
        logger.info(
            "uiprmd: %s left out, with markers missing for more than %d frames at a time, the first %s",
            count(len(left_out), "recording"), MAX_GAP, left_out[0],
        )  # fmt: skip


def read_markers(file: Path) -> np.ndarray:
    """[N, 39, 3] mm of a file of UI-PRMD."""
    with damage_named(f"{file}: not a readable table of numbers", "download it again"):
        values = np.loadtxt(file, delimiter=",", ndmin=2)
    if values.shape[1] != 3 * len(MARKERS) or not len(values):
        raise ValueError(f"{file}: must have {3 * len(MARKERS)} columns, got {values.shape[1]}")
    if not np.isfinite(values).all():
        raise ValueError(f"{file}: must hold finite numbers; download it again")
    return values.reshape(len(values), len(MARKERS), 3)


def filled(markers_NM3: np.ndarray) -> np.ndarray | None:
    """Gaps of a marker (zeros) interpolated; None where one is longer than MAX_GAP frames."""
    there_NM = (markers_NM3 != 0).any(axis=2)
    if there_NM.all():
        return markers_NM3
    result, frame_N = markers_NM3.copy(), np.arange(len(markers_NM3))
    for marker in np.flatnonzero(~there_NM.all(axis=0)):
        there_N = there_NM[:, marker]
        edges = np.flatnonzero(np.diff(np.r_[True, there_N, True].astype(np.int8)))
        if (edges[1::2] - edges[::2]).max() > MAX_GAP:
            return None
        for axis in range(3):
            result[~there_N, marker, axis] = np.interp(
                frame_N[~there_N], frame_N[there_N], markers_NM3[there_N, marker, axis]
            )
    return result


def joints_of(markers_NM3: np.ndarray) -> np.ndarray:
    """[N/2, 17, 3] joint centres in mm, in Human3.6M's order, from markers of all frames.

    Hips: Harrington et al. (2007), in the pelvis' frame of axes, its depth and width the median over the recording.
    Knees and ankles lie 57 and 42 mm medially of their markers, perpendicular to the segment above the marker: ankles
    along the axis of foot and shank, knees between that and the pelvis' lateral axis. Shoulders lie 40 mm below theirs
    along the trunk; the base and the top of the head 110 mm below and 90 mm above the middle of its markers.
    """

    def marker(name: str) -> np.ndarray:
        return markers_NM3[::EVERY, MARKERS.index(name)]

    every = {name: markers_NM3[:, MARKERS.index(name)] for name in ("LASI", "RASI", "LPSI", "RPSI")}
    width = np.median(np.linalg.norm(every["LASI"] - every["RASI"], axis=1))
    depth = np.median(np.linalg.norm((every["LASI"] + every["RASI"] - every["LPSI"] - every["RPSI"]) / 2, axis=1))
    front = (marker("LASI") + marker("RASI")) / 2
    back = (marker("LPSI") + marker("RPSI")) / 2
    left = _unit(marker("LASI") - marker("RASI"))
    up = _unit(np.cross(front - back, left))
    forward = _unit(np.cross(left, up))
    joints = {"thorax": (marker("C7") + marker("CLAV")) / 2, "spine": (marker("T10") + marker("STRN")) / 2}
    trunk = _unit(joints["spine"] - joints["thorax"])
    for side, sign in (("l", 1.0), ("r", -1.0)):
        own = side.upper()
        knee, ankle = marker(f"{own}KNE"), marker(f"{own}ANK")
        hip = front + (-0.24 * depth - 9.9) * forward + (-0.30 * width - 10.9) * up
        hip = hip + sign * (0.33 * width + 7.3) * left
        foot_axis = -sign * _unit(np.cross(knee - ankle, marker(f"{own}TOE") - marker(f"{own}HEE")))
        knee_centre = knee + 57 * _perpendicular(foot_axis - sign * left, hip - knee)
        joints |= {
            f"{side}_hip": hip,
            f"{side}_knee": knee_centre,
            f"{side}_ankle": ankle + 42 * _perpendicular(foot_axis, knee_centre - ankle),
            f"{side}_shoulder": marker(f"{own}SHO") + 40 * trunk,
            f"{side}_elbow": marker(f"{own}ELB"),
            f"{side}_wrist": (marker(f"{own}WRA") + marker(f"{own}WRB")) / 2,
        }
    joints["pelvis"] = (joints["l_hip"] + joints["r_hip"]) / 2
    head = (marker("LFHD") + marker("RFHD") + marker("LBHD") + marker("RBHD")) / 4
    ahead = marker("LFHD") + marker("RFHD") - marker("LBHD") - marker("RBHD")
    aside = marker("LFHD") + marker("LBHD") - marker("RFHD") - marker("RBHD")
    head_up = _unit(np.cross(ahead, aside))
    joints |= {"head_base": head - 110 * head_up, "head": head + 90 * head_up}
    return np.stack([joints[name] for name in JOINTS], axis=1)


def _unit(vector_N3: np.ndarray) -> np.ndarray:
    return vector_N3 / np.linalg.norm(vector_N3, axis=1, keepdims=True)


def _perpendicular(vector_N3: np.ndarray, segment_N3: np.ndarray) -> np.ndarray:
    """The unit vector of the part of a vector that is perpendicular to a segment."""
    along_N3 = _unit(segment_N3)
    return _unit(vector_N3 - (vector_N3 * along_N3).sum(axis=1, keepdims=True) * along_N3)


def camera_arrays() -> Arrays:
    """Four virtual cameras about the origin, as the packed file has them."""
    cameras = []
    for distance, degrees, height in CAMERAS:
        angle = np.radians(degrees)
        center = (distance * np.cos(angle), distance * np.sin(angle), height)
        cameras.append(Camera.facing(center, TARGET, (FOCAL, FOCAL), CENTRE, SIZE))
    arrays = {
        f"cam_{field}": np.array([getattr(camera, field) for camera in cameras], np.float32)
        for field in ("R", "center", "f", "c")
    }
    return arrays | {"cam_wh": np.array(SIZE, np.int32)}


# J-HMDB


def _jhmdb_clips(files: list[Path]) -> Iterator[_Clip]:
    root = files[0].parents[3]
    splits = [_split(root, number) for number in (1, 2, 3)]
    for file in files:
        action, video = file.parts[-3:-1]
        if action not in JHMDB_CLASSES:
            continue
        if missing := [number for number, split in enumerate(splits, 1) if (action, video) not in split]:
            raise ValueError(f"{root / 'splits'}: no {video} in {action}_test_split{missing[0]}.txt; download it again")
        positions_CJN = _matrix(file, "pos_world", (2, 15))
        columns = {
            "label": JHMDB_CLASSES.index(action),
            **{f"split_test_{number}": int(split[action, video]) for number, split in enumerate(splits, 1)},
        }
        yield _Clip(video, positions_CJN.transpose(2, 1, 0).astype(np.float32), columns)


def _split(root: Path, number: int) -> dict[tuple[str, str], bool]:
    """Whether a video is for testing, by class and name."""
    files = sorted(root.glob(f"**/splits/*_test_split{number}.txt"))
    if not files:
        raise ValueError(
            f"{root}: no splits/CLASS_test_split{number}.txt; download J-HMDB's splits and put the folder beside "
            "joint_positions"
        )
    split = {}
    for file in files:
        action = file.name.removesuffix(f"_test_split{number}.txt")
        for line, text in enumerate(file.read_text("utf-8", "replace").splitlines(), 1):
            parts = text.split()
            if len(parts) == 2 and parts[1] in ("1", "2"):
                split[action, parts[0].removesuffix(".avi")] = parts[1] == "2"
            elif parts and parts[1:] != ["0"]:
                raise ValueError(f"{file}, line {line}: must be VIDEO.avi and 1 or 2, got {text!r:.60}")
    return split
