"""What the model answers about one clip, and how that reads in a file and on a screen.

Shape suffixes: K classes, N frames, J joints.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from ups_model.config import TaskName
from ups_model.skeletons import Skeleton
from ups_model.tasks import TASKS
from ups_model.wording import count


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

    @property
    def facts(self) -> dict[str, Any]:
        """Its texts and numbers, for a file."""
        return {"data_set": self.data_set, "best": self.best[0][0]}

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays, for a file."""
        return {"classes": np.array(self.classes), "probabilities": self.probability_K}

    def text(self, top: int = 5) -> str:
        """For people: the best `top` classes."""
        best = self.best[:top]
        width = max(len(name) for name, _ in best)
        lines = [f"{TASKS[self.task].title}, classes of {self.data_set}"]
        return "\n".join(lines + [f"  {name:<{width}}  {100 * share:6.2f} %" for name, share in best])


@dataclass(frozen=True)
class PosePrediction:
    """The poses of one person."""

    pose_NJ3: np.ndarray
    """float32 [N, J, 3] metres in camera axes (x right, y down, z away), the root at 0."""
    keypoints_NJ2: np.ndarray
    """float32 [N, J', 2] pixels: the input."""
    seen_N: np.ndarray
    """bool [N]: whether the file has a detection of the person in the frame. Where not, the keypoints are those last
    seen, and the pose is made of them."""
    first_frame: int
    """Frame that the first pose belongs to, by the numbers of the file."""
    fps: float
    skeleton: Skeleton
    keypoint_skeleton: Skeleton
    errors: dict[str, float]
    """mpjpe_mm and p_mpjpe_mm against the file's own 3D poses; empty where it has none."""

    @property
    def facts(self) -> dict[str, Any]:
        """Its texts and numbers, for a file."""
        return {
            "first_frame": self.first_frame,
            "fps": self.fps,
            "units": "metre",
            "axes": "camera: x right, y down, z away; root at 0",
            "joint_names": list(self.skeleton.joint_names),
            "parents": list(self.skeleton.parents),
            "errors": self.errors,
        }

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """Its arrays, for a file."""
        return {"poses": self.pose_NJ3, "keypoints": self.keypoints_NJ2, "seen": self.seen_N}

    def text(self, top: int = 5) -> str:
        """For people: what was predicted, and its errors where they are known."""
        lines = [
            f"{TASKS['pe'].title}: {len(self.pose_NJ3)} frames from frame {self.first_frame} on, "
            f"{self.skeleton.joints} joints ({self.skeleton.name})"
        ]
        if self.keypoint_skeleton != self.skeleton:
            layout = self.keypoint_skeleton.name
            lines.append(f"  from {layout} keypoints: joints that they lack are put between those they have")
        if unseen := int((~self.seen_N).sum()):
            lines.append(f"  {count(unseen, 'frame')} without a detection: the keypoints last seen are used")
        lines += [f"  {name} {value:.1f}, against the poses in the file" for name, value in self.errors.items()]
        return "\n".join(lines)


Prediction = ClassPrediction | PosePrediction
