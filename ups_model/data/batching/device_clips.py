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
        # Tracks clip by clip, in the set's order, and at the end one of nobody.
        self._nobody = len(clips.track_clip)
        order = np.argsort(clips.track_clip, kind="stable")
        self.track_start, self.track_length, self.track_offset = (
            torch.as_tensor(np.append(column[order].astype(np.int64), 0), device=device)
            for column in (clips.track_start, clips.track_length, clips.track_offset)
        )
        count_M = np.bincount(clips.track_clip, minlength=len(clips))
        self._count_M = torch.as_tensor(count_M, device=device)
        self._first_M = self._count_M.cumsum(0) - self._count_M
        self._most = max(1, int(count_M.max(initial=0)))
        self.persons = min(self._most, MAX_PERSONS)

    def under(self, split: Split, name: str) -> "Source":
        """The same clip set, on the device once, under another protocol."""
        other = copy.copy(self)
        other.split, other.name = split, name
        return other

    def rows(self, part: str) -> np.ndarray:
        """Clips of "train", "validation" or "test"."""
        return {"train": self.split.train, "validation": self.split.validation, "test": self.split.test}[part]

    def persons_seen(self, row_B: Tensor, first_B: Tensor, last_B: Tensor) -> Tensor:
        """[B, P] tracks of the persons who are there in most of the frames from the first to the last, the most first,
        else in the set's order. Nothing outside of these frames counts: early prediction must not see ahead."""
        place_T = torch.arange(self._most, device=self.device)
        track_BT = (self._first_M[row_B, None] + place_T).where(place_T < self._count_M[row_B, None], self._nobody)
        if self._most == 1:
            return track_BT
        begin_BT, length_BT = self.track_offset[track_BT], self.track_length[track_BT]
        shown_BT = (begin_BT + length_BT).minimum(last_B[:, None] + 1) - begin_BT.maximum(first_B[:, None])
        rank_BT = shown_BT.clamp(min=0).argsort(dim=1, descending=True, stable=True)
        return track_BT.gather(1, rank_BT[:, :MAX_PERSONS])

    @cached_property
    def main_M(self) -> Tensor:
        """[clips] each clip's longest track, which pose estimation is about."""
        return torch.tensor(
            [
                first + int(self.track_length[first : first + count].argmax()) if count else self._nobody
                for first, count in zip(self._first_M.tolist(), self._count_M.tolist(), strict=True)
            ],
            device=self.device,
        )

    def span(self, row: int) -> tuple[int, int]:
        """First frame of a clip's longest track, and the frame after its last."""
        track = self.main_M[row]
        begin = int(self.track_offset[track])
        return begin, begin + int(self.track_length[track])

    def gather(self, track_BP: Tensor, frame_BPN: Tensor) -> Tensor:
        """[B, P, N, J, C] float32 poses of tracks at whole frames of their clips, held beyond the tracks' ends."""
        rows_BPN = self.flat(track_BP, frame_BPN)
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

    def flat(self, track_BP: Tensor, frame_BPN: Tensor) -> Tensor:
        """[B, P, N] rows of `positions` and `keypoints` that hold those frames of tracks."""
        last_BP = (self.track_length[track_BP] - 1).clamp(min=0)
        local = (frame_BPN - self.track_offset[track_BP][..., None]).minimum(last_BP[..., None]).clamp(min=0)
        return self.track_start[track_BP][..., None] + local


def not_finite(name: str) -> ValueError:
    """What to raise where a clip set holds NaN or infinity; batches are not checked again."""
    return ValueError(f"coordinates must be finite, got NaN or infinity in clip set {name!r}; clean the data")


def room_bytes(device: torch.device) -> float:
    """Bytes that one clip set may take on the device: half of what a GPU has free, and 4 GiB of a host's memory, which
    many runs may share."""
    return torch.cuda.mem_get_info(device)[0] / 2 if device.type == "cuda" else 4 * 2**30
