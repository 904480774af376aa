"""What a clip set is, beside its arrays: the manifest's part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ups_model.data.format.cameras import Camera
from ups_model.skeletons import get_skeleton

UNITS = ("metre", "normalised")
_PLAIN_KEYS = "name origin skeleton dims fps units up_axis licence synthetic description"


@dataclass(frozen=True)
class ClipSetInfo:
    """What a clip set is, beside its arrays."""

    name: str
    skeleton: str
    """A name in `ups_model.skeletons.SKELETONS`."""
    dims: int
    """2 or 3 coordinates."""
    fps: float
    units: str
    """ "metre" for 3D, "normalised" for 2D (image coordinates without a unit; the description says which)."""
    up_axis: str
    """ "x", "y", "z" or with a minus: "-y" is up where y grows downward."""
    licence: str
    classes: tuple[str, ...]
    """Plain text, in label order; empty where clips have no labels."""
    synthetic: bool
    """Whether the motion was made by a program. Captions must say so."""
    description: str
    """One sentence for captions."""
    origin: str = ""
    """Qualifies clip ids: sets of one origin share clips (NTU60 and NTU120). Empty: the name."""
    camera_groups: tuple[tuple[Camera, ...], ...] = ()
    """Groups of cameras that saw the same clips; a clip's `camera_group` indexes them."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Why how many clips of the source are not here. Provenance: not part of the fingerprint."""
    filled: bool = False
    """Whether joints of confidence 0 are stored where `fill_undetected` puts them, and not at 0. For sets
    that are too large to be filled in memory."""
    recipe: Mapping[str, str | int] = field(default_factory=dict)
    """What the set was prepared from. Equal recipes need no second preparation. Provenance, as above."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        faults = []
        if not self.name or "/" in self.name or self.name.startswith("."):
            faults.append(f"name must be a plain folder name, got {self.name!r}")
        if self.dims not in (2, 3):
            faults.append(f"dims must be 2 or 3, got {self.dims!r}")
        if not self.fps > 0:
            faults.append(f"fps must be positive, got {self.fps!r}")
        if self.units not in UNITS:
            faults.append(f"units must be one of {', '.join(UNITS)}, got {self.units!r}")
        if self.up_axis.lstrip("-") not in ("x", "y", "z"):
            faults.append(f"up_axis must be x, y or z, with or without a minus, got {self.up_axis!r}")
        if len(set(self.classes)) < len(self.classes):
            faults.append(f"classes must differ, got {self.classes}")
        try:
            get_skeleton(self.skeleton)
        except ValueError as error:
            faults.append(str(error))
        if faults:
            raise ValueError(f"clip set {self.name!r}: " + "; ".join(faults))

    def to_json(self) -> dict[str, Any]:
        """The manifest's part of it, without provenance."""
        plain = {key: getattr(self, key) for key in _PLAIN_KEYS.split()}
        plain["fps"] = float(self.fps)
        plain["classes"] = list(self.classes)
        plain["camera_groups"] = [[camera.to_json() for camera in group] for group in self.camera_groups]
        return plain | ({"filled": True} if self.filled else {})

    @classmethod
    def from_json(cls, manifest: Mapping[str, Any]) -> ClipSetInfo:
        """The inverse of `to_json`, provenance included. Raises KeyError, TypeError or ValueError on a bad manifest."""
        groups = tuple(tuple(Camera(**camera) for camera in group) for group in manifest["camera_groups"])
        plain = {key: manifest[key] for key in _PLAIN_KEYS.split()} | {"filled": bool(manifest.get("filled", False))}
        return cls(**plain, classes=tuple(manifest["classes"]), camera_groups=groups, **manifest.get("provenance", {}))
