"""Small clip sets that stand in for those of preset `paper`: the same skeletons, numbers of classes and persons."""

from importlib.resources import files
from pathlib import Path

import numpy as np

from tests.support.runs import FRONT, SIDE, motion, set_info
from ups_model.data.format.cameras import project
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.skeletons import get_skeleton

FRAMES = 14


def write_paper_sets(folder: Path) -> dict[str, Path]:
    """Human3.6M with stored detections, NTU RGB+D 120 and Kinetics-400, both with two persons in each clip."""
    readers = "ups_model.data.readers"
    names = {
        name: (files(f"{readers}.{name}") / "class_names.txt").read_text("utf-8").split("\n")
        for name in ("ntu", "kinetics")
    }
    ntu, kinetics = (tuple(line.strip() for line in lines if line.strip()) for lines in names.values())
    cameras = ((FRONT, SIDE),)
    infos = {
        "h36m": set_info("h36m", "h36m17", up_axis="z", camera_groups=cameras),
        "ntu120": set_info("ntu120", "ntu25", classes=ntu[:120]),
        "kinetics": set_info("kinetics", "openpose18", dims=2, up_axis="-y", classes=kinetics[:400]),
    }
    paths = {}
    for name, info in infos.items():
        joints, classes = get_skeleton(info.skeleton).joints, len(info.classes)
        clips = []
        for row in range(max(classes, 6) * 3):
            world_NJ3 = motion(row, row % 2, FRAMES, joints)
            positions = world_NJ3 if info.dims == 3 else world_NJ3[..., [0, 2]]
            keypoints, subject = None, row % 6
            if name == "h36m":
                keypoints = np.stack([project(world_NJ3, camera) for camera in (FRONT, SIDE)], axis=1)
            tracks = (Track(positions, keypoints=keypoints),) * (1 if name == "h36m" else 2)
            group = 0 if name == "h36m" else -1
            clips.append(
                Clip(f"{name}-{row}", tracks, row % classes, subject, split_test=subject == 0, camera_group=group)
            )
        paths[name] = write_clip_set(folder / name, info, clips).path
    return paths
