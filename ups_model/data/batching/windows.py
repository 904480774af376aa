"""Coordinates and windows of a batch: normalisation, cameras, which frames an evaluation predicts.

Shape suffixes: B clips, P persons, N frames, S 25 slots, J native joints, R target frames, W windows, G groups.
"""

import torch
from torch import Tensor

from ups_model.config import TaskData
from ups_model.data.batching.device_clips import Source
from ups_model.skeletons import ROOT_SLOT


def normalise_clips(pose_BPNSC: Tensor, seen_BP: Tensor, source: Source) -> Tensor:
    """Class tasks: y up, centred on the first person's mean root; 2D clips also scaled to unit joint spread, z = 0."""
    up = source.clips.info.up_axis
    if up == "z":
        x, y, z = pose_BPNSC.unbind(dim=-1)
        pose_BPNSC = torch.stack([x, z, -y], dim=-1)
    elif up == "-y":
        sign = torch.ones(pose_BPNSC.shape[-1], device=pose_BPNSC.device)
        sign[1:] = -1  # In 3D a half turn about x: to negate y alone would swap left and right.
        pose_BPNSC = pose_BPNSC * sign
    elif up != "y":
        raise ValueError(f"up_axis must be y, z or -y, got {up!r} in clip set {source.name!r}")
    first_B = seen_BP.float().argmax(dim=1)
    rows = torch.arange(len(pose_BPNSC), device=pose_BPNSC.device)
    root_BC = pose_BPNSC[rows, first_B, :, ROOT_SLOT].mean(dim=1)
    pose_BPNSC = pose_BPNSC - root_BC[:, None, None, None]
    mask_S = source.slot_mask_S.float()
    if source.dims == 2:
        spread_B = (pose_BPNSC[rows, first_B] * mask_S[:, None]).square().sum(dim=-1).sum(dim=(1, 2))
        spread_B = (spread_B / (mask_S.sum() * pose_BPNSC.shape[2])).sqrt().clamp(min=1e-6)
        pose_BPNSC = torch.nn.functional.pad(pose_BPNSC / spread_B[:, None, None, None, None], (0, 1))
    return pose_BPNSC * mask_S[:, None] * seen_BP[:, :, None, None, None]


def normalise_screen(pixel_BNJ2: Tensor, size_B2: Tensor) -> Tensor:
    """Screen coordinates X / w * 2 - [1, h / w], so that x spans [-1, 1] and the aspect ratio is kept (VideoPose3D)."""
    width_B, height_B = size_B2.unbind(dim=-1)
    shift_B2 = torch.stack([torch.ones_like(width_B), height_B / width_B], dim=-1)
    return pixel_BNJ2 / width_B[:, None, None, None] * 2 - shift_B2[:, None, None]


def pose_items(source: Source, part: str) -> Tensor:
    """[items, 3] (clip, camera, centre frame): every frame of each clip's longest track, in every camera."""
    pieces = []
    for row in source.rows(part):
        cameras, frames = len(source.clips.cameras(int(row))), torch.arange(*source.span(int(row)))
        grid = torch.cartesian_prod(torch.tensor([int(row)]), torch.arange(cameras), frames)
        pieces.append(grid)
    return torch.cat(pieces) if pieces else torch.empty(0, 3, dtype=torch.int64)


def evaluation_windows(source: Source, part: str, data: TaskData) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Windows that cover every `evaluate_stride`-th frame of each clip's longest track once.

    Returns (clip, camera) [W, 2]; frames [W, N]; target positions [W, R]; target frames [W, R], -1 past a track's end.
    """
    jump = max(1, data.evaluate_stride // data.frame_stride)
    phases = range(0, data.frame_stride, data.evaluate_stride)
    first = (data.frames - data.evaluate_targets) // 2 if data.evaluate_targets > 1 else (data.frames - 1) // 2
    local_R = first + torch.arange(0, data.evaluate_targets, jump)
    items, frames, wanted = [], [], []
    for row in source.rows(part):
        first_frame, end = source.span(int(row))
        for phase in phases:
            groups = -(-(max(end - first_frame - phase, 0)) // (data.frame_stride * data.evaluate_targets))
            begin = torch.arange(groups)[:, None] * data.evaluate_targets - first
            frame_GN = first_frame + phase + data.frame_stride * (begin + torch.arange(data.frames))
            wanted_GR = frame_GN[:, local_R]
            wanted_GR = torch.where(wanted_GR < end, wanted_GR, -1)
            for camera in range(len(source.clips.cameras(int(row)))):
                items.append(torch.tensor([[int(row), camera]]).expand(groups, -1))
                frames.append(frame_GN)
                wanted.append(wanted_GR)
    if not items:
        none = torch.empty(0, data.frames, dtype=torch.int64)
        return none[:, :2], none, none[:, :1], none[:, :1]
    frame_WN = torch.cat(frames)
    return torch.cat(items), frame_WN, local_R.expand(len(frame_WN), -1), torch.cat(wanted)
