"""The embedded data: labelled motion of invented people, made from a seed in seconds.

Three clip sets of twelve actions, one for each kind of input of the four tasks:

    synthetic_ntu25       3D, what a Kinect would report: noisy joints, hands that are lost now and then
    synthetic_openpose18  2D, what a pose detector would report: noise, confidences, missing joints
    synthetic_h36m17      3D motion capture with noisy 2D keypoints in four cameras placed like Human3.6M's

The people of one set are in no other, so training on all three leaks nothing. Results on these sets say that the code
works and how its parts compare on easy motion; they say nothing about any real data set, and captions must say so.

Shape suffixes: F frames of the set, N frames of a clip, K cameras, P points of the body, J joints.
"""

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ups_model.data.format.cameras import Camera, project
from ups_model.data.format.clip_set import ClipSet, ClipSetInfo
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.data.readers.io.files import packaged_table
from ups_model.data.readers.synthetic.body import POINTS, draw_body, pose
from ups_model.data.readers.synthetic.motion import ACTIONS, Style, angles
from ups_model.skeletons import get_skeleton

GENERATOR_VERSION = 1
"""Raised when the generator changes what it makes, so that prepared sets are made again."""


@dataclass(frozen=True)
class SyntheticSet:
    """What makes one of the three sets."""

    skeleton: str
    dims: int
    fps: float
    up_axis: str
    repetitions: int
    description: str
    points: Mapping[str, str] = field(default_factory=dict)
    """Joint -> point of the body, where they have different names."""


SYNTHETIC_SETS: Mapping[str, SyntheticSet] = {
    name: SyntheticSet(**facts) for name, facts in packaged_table("synthetic/sets.toml").items()
}

_IMAGE_WH = (640, 480)
_CAMERAS = tuple(
    Camera.facing(place, (0, 0, 0.9), (1145, 1145), (512, 515), (1000, 1002))
    for place in ((1.8, 5.0, 1.55), (1.7, -4.7, 1.6), (-1.8, 4.9, 1.45), (-1.85, -5.1, 1.5))
)
"""Four cameras about 5 m away at the corners of a room, with the image size of Human3.6M."""


def recipe(name: str, seed: int) -> dict[str, str | int]:
    """What preparing `name` depends on."""
    return {"reader": "synthetic", "reader_version": GENERATOR_VERSION, "seed": seed}


def prepare(
    name: str, path: Path, seed: int = 0, subjects: int = 10, repetitions: int | None = None, progress: bool = False
) -> ClipSet:
    """Makes a synthetic set at `path`: subjects x 12 actions x repetitions clips; every second subject is for testing.

    The same arguments give the same bits. By default each subject repeats each action as often as SYNTHETIC_SETS says.
    ValueError for an unknown name, a negative seed, fewer than two subjects or no repetition.
    """
    if name not in SYNTHETIC_SETS:
        raise ValueError(f"unknown synthetic set {name!r}; try {', '.join(SYNTHETIC_SETS)}")
    spec = SYNTHETIC_SETS[name]
    repetitions = spec.repetitions if repetitions is None else repetitions
    for what, value, least in (("seed", seed, 0), ("subjects", subjects, 2), ("repetitions", repetitions, 1)):
        if value < least:
            raise ValueError(f"{name}: {what} must be >= {least}, got {value}")

    cameras = (_CAMERAS,) if spec.skeleton == "h36m17" else ()
    info = ClipSetInfo(
        name=name,
        skeleton=spec.skeleton,
        dims=spec.dims,
        fps=spec.fps,
        units="metre" if spec.dims == 3 else "normalised",
        up_axis=spec.up_axis,
        licence="Apache-2.0 (made by this program)",
        classes=tuple(action.name for action in ACTIONS),
        synthetic=True,
        description=spec.description,
        camera_groups=cameras,
        recipe=recipe(name, seed),
    )
    joints = [POINTS.index(spec.points.get(joint, joint)) for joint in get_skeleton(spec.skeleton).joint_names]
    total = subjects * len(ACTIONS) * repetitions
    clips = (
        Clip(
            clip_id=f"{name}-{subject:03d}-{label:02d}-{repetition:02d}",
            tracks=(_sense(spec.skeleton, points_NP3[:, joints], cameras, rng),),
            label=label,
            subject=subject,
            split_test=subject % 2 == 0,
            camera_group=0 if cameras else -1,
            extra={"repetition": repetition},
        )
        for subject, label, repetition, points_NP3, rng in _motions(name, spec.fps, seed, subjects, repetitions)
    )
    bar = tqdm(clips, name, total, unit="clip", leave=False, disable=None if progress else True)
    return write_clip_set(path, info, bar, dtype="float32")


def _generator(*key: int | str) -> np.random.Generator:
    """A generator of its own for every purpose, so that more people or repetitions change none of the others."""
    return np.random.default_rng([zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key])


def _motions(
    name: str, fps: float, seed: int, subjects: int, repetitions: int
) -> Iterator[tuple[int, int, int, np.ndarray, np.random.Generator]]:
    """Yields subject (from 1), label, repetition, [N, P, 3] metres with z up, and the clip's generator."""
    for subject in range(1, subjects + 1):
        person = _generator(seed, name, "person", subject)
        offsets_P3, style = draw_body(person), Style.draw(person)
        batch = []
        for label, action in enumerate(ACTIONS):
            for repetition in range(1, repetitions + 1):
                rng = _generator(seed, name, "clip", subject, label, repetition)
                angles_NA, right = angles(action, style, fps, rng)
                batch.append((label, repetition, angles_NA, right, rng.uniform(-0.8, 0.8), rng))
        # One pass over all clips of the person: the kinematics cost per call, not per frame.
        frames = [len(item[2]) for item in batch]
        points_FP3 = pose(
            np.broadcast_to(offsets_P3, (sum(frames), *offsets_P3.shape)),
            np.concatenate([item[2] for item in batch]),
            np.repeat([item[3] for item in batch], frames),
            np.repeat([item[4] for item in batch], frames),
        )
        ends = np.cumsum(frames)
        for (label, repetition, *_, rng), end, length in zip(batch, ends, frames, strict=True):
            yield subject, label, repetition, points_FP3[end - length : end], rng


def _sense(
    skeleton: str, points_NJ3: np.ndarray, cameras: tuple[tuple[Camera, ...], ...], rng: np.random.Generator
) -> Track:
    if skeleton == "ntu25":
        return _kinect(points_NJ3, rng)
    if skeleton == "openpose18":
        return _detector(points_NJ3, rng)
    return _motion_capture(points_NJ3, cameras[0], rng)


# What is stored is rounded, so that the last bits of a machine's sine and product do not change a fingerprint.


def _kinect(points_NJ3: np.ndarray, rng: np.random.Generator) -> Track:
    """Joints as a Kinect in front of the person reports them: x to the sensor's left, y up, z away, metres."""
    names = get_skeleton("ntu25").joint_names
    # Ends of limbs are the noisiest, and a hidden hand is guessed wrong for some frames.
    ends = np.array([name.endswith(("wrist", "hand", "tip", "thumb", "ankle", "foot")) for name in names])
    noise_NJ3 = rng.normal(0, 1, points_NJ3.shape) * np.where(ends, 0.018, 0.009)[:, None]
    noise_NJ3 += _slow_noise(rng, points_NJ3.shape, 12) * np.where(ends, 0.03, 0.015)[:, None]
    for side in ("l", "r"):
        if rng.random() < 0.25:
            start = rng.integers(0, len(points_NJ3))
            lost = [names.index(f"{side}_{joint}") for joint in ("wrist", "hand", "hand_tip", "thumb")]
            noise_NJ3[start : start + rng.integers(4, 13), lost] += rng.normal(0, 0.12, 3)
    place = np.array([rng.normal(0, 0.25), -0.9 + rng.normal(0, 0.05), rng.uniform(2.4, 3.6)])
    x, y, z = np.moveaxis(points_NJ3, -1, 0)
    # The person faces the sensor, so their left (+x) is at its right, and their back (+y) is away from it.
    return Track(np.round(np.stack([-x, z, y], axis=-1) + place + noise_NJ3, 3))


def _detector(points_NJ3: np.ndarray, rng: np.random.Generator) -> Track:
    """Joints as a 2D detector reports them: x right, y down, the image spans -0.5..0.5; (0, 0) where not seen."""
    distance, side, height = rng.uniform(3.0, 5.0), rng.uniform(-0.9, 0.9), rng.uniform(0.8, 1.8)
    centre = (distance * np.sin(side), -distance * np.cos(side), height)
    target = (rng.normal(0, 0.25), rng.normal(0, 0.25), 0.95 + rng.normal(0, 0.08))
    focal = rng.uniform(480, 620)
    camera = Camera.facing(centre, target, (focal, focal), (_IMAGE_WH[0] / 2, _IMAGE_WH[1] / 2), _IMAGE_WH)
    pixels_NJ2 = project(points_NJ3, camera)
    size = np.ptp(pixels_NJ2[..., 1]) * 0.01  # A percent of the person's height.
    confidence_NJ = np.clip(
        rng.beta(8, 2, pixels_NJ2.shape[:2]) - np.abs(_slow_noise(rng, pixels_NJ2.shape[:2], 8)) / 6, 0, 1
    )
    pixels_NJ2 = pixels_NJ2 + rng.normal(0, 1, pixels_NJ2.shape) * size / np.maximum(confidence_NJ, 0.3)[..., None]
    pixels_NJ2 += _slow_noise(rng, pixels_NJ2.shape, 12) * size
    confidence_NJ = np.round(confidence_NJ, 2)
    outside_NJ = ((pixels_NJ2 < 0) | (pixels_NJ2 > _IMAGE_WH)).any(-1)
    confidence_NJ[outside_NJ | (confidence_NJ < 0.4)] = 0.0
    image_NJ2 = np.round(pixels_NJ2 / _IMAGE_WH - 0.5, 4)
    return Track(np.where(confidence_NJ[..., None] > 0, image_NJ2, 0.0), confidence=confidence_NJ)


def _motion_capture(points_NJ3: np.ndarray, cameras: tuple[Camera, ...], rng: np.random.Generator) -> Track:
    """Exact joints, z up, and their keypoints in every camera: 3 pixels of jitter and 4 of slow error."""
    points_NJ3 = points_NJ3 + np.array([*rng.uniform(-0.7, 0.7, 2), 0.0])
    keypoints_NKJ2 = np.stack([project(points_NJ3, camera) for camera in cameras], axis=1)
    keypoints_NKJ2 += rng.normal(0, 3.0, keypoints_NKJ2.shape) + 4.0 * _slow_noise(rng, keypoints_NKJ2.shape, 20)
    return Track(np.round(points_NJ3, 4), keypoints=np.round(keypoints_NKJ2, 1))


def _slow_noise(rng: np.random.Generator, shape: tuple[int, ...], every: int) -> np.ndarray:
    """Noise of unit deviation at knots `every` frames apart, linear between them, along the first axis."""
    frames = shape[0]
    knots = rng.normal(0, 1, (frames // every + 2, *shape[1:]))
    at = np.arange(frames) / every
    left = at.astype(int)
    part = (at - left).reshape(-1, *(1 for _ in shape[1:]))
    return knots[left] * (1 - part) + knots[left + 1] * part
