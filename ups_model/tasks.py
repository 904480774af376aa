"""The four tasks: what goes in, and the grammar of the target sequence (paper section 3.2)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ups_model.config import TASK_NAMES, TaskName

POSE_AXES = 3


@dataclass(frozen=True)
class Task:
    """One task of the paper: its input, its kind of target sequence and the token that ends it."""

    name: TaskName
    title: str
    kind: Literal["pose", "class"]
    input_dims: int
    """2 or 3; a 2D input's third coordinate is 0."""
    eot: Literal["AR", "PE", "AP"]
    """Which end-of-task token closes the sequence; both recognition tasks share one."""

    def target_length(self, pose_joints: int) -> int:
        """K: 3 coordinates a joint, or one class, and the end-of-task token."""
        return POSE_AXES * pose_joints + 1 if self.kind == "pose" else 2


TASKS: Mapping[str, Task] = {
    "pe": Task("pe", "3D pose estimation", "pose", 2, "PE"),
    "ar2d": Task("ar2d", "2D action recognition", "class", 2, "AR"),
    "eap": Task("eap", "3D early action prediction", "class", 3, "AP"),
    "ar3d": Task("ar3d", "3D action recognition", "class", 3, "AR"),
}
TASK_INDEX: Mapping[str, int] = {name: index for index, name in enumerate(TASK_NAMES)}
"""Row of each task in task embeddings and per-task statistics, whatever tasks a run trains."""

MAX_PERSONS = 2
"""Of a clip that a model sees."""
