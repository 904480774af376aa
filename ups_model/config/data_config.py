"""What each task is fed: the data's part of a configuration. Imports no torch."""

import re
from dataclasses import dataclass, field
from typing import Literal

from ups_model.config.schema import NEUTRAL, Section, at_least, between, next_multiple

TaskName = Literal["pe", "ar2d", "eap", "ar3d"]
TASK_NAMES: tuple[TaskName, ...] = ("pe", "ar2d", "eap", "ar3d")
"""Pose estimation, 2D action recognition, early action prediction, 3D action recognition: the paper's rotation."""


def set_of(source: str) -> str:
    """The clip set of a source as `TaskData.sources` names it: "ntu60:xview" -> "ntu60"."""
    return source.partition(":")[0]


def protocol_of(source: str) -> str:
    """The protocol of a source: "ntu60:xview" -> "xview"; "default" where none is named."""
    return source.partition(":")[2] or "default"


@dataclass(frozen=True)
class TaskData(Section):
    """What one task is fed: its clip sets, the shape of a clip, and the augmentation of training clips."""

    sources: tuple[str, ...] = ()
    """Prepared clip sets, each SET or SET:PROTOCOL ("ntu60:xview"), by default the set's first protocol. A batch comes
    from one of them, drawn in proportion to their sizes; metrics without a source's name are those of the first."""
    frames: int = 64
    """N, frames a clip is resized to (class tasks) or window length (pose estimation)."""
    frame_stride: int = 1
    """Pose estimation: take every n-th frame of the recording."""
    batch_size: int = 64
    """Clips a step; for pose estimation windows, of which `targets_per_window` poses each are predicted."""
    targets_per_window: int = 1
    """Pose estimation: frames predicted from one encoded window in training (1 = the centre frame)."""
    evaluate_targets: int = 1
    """Pose estimation: frames predicted from one encoded window in evaluation, around its centre."""
    evaluate_stride: int = 1
    """Pose estimation: predict every n-th frame of an evaluated sequence (1 = all)."""
    crop_min: float = 1.0
    """Training: least share of a clip that a random temporal crop keeps (EAP: least share observed)."""
    rotation_deg: float = 0.0
    """Training: rotation about the vertical axis, uniform in +-."""
    tilt_deg: float = 0.0
    """Training: rotation about the horizontal axes, uniform in +- (2D: rotation in the image plane)."""
    scale: float = 0.0
    """Training: body size, uniform in 1 +- this."""
    bone_scale: float = 0.0
    """Training, pose estimation: length of each limb pair, uniform in 1 +- this."""
    translation_m: float = 0.0
    """Training, pose estimation: displacement on the ground, uniform in +- metres."""
    jitter: float = 0.0
    """Training: standard deviation of noise on input coordinates: one displacement a joint and clip (class tasks, in
    units of the normalised clip), or one a joint and frame (pose estimation, in half image widths)."""
    joint_drop: float = 0.0
    """Training: chance that a joint's input is replaced by its parent's for the whole clip."""
    flip: bool = False
    """Training: mirror half of the clips, left and right swapped. Wrong where classes name a side."""
    detections: Literal["project", "stored"] = "project"
    """Pose estimation: 2D input as exact projection through the set's cameras, or the set's stored detections."""
    actions: tuple[str, ...] = field(default=(), metadata=NEUTRAL)
    """Names of classes whose clips alone are trained and validated on, as for a specialist of an action; all where none
    is named. The test split stays whole: metrics of single actions are what a specialist is judged by."""

    def faults(self) -> list[str]:
        faults = at_least(self, 1, "frames", "frame_stride", "batch_size", "targets_per_window")
        faults += at_least(self, 1, "evaluate_targets", "evaluate_stride")
        if self.evaluate_targets > self.frames:
            faults.append(f"evaluate_targets must be at most frames, got {self.evaluate_targets} and {self.frames}")
        if self.targets_per_window > self.evaluate_targets:
            faults.append(
                "targets_per_window must be at most evaluate_targets, whose frames they are drawn from, got "
                f"{self.targets_per_window} and {self.evaluate_targets}"
            )
        if len(set(self.actions)) < len(self.actions):
            faults.append(f"actions must be named once each, got {', '.join(self.actions)}")
        if len(set(self.sources)) < len(self.sources):
            faults.append(f"sources must be named once each, got {', '.join(self.sources)}")
        for source in self.sources:
            if not re.fullmatch(r"[^:]+(:\w+)?", source):
                faults.append(f"sources must be written SET or SET:PROTOCOL, got {source!r}")
        long, short = max(self.evaluate_stride, self.frame_stride), max(1, min(self.evaluate_stride, self.frame_stride))
        jump = max(1, self.evaluate_stride // max(1, self.frame_stride))
        if long % short:
            faults.append(
                "of evaluate_stride and frame_stride one must be a multiple of the other, got "
                f"{self.evaluate_stride} and {self.frame_stride}"
            )
        elif self.evaluate_targets % jump:
            faults.append(
                "evaluate_targets must be a multiple of evaluate_stride / frame_stride, got "
                f"{self.evaluate_targets} and {jump}; try {next_multiple(self.evaluate_targets, jump)}"
            )
        faults += between(self, 0.01, 1, "crop_min") + between(self, 0, 180, "rotation_deg", "tilt_deg")
        faults += between(self, 0, 0.9, "scale", "bone_scale", "joint_drop")
        return faults + between(self, 0, 1, "jitter") + between(self, 0, 10, "translation_m")


@dataclass(frozen=True)
class DataConfig(Section):
    """The clips of each task, and which training subjects are held out."""

    pe: TaskData = field(default_factory=TaskData)
    """3D pose estimation."""
    ar2d: TaskData = field(default_factory=TaskData)
    """2D action recognition."""
    eap: TaskData = field(default_factory=TaskData)
    """3D early action prediction."""
    ar3d: TaskData = field(default_factory=TaskData)
    """3D action recognition."""
    validation_subjects: int = 1
    """Training subjects held out to choose the checkpoint; 0 trains on all of them and takes the last step."""
    validation_folds: int = 1
    """Folds that a study's seeds take turns in: the run of seed s holds out the (s mod folds)-th choice of validation
    subjects, in every row alike. One subject may be an outlier; the mean over seeds then speaks of several."""
    split_seed: int = 0
    """Order in which training subjects are held out; the same in every seed of a study, so that arms stay
    comparable."""
    leaks: Literal["refuse", "drop"] = field(default="refuse", metadata=NEUTRAL)
    """Training clips that another task validates or tests on, as clips of NTU60 xsub in NTU120 xset: an error, or left
    out of training."""

    def faults(self) -> list[str]:
        return at_least(self, 0, "validation_subjects") + at_least(self, 1, "validation_folds")
