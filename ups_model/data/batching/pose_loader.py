"""Batches of pose estimation: windows of 2D keypoints in a camera, and the 3D poses of some of their frames.

Shape suffixes: B windows, N frames, S 25 slots, J native joints, R target frames, C coordinates.
"""

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ups_model.config import TaskData, TaskName
from ups_model.data.batching.augment import augment_bodies, mirror_joints
from ups_model.data.batching.batch import Batch, spaced
from ups_model.data.batching.device_clips import Source, not_finite
from ups_model.data.batching.windows import evaluation_windows, normalise_screen, pose_items
from ups_model.model.inputs import Inputs


class PoseLoader:
    """Batches of the windows of one source at a time."""

    def __init__(self, task: TaskName, data: TaskData) -> None:
        self.task, self.data = task, data

    def items(self, source: Source) -> Tensor:
        """[items, 3] (clip, camera, centre frame): every training frame in every camera."""
        return pose_items(source, "train")

    def train(self, source: Source, item_B: Tensor, generator: torch.Generator) -> Batch:
        """The augmented batch of windows around some training frames."""
        data = self.data
        centre = (data.frames - data.evaluate_targets) // 2
        draw = torch.rand(len(item_B), data.evaluate_targets, generator=generator)
        count = min(data.targets_per_window, data.evaluate_targets)
        target_BR = centre + draw.argsort(dim=1)[:, :count].sort(dim=1).values
        frame_BN = item_B[:, 2, None] + data.frame_stride * (torch.arange(data.frames) - (data.frames - 1) // 2)
        return self._batch(source, item_B[:, 0], item_B[:, 1], frame_BN, target_BR, generator)

    def evaluate(self, source: Source, part: str, ratio: float, batch_size: int, max_clips: int) -> Iterator[Batch]:
        """Windows that cover the clips of a part, in order; with `max_clips`, about that many predicted frames.
        `ratio` is not for this task."""
        windows = evaluation_windows(source, part, self.data)
        kept = spaced(len(windows[0]), -(-max_clips // windows[2].shape[1]))
        item, frame, target, wanted = (value[kept] for value in windows)
        for index in range(0, len(item), batch_size):
            own = slice(index, index + batch_size)
            batch = self._batch(source, item[own, 0], item[own, 1], frame[own], target[own], None)
            yield dataclasses.replace(batch, frame_BR=wanted[own].to(source.device))

    def poses(self, source: Source, part: str) -> Iterator[Tensor]:
        """[cameras * frames, J, 3] root-relative poses of a part, metres, clip by clip."""
        for row in source.rows(part):
            frame_1R = torch.arange(*source.span(int(row)))[None]
            camera_B = torch.arange(len(source.clips.cameras(int(row))))
            frame_BR = frame_1R.expand(len(camera_B), -1)
            pose_BRJ3 = self._batch(
                source, torch.full_like(camera_B, int(row)), camera_B, frame_BR, frame_BR, None
            ).pose_BRJ3
            assert pose_BRJ3 is not None, "batches of poses have it"
            yield pose_BRJ3.flatten(0, 1)

    def _batch(
        self,
        source: Source,
        row_B: Tensor,
        camera_B: Tensor,
        frame_BN: Tensor,
        target_BR: Tensor,
        generator: torch.Generator | None,
    ) -> Batch:
        device = source.device
        row_B, camera_B, frame_BN, target_BR = (
            x.to(device, non_blocking=True) for x in (row_B, camera_B, frame_BN, target_BR)
        )
        frame_BN = frame_BN.clamp(min=0).minimum(source.length[row_B, None] - 1)
        track_B1 = source.main_M[row_B, None]
        world_BNJ3 = source.gather(track_B1, frame_BN[:, None])[:, 0]
        stored = self.data.detections == "stored"
        if generator is not None and not stored:
            middle_B = target_BR[:, target_BR.shape[1] // 2]
            world_BNJ3 = augment_bodies(world_BNJ3, middle_B, source.skeleton, self.data, generator)
        group_B = source.camera_group[row_B]
        rotation, centre, focal, principal, size = (table[group_B, camera_B] for table in source.cameras)
        camera_BNJ3 = torch.einsum("bdc,bnjc->bnjd", rotation, world_BNJ3 - centre[:, None, None])
        if not stored:
            depth = camera_BNJ3[..., 2:].clamp(min=0.1)  # A person behind the camera exists only in augmentation.
            pixel_BNJ2 = camera_BNJ3[..., :2] / depth * focal[:, None, None] + principal[:, None, None]
        else:
            flat_BN = source.flat(track_B1, frame_BN[:, None])[:, 0]
            keypoints = source.clips.keypoints[  # type: ignore[index]  # "stored" needs them (`check_suitable`)
                flat_BN.cpu().numpy(), camera_B.cpu().numpy()[:, None]
            ]
            if not np.isfinite(keypoints).all():
                raise not_finite(source.name)
            pixel_BNJ2 = torch.as_tensor(keypoints).float().to(device, non_blocking=True)
        screen_BNJ2 = normalise_screen(pixel_BNJ2, size)
        if generator is not None and stored and self.data.flip:
            # Detections exist in the image alone, so their mirror is the camera's x = 0 for input and target alike.
            flip_B = torch.rand(len(row_B), generator=generator) < 0.5
            flip_B111 = flip_B.to(device, non_blocking=True)[:, None, None, None]
            screen_BNJ2 = torch.where(flip_B111, mirror_joints(screen_BNJ2, source.skeleton), screen_BNJ2)
            camera_BNJ3 = torch.where(flip_B111, mirror_joints(camera_BNJ3, source.skeleton), camera_BNJ3)
        if generator is not None and self.data.jitter:
            noise = torch.randn(screen_BNJ2.shape, generator=generator) * self.data.jitter
            screen_BNJ2 = screen_BNJ2 + noise.to(device, non_blocking=True)
        screen_BNS2 = torch.einsum("sj,bnjc->bnsc", source.slot_matrix_SJ, screen_BNJ2)
        pose_BPNSC = torch.nn.functional.pad(screen_BNS2, (0, 1))[:, None]
        rows = torch.arange(len(row_B), device=device)[:, None]
        root = source.skeleton.parents.index(-1)
        target_BRJ3 = camera_BNJ3[rows, target_BR]
        target_BRJ3 = target_BRJ3 - target_BRJ3[:, :, root : root + 1]
        inputs = Inputs(
            self.task, pose_BPNSC, source.slot_mask_S, target_frame_BR=target_BR, slots=source.slots, checked=True
        )
        label = source.label[row_B]
        return Batch(inputs, source.clips.name, row_B, label, target_BRJ3, frame_BN[rows, target_BR], camera_B)
