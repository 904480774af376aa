"""What the model answers about one clip.

Shape suffixes: K classes, N frames, J joints.
"""

from dataclasses import dataclass

import numpy as np

from ups_model.config import TaskName
from ups_model.skeletons import Skeleton


@dataclass(frozen=True)
class ClassPrediction:
    """Which class a clip is of."""

    task: TaskName
    data_set: str
    classes: tuple[str, ...]
    probability_K: np.ndarray
    """float64 [K]: softmax of the model's scores over the data set's classes; how sure it is, not how right."""

    @property
    def best(self) -> list[tuple[str, float]]:
        """Classes with their probabilities, best first."""
        order = np.argsort(-self.probability_K, kind="stable")
        return [(self.classes[index], float(self.probability_K[index])) for index in order]


@dataclass(frozen=True)
class PosePrediction:
    """The poses of one person."""

    task: TaskName
    pose_NJ3: np.ndarray
    """float32 [N, J, 3] metres in camera axes (x right, y down, z away), the root at 0."""
    keypoints_NJ2: np.ndarray
    """float32 [N, J', 2] pixels: what was looked at."""
    first_frame: int
    """Of the recording, for which the first pose is."""
    fps: float
    skeleton: Skeleton
    """Of the answer."""
    seen: Skeleton
    """Of the keypoints."""
    errors: dict[str, float]
    """mpjpe_mm and p_mpjpe_mm against the file's own 3D poses; empty where it has none."""
