"""Small runs of the baselines on the toy sets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from baselines.config import LIFTERS, BaselineConfig, BaselineOptim, NetworkConfig, System
from baselines.train import train
from tests.support.runs import FLAT, POSE, SOLID
from ups_model.config import DataConfig, TaskData
from ups_model.training.result import Result


@pytest.fixture(scope="session")
def toy_baseline() -> Callable[..., BaselineConfig]:
    """A configuration of a system that trains a step in milliseconds; changes as `with_fields`."""

    def make(system: System, **changes: Any) -> BaselineConfig:
        lifts = system in LIFTERS
        own = {
            "residual_mlp": {"blocks": 1, "receptive_field": 3},
            "videopose3d": {"receptive_field": 3},
            "dd_net": {"blocks": 1},
            "st_gcn": {"blocks": 1, "kernel": 3},
        }
        network = NetworkConfig(system, width=8, dropout=0.1, **own[system])
        clips = TaskData((SOLID,), frames=8, batch_size=4, crop_min=0.6, rotation_deg=20, jitter=0.01)
        poses = TaskData(
            (POSE,), frames=10, batch_size=4, targets_per_window=2, evaluate_targets=8, evaluate_stride=8, flip=True
        )
        flat = TaskData((FLAT,), frames=8, batch_size=4, scale=0.1)
        data = DataConfig(pe=poses) if lifts else DataConfig(ar2d=flat, eap=clips.replace(crop_min=0.2), ar3d=clips)
        optim = BaselineOptim("pe" if lifts else "ar3d", steps=12, learning_rate=3e-3, evaluate_every=4)
        return BaselineConfig(network, data, optim).with_fields(changes)

    return make


@pytest.fixture
def run_toy(toy_sets: dict[str, Path]) -> Callable[..., Result]:
    """Trains a configuration on the toy sets, on the CPU."""

    def run(config: BaselineConfig, folder: Path, **options: Any) -> Result:
        return train(config, toy_sets, folder=folder, device="cpu", **options)

    return run
