"""Small clip sets, configurations and runs that the tests of batches, measures and training share."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

import ups_model.training.run
from ups_model.config import Config, DataConfig, EvalConfig, ModelConfig, OptimConfig, TaskData
from ups_model.data.batching.batches import Feed, Source
from ups_model.data.format.cameras import Camera, project
from ups_model.data.format.clip_set import ClipSet, ClipSetInfo
from ups_model.data.format.writer import Clip, Track, write_clip_set
from ups_model.skeletons import get_skeleton
from ups_model.training.options import RunOptions
from ups_model.training.run import train

# Five metres from the origin, level: one looks along +y, the other along -x.
FRONT = Camera([[1, 0, 0], [0, 0, -1], [0, 1, 0]], center=[0, -5, 1], f=[1000, 900], c=[510, 390], wh=[1000, 800])
SIDE = Camera([[0, 1, 0], [0, 0, -1], [-1, 0, 0]], center=[5, 0, 1.2], f=[1100, 1100], c=[500, 410], wh=[1000, 802])

POSE, SOLID, FLAT = "toy_pose", "toy_solid", "toy_flat"
"""Motion capture with two cameras; 3D clips; 2D clips."""


def set_info(name: str, skeleton: str, dims: int = 3, up_axis: str = "y", **changes: Any) -> ClipSetInfo:
    """The manifest of a test's clip set, with two classes."""
    plain = {
        "fps": 30,
        "units": "metre" if dims == 3 else "normalised",
        "licence": "none",
        "classes": ("wave", "kick"),
        "synthetic": True,
        "description": "synthetic: a test's own",
    }
    return ClipSetInfo(name=name, skeleton=skeleton, dims=dims, up_axis=up_axis, **(plain | changes))


def motion(row: int, label: int, frames: int, joints: int) -> np.ndarray:
    """[N, J, 3] metres, z up: one body that sways; label 1 sways faster and farther."""
    rest_J3 = np.random.default_rng(0).uniform([-0.4, -0.3, 0.05], [0.4, 0.3, 1.7], (joints, 3))
    rest_J3[0] = 0, 0, 0.9
    rng = np.random.default_rng([1, row])
    time_N = np.arange(frames)[:, None, None]
    speed, reach = (0.25, 0.05) if label == 0 else (0.7, 0.2)
    sway_NJ3 = reach * np.sin(speed * time_N + rng.uniform(0, 6) + np.arange(joints)[:, None] + np.arange(3))
    return (rest_J3 + sway_NJ3 + 0.02 * rng.normal(size=(1, joints, 3))).astype(np.float32)


def write_toy_sets(folder: Path, subjects: int = 4, frames: int = 14) -> dict[str, Path]:
    """The three sets: two clips of each class by each subject; subject 0 is for testing."""
    infos = {
        POSE: set_info(POSE, "h36m17", up_axis="z", camera_groups=((FRONT, SIDE),)),
        SOLID: set_info(SOLID, "kinect20"),
        FLAT: set_info(FLAT, "jhmdb15", dims=2, up_axis="-y"),
    }
    paths = {}
    for name, info in infos.items():
        clips = []
        for row in range(4 * subjects):
            label, subject = row % 2, row // 4
            world_NJ3 = motion(row, label, frames + row % 5, get_skeleton(info.skeleton).joints)
            keypoints = None
            if name == POSE:
                keypoints = np.stack([project(world_NJ3, camera) for camera in (FRONT, SIDE)], axis=1) + 3.0
            x, y, z = np.moveaxis(world_NJ3, -1, 0)
            positions = {POSE: world_NJ3, SOLID: np.stack([x, z, -y], -1), FLAT: np.stack([x, -z], -1)}[name]
            track = Track(positions, keypoints=keypoints)
            group = 0 if name == POSE else -1
            clips.append(Clip(f"{name}-{row}", (track,), label, subject, split_test=subject == 0, camera_group=group))
        paths[name] = write_clip_set(folder / name, info, clips).path
    return paths


def toy_config(**changes: Any) -> Config:
    """A joint configuration over the three sets that trains a step in milliseconds; `changes` as `with_fields`."""
    clips = TaskData((SOLID,), frames=8, batch_size=4, crop_min=0.6, rotation_deg=20, jitter=0.01)
    config = Config(
        model=ModelConfig(
            token_width=8,
            tokenizer_layers=1,
            encoder_layers=2,
            router_width=16,
            tem_width=16,
            tem_heads=2,
            tem_mlp_ratio=1,
            decoder_layers=1,
            decoder_width=16,
            decoder_heads=2,
            decoder_memory="frames+joints",
            n_bins=10,
            text_model="minilm",
        ),
        data=DataConfig(
            pe=TaskData((POSE,), frames=8, batch_size=4, evaluate_targets=8, evaluate_stride=8, rotation_deg=90),
            ar2d=TaskData((FLAT,), frames=8, batch_size=4, scale=0.1),
            eap=clips,
            ar3d=clips,
        ),
        optim=OptimConfig(steps=12, learning_rate=3e-3),
        evaluation=EvalConfig(ratios=(0.5,)),
    )
    return config.with_fields(changes)


def make_feed(clips: ClipSet, task: str, data: TaskData, seed: int = 0, validation_subjects: int = 0) -> Feed:
    """The feed of one set for one task, on the CPU."""
    source = Source(clips, clips.split(validation_subjects), torch.device("cpu"))
    return Feed(task, data.replace(sources=(clips.name,)), [source], seed)


def weights(checkpoint: str | Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint folder's model."""
    return load_file(Path(checkpoint) / "model.safetensors")


def newest(out: Path) -> Path:
    """The newest checkpoint folder of a run."""
    return max((out / "checkpoints").glob("step-*"))


def assert_same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    """Every tensor equal to the last bit."""
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, f"{len(different)} tensors differ, first {different[0]}"


def assert_same_run(one: Path, other: Path) -> None:
    """Two run folders hold the same end: all tensors of the newest checkpoint to the last bit, the same metrics."""
    assert newest(one).name == newest(other).name
    files = sorted(file.name for file in newest(one).glob("*.safetensors"))
    assert files == sorted(file.name for file in newest(other).glob("*.safetensors"))
    for file in files:
        assert_same_tensors(load_file(newest(one) / file), load_file(newest(other) / file))
    results = [json.loads((out / "result.json").read_text()) for out in (one, other)]
    for name in ("status", "key", "step", "metrics", "routes"):
        assert results[0][name] == results[1][name], name
    assert_same_tensors(weights(results[0]["checkpoint"]), weights(results[1]["checkpoint"]))


def session_folder(tmp_path_factory: Any, name: str) -> Path:
    """A folder that all tests of a session share, those in other worker processes too."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder.mkdir(exist_ok=True)
    return folder


def options(out: Path, cache: Path, **changes: Any) -> RunOptions:
    """Run options on the CPU; checkpoints at the end alone unless asked for."""
    return RunOptions(out, device="cpu", cache=cache, **({"checkpoint_every": 1000} | changes))


def stop_at(step: int) -> Callable[[], bool]:
    """A `should_stop` that says yes after so many steps of this process."""
    steps = itertools.count(1)
    return lambda: next(steps) == step


def train_alone(config: Config, paths: dict[str, Path], run_options: RunOptions) -> None:
    """What a process that is going to be killed does."""
    torch.set_num_threads(1)
    train(config, paths, run_options)


def train_as_rank(
    rank: int, processes: int, port: int, config: Config, paths: dict[str, Path], run_options: RunOptions
) -> None:
    """One process of several, as torchrun starts them; writes its losses and its result, or its error."""
    os.environ |= {"WORLD_SIZE": str(processes), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    losses: list[torch.Tensor] = []
    plain = ups_model.training.run.sequence_loss

    def recorded(*args: Any) -> torch.Tensor:
        losses.append(plain(*args))
        return losses[-1]

    ups_model.training.run.sequence_loss = recorded
    try:
        outcome = {"result": vars(train(config, paths, run_options))}
    except ValueError as error:
        outcome = {"error": f"ValueError: {error}"}
    run_options.out.mkdir(parents=True, exist_ok=True)
    outcome["losses"] = [loss.item() for loss in losses]
    (run_options.out / f"rank{rank}.json").write_text(json.dumps(outcome))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
