"""What the model sees of a batch, and the rules for it.

Shape suffixes: B clips, P persons, N frames, S all 25 slots, J joint slots present, C coordinates, R target frames.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ups_model.skeletons import SLOTS
from ups_model.tasks import MAX_PERSONS, TASK_INDEX, TASKS


@dataclass(frozen=True)
class Slots:
    """The joint slots that are filled, known on the host and on the device."""

    numbers: tuple[int, ...]
    index_J: Tensor
    """[J] int64, the same."""

    @classmethod
    def of(cls, slot_mask_S: Tensor) -> "Slots":
        """Slots of a mask; waits for the device."""
        index_J = slot_mask_S.nonzero()[:, 0]
        return cls(tuple(index_J.tolist()), index_J)


@dataclass(frozen=True)
class Inputs:
    """What the model sees of a batch; all clips of a batch are of one task."""

    task: str
    pose_BPNSC: Tensor
    """Coordinates in the 25 common slots; 2D clips have third coordinate 0."""
    slot_mask_S: Tensor
    """True for slots that the batch's skeletons fill."""
    frame_mask_BN: Tensor | None = None
    """True for frames that are there, the first ones of a clip; None = all."""
    person_mask_BP: Tensor | None = None
    """True for persons that are there; None = all."""
    target_frame_BR: Tensor | None = None
    """Frames whose poses are predicted (pose estimation); None = the centre of the unpadded frames."""
    place_B: Tensor | None = None
    """Place of each clip in the whole step's batch, where this is a part of it, on the host; None = 0, 1, 2, ..."""
    slots: Slots | None = None
    """What `slot_mask_S` says, if it is known on the host."""
    checked: bool = False
    """Whether the values are known to be right, as those from a checked clip set: a check waits for the device."""


def row_numbers(inputs: Inputs, each: int) -> Tensor:
    """[B, each] places in the whole step's batch of rows of which every clip has `each`."""
    device = inputs.pose_BPNSC.device
    if inputs.place_B is None:
        place_B = torch.arange(len(inputs.pose_BPNSC), device=device)
    else:
        place_B = inputs.place_B.to(device, non_blocking=True)
    return place_B[:, None] * each + torch.arange(each, device=device)


def check_inputs(inputs: Inputs, max_frames: int) -> None:
    """Raise ValueError for shapes that no batch of ours has, and for such values unless they were checked before."""
    shape = tuple(inputs.pose_BPNSC.shape)
    if len(shape) != 5 or shape[3] != SLOTS or shape[4] != 3:
        raise ValueError(f"poses must be [clips, persons, frames, {SLOTS}, 3], got {shape}; map them with to_slots")
    if inputs.task not in TASK_INDEX:
        raise ValueError(f"task must be one of {', '.join(TASK_INDEX)}, got {inputs.task!r}")
    if shape[1] > MAX_PERSONS:
        raise ValueError(f"a clip holds at most {MAX_PERSONS} persons, got {shape[1]}; keep those that move most")
    if not 1 <= shape[2] <= max_frames:
        raise ValueError(f"clips must have 1 to {max_frames} frames, got {shape[2]}; resize or cut them")
    _check_masks(inputs)
    if not inputs.checked and not torch.isfinite(inputs.pose_BPNSC).all():
        bad = int((~torch.isfinite(inputs.pose_BPNSC)).flatten(1).any(dim=1).nonzero()[0])
        raise ValueError(f"coordinates must be finite, got NaN or infinity in clip {bad} of the batch; clean the data")


def _check_masks(inputs: Inputs) -> None:
    """Raise ValueError for masks or target frames that do not fit the poses."""
    clips, persons, frames = inputs.pose_BPNSC.shape[:3]
    for name, mask, wanted in (
        ("slot_mask", inputs.slot_mask_S, (SLOTS,)),
        ("frame_mask", inputs.frame_mask_BN, (clips, frames)),
        ("person_mask", inputs.person_mask_BP, (clips, persons)),
    ):
        if mask is None:
            continue
        if mask.dtype != torch.bool or tuple(mask.shape) != wanted:
            got = f"{mask.dtype} {list(mask.shape)}"
            raise ValueError(f"{name} must be boolean {list(wanted)} for these poses, got {got}")
        if not inputs.checked and not mask.any(dim=-1).all():
            # Attention over nothing has no value.
            raise ValueError(f"{name} must be True somewhere in every clip, got one that is all False; drop the clip")
    mask_BN = inputs.frame_mask_BN
    if not inputs.checked and mask_BN is not None and (mask_BN[:, 1:] & ~mask_BN[:, :-1]).any():
        raise ValueError("frame_mask must be True for first frames, then False, got a gap; pad clips at the end")
    pose_task = TASKS[inputs.task].kind == "pose"
    all_there = inputs.person_mask_BP is None or inputs.checked or bool(inputs.person_mask_BP.all())
    if pose_task and (persons != 1 or not all_there):
        raise ValueError(f"task {inputs.task!r} takes one person a clip, got {persons} or none; split the clip")
    target_BR = inputs.target_frame_BR
    if target_BR is None:
        return
    if not pose_task:
        raise ValueError(f"target frames are asked for in pose estimation alone, got some with task {inputs.task!r}")
    if target_BR.ndim != 2 or len(target_BR) != clips or target_BR.is_floating_point():
        got = f"{target_BR.dtype} {list(target_BR.shape)}"
        raise ValueError(f"target frames must be whole numbers [{clips}, targets] for these poses, got {got}")
    if inputs.checked and target_BR.numel():
        return
    there_B1 = frames if mask_BN is None else mask_BN.sum(dim=1, keepdim=True)
    if target_BR.numel() == 0 or (target_BR < 0).any() or (target_BR >= there_B1).any():
        raise ValueError(f"target frames must be there, among 0..{frames - 1}, got {target_BR.tolist()[:4]}")
