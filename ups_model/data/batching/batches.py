"""Batches of a task: which clips, which frames, in what coordinates; all draws from (seed, purpose, task, step).

So a batch depends on the step alone: not on workers, processes, devices, or on whether the run was resumed.

Shape suffixes: B clips or windows, P persons, N frames, S 25 slots, J native joints, R target frames, K target steps,
F all frames of a set, A cameras.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ups_model.config import TASK_NAMES, Config, TaskData, TaskName
from ups_model.data.batching.augment import augment_bodies, augment_clips, mirror_joints, uniform
from ups_model.data.batching.device_clips import Source
from ups_model.data.batching.suitability import check_suitable
from ups_model.data.batching.windows import (
    camera_table,
    evaluation_windows,
    normalise_clips,
    normalise_screen,
    pose_items,
)
from ups_model.data.format.clip_set import ClipSet, Split
from ups_model.model.layers import seed_for
from ups_model.model.ups import Inputs
from ups_model.tasks import TASKS

STATISTICS_CLIPS = 512
"""Clips from which a task's input statistics are taken."""


@dataclass(frozen=True)
class Batch:
    """Inputs of one task from one clip set, and what the model should answer."""

    inputs: Inputs
    source: str
    clip_B: Tensor
    """Row of each clip in its clip set."""
    label_B: Tensor | None
    """Class of each clip within its data set (class tasks)."""
    pose_BRJ3: Tensor | None = None
    """Root-relative pose in camera axes, metres (pose estimation)."""
    frame_BR: Tensor | None = None
    """Frame of the recording that each target is, -1 where a window reaches past the end (pose estimation)."""
    camera_B: Tensor | None = None
    """Camera of each window (pose estimation)."""


class Feed:
    """Batches of one task: `train(step)` for any step in any order, `evaluate(part)` once through."""

    def __init__(self, task: TaskName, data: TaskData, sources: list[Source], seed: int) -> None:
        self.task, self.data, self.sources, self.seed = task, data, sources, seed
        self._orders: dict[tuple[str, int], Tensor] = {}
        for source in sources:
            check_suitable(task, data, source.clips)
        if TASKS[task].kind == "pose":
            self._windows = {source.name: pose_items(source, "train") for source in sources}
        for source in sources:
            if self._train_size(source) == 0:
                raise ValueError(f"training split must have clips, got none in {source.name!r} for {task}")

    def _train_size(self, source: Source) -> int:
        if TASKS[self.task].kind == "pose":
            return len(self._windows[source.name])
        return len(source.rows("train"))

    def _generator(self, purpose: str, *parts: int | str) -> torch.Generator:
        return torch.Generator().manual_seed(seed_for(self.seed, purpose, self.task, *parts))

    def _items(self, source: Source, first: int, count: int) -> Tensor:
        """Items first .. first + count - 1 of the endless sequence of reshuffled passes over the training split."""
        size = self._train_size(source)
        position = torch.arange(first, first + count)
        out = torch.empty(count, dtype=torch.int64)
        for epoch in range(first // size, (first + count - 1) // size + 1):
            key = (source.name, epoch)
            if key not in self._orders:
                generator = self._generator("order", source.name, epoch)
                if len(self._orders) > 2 * len(self.sources):
                    self._orders.clear()
                self._orders[key] = torch.randperm(size, generator=generator)
            inside = position // size == epoch
            out[inside] = self._orders[key][position[inside] % size]
        return out

    def train(self, turn: int, share: tuple[int, int] = (0, 1)) -> Batch:
        """The batch of this task's `turn`-th iteration (from 0); `share` = (rank, processes) takes a part of its clips.

        All clips of a batch come from one source, drawn in proportion to the sources' sizes.
        """
        sizes = torch.tensor([float(self._train_size(source)) for source in self.sources])
        choice = self._generator("source", turn)
        source = self.sources[int(torch.multinomial(sizes, 1, generator=choice))]
        items = self._items(source, turn * self.data.batch_size, self.data.batch_size)
        generator = self._generator("augment", turn)
        if TASKS[self.task].kind == "pose":
            batch = self._pose_train(source, self._windows[source.name][items], generator)
        else:
            batch = self._class_train(source, torch.tensor(source.rows("train"))[items], generator)
        return _share(batch, *share)

    def statistics_batch(self) -> Batch:
        """A large batch of training clips, from which the scale of input features is taken: the same in every seed that
        holds out the same subjects."""
        clone = Feed(self.task, dataclasses.replace(self.data, batch_size=STATISTICS_CLIPS), self.sources[:1], 0)
        return clone.train(0)

    def only(self, source: Source) -> "Feed":
        """The same feed with one of its sources."""
        return self if len(self.sources) == 1 else Feed(self.task, self.data, [source], self.seed)

    def poses(self, source: Source, part: str = "train") -> Iterator[Tensor]:
        """[cameras * frames, J, 3] root-relative poses of `part`, metres, clip by clip (pose estimation)."""
        for row in source.rows(part):
            frame_1R = torch.arange(int(source.clips.clip_length[row]))[None]
            camera_B = torch.arange(len(source.clips.cameras(int(row))))
            frame_BR = frame_1R.expand(len(camera_B), -1)
            row_B = torch.full_like(camera_B, int(row))
            yield self._pose_batch(  # type: ignore[union-attr]  # pose batches have it
                source, row_B, camera_B, frame_BR, frame_BR, None
            ).pose_BRJ3.flatten(0, 1)

    # -- class tasks ----------------------------------------------------------------------------------------------

    def _class_train(self, source: Source, row_B: Tensor, generator: torch.Generator) -> Batch:
        count = len(row_B)
        kept_B = uniform(generator, count, self.data.crop_min, 1)
        place_B = torch.rand(count, generator=generator)
        if self.task == "eap":
            place_B = torch.zeros(count)  # What is observed early is always the front part.
        batch = self._class_batch(source, row_B, kept_B, place_B)
        pose = augment_clips(batch.inputs.pose_BPNSC, self.data, source.dims, generator)
        pose = pose * batch.inputs.slot_mask_S[:, None]
        inputs = Inputs(self.task, pose, batch.inputs.slot_mask_S, None, batch.inputs.person_mask_BP)
        return Batch(inputs, source.clips.name, batch.clip_B, batch.label_B)

    def _class_batch(self, source: Source, row_B: Tensor, kept_B: Tensor, place_B: Tensor) -> Batch:
        """Clips cut to the share `kept_B` of their frames (rounded up, at least one), resized to N, normalised."""
        device, row_B = source.device, row_B.to(source.device)
        length_B = source.length[row_B]
        kept = torch.ceil(kept_B.to(device).double() * length_B - 1e-9).clamp(min=1).minimum(length_B.double())
        first_B = torch.floor(place_B.to(device) * (length_B - kept + 1)).minimum(length_B - kept)
        step_N = (torch.arange(self.data.frames, device=device) + 0.5) / self.data.frames
        time_BN = (first_B[:, None] + step_N * kept[:, None] - 0.5).maximum(first_B[:, None])
        time_BN = time_BN.minimum((first_B + kept - 1)[:, None])
        low_BN = time_BN.floor()
        weight_BN = (time_BN - low_BN).float()[:, None, :, None, None]
        low_BPN = low_BN.long()[:, None].expand(-1, source.persons, -1)
        last_B = (first_B + kept - 1).long()
        high_BPN = (low_BPN + 1).minimum(last_B[:, None, None])
        native = torch.lerp(source.gather(row_B, low_BPN), source.gather(row_B, high_BPN), weight_BN)
        length_BP, offset_BP = source.length_MP[row_B, : source.persons], source.offset_MP[row_B, : source.persons]
        seen_BP = (length_BP > 0) & (offset_BP <= last_B[:, None]) & (offset_BP + length_BP > first_B[:, None])
        pose = torch.einsum("sj,bpnjc->bpnsc", source.slot_matrix_SJ, native)
        pose = normalise_clips(pose, seen_BP, source)
        # Where nobody is in view the model still needs a person to look at: one of zeros, for the poses of frames
        # outside the cut were not seen.
        seen_BP[:, 0] |= ~seen_BP.any(dim=1)
        inputs = Inputs(self.task, pose, source.slot_mask_S, None, None if source.persons == 1 else seen_BP)
        return Batch(inputs, source.clips.name, row_B, source.label[row_B])

    def evaluate(self, part: str, ratio: float = 1.0, batch_size: int = 0, max_clips: int = 0) -> Iterator[Batch]:
        """All clips of "validation" or "test" once, in order; class tasks see the first `ratio` of each clip.

        With `max_clips`, at most about that many of them (pose estimation: predicted frames, in whole windows), evenly
        spaced.
        """
        batch_size = batch_size or 4 * self.data.batch_size
        for source in self.sources:
            if TASKS[self.task].kind == "pose":
                yield from self._pose_evaluate(source, part, batch_size, max_clips)
                continue
            if not len(source.rows(part)):
                continue  # `split` would give one batch of no clips.
            rows = torch.tensor(source.rows(part))
            for row_B in rows[_spaced(len(rows), max_clips)].split(batch_size):
                # In float32 0.6 is above 0.6, and of 5 frames 4 would be shown.
                share = torch.full((len(row_B),), ratio, dtype=torch.float64)
                yield self._class_batch(source, row_B, share, torch.zeros(len(row_B)))

    # -- pose estimation ------------------------------------------------------------------------------------------

    def _pose_train(self, source: Source, item_B: Tensor, generator: torch.Generator) -> Batch:
        data = self.data
        centre = (data.frames - data.evaluate_targets) // 2
        draw = torch.rand(len(item_B), data.evaluate_targets, generator=generator)
        count = min(data.targets_per_window, data.evaluate_targets)
        target_BR = centre + draw.argsort(dim=1)[:, :count].sort(dim=1).values
        frame_BN = item_B[:, 2, None] + data.frame_stride * (torch.arange(data.frames) - (data.frames - 1) // 2)
        return self._pose_batch(source, item_B[:, 0], item_B[:, 1], frame_BN, target_BR, generator)

    def _pose_evaluate(self, source: Source, part: str, batch_size: int, max_clips: int) -> Iterator[Batch]:
        windows = evaluation_windows(source, part, self.data)
        kept = _spaced(len(windows[0]), -(-max_clips // windows[2].shape[1]))
        item, frame, target, wanted = (value[kept] for value in windows)
        for index in range(0, len(item), batch_size):
            chosen = slice(index, index + batch_size)
            batch = self._pose_batch(source, item[chosen, 0], item[chosen, 1], frame[chosen], target[chosen], None)
            yield Batch(**{**vars(batch), "frame_BR": wanted[chosen].to(source.device)})

    def _pose_batch(
        self,
        source: Source,
        row_B: Tensor,
        camera_B: Tensor,
        frame_BN: Tensor,
        target_BR: Tensor,
        generator: torch.Generator | None,
    ) -> Batch:
        device = source.device
        row_B, camera_B, frame_BN, target_BR = (x.to(device) for x in (row_B, camera_B, frame_BN, target_BR))
        frame_BN = frame_BN.clamp(min=0).minimum(source.length[row_B, None] - 1)
        world_BNJ3 = source.gather(row_B, frame_BN[:, None])[:, 0]
        stored = self.data.detections == "stored"
        if generator is not None and not stored:
            middle_B = target_BR[:, target_BR.shape[1] // 2]
            world_BNJ3 = augment_bodies(world_BNJ3, middle_B, source.skeleton, self.data, generator)
        cameras = camera_table(source)
        group_B = torch.as_tensor(source.clips.camera_group.astype(np.int64), device=device)[row_B]
        rotation, centre, focal, principal, size = (table[group_B, camera_B] for table in cameras)
        camera_BNJ3 = torch.einsum("bdc,bnjc->bnjd", rotation, world_BNJ3 - centre[:, None, None])
        if not stored:
            depth = camera_BNJ3[..., 2:].clamp(min=0.1)  # A person behind the camera exists only in augmentation.
            pixel_BNJ2 = camera_BNJ3[..., :2] / depth * focal[:, None, None] + principal[:, None, None]
        else:
            flat_BN = source.flat(row_B, frame_BN[:, None])[:, 0]
            keypoints = source.clips.keypoints[  # type: ignore[index]  # "stored" needs them (`check_suitable`)
                flat_BN.cpu().numpy(), camera_B.cpu().numpy()[:, None]
            ]
            pixel_BNJ2 = torch.as_tensor(keypoints).float().to(device)
        screen_BNJ2 = normalise_screen(pixel_BNJ2, size)
        if generator is not None and stored and self.data.flip:
            # Detections exist in the image alone, so their mirror is the camera's x = 0 for input and target alike.
            flip_B111 = (torch.rand(len(row_B), generator=generator) < 0.5).to(device)[:, None, None, None]
            screen_BNJ2 = torch.where(flip_B111, mirror_joints(screen_BNJ2, source.skeleton), screen_BNJ2)
            camera_BNJ3 = torch.where(flip_B111, mirror_joints(camera_BNJ3, source.skeleton), camera_BNJ3)
        if generator is not None and self.data.jitter:
            noise = torch.randn(screen_BNJ2.shape, generator=generator) * self.data.jitter
            screen_BNJ2 = screen_BNJ2 + noise.to(device)
        screen_BNS2 = torch.einsum("sj,bnjc->bnsc", source.slot_matrix_SJ, screen_BNJ2)
        pose_BPNSC = torch.nn.functional.pad(screen_BNS2, (0, 1))[:, None]
        rows = torch.arange(len(row_B), device=device)[:, None]
        root = source.skeleton.parents.index(-1)
        target_BRJ3 = camera_BNJ3[rows, target_BR]
        target_BRJ3 = target_BRJ3 - target_BRJ3[:, :, root : root + 1]
        inputs = Inputs(self.task, pose_BPNSC, source.slot_mask_S, target_frame_BR=target_BR)
        label = source.label[row_B]
        return Batch(inputs, source.clips.name, row_B, label, target_BRJ3, frame_BN[rows, target_BR], camera_B)


def _spaced(count: int, max_clips: int) -> Tensor:
    """Indices of `max_clips` of `count` things, evenly spaced; of all with 0 or too few."""
    if not max_clips or count <= max_clips:
        return torch.arange(count)
    return (torch.arange(max_clips, dtype=torch.float64) * count / max_clips).long()


def _share(batch: Batch, rank: int, processes: int) -> Batch:
    """Every `processes`-th clip from `rank` on."""
    if processes == 1:
        return batch
    own = slice(rank, None, processes)

    def cut(value: Tensor | None) -> Tensor | None:
        return None if value is None else value[own]

    inputs = batch.inputs
    part = Inputs(
        inputs.task,
        inputs.pose_BPNSC[own],
        inputs.slot_mask_S,
        cut(inputs.frame_mask_BN),
        cut(inputs.person_mask_BP),
        cut(inputs.target_frame_BR),
    )
    return Batch(
        part,
        batch.source,
        batch.clip_B[own],
        cut(batch.label_B),
        cut(batch.pose_BRJ3),
        cut(batch.frame_BR),
        cut(batch.camera_B),
    )


def build_feeds(config: Config, sets: dict[str, tuple[ClipSet, Split]], device: torch.device) -> dict[TaskName, Feed]:
    """A feed for each trained task; a clip set that serves several tasks is put on the device once."""
    sources: dict[str, Source] = {}
    feeds: dict[TaskName, Feed] = {}
    for task in TASK_NAMES:
        if task not in config.optim.tasks:
            continue
        data: TaskData = getattr(config.data, task)
        for name in data.sources:
            if name not in sources:
                clips, split = sets[name]
                same = [source for source in sources.values() if source.clips.path == clips.path]
                sources[name] = same[0].under(split, name) if same else Source(clips, split, device, name)
        feeds[task] = Feed(task, data, [sources[name] for name in data.sources], config.seed)
    return feeds
