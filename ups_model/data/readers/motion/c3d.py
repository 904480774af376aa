"""Points of a C3D file, by ezc3d: the joints are points of their names, such as joint centres of a body model.

Some damaged files make ezc3d end its process, or read without an end, so it runs in one of its own.
"""

import multiprocessing
from contextlib import suppress
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ups_model.data.readers.io.files import damage_named
from ups_model.data.readers.motion.files import Motion, checked
from ups_model.data.readers.motion.layouts import about_of

_UNITS = {"mm": "mm", "cm": "cm", "m": "m", "in": "inch", "inch": "inch"}
_DAMAGE = "not a whole C3D file"
TIMEOUT_SECONDS = 60.0
MAX_BYTES = 16 << 30
"""Of the memory of the process that reads."""


def read_c3d(file: Path) -> Motion:
    """Points, rate, unit and labels of a file. ValueError: it is damaged, its unit is none, or ezc3d is missing."""
    if find_spec("ezc3d") is None:
        raise ValueError(f"{file}: C3D files need ezc3d, which isn't installed; pip install 'ups-ablate[c3d]'")
    file.open("rb").close()
    content = _read_apart(file)
    with damage_named(f"{file}: {_DAMAGE}", "export it again"):
        labels = [str(label).strip() for label in content["labels"]]
        unit, fps = str(content["unit"]).strip().lower(), float(content["fps"])
        pose_NJ3 = np.moveaxis(content["points"][:3], 0, 2).swapaxes(0, 1)
    if unit not in _UNITS:
        raise ValueError(f"{file}: POINT:UNITS must be one of {', '.join(_UNITS)}, got {unit!r:.20}; export it in mm")
    return Motion(
        checked(str(file), pose_NJ3), about_of(str(file), {"joint_names": labels, "unit": _UNITS[unit], "fps": fps})
    )


def _read_apart(file: Path) -> dict[str, Any]:
    """What `_send` has read. ValueError where it could not."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(str(file), theirs))
    process.start()
    theirs.close()
    answer: dict[str, Any] | str = f"its reader took more than {TIMEOUT_SECONDS:g} s"
    try:
        if ours.poll(TIMEOUT_SECONDS):
            answer = ours.recv()
    except EOFError:
        answer = "its reader crashed"
    finally:
        process.kill()  # It has nothing left to do.
        process.join()
        ours.close()
    if isinstance(answer, str):
        raise ValueError(f"{file}: {_DAMAGE} ({answer}); export it again")
    return answer


def _send(file: str, connection: Connection) -> None:
    import ezc3d

    with suppress(ImportError, ValueError, OSError):  # Where a system has such limits.
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    try:
        content = ezc3d.c3d(file)
        points = content["parameters"]["POINT"]
        answer: dict[str, Any] | str = {
            "labels": list(points["LABELS"]["value"]),
            "unit": points["UNITS"]["value"][0],
            "fps": points["RATE"]["value"][0],
            "points": np.asarray(content["data"]["points"], dtype=np.float64),
        }
    except Exception as error:  # Damage comes out of ezc3d as whatever it meets.
        answer = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    connection.send(answer)
