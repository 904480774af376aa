"""What clip sets of NTU RGB+D hold, whatever files they come from."""

from collections.abc import Mapping

from ups_model.data.format.info import ClipSetInfo
from ups_model.data.format.writer import Clip
from ups_model.data.readers.ntu.bodies import Persons
from ups_model.data.readers.ntu.names import CLASSES, PROTOCOLS, NtuName, is_test

FPS = 30.0
SKELETON = "ntu25"
UP_AXIS = "y"
MISSING = "listed as missing skeletons"
"""Why a recording is left out."""


_LICENCE = "NTU RGB+D, ROSE Lab, Nanyang Technological University: academic research by agreement, no redistribution"


def set_info(name: str, recipe: Mapping[str, str | int]) -> ClipSetInfo:
    """The clip set "ntu60" or "ntu120". Both have the origin "ntu": NTU60 is part of NTU120, names and all."""
    return ClipSetInfo(
        name=name,
        skeleton=SKELETON,
        dims=3,
        fps=FPS,
        units="metre",
        up_axis=UP_AXIS,
        licence=_LICENCE,
        classes=CLASSES[name],
        synthetic=False,
        description=f"NTU RGB+D {name.removeprefix('ntu')}: Kinect v2 skeletons of {len(CLASSES[name])} actions",
        origin="ntu",
        recipe=dict(recipe),
    )


def named_clip(name: NtuName, set_name: str, persons: Persons) -> Clip:
    """The clip of a named recording: subject, label, cameras and both protocols go by its name."""
    tests = {protocol: is_test(name, set_name, protocol) for protocol in PROTOCOLS[set_name]}
    return Clip(
        clip_id=name.text,
        tracks=persons.tracks,
        label=name.action - 1,
        subject=name.performer,
        split_test=tests[PROTOCOLS[set_name][0]],
        extra={
            **{f"split_test_{protocol}": int(test) for protocol, test in tests.items()},
            "setup": name.setup,
            "camera": name.camera,
            "replication": name.replication,
            "bodies_dropped": persons.bodies_dropped,
            "frames_dropped": persons.frames_dropped,
        },
    )


def nameless_clip(clip_id: str, label: int, protocol: str, test: bool, persons: Persons) -> Clip:
    """The clip of a row of arrays without names: it has a label, and one protocol."""
    return Clip(
        clip_id=clip_id,
        tracks=persons.tracks,
        label=label,
        split_test=test,
        extra={f"split_test_{protocol}": int(test), "frames_dropped": persons.frames_dropped},
    )
