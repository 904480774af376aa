"""Augmentation of training clips: pure functions of poses and of parameters drawn from a generator.

Shape suffixes: B clips, P persons, N frames, S 25 slots, J native joints, C or 3 coordinates.
"""

import math

import torch
from torch import Tensor

from ups_model.config import TaskData
from ups_model.model.host import constant
from ups_model.skeletons import SLOT_FLIP, SLOT_PARENTS, Skeleton


def uniform(generator: torch.Generator, count: int, low: float, high: float) -> Tensor:
    """[count] numbers from U(low, high), drawn on the CPU so that every device gets the same."""
    return low + (high - low) * torch.rand(count, generator=generator)


def rotation_matrices(x_B: Tensor, y_B: Tensor, z_B: Tensor) -> Tensor:
    """[B, 3, 3] rotations by angles in radians: about x, then y, then z."""
    zero, one = torch.zeros_like(x_B), torch.ones_like(x_B)

    def matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)

    sin, cos = torch.sin, torch.cos
    about_x = matrix((one, zero, zero), (zero, cos(x_B), -sin(x_B)), (zero, sin(x_B), cos(x_B)))
    about_y = matrix((cos(y_B), zero, sin(y_B)), (zero, one, zero), (-sin(y_B), zero, cos(y_B)))
    about_z = matrix((cos(z_B), -sin(z_B), zero), (sin(z_B), cos(z_B), zero), (zero, zero, one))
    return about_z @ about_y @ about_x


def augment_clips(pose_BPNSC: Tensor, data: TaskData, dims: int, generator: torch.Generator) -> Tensor:
    """Rotate, scale, mirror and disturb clips of a class task; every draw is made whether or not it is used.

    3D clips have y up: `rotation_deg` is about y, `tilt_deg` about x and z. 2D clips turn in their plane by `tilt_deg`.
    """
    batch = len(pose_BPNSC)
    turn = math.radians(data.rotation_deg) if dims == 3 else 0.0
    tilt = math.radians(data.tilt_deg)
    y_B = uniform(generator, batch, -turn, turn)
    x_B = uniform(generator, batch, -tilt, tilt) * (dims == 3)
    z_B = uniform(generator, batch, -tilt, tilt)
    scale_B = uniform(generator, batch, 1 - data.scale, 1 + data.scale)
    flip_B = torch.rand(batch, generator=generator) < 0.5
    noise = torch.randn(pose_BPNSC.shape[:1] + pose_BPNSC.shape[3:], generator=generator)
    drop_BS = torch.rand(batch, pose_BPNSC.shape[3], generator=generator) < data.joint_drop
    device = pose_BPNSC.device
    matrix_B33 = (rotation_matrices(x_B, y_B, z_B) * scale_B[:, None, None]).to(device, non_blocking=True)
    out = torch.einsum("bpnsc,bdc->bpnsd", pose_BPNSC, matrix_B33)
    if data.flip:
        out = torch.where(flip_B.to(device, non_blocking=True)[:, None, None, None, None], mirror_slots(out), out)
    if data.joint_drop:
        parents = constant(SLOT_PARENTS, device).clamp(min=0)
        out = torch.where(drop_BS.to(device, non_blocking=True)[:, None, None, :, None], out[:, :, :, parents], out)
    if data.jitter:
        # One displacement a joint and clip: a miscalibrated body, which no temporal filter averages away.
        noise = noise[:, None, None].to(device, non_blocking=True) * data.jitter
        noise[..., dims:] = 0
        out = out + noise
    return out


def mirror_slots(pose_XSC: Tensor) -> Tensor:
    """Mirror about the plane x = 0, left and right slots swapped."""
    flip, sign = constant(SLOT_FLIP, pose_XSC.device), constant((-1.0, 1.0, 1.0), pose_XSC.device)
    return pose_XSC[..., flip, :] * sign


def mirror_joints(pose_XJC: Tensor, skeleton: Skeleton) -> Tensor:
    """Mirror native joints about the plane (2D: line) x = 0, left and right swapped."""
    sign = torch.ones(pose_XJC.shape[-1], device=pose_XJC.device)
    sign[0] = -1
    return pose_XJC[..., constant(skeleton.flip, pose_XJC.device), :] * sign


def augment_bodies(
    world_BNJ3: Tensor, root_frame_B: Tensor, skeleton: Skeleton, data: TaskData, generator: torch.Generator
) -> Tensor:
    """Turn, move, resize and mirror the person of each window in the world (z up, metres, ground at z = 0).

    Limb pairs are lengthened alike on both sides; the body is then lifted or lowered so that its lowest joint keeps its
    height, for contact with the ground is what tells absolute size from a single view.
    """
    batch = len(world_BNJ3)
    turn = math.radians(data.rotation_deg)
    angle_B = uniform(generator, batch, -turn, turn)
    scale_B = uniform(generator, batch, 1 - data.scale, 1 + data.scale)
    move_B2 = uniform(generator, 2 * batch, -data.translation_m, data.translation_m).view(batch, 2)
    flip_B = torch.rand(batch, generator=generator) < 0.5
    bone_BJ = 1 + data.bone_scale * (2 * torch.rand(batch, len(skeleton.parents), generator=generator) - 1)
    device = world_BNJ3.device
    flip = torch.tensor(skeleton.flip)
    pair = torch.minimum(torch.arange(len(flip)), flip)
    bone_BJ = bone_BJ[:, pair].to(device, non_blocking=True)
    root = skeleton.parents.index(-1)
    out = world_BNJ3
    if data.bone_scale:
        parents = skeleton.parents
        moved: dict[int, Tensor] = {root: out[:, :, root]}
        for joint in parents_first(parents):
            if joint != root:
                bone_BN3 = out[:, :, joint] - out[:, :, parents[joint]]
                moved[joint] = moved[parents[joint]] + bone_BN3 * bone_BJ[:, None, joint, None]
        grown = torch.stack([moved[joint] for joint in range(len(parents))], dim=2)
        lift_BN = out[..., 2].amin(dim=2) - grown[..., 2].amin(dim=2)
        grown[..., 2] += lift_BN[:, :, None]
        out = grown
    rows = torch.arange(batch, device=device)
    ground_B3 = out[rows, root_frame_B, root].clone()
    ground_B3[:, 2] = 0
    out = out - ground_B3[:, None, None]
    if data.flip:
        out = torch.where(flip_B.to(device, non_blocking=True)[:, None, None, None], mirror_joints(out, skeleton), out)
    zero = torch.zeros(batch)
    matrix_B33 = (rotation_matrices(zero, zero, angle_B) * scale_B[:, None, None]).to(device, non_blocking=True)
    out = torch.einsum("bnjc,bdc->bnjd", out, matrix_B33)
    ground_B3[:, :2] += move_B2.to(device, non_blocking=True)
    return out + ground_B3[:, None, None]


def parents_first(parents: tuple[int, ...]) -> list[int]:
    """Joints in an order in which each comes after its parent."""
    order: list[int] = []
    pending = list(range(len(parents)))
    while pending:
        ready = [joint for joint in pending if parents[joint] < 0 or parents[joint] in order]
        order += ready
        pending = [joint for joint in pending if joint not in ready]
    return order
