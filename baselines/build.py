"""From a configuration and its clip set to the network, and back from a checkpoint; the network's answers.

Shape suffixes: B clips or windows, P persons, N frames, R targets, I input joints, J native joints, C coordinates,
K classes.
"""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baselines.config import LIFTERS, BaselineConfig, RunConfig
from baselines.dd_net import DDNet
from baselines.lifter import Lifter, relative_to_root
from baselines.residual_mlp import ResidualMLP
from baselines.st_gcn import STGCN
from baselines.videopose3d import VideoPose3D
from ups_model.data.batching.batch import Batch
from ups_model.data.format.clip_data import ClipData
from ups_model.evaluation.measure import mirror_inputs
from ups_model.model.inputs import Inputs
from ups_model.model.layers import seed_for
from ups_model.skeletons import ROOT_SLOT, Skeleton
from ups_model.tasks import MAX_PERSONS
from ups_model.training.checkpoint import load_checkpoint, load_weights


@dataclass(frozen=True)
class NetworkShape:
    """What of a clip set fixes a network's inputs and outputs."""

    slots: tuple[int, ...]
    """Common slots that the set's skeleton fills: the input joints, in this order."""
    joints: int
    """Native joints, which poses have."""
    dims: int
    """Coordinates of an input joint that vary."""
    persons: int
    frames: int
    classes: tuple[str, ...]

    @classmethod
    def of(cls, config: BaselineConfig, clips: ClipData) -> "NetworkShape":
        """Of the clip set that a run trains on."""
        lifts = config.network.system in LIFTERS
        return cls(
            clips.skeleton.slots_present,
            clips.skeleton.joints,
            2 if lifts else clips.info.dims,
            1 if lifts else min(int(np.bincount(clips.track_clip).max()), MAX_PERSONS),
            config.network.receptive_field if lifts else config.task_data.frames,
            () if lifts else tuple(clips.info.classes),
        )


class Baseline(nn.Module):
    """A network between batches and answers: takes the joints present out of the common slots."""

    slot_I: Tensor

    def __init__(self, config: BaselineConfig, shape: NetworkShape) -> None:
        super().__init__()
        self.config, self.shape = config, shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(config.seed, "initialise", config.network.system))
            self.network = make_network(config, shape)
        self.register_buffer("slot_I", torch.tensor(shape.slots), persistent=False)

    def forward(self, inputs: Inputs) -> Tensor:
        """[B, K] class scores, or the targets' poses [B * R, J, 3] in metres, root-relative."""
        pose_BPNIC = inputs.pose_BPNSC[:, :, :, self.slot_I, : self.shape.dims]
        if isinstance(self.network, Lifter):
            assert inputs.target_frame_BR is not None, "windows of pose estimation have targets"
            screen_BNI2 = pose_BPNIC[:, 0]
            if self.config.network.centred:
                screen_BNI2 = relative_to_root(screen_BNI2, self.shape.slots.index(ROOT_SLOT))
            return self.network.lift(screen_BNI2, inputs.target_frame_BR)
        scores_BK: Tensor = self.network(pose_BPNIC, inputs.person_mask_BP)
        return scores_BK


def make_network(config: BaselineConfig, shape: NetworkShape) -> nn.Module:
    """The system that a configuration names, with weights from the global generator."""
    network, inputs = config.network, len(shape.slots)
    if network.system == "residual_mlp":
        return ResidualMLP(
            network.receptive_field, inputs, shape.joints, network.width, network.blocks, network.dropout
        )
    if network.system == "dd_net":
        return DDNet(
            inputs, shape.dims, len(shape.classes), network.width, network.blocks, network.dropout, network.streams
        )
    if network.system == "videopose3d":
        return VideoPose3D(inputs, shape.joints, network.filter_widths, network.width, network.dropout)
    return STGCN(
        shape.slots, shape.dims, len(shape.classes), network.width, network.blocks, network.dropout, network.kernel
    )


def save_facts(config: RunConfig, shape: NetworkShape) -> dict[str, Any]:
    """Entries of a checkpoint's state from which `load_baseline` makes the network."""
    return {"baseline": config.canonical(), "shape": dataclasses.asdict(shape)}


def read_facts(checkpoint: Path) -> tuple[dict[str, dict[str, Tensor]], dict[str, Any], NetworkShape]:
    """Tensors and state of a checkpoint folder of chosen weights, and what `save_facts` wrote of the shape.

    Raises:
        ValueError: not such a folder, or a corrupted one.
    """
    tensors, state = load_checkpoint(checkpoint)
    if "baseline" not in state or "shape" not in state:
        raise ValueError(f"{checkpoint}: not a checkpoint of a baseline's weights; give one from the folder best/")
    shape = NetworkShape(**state["shape"])
    shape = dataclasses.replace(shape, slots=tuple(shape.slots), classes=tuple(shape.classes))
    return tensors, state, shape


def load_baseline(checkpoint: Path, device: torch.device) -> tuple[Baseline, dict[str, Any]]:
    """The network of a checkpoint folder of chosen weights, and the checkpoint's state. Needs no data.

    Raises:
        ValueError: not a checkpoint of a baseline's chosen weights, a corrupted one, or one of another recipe.
    """
    tensors, state, shape = read_facts(checkpoint)
    model = Baseline(BaselineConfig.from_canonical(state["baseline"]), shape)
    load_weights(model, tensors["model"], checkpoint)
    return model.to(device), state


def unmirror(pose_BJ3: Tensor, skeleton: Skeleton) -> Tensor:
    """Poses of mirrored inputs as those of the inputs themselves."""
    flip_J = torch.tensor(skeleton.flip, device=pose_BJ3.device)
    return pose_BJ3[:, flip_J] * torch.tensor([-1.0, 1.0, 1.0], device=pose_BJ3.device)


@dataclass(frozen=True)
class BaselineAnswers:
    """Answers of a baseline, for `ups_model.evaluation.measure`. It has no tokens, so no diagnostics of them."""

    model: Baseline

    @torch.no_grad()
    def classes(self, batch: Batch, dataset: str) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores [B, K]."""
        return self.model(batch.inputs).float(), {}

    @torch.no_grad()
    def poses(self, batch: Batch, skeleton: Skeleton) -> tuple[Tensor, dict[str, Tensor]]:
        """Poses [B * R, J, 3]; with `evaluation.flip` the mean of the answers to windows and their mirror images."""
        pose_BJ3 = self.model(batch.inputs).float()
        if not self.model.config.evaluation.flip:
            return pose_BJ3, {}
        mirrored_BJ3 = self.model(mirror_inputs(batch.inputs)).float()
        return (pose_BJ3 + unmirror(mirrored_BJ3, skeleton)) / 2, {}

    def coordinates(self, true_BJ3: Tensor) -> dict[str, float]:
        """Nothing: coordinates are not quantised."""
        return {}


def network_size(config: BaselineConfig, clips: ClipData) -> tuple[int, int]:
    """Parameters, and operations of one prediction, of a run that need not have been trained."""
    model = Baseline(config, NetworkShape.of(config, clips))
    return count_parameters(model), prediction_flops(model)


def count_parameters(model: nn.Module) -> int:
    """Trained numbers; running statistics don't count."""
    return sum(parameter.numel() for parameter in model.parameters())


def prediction_flops(model: Baseline) -> int:
    """Floating-point operations of one prediction: of a clip's classes, or of a frame's pose without its mirror image.

    Those of matrix products and convolutions, as torch counts them; a multiplication and an addition are two.
    """
    from torch.utils.flop_counter import FlopCounterMode

    shape, task = model.shape, model.config.optim.task
    device = model.slot_I.device
    pose_BPNSC = torch.zeros(1, shape.persons, shape.frames, 25, 3, device=device)
    target_BR = torch.full((1, 1), shape.frames // 2, device=device)
    mask_S = torch.ones(25, dtype=torch.bool, device=device)
    inputs = Inputs(task, pose_BPNSC, mask_S, target_frame_BR=target_BR)
    training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(inputs)
    model.train(training)
    return int(counter.get_total_flops())
