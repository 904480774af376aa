"""The file that the example trains on: python -m examples.lifting_mlp.data --help

Arrays: `input` float32 [N, J, 2], joints on the screen; `pose_mm` float32 [N, J, 3], relative to the first joint, in
the camera's axes; `subject` [N]; `test` [N], whether a pose is for testing; `source`, a line on where it is from.
"""

import argparse
from pathlib import Path

import numpy as np

EVERY = 10
"""Of recorded frames, one in so many: neighbours are alike."""


def swinging_arms(subjects: int = 6, poses: int = 300, joints: int = 7) -> dict[str, np.ndarray]:
    """Made-up motion: a chain of joints that swing about each other, other lengths for each subject."""
    generator = np.random.default_rng(3)
    inputs, targets = [], []
    for _ in range(subjects):
        length_J = generator.uniform(150, 300, joints)
        angle_NJ2 = np.cumsum(generator.normal(0, 0.5, (poses, joints, 2)), axis=1)
        step_NJ3 = length_J[:, None] * np.stack(
            [
                np.cos(angle_NJ2[..., 0]) * np.cos(angle_NJ2[..., 1]),
                np.sin(angle_NJ2[..., 0]),
                np.cos(angle_NJ2[..., 0]) * np.sin(angle_NJ2[..., 1]),
            ],
            axis=-1,
        )
        pose_NJ3 = np.cumsum(step_NJ3, axis=1) - step_NJ3[:, :1]
        inputs.append(pose_NJ3[..., :2] / (4000 + pose_NJ3[..., 2:]))
        targets.append(pose_NJ3)
    subject_N = np.repeat(np.arange(subjects), poses)
    return arrays(np.concatenate(inputs), np.concatenate(targets), subject_N, subject_N % 3 == 2, "made-up motion")


def recorded(file: Path) -> dict[str, np.ndarray]:
    """Poses of a motion file with cameras: `positions` [frames, J, 3] in metres of all sequences end to end, `start`,
    `length`, `subject` and `split_test` of each, `cam_R` [K, 3, 3], `cam_center` [K, 3], `cam_f` and `cam_c` [K, 2],
    `cam_wh` [2]."""
    with np.load(file, allow_pickle=False) as archive:
        motion = {name: archive[name] for name in archive.files}
    spans = zip(motion["start"], motion["length"], strict=True)
    frames = [np.arange(start, start + length, EVERY) for start, length in spans]
    sequence_N = np.repeat(np.arange(len(frames)), list(map(len, frames)))
    point_N1J3 = motion["positions"][np.concatenate(frames)].astype(np.float64)[:, None]
    camera_KJ3 = motion["cam_center"][:, None]
    seen_NKJ3 = np.einsum("kab,nkjb->nkja", motion["cam_R"], point_N1J3 - camera_KJ3)
    pixel_NKJ2 = motion["cam_f"][:, None] * seen_NKJ3[..., :2] / seen_NKJ3[..., 2:] + motion["cam_c"][:, None]
    screen_NKJ2 = pixel_NKJ2 / motion["cam_wh"] - 0.5
    cameras, joints = screen_NKJ2.shape[1:3]
    pose_NKJ3 = 1000 * (seen_NKJ3 - seen_NKJ3[:, :, :1])
    subject, test = (np.repeat(motion[name][sequence_N], cameras) for name in ("subject", "split_test"))
    return arrays(
        screen_NKJ2.reshape(-1, joints, 2), pose_NKJ3.reshape(-1, joints, 3), subject, test, f"recorded: {file.name}"
    )


def arrays(
    input_NJ2: np.ndarray, pose_NJ3: np.ndarray, subject_N: np.ndarray, test_N: np.ndarray, source: str
) -> dict[str, np.ndarray]:
    """As the file has them."""
    return {
        "input": input_NJ2.astype(np.float32),
        "pose_mm": pose_NJ3.astype(np.float32),
        "subject": subject_N,
        "test": test_N.astype(bool),
        "source": np.array(source),
    }


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.lifting_mlp.data", description="Write the example's file."
    )
    parser.add_argument("out", type=Path, metavar="FILE.npz")
    parser.add_argument("--motion", type=Path, help="motion with cameras; made up without it")
    options = parser.parse_args()
    content = swinging_arms() if options.motion is None else recorded(options.motion)
    np.savez(options.out, **content)  # type: ignore[arg-type]
    print(f"{options.out}: {len(content['input']):,} poses, {content['test'].sum():,} of them for testing")


if __name__ == "__main__":
    main()
