"""Writers of miniature BVH and keypoint files, to the letter of the formats. They know nothing of the readers."""

import json
from pathlib import Path

import numpy as np

# name, parent, offset in centimetres, has a top or toe (offset of its end site)
CMU = (
    ("Hips", None, (0, 90, 0), None),
    ("LHipJoint", "Hips", (0, 0, 0), None),
    ("LeftUpLeg", "LHipJoint", (10, 0, 0), None),
    ("LeftLeg", "LeftUpLeg", (0, -42, 0), None),
    ("LeftFoot", "LeftLeg", (0, -40, 0), None),
    ("LeftToeBase", "LeftFoot", (0, -6, 12), (0, 0, 6)),
    ("RHipJoint", "Hips", (0, 0, 0), None),
    ("RightUpLeg", "RHipJoint", (-10, 0, 0), None),
    ("RightLeg", "RightUpLeg", (0, -42, 0), None),
    ("RightFoot", "RightLeg", (0, -40, 0), None),
    ("RightToeBase", "RightFoot", (0, -6, 12), (0, 0, 6)),
    ("LowerBack", "Hips", (0, 5, 0), None),
    ("Spine", "LowerBack", (0, 15, 0), None),
    ("Spine1", "Spine", (0, 15, 0), None),
    ("Neck", "Spine1", (0, 13, 0), None),
    ("Neck1", "Neck", (0, 5, 0), None),
    ("Head", "Neck1", (0, 6, 0), (0, 18, 0)),
    ("LeftShoulder", "Spine1", (0, 12, 0), None),
    ("LeftArm", "LeftShoulder", (17, 0, 0), None),
    ("LeftForeArm", "LeftArm", (29, 0, 0), None),
    ("LeftHand", "LeftForeArm", (25, 0, 0), (8, 0, 0)),
    ("RightShoulder", "Spine1", (0, 12, 0), None),
    ("RightArm", "RightShoulder", (-17, 0, 0), None),
    ("RightForeArm", "RightArm", (-29, 0, 0), None),
    ("RightHand", "RightForeArm", (-25, 0, 0), (-8, 0, 0)),
)
ROOT_CHANNELS = ("Xposition", "Yposition", "Zposition", "Zrotation", "Yrotation", "Xrotation")
JOINT_CHANNELS = ("Zrotation", "Yrotation", "Xrotation")


def renamed(body, names):
    """The body with joints of other names; those named None are left out, with what hangs on them moved up."""
    return tuple(
        (names.get(name, name), names.get(parent, parent), offset, end)
        for name, parent, offset, end in body
        if names.get(name, name) is not None
    )


def channels_of(body, channels=None):
    """Every joint's channels, in the order of the file: depth first, children as listed."""
    channels_by_joint = channels or {}
    order = []

    def visit(name, parent):
        order.append((name, channels_by_joint.get(name, ROOT_CHANNELS if parent is None else JOINT_CHANNELS)))
        for child, its_parent, *_ in body:
            if its_parent == name:
                visit(child, name)

    visit(body[0][0], None)
    return order


def bvh_text(
    body=CMU, frames=None, channels=None, scale=1.0, frame_time="0.0083333", newline="\n", declared=None, per_line=None
):
    """The text of a BVH file. `frames`: [N, C] values in the order of `channels_of`; a rest pose by default."""
    channels_by_joint = dict(channels_of(body, channels))
    lines = ["HIERARCHY"]

    def visit(name, parent, offset, end, depth):
        tab = "\t" * depth
        lines.append(f"{tab}{'ROOT' if parent is None else 'JOINT'} {name}")
        lines.append(tab + "{")
        lines.append(f"{tab}\tOFFSET " + " ".join(f"{value * scale:.8g}" for value in offset))
        lines.append(f"{tab}\tCHANNELS {len(channels_by_joint[name])} {' '.join(channels_by_joint[name])}".rstrip())
        for entry in body:
            if entry[1] == name:
                visit(*entry, depth + 1)
        if end is not None:
            lines.extend([f"{tab}\tEnd Site", tab + "\t{"])
            lines.append(f"{tab}\t\tOFFSET " + " ".join(f"{value * scale:.8g}" for value in end))
            lines.append(tab + "\t}")
        lines.append(tab + "}")

    visit(*body[0], 0)
    if frames is None:
        frames = rest_frames(body, 2, channels, scale)
    frames = np.asarray(frames, dtype=float)
    lines += ["MOTION", f"Frames: {len(frames) if declared is None else declared}", f"Frame Time: {frame_time}"]
    values = [f"{value:.10g}" for value in frames.ravel()]
    per_line = per_line or frames.shape[1]
    lines += [" ".join(values[start : start + per_line]) for start in range(0, len(values), per_line)]
    return newline.join(lines) + newline


def rest_frames(body=CMU, count=2, channels=None, scale=1.0):
    """[count, C]: no rotation, every position channel at its joint's offset."""
    offsets = {name: offset for name, _, offset, _ in body}
    row = [
        offsets[name]["XYZ".index(channel[0].upper())] * scale if channel.lower().endswith("position") else 0.0
        for name, channels_ in channels_of(body, channels)
        for channel in channels_
    ]
    return np.tile(row, (count, 1))


def write_text(file, text):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    Path(file).write_bytes(text.encode() if isinstance(text, str) else text)
    return Path(file)


def write_json(file, content):
    return write_text(file, json.dumps(content))


def person_2d(frames, at=(400, 300), velocity=(1.0, 0.5), seed=0):
    """[frames, 17, 2] pixels: something as large as a person in a picture, that moves a little."""
    rng = np.random.default_rng(seed)
    rest = np.stack([rng.uniform(-40, 40, 17), np.linspace(-120, 120, 17)], axis=1) + at
    steps = np.arange(frames)[:, None, None] * np.array(velocity)
    return np.round(rest + steps + rng.normal(0, 1, (frames, 17, 2)), 3)


def mmpose_frames(frames):
    """MMPose's list: `frames` holds for each frame a list of (points, scores) or (points, scores, track id)."""
    return [
        {"frame_id": number, "instances": [_mmpose_instance(*person) for person in persons]}
        for number, persons in enumerate(frames)
    ]


def _mmpose_instance(points, scores, track_id=None):
    points = np.asarray(points)
    box = [[*points.min(axis=0).tolist(), *points.max(axis=0).tolist()]]
    instance = {
        "keypoints": points.tolist(),
        "keypoint_scores": np.asarray(scores).tolist(),
        "bbox": box,
        "bbox_score": 0.9,
    }
    return instance if track_id is None else instance | {"track_id": track_id}


def coco_results(frames, image_id, number=False, person_key="track_id", first=0):
    """COCO results; `image_id` is a pattern of the frame's number, or the number itself."""
    results = []
    for frame, persons in enumerate(frames, start=first):
        for points, scores, *who in persons:
            triples = np.concatenate([np.asarray(points), np.asarray(scores)[:, None]], axis=1)
            entry = {
                "image_id": frame if number else image_id.format(frame),
                "category_id": 1,
                "keypoints": triples.ravel().tolist(),
                "score": 2.5,
            }
            results.append(entry | ({person_key: who[0]} if who else {}))
    return results


# MediaPipe's pose landmarks by name, as its documentation numbers them.
MEDIAPIPE = [
    "nose",
    "left_eye_inner",
    "left_eye",
    "left_eye_outer",
    "right_eye_inner",
    "right_eye",
    "right_eye_outer",
    "left_ear",
    "right_ear",
    "mouth_left",
    "mouth_right",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_pinky",
    "right_pinky",
    "left_index",
    "right_index",
    "left_thumb",
    "right_thumb",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
    "left_heel",
    "right_heel",
    "left_foot_index",
    "right_foot_index",
]
COCO = [
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
]


def landmarks_of(points, scores):
    """33 landmarks; those that COCO does not have are elsewhere."""
    landmarks = [{"x": -1.0, "y": -2.0, "z": 0.0, "visibility": 0.01} for _ in MEDIAPIPE]
    for name, (x, y), score in zip(COCO, np.asarray(points).tolist(), np.asarray(scores).tolist(), strict=True):
        landmarks[MEDIAPIPE.index(name)] = {"x": x, "y": y, "z": -0.1, "visibility": score}
    return landmarks


def mediapipe_frames(frames):
    return [None if landmarks is None else {"landmark": landmarks} for landmarks in frames]


def write_keypoint_arrays(file, **arrays):
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **arrays)
    return Path(file)
