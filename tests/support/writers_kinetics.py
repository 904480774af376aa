"""Miniature Kinetics skeletons in both published layouts, written without anything of the reader's."""

import json
import pickle

import numpy as np

CLASS_NAMES = {0: "abseiling", 1: "air drumming", 196: "massaging person's head", 399: "zumba"}


def person(x, y, score):
    """18 joints at `x`, `y` (a number, or one each), as a file has them: x and y in turn."""
    pose = np.empty(36)
    pose[0::2], pose[1::2] = x, y
    scores = np.broadcast_to(np.asarray(score, dtype=float), 18)
    return {"pose": [round(float(v), 3) for v in pose], "score": [round(float(v), 3) for v in scores]}


def video(frames, label=0, name=None):
    """`frames`: [(frame_index, [person, ...]), ...]."""
    data = [{"frame_index": index, "skeleton": persons} for index, persons in frames]
    return {"data": data, "label": CLASS_NAMES[label] if name is None else name, "label_index": label}


def nobody():
    """As published for a video without a skeleton."""
    return {"data": [], "label": "unknown", "label_index": -1}


def entry(label=0, has_skeleton=True):
    return {"has_skeleton": has_skeleton, "label": CLASS_NAMES[label], "label_index": label}


def write_json(folder, part, videos, entries):
    """videos: {ID: content of its file (bytes are written as they are)}; entries: {ID: entry}."""
    (folder / f"kinetics_{part}").mkdir(parents=True, exist_ok=True)
    for name, content in videos.items():
        raw = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / f"kinetics_{part}" / f"{name}.json").write_bytes(raw)
    (folder / f"kinetics_{part}_label.json").write_text(json.dumps(entries))


def to_row(frames, length=300):
    """float32 [3, length, 18, 2] as ST-GCN's tools make it, in plain loops: frame_index is the place.

    Of the first five persons of a frame, those of the highest sums of scores are kept, two at most.
    """
    row = np.zeros((3, length, 18, 2), dtype=np.float32)
    for index, persons in frames:
        ranked = sorted(persons[:5], key=lambda one: -sum(one["score"]))
        for slot, one in enumerate(ranked[:2]):
            for joint in range(18):
                if one["score"][joint] > 0:
                    row[0, index, joint, slot] = one["pose"][2 * joint] - 0.5
                    row[1, index, joint, slot] = one["pose"][2 * joint + 1] - 0.5
                    row[2, index, joint, slot] = one["score"][joint]
    return row


def write_arrays(folder, part, rows, names, labels, protocol=2):
    np.save(folder / f"{part}_data.npy", np.stack(rows))
    with (folder / f"{part}_label.pkl").open("wb") as file:
        pickle.dump((names, labels), file, protocol=protocol)
