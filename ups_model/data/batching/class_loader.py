"""Batches of the class tasks: clips cut, resized to N frames, normalised, and augmented for training.

Shape suffixes: B clips, P persons, N frames, S 25 slots, J native joints, C coordinates.
"""

import dataclasses
from collections.abc import Iterator

import torch
from torch import Tensor

from ups_model.config import TaskData, TaskName
from ups_model.data.batching.augment import augment_clips, uniform
from ups_model.data.batching.batch import Batch, spaced
from ups_model.data.batching.device_clips import Source
from ups_model.data.batching.windows import normalise_clips
from ups_model.model.inputs import Inputs


class ClassLoader:
    """Batches of the clips of one source at a time."""

    def __init__(self, task: TaskName, data: TaskData) -> None:
        self.task, self.data = task, data

    def items(self, source: Source) -> Tensor:
        """[clips] rows of the training clips."""
        return torch.tensor(source.rows("train"))

    def train(self, source: Source, row_B: Tensor, generator: torch.Generator) -> Batch:
        """The augmented batch of some training clips."""
        count = len(row_B)
        kept_B = uniform(generator, count, self.data.crop_min, 1)
        place_B = torch.rand(count, generator=generator)
        if self.task == "eap":
            place_B = torch.zeros(count)  # What is observed early is always the front part.
        batch = self._batch(source, row_B, kept_B, place_B)
        pose = augment_clips(batch.inputs.pose_BPNSC, self.data, source.dims, generator)
        pose = pose * batch.inputs.slot_mask_S[:, None]
        inputs = dataclasses.replace(batch.inputs, pose_BPNSC=pose)
        return Batch(inputs, source.clips.name, batch.clip_B, batch.label_B)

    def evaluate(self, source: Source, part: str, ratio: float, batch_size: int, max_clips: int) -> Iterator[Batch]:
        """The first `ratio` of each clip of a part, in order; with `max_clips`, of about that many."""
        if not len(source.rows(part)):
            return  # `split` would give one batch of no clips.
        rows = torch.tensor(source.rows(part))
        for row_B in rows[spaced(len(rows), max_clips)].split(batch_size):
            # In float32 0.6 is above 0.6, and of 5 frames 4 would be shown.
            share_B = torch.full((len(row_B),), ratio, dtype=torch.float64)
            yield self._batch(source, row_B, share_B, torch.zeros(len(row_B)))

    def _batch(self, source: Source, row_B: Tensor, kept_B: Tensor, place_B: Tensor) -> Batch:
        """Clips cut to the share `kept_B` of their frames (rounded up, at least one), resized to N, normalised."""
        device, row_B = source.device, row_B.to(source.device, non_blocking=True)
        length_B = source.length[row_B]
        kept = (
            torch.ceil(kept_B.to(device, non_blocking=True).double() * length_B - 1e-9)
            .clamp(min=1)
            .minimum(length_B.double())
        )
        first_B = torch.floor(place_B.to(device, non_blocking=True) * (length_B - kept + 1)).minimum(length_B - kept)
        step_N = (torch.arange(self.data.frames, device=device) + 0.5) / self.data.frames
        time_BN = (first_B[:, None] + step_N * kept[:, None] - 0.5).maximum(first_B[:, None])
        time_BN = time_BN.minimum((first_B + kept - 1)[:, None])
        low_BN = time_BN.floor()
        weight_BN = (time_BN - low_BN).float()[:, None, :, None, None]
        low_BPN = low_BN.long()[:, None].expand(-1, source.persons, -1)
        last_B = (first_B + kept - 1).long()
        high_BPN = (low_BPN + 1).minimum(last_B[:, None, None])
        track_BP = source.persons_seen(row_B, first_B.long(), last_B)
        native = torch.lerp(source.gather(track_BP, low_BPN), source.gather(track_BP, high_BPN), weight_BN)
        length_BP, offset_BP = source.track_length[track_BP], source.track_offset[track_BP]
        seen_BP = (length_BP > 0) & (offset_BP <= last_B[:, None]) & (offset_BP + length_BP > first_B[:, None])
        pose = torch.einsum("sj,bpnjc->bpnsc", source.slot_matrix_SJ, native)
        pose = normalise_clips(pose, seen_BP, source)
        # Where nobody is in view the model still needs a person to look at: one of zeros, for the poses of frames
        # outside the cut were not seen.
        seen_BP[:, 0] |= ~seen_BP.any(dim=1)
        mask_BP = None if source.persons == 1 else seen_BP
        inputs = Inputs(self.task, pose, source.slot_mask_S, person_mask_BP=mask_BP, slots=source.slots, checked=True)
        return Batch(inputs, source.clips.name, row_B, source.label[row_B])
