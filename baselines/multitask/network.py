"""The network of Luvizon et al., "Multi-task Deep Learning for Real-Time 3D Human Pose Estimation and Action
Recognition" (TPAMI 2021), on sequences of 2D joints instead of RGB frames.

Each layer is one of their prediction blocks: a residual unit, a pose head and an action head, an exit of the network;
what the heads say is re-injected into the next layer. As in the paper

    Z' = RU(X), Z = W_z Z'                          (Eq. 4, 5)
    h = softmax(W_h Z), d = sigmoid(W_d Z)          (Eq. 6, 7)
    x = sum h column / W_h, y = sum h row / H_h     (Eq. 8, soft-argmax)
    z = sum h d                                     (Eq. 9)
    c = max h                                       (section 3.2.3)
    X = W_r h + W_s d + Z' + Z                      (Eq. 10)

and the action head sees the poses weighted by their confidence, and features, as images of frames by joints.

What differs, since joints come in and not images: features belong to the joints of a frame, not to the cells of an
image, so a joint's probability map lies over the camera's x and y around the root, in metres, and its appearance
features are its own Z; a residual unit mixes joints and frames, where the paper estimates poses frame by frame; layers
of one resolution take the place of pyramids and levels; classes are scored by the mean plus the maximum over frames and
joints.

Shape suffixes: B windows, N frames, R targets, I input joints, J native joints, D features of a joint, V action
features of a joint, M points of a joint's map, K classes, C coordinates.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.multitask.config import MultitaskNetwork


def soft_argmax(map_XM: Tensor, depth_XM: Tensor, grid: int) -> Tensor:
    """[..., 3] coordinates in [0, 1] of maps over grid * grid points, row by row: Eq. 8 and, for the depth, Eq. 9.

    Args:
        map_XM: probabilities.
        depth_XM: depth at each point, in [0, 1].
    """
    place = torch.linspace(0, 1, grid, device=map_XM.device, dtype=map_XM.dtype)
    map_XRC = map_XM.unflatten(-1, (grid, grid))
    x_X, y_X = map_XRC.sum(dim=-2) @ place, map_XRC.sum(dim=-1) @ place
    return torch.stack([x_X, y_X, (map_XM * depth_XM).sum(dim=-1)], dim=-1)


def locate(map_XM: Tensor, depth_XM: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates [..., 3] in [0, 1], and confidences [...]: the maximum of each map."""
    return soft_argmax(map_XM, depth_XM, math.isqrt(map_XM.shape[-1])), map_XM.amax(dim=-1)


@dataclass(frozen=True)
class Exit:
    """What one layer predicts."""

    pose_BNJ3: Tensor
    """Coordinates in [0, 1], the root about 0.5."""
    confidence_BNJ: Tensor
    logits_BK: Tensor | None
    """None where actions weren't asked for."""


class JointLinear(nn.Module):
    """A linear map for each joint."""

    def __init__(self, joints: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        self.weight = nn.Parameter(torch.empty(joints, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(joints, outputs))

    def forward(self, x_BNJD: Tensor) -> Tensor:
        """[B, N, J, outputs]."""
        batch, frames = x_BNJD.shape[:2]
        x_JXD = x_BNJD.flatten(0, 1).transpose(0, 1)
        y_JXD = torch.baddbmm(self.bias[:, None], x_JXD, self.weight)
        return y_JXD.transpose(0, 1).unflatten(0, (batch, frames))


class PoseMaps(nn.Module):
    """Probability and depth maps of each joint: W_h and W_d of Eq. 6 and 7."""

    def __init__(self, joints: int, width: int, points: int) -> None:
        super().__init__()
        self.heat, self.depth = JointLinear(joints, width, points), JointLinear(joints, width, points)

    def forward(self, z_BNJD: Tensor) -> tuple[Tensor, Tensor]:
        """[B, N, J, M] probabilities, and depths in [0, 1]."""
        # In fp32, whatever the step runs in: poses are to be good to a millimetre.
        return self.heat(z_BNJD).float().softmax(dim=-1), self.depth(z_BNJD).float().sigmoid()


class PoseLayer(nn.Module):
    """Residual unit and pose head, with re-injection."""

    def __init__(self, joints: int, config: MultitaskNetwork) -> None:
        super().__init__()
        width, points = joints * config.joint_width, config.grid**2
        self.joints, self.dropout = joints, config.dropout
        self.time = nn.Conv1d(width, width, config.kernel, padding=config.kernel // 2, groups=width)
        self.mix = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.features = JointLinear(joints, config.joint_width, config.joint_width)
        self.maps = PoseMaps(joints, config.joint_width, points)
        self.heat_back = JointLinear(joints, points, config.joint_width)
        self.depth_back = JointLinear(joints, points, config.joint_width)

    def residual(self, x_BNJD: Tensor) -> Tensor:
        """[B, N, J, D] the residual unit: a convolution over each feature's frames, then over all of a frame."""
        x_BNF = x_BNJD.flatten(2)
        y_BNF = self.mix(self.time(x_BNF.transpose(1, 2)).transpose(1, 2))
        y_BFN = self.norm(y_BNF.transpose(1, 2)).relu()
        y_BNF = F.dropout(y_BFN.transpose(1, 2), self.dropout, self.training)
        return (x_BNF + y_BNF).unflatten(2, (self.joints, -1))

    def forward(self, x_BNJD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features of the next layer, multi-task features Z, poses and confidences."""
        inner_BNJD = self.residual(x_BNJD)
        z_BNJD = self.features(inner_BNJD)
        heat_BNJM, depth_BNJM = self.maps(z_BNJD)
        x_BNJD = self.heat_back(heat_BNJM) + self.depth_back(depth_BNJM) + inner_BNJD + z_BNJD
        return x_BNJD, z_BNJD, *locate(heat_BNJM, depth_BNJM)


class ActionLayer(nn.Module):
    """Action head: poses and features of a window as images of frames by joints, with re-injection."""

    def __init__(self, joints: int, classes: int, config: MultitaskNetwork) -> None:
        super().__init__()
        width, kind = config.action_width, config.action_input
        self.dropout = config.dropout
        self.poses = None if kind == "features" else nn.Conv2d(3, width, 3, padding=1)
        self.features = None if kind == "poses" else nn.Conv2d(config.joint_width, width, 1)
        self.before, self.after = nn.BatchNorm2d(width), nn.BatchNorm2d(width)
        self.mix = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.classes = nn.Conv2d(width, classes, 1)
        self.back = nn.Conv2d(classes, width, 1)

    def forward(
        self, y_BVNJ: Tensor | None, z_BNJD: Tensor, pose_BNJ3: Tensor, confidence_BNJ: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Action features of the next layer, and class scores [B, K].

        Args:
            y_BVNJ: action features of the layer before; None in the first.
        """
        inputs = []
        if self.poses is not None:
            weighted_BNJ3 = (pose_BNJ3 - 0.5) * confidence_BNJ[..., None]
            inputs.append(self.poses(weighted_BNJ3.permute(0, 3, 1, 2)))
        if self.features is not None:
            inputs.append(self.features(z_BNJD.permute(0, 3, 1, 2)))
        new_BVNJ = self.before(sum(inputs[1:], inputs[0])).relu()
        new_BVNJ = F.dropout(self.after(self.mix(new_BVNJ)).relu(), self.dropout, self.training)
        y_BVNJ = new_BVNJ if y_BVNJ is None else y_BVNJ + new_BVNJ
        map_BKNJ = self.classes(y_BVNJ)
        logits_BK = map_BKNJ.mean(dim=(2, 3)) + map_BKNJ.amax(dim=(2, 3))
        return y_BVNJ + self.back(map_BKNJ), logits_BK.float()


class MultitaskNet(nn.Module):
    """All layers; the first k alone are the network of k layers, bit for bit."""

    decoupled: Tensor

    def __init__(self, inputs: int, joints: int, classes: int, config: MultitaskNetwork) -> None:
        super().__init__()
        self.joints = joints
        width = joints * config.joint_width
        self.entry = nn.Linear(2 * inputs, width)
        self.entry_norm = nn.BatchNorm1d(width)
        self.pose_layers = nn.ModuleList(PoseLayer(joints, config) for _ in range(config.layers))
        self.action_layers = nn.ModuleList(ActionLayer(joints, classes, config) for _ in range(config.layers))
        # Last, so that all other weights begin as those of coupled poses.
        replicas = config.layers if config.action_input == "decoupled" else 0
        self.action_maps = nn.ModuleList(PoseMaps(joints, config.joint_width, config.grid**2) for _ in range(replicas))
        self.register_buffer("decoupled", torch.tensor(False))

    @property
    def pose_modules(self) -> tuple[nn.Module, ...]:
        """All whose weights poses depend on."""
        return self.entry, self.entry_norm, self.pose_layers

    def decouple(self) -> None:
        """From now on the action heads have poses of their own, which begin as copies."""
        for layer, replica in enumerate(self.action_maps):
            replica.load_state_dict(self.pose_layers.get_submodule(f"{layer}.maps").state_dict())
        self.decoupled.fill_(True)

    def forward(self, screen_BNI2: Tensor, exits: int = 0, actions: bool = True) -> list[Exit]:
        """What each exit says of every frame and of the window.

        Args:
            exits: leave after so many layers; 0 = the last.
            actions: with class scores.
        """
        # Without values, as where sizes are counted, it stands for the end of training.
        decoupled = len(self.action_maps) and (self.decoupled.is_meta or bool(self.decoupled))
        x_BNF = self.entry(screen_BNI2.flatten(2))
        x_BNF = self.entry_norm(x_BNF.transpose(1, 2)).relu().transpose(1, 2)
        x_BNJD, y_BVNJ, predicted = x_BNF.unflatten(2, (self.joints, -1)), None, []
        for layer in range(exits or len(self.pose_layers)):
            x_BNJD, z_BNJD, pose_BNJ3, confidence_BNJ = self.pose_layers[layer](x_BNJD)
            logits_BK = None
            if actions:
                seen = locate(*self.action_maps[layer](z_BNJD)) if decoupled else (pose_BNJ3, confidence_BNJ)
                y_BVNJ, logits_BK = self.action_layers[layer](y_BVNJ, z_BNJD, *seen)
            predicted.append(Exit(pose_BNJ3, confidence_BNJ, logits_BK))
        return predicted
