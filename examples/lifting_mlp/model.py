"""Martinez et al.'s simple baseline (ICCV 2017) in small: residual layers from 2D joints to 3D joints.

Written as one would without any orchestrator; `run` is where it meets one. Shape suffixes: B poses, J joints, N all
poses of a part.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from orchestrator.simple_project import Run


@dataclass(frozen=True)
class Settings:
    """Of one run."""

    width: int = 256
    blocks: int = 2
    dropout: float = 0.0
    steps: int = 1000
    batch_size: int = 64
    learning_rate: float = 1e-3
    seed: int = 0


class Part(NamedTuple):
    """Poses of some subjects."""

    subject_N: np.ndarray
    input_NJ2: Tensor
    pose_NJ3: Tensor


def parts_of(file: Path) -> dict[str, Part]:
    """Training, validation and test poses. The last training subject is held out for validation."""
    with np.load(file, allow_pickle=False) as archive:
        subject_N, test_N = archive["subject"], archive["test"]
        inputs, poses = torch.from_numpy(archive["input"]), torch.from_numpy(archive["pose_mm"])
    held_out = subject_N[~test_N].max()
    masks = {
        "train": ~test_N & (subject_N != held_out),
        "validation": ~test_N & (subject_N == held_out),
        "test": test_N,
    }
    return {name: Part(subject_N[mask], inputs[mask], poses[mask]) for name, mask in masks.items()}


class Lifter(nn.Module):
    """2D joints -> 3D joints, normalised by the training poses."""

    def __init__(self, settings: Settings, train: Part) -> None:
        super().__init__()
        joints = train.input_NJ2.shape[1]
        for name, value in (("input", train.input_NJ2), ("pose", train.pose_NJ3)):
            self.register_buffer(f"{name}_mean", value.mean(dim=0))
            self.register_buffer(f"{name}_sd", value.std(dim=0).clamp(min=1e-6))
        self.enter = nn.Linear(2 * joints, settings.width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(settings.width, settings.width), nn.ReLU(), nn.Dropout(settings.dropout))
            for _ in range(settings.blocks)
        )
        self.leave = nn.Linear(settings.width, 3 * joints)

    def forward(self, input_BJ2: Tensor) -> Tensor:
        """Poses [B, J, 3] in mm."""
        x_BD = self.enter(((input_BJ2 - self.input_mean) / self.input_sd).flatten(1))
        for block in self.blocks:
            x_BD = x_BD + block(x_BD)
        pose_BJ3 = self.leave(x_BD).unflatten(1, self.pose_mean.shape)
        return pose_BJ3 * self.pose_sd + self.pose_mean


def train(settings: Settings, run: Run) -> Mapping[str, float] | None:
    """Train, and measure on validation and test subjects."""
    parts = parts_of(run.data["poses"])
    torch.manual_seed(settings.seed)
    model = Lifter(settings, parts["train"])
    optimizer = torch.optim.Adam(model.parameters(), settings.learning_rate)
    if run.checkpoint is not None:
        saved = torch.load(run.checkpoint / "state.pt", weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    run.set_trivial(mpjpe=mpjpe_mm(model.pose_mean, parts["validation"].pose_NJ3).item())
    run.describe(parameters=sum(value.numel() for value in model.parameters()), device="cpu")

    for step in range(run.step + 1, settings.steps + 1):
        if run.should_stop():
            return None
        # Seeded by the step: a run that is resumed goes on as if it had never stopped.
        torch.manual_seed(1_000_003 * settings.seed + step)
        rows_B = torch.randint(len(parts["train"].input_NJ2), (settings.batch_size,))
        model.train()
        error = mpjpe_mm(model(parts["train"].input_NJ2[rows_B]), parts["train"].pose_NJ3[rows_B])
        optimizer.zero_grad()
        error.backward()
        for group in optimizer.param_groups:
            group["lr"] = settings.learning_rate * (1 - (step - 1) / settings.steps)
        optimizer.step()
        if step % max(1, settings.steps // 20) == 0 or step == settings.steps:
            run.log(step, loss=error.item(), mpjpe=measure(model, parts["validation"]).mean().item())
        if run.is_due(step, settings.steps) or step == settings.steps:
            with run.save(step) as folder:
                torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, folder / "state.pt")

    metrics = {"validation/mpjpe": measure(model, parts["validation"]).mean().item()}
    if run.test:
        errors_N = measure(model, parts["test"])
        run.keep_items("mpjpe", errors_N, parts["test"].subject_N)  # For what the report says of new subjects.
        metrics["test/mpjpe"] = errors_N.mean().item()
    return metrics


def mpjpe_mm(pose_BJ3: Tensor, truth_BJ3: Tensor) -> Tensor:
    """Mean distance of joints, in mm (protocol 1)."""
    return (pose_BJ3 - truth_BJ3).norm(dim=-1).mean()


@torch.no_grad()
def measure(model: Lifter, part: Part) -> Tensor:
    """MPJPE of each pose [N] of a part, in mm."""
    model.eval()
    return (model(part.input_NJ2) - part.pose_NJ3).norm(dim=-1).mean(dim=-1)
