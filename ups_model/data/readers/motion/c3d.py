"""Points of a C3D file, by ezc3d: the joints are points of their names, such as joint centres of a body model."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ups_model.data.readers.io.files import damage_named
from ups_model.data.readers.motion.files import Motion, checked
from ups_model.data.readers.motion.layouts import about_of

_UNITS = {"mm": "mm", "cm": "cm", "m": "m", "in": "inch", "inch": "inch"}


def read_c3d(file: Path) -> Motion:
    """The points of a file, with their rate, unit and labels.

    Raises:
        ValueError: ezc3d isn't installed, the file is damaged, or its unit is none; names the file.
        OSError: the file cannot be read.
    """
    try:
        import ezc3d
    except ImportError as error:
        raise ValueError(f"{file}: C3D files need ezc3d ({error}); pip install 'ups-ablate[c3d]'") from error
    with damage_named(f"{file}: not a whole C3D file", "export it again"):
        content = ezc3d.c3d(str(file))
        points = content["parameters"]["POINT"]
        labels = [str(label).strip() for label in points["LABELS"]["value"]]
        unit = str(points["UNITS"]["value"][0]).strip().lower()
        fps = float(points["RATE"]["value"][0])
        pose_NJ3 = np.moveaxis(np.asarray(content["data"]["points"], dtype=np.float64)[:3], 0, 2).swapaxes(0, 1)
    if unit not in _UNITS:
        raise ValueError(f"{file}: POINT:UNITS must be one of {', '.join(_UNITS)}, got {unit!r:.20}; export it in mm")
    return Motion(
        checked(str(file), pose_NJ3), about_of(str(file), {"joint_names": labels, "unit": _UNITS[unit], "fps": fps})
    )
