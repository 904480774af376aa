"""Writers of miniature NTU RGB+D files, to the letter of the published formats. They know nothing of the readers."""

import pickle
from pathlib import Path

import numpy as np

HAND_AND_LEAN = "0 1 1 0 1 0"


def standing(frames, seed=0, at=(0.0, 0.0, 2.5), amount=0.05):
    """[frames, 25, 3]: something as tall as a person, taller than wide, that moves by about `amount` metres."""
    rng = np.random.default_rng(seed)
    rest = np.stack([np.linspace(-0.2, 0.2, 25), np.linspace(-0.9, 0.8, 25), np.zeros(25)], axis=1) + at
    return rest + rng.normal(scale=amount, size=(frames, 1, 3)) + rng.normal(scale=0.005, size=(frames, 25, 3))


def skeleton_text(frames, newline="\n", declared=None, digits=7):
    """The text of a .skeleton file. `frames`: for each frame, a list of (body id, joints [25, 3])."""
    lines = [str(len(frames) if declared is None else declared)]
    for bodies in frames:
        lines.append(str(len(bodies)))
        for body, joints in bodies:
            lines.append(f"{body} {HAND_AND_LEAN} -0.06340675 -0.2176886 2")
            lines.append(str(len(joints)))
            for x, y, z in joints:
                xyz = " ".join(f"{value:.{digits}g}" for value in (x, y, z))
                lines.append(f"{xyz} 277.4281 191.8174 1036.233 519.1677 -0.2059419 0.05349901 0.9692109 -0.1239193 2")
    return newline.join(lines) + newline


def write_skeleton(file, frames, **options):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_bytes(skeleton_text(frames, **options).encode())
    return Path(file)


def one_body(joints, body="72057594037931101"):
    return [[(body, pose)] for pose in joints]


def padded_row(persons, frames=300):
    """[frames, 150]: persons is a list of at most two of (first frame, joints [N, 25, 3])."""
    row = np.zeros((frames, 2, 75), dtype=np.float32)
    for index, (first, joints) in enumerate(persons):
        row[first : first + len(joints), index] = np.reshape(joints, (len(joints), 75))
    return row.reshape(frames, 150)


def write_arrays(file, train, test, classes, compressed=False, dtype=np.float32):
    """An .npz of rows as (label, row [frames, 150]) of two parts."""
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    arrays = {}
    for part, rows in (("train", train), ("test", test)):
        labels = np.array([label for label, _ in rows], dtype=int)
        arrays[f"x_{part}"] = np.stack([row for _, row in rows]).astype(dtype)
        arrays[f"y_{part}"] = np.eye(classes)[labels]
    (np.savez_compressed if compressed else np.savez)(file, **arrays)
    return Path(file)


def annotation(name, keypoint, label=None):
    keypoint = np.asarray(keypoint)
    label = int(name[-3:]) - 1 if label is None else label
    return {"frame_dir": name, "label": label, "keypoint": keypoint, "total_frames": keypoint.shape[1]}


def write_pickle(file, annotations, split, protocol=2):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with Path(file).open("wb") as stream:
        pickle.dump({"split": split, "annotations": annotations}, stream, protocol=protocol)
    return Path(file)
