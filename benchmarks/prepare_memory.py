"""How fast each published layout becomes a clip set, and in how much memory.

    python benchmarks/prepare_memory.py --layout NAME [--workers 2] [--folder DIR]

Files of the form and about the size of the published ones are made, most of them larger than 2 GB in memory, so that
reading a whole one would show; then `prepare` runs as its own process, with its workers. Memory is polled 20 times a
second over all its processes. Coordinates are made up, counts and shapes are not. "own" leaves out pages of mapped
files, which the system drops when it needs memory.
"""

from __future__ import annotations

import argparse
import itertools
import json
import pickle
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from prepare import measure_prepare, names, write_files

from ups_model.data.format.cameras import project
from ups_model.data.readers.h36m.cameras import SUBJECTS, cameras_of
from ups_model.data.readers.h36m.files import ACTIONS, KEPT_JOINTS
from ups_model.data.readers.ntu.names import PROTOCOLS, is_test, parse_name

DIFFERENT = 200
KINETICS_LABELS = ((0, "abseiling"), (399, "zumba"))


def bodies(rows: int) -> Iterator[np.ndarray]:
    """float32 [2, N, 25, 3]: two persons, about 85 frames; every fifth has the second one, others zeros. All differ."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.3, 0.4, DIFFERENT), 25, 300).astype(int)
    made = [rng.normal(0, 1, (2, length, 25, 3)).astype(np.float32) for length in lengths]
    for row in range(rows):
        body = made[row % DIFFERENT] + np.float32(1e-4) * np.float32(1 + row // DIFFERENT)
        if row % 5:
            body[1] = 0
        yield body


def ctrgcn(folder: Path, compressed: bool, rows: int) -> int:
    """NTU60_CS.npz as np.savez or np.savez_compressed writes it; two thirds of the rows are for training."""
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    source = bodies(rows)
    # Level 1 takes less time to write, and reads like others.
    with zipfile.ZipFile(folder / "NTU60_CS.npz", "w", kind, allowZip64=True, compresslevel=1) as archive:
        for part, count in (("train", rows * 2 // 3), ("test", rows - rows * 2 // 3)):
            labels = np.arange(count) % 60
            with archive.open(f"x_{part}.npy", "w", force_zip64=True) as stream:
                spec = {"descr": "<f4", "fortran_order": False, "shape": (count, 300, 150)}
                npy.write_array_header_1_0(stream, spec)
                for body in itertools.islice(source, count):
                    row = np.zeros((300, 2, 75), dtype=np.float32)
                    row[: body.shape[1]] = body.reshape(2, -1, 75).swapaxes(0, 1)
                    stream.write(row.tobytes())
            with archive.open(f"y_{part}.npy", "w", force_zip64=True) as stream:
                npy.write_array(stream, np.eye(60)[labels])
    return rows


def pyskl(folder: Path, protocol: int) -> int:
    """ntu60_3danno.pkl of NTU RGB+D 60's number of recordings, with the names of both protocols' parts before them."""
    rows = 56_578
    annotations = []
    split: dict[str, list[str]] = {}
    for name in itertools.islice(names(), rows):
        for test in PROTOCOLS["ntu60"]:
            part = "val" if is_test(parse_name(name), "ntu60", test) else "train"
            split.setdefault(f"{test}_{part}", []).append(name)
    for row, (name, body) in enumerate(zip(names(), bodies(rows), strict=False)):
        pose = body[: 1 if row % 5 else 2]
        label = int(name[-3:]) - 1
        annotations.append({"frame_dir": name, "label": label, "keypoint": pose, "total_frames": pose.shape[1]})
    with (folder / "ntu60_3danno.pkl").open("wb") as file:
        pickle.dump({"split": split, "annotations": annotations}, file, protocol=protocol)
    return rows


def kinetics_arrays(folder: Path) -> int:
    """train_data.npy of 20,000 rows, 2.6 GB, and val_data.npy of 1,000."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(DIFFERENT):
        row = np.zeros((3, 300, 18, 2), dtype=np.float32)
        frames = int(rng.integers(100, 301))
        for person in range(1 + int(rng.integers(2))):
            row[:2, :frames, :, person] = rng.uniform(-0.5, 0.5, (2, frames, 18))
            row[2, :frames, :, person] = rng.uniform(0, 1, (frames, 18))
        row[:2] *= row[2] > 0.2
        row[2] *= row[2] > 0.2
        made.append(row)
    for part, count in (("train", 20_000), ("val", 1_000)):
        with (folder / f"{part}_data.npy").open("wb") as file:
            npy.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": (count, *made[0].shape)})
            for row in range(count):
                file.write(made[row % DIFFERENT].tobytes())
        videos = [f"{part}{row:08d}.json" for row in range(count)]
        (folder / f"{part}_label.pkl").write_bytes(
            pickle.dumps((videos, [row % 400 for row in range(count)]), protocol=2)
        )
    return 21_000


def kinetics_json(folder: Path) -> int:
    """3,000 videos of 300 frames with one to three persons, as OpenPose's numbers are written: three decimals."""
    rng = np.random.default_rng(0)
    texts = []
    for index in range(DIFFERENT):
        data = []
        for frame in range(1, 301):
            persons = []
            for _ in range(int(rng.integers(1, 4))):
                pose, score = rng.uniform(0, 1, 36).round(3).tolist(), rng.uniform(0, 1, 18).round(3).tolist()
                persons.append({"pose": pose, "score": score})
            data.append({"frame_index": frame, "skeleton": persons})
        number, label = KINETICS_LABELS[index % 2]
        texts.append(json.dumps({"data": data, "label": label, "label_index": number}))
    for part, count in (("train", 2_900), ("val", 100)):
        videos = folder / f"kinetics_{part}"
        videos.mkdir()
        entries = {}
        for row in range(count):
            (videos / f"{part}{row:08d}.json").write_text(texts[row % DIFFERENT])
            number, label = KINETICS_LABELS[row % DIFFERENT % 2]
            entries[f"{part}{row:08d}"] = {"has_skeleton": True, "label": label, "label_index": number}
        (folder / f"kinetics_{part}_label.json").write_text(json.dumps(entries))
    return 3_000


def h36m(folder: Path) -> int:
    """Both files of VideoPose3D: 7 subjects, 15 actions twice, 210 recordings of about 2,520 frames, four cameras."""
    rng = np.random.default_rng(0)
    poses: dict[str, dict[str, np.ndarray]] = {}
    keypoints: dict[str, dict[str, list[np.ndarray]]] = {}
    for subject in SUBJECTS:
        poses[subject], keypoints[subject] = {}, {}
        for action in (f"{action}{repeat}" for action in ACTIONS for repeat in ("", " 1")):
            frames = int(rng.integers(1_000, 4_050))
            rest_J3 = rng.uniform((-0.3, -0.3, 0.1), (0.3, 0.3, 1.7), (32, 3))
            walk_N13 = np.cumsum(rng.normal(0, 0.005, (frames, 1, 3)), axis=0) * (1, 1, 0)
            pose_NJ3 = (rest_J3 + np.clip(walk_N13, -1, 1) + rng.normal(0, 0.005, (frames, 32, 3))).astype(np.float32)
            poses[subject][action] = pose_NJ3
            views = [project(pose_NJ3[:, KEPT_JOINTS], camera) for camera in cameras_of(subject)]
            keypoints[subject][action] = [view.astype(np.float32) for view in views]
    metadata = {
        "layout_name": "h36m",
        "num_joints": 17,
        "keypoints_symmetry": [[4, 5, 6, 11, 12, 13], [1, 2, 3, 14, 15, 16]],
    }
    np.savez_compressed(folder / "data_3d_h36m.npz", positions_3d=np.array(poses, dtype=object))
    np.savez_compressed(
        folder / "data_2d_h36m_cpn_ft_h36m_dbb.npz",
        positions_2d=np.array(keypoints, dtype=object),
        metadata=np.array(metadata, dtype=object),
    )
    return len(SUBJECTS) * len(ACTIONS) * 2


def ntu_raw(folder: Path) -> int:
    """20,000 .skeleton files, as of `prepare.py`."""
    write_files(folder, 20_000)
    return 20_000


LAYOUTS: Mapping[str, tuple[str, str, Callable[[Path], int]]] = {
    "ntu-raw": ("ntu60", ".skeleton files", ntu_raw),
    "ctrgcn": ("ntu60", "CTR-GCN's npz", lambda folder: ctrgcn(folder, False, 14_500)),
    "ctrgcn-compressed": ("ntu60", "CTR-GCN's npz, compressed", lambda folder: ctrgcn(folder, True, 12_000)),
    "pyskl-2": ("ntu60", "pyskl's pickle of protocol 2", lambda folder: pyskl(folder, 2)),
    "pyskl-4": ("ntu60", "pyskl's pickle of protocol 4", lambda folder: pyskl(folder, 4)),
    "kinetics-arrays": ("kinetics", "ST-GCN's arrays", kinetics_arrays),
    "kinetics-json": ("kinetics", "ST-GCN's JSON", kinetics_json),
    "h36m": ("h36m", "VideoPose3D's npz", h36m),
}
"""Name -> the set that is made, what the layout is, and a function that writes files and returns their recordings."""


def main() -> None:
    """Prints a line of figures, and what `prepare` counted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layout", choices=LAYOUTS, required=True)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    name, what, write = LAYOUTS[given.layout]
    with tempfile.TemporaryDirectory(dir=given.folder) as made:
        source, out = Path(made) / "files", Path(made) / "clips"
        source.mkdir()
        recordings = write(source)
        size = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
        usage, printed = measure_prepare(name, source, out, given.workers)
        print(
            f"{given.layout} ({what}): {recordings:,} recordings, {size / 1e9:.2f} GB, {given.workers} workers: "
            f"{usage.seconds:.1f} s, {recordings / usage.seconds:.0f} recordings/s; peak memory of all processes "
            f"{usage.all_bytes / 1e6:.0f} MB (own {usage.own_bytes / 1e6:.0f} MB), of the largest one "
            f"{usage.one_bytes / 1e6:.0f} MB"
        )
        print("  " + "\n  ".join(printed.splitlines()[-2:]), flush=True)


if __name__ == "__main__":
    main()
