"""A clip set on the model's device: poses of persons at given frames of given clips.

Shape suffixes: B clips, P persons, N frames, S 25 slots, J native joints, C coordinates, M clips of a set.
"""

import copy
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ups_model.data.format.clip_data import ClipData
from ups_model.data.format.rules import count_non_finite
from ups_model.data.format.splits import Split
from ups_model.data.readers.fill_missing import fill_undetected
from ups_model.model.inputs import Slots
from ups_model.skeletons import SLOTS
from ups_model.tasks import MAX_PERSONS


class Source:
    """One clip set on the model's device, with its split."""

    def __init__(self, clips: ClipData, split: Split, device: torch.device, name: str = "") -> None:
        self.clips, self.split = clips, split
        self.name = name or clips.name
        """As `TaskData.sources` writes it, with the protocol."""
        self.skeleton, self.dims = clips.skeleton, clips.info.dims
        self.device = device
        self.slot_mask_S = torch.zeros(SLOTS, dtype=torch.bool, device=device)
        self.slot_mask_S[list(self.skeleton.slots_present)] = True
        numbers = tuple(sorted(self.skeleton.slots_present))
        self.slots = Slots(numbers, torch.tensor(numbers, device=device))
        self.slot_matrix_SJ = torch.tensor(self.skeleton.slot_matrix, device=device)
        positions = np.asarray(clips.positions)
        if clips.confidence is not None and not clips.info.filled:
            positions = fill_undetected(positions, clips.confidence, clips.track_start)
        # A set that does not fit stays on disk, memory-mapped, and only the frames of a batch are read.
        fits = positions.nbytes <= room_bytes(device)
        if fits and count_non_finite(positions):
            raise not_finite(self.name)
        self.positions_FJC = torch.tensor(positions, device=device) if fits else positions
        self.label = torch.as_tensor(clips.label.astype(np.int64), device=device)
        self.length = torch.as_tensor(clips.clip_length.astype(np.int64), device=device)
        start, length, offset, persons = _person_table(clips)
        self.start_MP = torch.as_tensor(start, device=device)
        self.length_MP = torch.as_tensor(length, device=device)
        self.offset_MP = torch.as_tensor(offset, device=device)
        self.persons = persons

    def under(self, split: Split, name: str) -> "Source":
        """The same clip set, on the device once, under another protocol."""
        other = copy.copy(self)
        other.split, other.name = split, name
        return other

    def rows(self, part: str) -> np.ndarray:
        """Clips of "train", "validation" or "test"."""
        return {"train": self.split.train, "validation": self.split.validation, "test": self.split.test}[part]

    def gather(self, row_B: Tensor, frame_BPN: Tensor) -> Tensor:
        """[B, P, N, J, C] float32 poses of persons at whole frames of their clips, held beyond their tracks' ends."""
        rows_BPN = self.flat(row_B, frame_BPN)
        if isinstance(self.positions_FJC, Tensor):
            return self.positions_FJC[rows_BPN].float()
        positions = self.positions_FJC[rows_BPN.cpu().numpy()]
        if not np.isfinite(positions).all():
            raise not_finite(self.name)
        return torch.as_tensor(positions).to(self.device).float()

    @cached_property
    def camera_group(self) -> Tensor:
        """[clips] the camera group of each clip."""
        return torch.as_tensor(self.clips.camera_group.astype(np.int64), device=self.device)

    @cached_property
    def cameras(self) -> tuple[Tensor, ...]:
        """Rotation, centre, focal length, principal point and image size of [camera group, camera]."""
        widest = max(self.clips.info.camera_groups, key=len)
        # Groups may differ in size: a row is filled up with cameras that no clip of the group asks for.
        groups = [[*group, *widest[len(group) :]] for group in self.clips.info.camera_groups]
        return tuple(
            torch.as_tensor(
                np.array([[np.asarray(getattr(camera, name)) for camera in group] for group in groups]),
                dtype=torch.float32,
                device=self.device,
            )
            for name in ("R", "center", "f", "c", "wh")
        )

    def flat(self, row_B: Tensor, frame_BPN: Tensor) -> Tensor:
        """[B, P, N] rows of `positions` and `keypoints` that hold those frames of the clips' first P persons."""
        persons = slice(frame_BPN.shape[1])
        start, length, offset = (table[row_B, persons] for table in (self.start_MP, self.length_MP, self.offset_MP))
        local = (frame_BPN - offset[..., None]).minimum((length - 1).clamp(min=0)[..., None]).clamp(min=0)
        return start[..., None] + local


def not_finite(name: str) -> ValueError:
    """What to raise where a clip set holds NaN or infinity; batches are not checked again."""
    return ValueError(f"coordinates must be finite, got NaN or infinity in clip set {name!r}; clean the data")


def room_bytes(device: torch.device) -> float:
    """Bytes that one clip set may take on the device: half of what a GPU has free, and 4 GiB of a host's memory, which
    many runs may share."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else 4 * 2**30


def _person_table(clips: ClipData) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Start, length and offset [clips, MAX_PERSONS] of each clip's longest tracks; length 0 where nobody is."""
    count = len(clips)
    start, length, offset = (np.zeros((count, MAX_PERSONS), dtype=np.int64) for _ in range(3))
    order = np.lexsort((np.arange(len(clips.track_clip)), -clips.track_length.astype(np.int64), clips.track_clip))
    owner = clips.track_clip[order]
    rank = np.arange(len(order)) - np.searchsorted(owner, owner, side="left")
    kept = rank < MAX_PERSONS
    for table, column in ((start, clips.track_start), (length, clips.track_length), (offset, clips.track_offset)):
        table[owner[kept], rank[kept]] = column[order][kept]
    return start, length, offset, int(rank[kept].max(initial=0)) + 1
