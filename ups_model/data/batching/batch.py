"""A batch of a task: what the model sees, and what it should answer.

Shape suffixes: B clips or windows, P persons, N frames, S 25 slots, J native joints, R target frames, C coordinates.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from ups_model.model.inputs import Inputs

T = TypeVar("T", "Batch", Inputs)


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

    def share(self, rank: int, processes: int) -> "Batch":
        """Every `processes`-th clip from `rank` on."""
        return self if processes == 1 else self[rank::processes]

    def __len__(self) -> int:
        return len(self.clip_B)

    def __getitem__(self, own: slice) -> "Batch":
        """Some of the clips, which remember their places in this batch."""
        place_B = self.inputs.place_B
        if place_B is None:
            place_B = torch.arange(len(self))
        inputs = dataclasses.replace(self.inputs, place_B=place_B)
        return dataclasses.replace(_cut(self, own), inputs=_cut(inputs, own))

    def parts(self, size: int) -> Iterator["Batch"]:
        """The batch in as few parts of at most `size` clips as there can be, all of about one length."""
        count = -(-len(self) // size)
        for part in range(count):
            yield self if count == 1 else self[len(self) * part // count : len(self) * (part + 1) // count]


def _cut(value: T, own: slice) -> T:
    """Some of the clips in every field that has an axis of clips."""
    fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    cut: dict[str, Any] = {
        name: field[own] for name, field in fields.items() if isinstance(field, Tensor) and name != "slot_mask_S"
    }
    return dataclasses.replace(value, **cut)


def spaced(count: int, max_clips: int) -> Tensor:
    """Indices of `max_clips` of `count` things, evenly spaced; of all with 0 or too few."""
    if not max_clips or count <= max_clips:
        return torch.arange(count)
    return (torch.arange(max_clips, dtype=torch.float64) * count / max_clips).long()
