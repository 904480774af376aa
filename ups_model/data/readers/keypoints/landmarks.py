"""MediaPipe's 33 landmarks of a body, in JSON or in a table (CSV) with a row a frame.

JSON:   [null, [{"x": 0.5, "y": 0.5, "visibility": 0.9} 33], ...]; the 33 may be under "landmark", "landmarks" or
        "pose_landmarks"
CSV:    columns of x, y and, optionally, visibility of each landmark, which its number or its name tells: x_0, 0_x, x0,
        landmark_0_x, nose_x, LEFT_SHOULDER_X, ..; numbers are from 0, or from 1 where there is a 33 and no 0. A column
        frame, frame_id, frame_number, frame_idx or frame_index tells the frame; else rows are frames from 0.
        A frame without a number in any landmark has nobody.

x, y are parts of the image. Shape suffixes: L 33 landmarks.
"""

import csv
import re
from pathlib import Path
from typing import Any

from ups_model.data.readers.io.files import read_rows
from ups_model.data.readers.keypoints.builder import MAX_FRAME, MAX_SCORE, Builder

LANDMARKS = 33
COCO_LANDMARKS = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)
"""MediaPipe's landmark for each joint of COCO: nose, eyes, ears, shoulders, .. ankles, the left one first."""
MAX_PARTS = 100.0
"""Of coordinates in parts of the image: landmarks may be out of it, not a hundred times its size."""
LANDMARK_KEYS = ("landmark", "landmarks", "pose_landmarks")
MAX_TABLE_BYTES = 128 << 20

_NAMES = """
nose left_eye_inner left_eye left_eye_outer right_eye_inner right_eye right_eye_outer left_ear right_ear mouth_left
mouth_right left_shoulder right_shoulder left_elbow right_elbow left_wrist right_wrist left_pinky right_pinky left_index
right_index left_thumb right_thumb left_hip right_hip left_knee right_knee left_ankle right_ankle left_heel right_heel
left_foot_index right_foot_index
"""
LANDMARK_NAMES = tuple(_NAMES.split())
_FRAME_COLUMNS = ("frame", "frameid", "framenumber", "frameidx", "frameindex")
_VALUES = {"x": "x", "y": "y", "v": "visibility", "vis": "visibility", "visibility": "visibility"}
_COLUMN = re.compile(
    r"(?:(?P<first>x|y|v|vis|visibility)_?(?P<after>\d{1,2}|[a-z][a-z_]*?)"
    r"|(?:landmark_?|lm_?|point_?|p_?)?(?P<before>\d{1,2}|[a-z][a-z_]*?)_(?P<last>x|y|v|vis|visibility))"
)


def read_landmarks(builder: Builder, entries: list[Any]) -> None:
    for number, entry in enumerate(entries):
        key = f"[{number}]"
        frame = builder.add_frame(key, number)
        for name in (*LANDMARK_KEYS, *LANDMARK_KEYS):  # {"pose_landmarks": {"landmark": [...]}} too
            if isinstance(entry, dict) and name in entry:
                entry, key = entry[name], f"{key}.{name}"
        if entry is None or entry == []:
            continue
        if not isinstance(entry, list):
            raise builder.fault(key, f"must be null or a list of {LANDMARKS} landmarks", type(entry).__name__)
        several = isinstance(entry[0], list)  # The newer interface gives a list for each person.
        for index, person in enumerate(entry if several else [entry]):
            where = f"{key}[{index}]" if several else key
            xy, scores = [], []
            landmarks = builder.list_of(where, person, LANDMARKS, "landmarks, those of MediaPipe's pose")
            for index_L, landmark in enumerate(landmarks):
                place = f"{where}[{index_L}]"
                point = builder.object_of(place, landmark, "object with x and y")
                xy.append(builder.numbers(f"{place}.xy", [point.get("x"), point.get("y")], 2, MAX_PARTS))
                visibility = point.get("visibility")  # Absent or null where an interface does not estimate it.
                visibility = 1.0 if visibility is None else visibility
                scores += builder.numbers(f"{place}.visibility", [visibility], 1, MAX_SCORE)
            in_coco = [value for landmark in COCO_LANDMARKS for value in xy[landmark]]
            builder.add(frame, in_coco, [scores[landmark] for landmark in COCO_LANDMARKS], None)


def read_landmark_table(file: Path) -> Builder:
    """Detections of a CSV file, in parts of the image. ValueError names file, line and column that break a rule."""
    builder = Builder(file)
    if (size := file.stat().st_size) > MAX_TABLE_BYTES:
        raise ValueError(f"{file}: must have at most {MAX_TABLE_BYTES} bytes, got {size}; is it this kind of file?")
    rows = read_rows(file)
    if len(rows) < 2:
        raise ValueError(f"{file}: must have a line of column names and a row a frame, got {len(rows)} lines")
    frame_column, columns = _columns(builder, rows[0])
    for number, row in enumerate((row for row in rows[1:] if row), start=2):
        if len(row) != len(rows[0]):
            raise builder.fault(f"line {number}", f"must have {len(rows[0])} columns", f"{len(row)} of them")
        frame: Any = number - 2
        if frame_column is not None:
            key = f"line {number}, {rows[0][frame_column]}"
            (frame,) = builder.numbers(key, [_number(builder, key, row[frame_column])], 1, MAX_FRAME)
            frame = int(frame) if frame == int(frame) else frame
        frame = builder.add_frame(f"line {number}, frame", frame)
        if all(row[place].strip().lower() in ("", "nan") for place in columns.values()):
            continue
        xy: list[float] = []
        scores: list[float] = []
        for landmark in COCO_LANDMARKS:
            for name, bound in (("x", MAX_PARTS), ("y", MAX_PARTS), ("visibility", MAX_SCORE)):
                place = columns.get((landmark, name))
                key = f"line {number}, {name} of {LANDMARK_NAMES[landmark]}"
                read = 1.0 if place is None else _number(builder, key, row[place])
                (xy if name != "visibility" else scores).extend(builder.numbers(key, [read], 1, bound))
        builder.add(frame, xy, scores, None)
    return builder


def _columns(builder: Builder, header: list[str]) -> tuple[int | None, dict[tuple[int, str], int]]:
    """The place of the column of frames, and of each (landmark, "x", "y" or "visibility")."""
    frame_column, named = None, {}
    for place, text in enumerate(header):
        plain = text.strip().lower().replace(" ", "_").replace("-", "_").replace(".", "_")
        if plain.replace("_", "") in _FRAME_COLUMNS:
            frame_column = place
        elif match := _COLUMN.fullmatch(plain):
            which, value = match["after"] or match["before"], _VALUES[match["first"] or match["last"]]
            if which.isdigit() or which in LANDMARK_NAMES:
                if (which, value) in named:
                    raise builder.fault(f"column {text}", "must stand once", f"{value} of {which} twice")
                named[which, value] = place
    numbers = [int(which) for which, _ in named if which.isdigit()]
    first = 1 if LANDMARKS in numbers and 0 not in numbers else 0
    columns = {
        (int(which) - first if which.isdigit() else LANDMARK_NAMES.index(which), value): place
        for (which, value), place in named.items()
    }
    for landmark in COCO_LANDMARKS:
        for value in ("x", "y"):
            if (landmark, value) not in columns:
                rule = f"must have {value} of {LANDMARK_NAMES[landmark]}, such as {value}_{landmark}"
                raise builder.fault("columns", f"{rule} or {LANDMARK_NAMES[landmark]}_{value}", ", ".join(header))
    return frame_column, columns


def is_landmark_table(file: Path) -> bool:
    """Whether the first line of a table has the columns of landmarks."""
    with file.open("rb") as stream:
        line = stream.readline(1 << 16).decode("utf-8-sig", "replace")
    try:
        _columns(Builder(file), next(csv.reader([line]), []))
    except (ValueError, csv.Error):
        return False
    return True


def _number(builder: Builder, key: str, text: str) -> float:
    try:
        if "_" in text:
            raise ValueError("digits grouped by underscores")
        return float(text)
    except ValueError as error:
        raise builder.value_fault(key, "must be a number", text) from error
