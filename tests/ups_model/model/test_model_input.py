"""What the network refuses, each in one line: parts that do not fit each other, input of wrong shape, value or mask."""

import dataclasses
import math
import re

import pytest
import torch

from tests.support.small_models import clips, small_config, small_model
from ups_model.model.inputs import check_inputs
from ups_model.model.ups import UPS

# --- building


def build_with(**changes):
    small = small_model()
    sizes = {
        "config": small.config,
        "vocabulary": small.vocabulary,
        "quantiser": small.quantiser,
        "text_VE": small.text_VE,
    }
    return UPS(**{**sizes, "max_frames": 8, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_VE": torch.zeros(7, 12)}, "one row a token, got 7 for 30"),
        ({"config": small_config(n_bins=7)}, "agree in n_bins, got 6 and 7"),
        ({"pose_joints": 26}, "pose_joints must lie in 1..25, got 26"),
        ({"pose_joints": 0}, "pose_joints must lie in 1..25, got 0"),
        ({"max_frames": 0}, "max_frames must be at least 1, got 0"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value,
)
def test_parts_that_do_not_fit_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        build_with(**changes)
    assert "\n" not in str(caught.value)


# --- input


def poses(*shape):
    return torch.zeros(*shape, dtype=torch.float64)


NAN = poses(3, 1, 6, 25, 3)
NAN[1, 0, 2, 7, 1] = math.nan
INFINITE = poses(3, 1, 6, 25, 3)
INFINITE[2, 0, 0, 0, 0] = math.inf


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            {"pose_BPNSC": poses(3, 1, 6, 17, 3)},
            "poses must be [clips, persons, frames, 25, 3], got (3, 1, 6, 17, 3); map",
        ),
        ({"pose_BPNSC": poses(3, 1, 6, 25, 2)}, "poses must be [clips, persons, frames, 25, 3], got (3, 1, 6, 25, 2)"),
        ({"pose_BPNSC": poses(3, 6, 25, 3)}, "poses must be [clips, persons, frames, 25, 3], got (3, 6, 25, 3)"),
        ({"pose_BPNSC": poses(3, 1, 9, 25, 3)}, "clips must have 1 to 8 frames, got 9; resize or cut them"),
        ({"pose_BPNSC": poses(3, 1, 0, 25, 3)}, "clips must have 1 to 8 frames, got 0"),
        ({"pose_BPNSC": poses(3, 3, 6, 25, 3)}, "at most 2 persons, got 3"),
        ({"pose_BPNSC": NAN}, "coordinates must be finite, got NaN or infinity in clip 1 of the batch"),
        ({"pose_BPNSC": INFINITE}, "in clip 2 of the batch"),
        ({"task": "pose"}, "task must be one of pe, ar2d, eap, ar3d, got 'pose'"),
        ({"slot_mask_S": torch.ones(17, dtype=torch.bool)}, "slot_mask must be boolean [25] for these poses, got"),
        ({"slot_mask_S": torch.ones(25)}, "slot_mask must be boolean [25] for these poses, got torch.float32 [25]"),
        ({"slot_mask_S": torch.zeros(25, dtype=torch.bool)}, "slot_mask must be True somewhere in every clip"),
        ({"frame_mask_BN": torch.ones(3, 7, dtype=torch.bool)}, "frame_mask must be boolean [3, 6] for these poses"),
        (
            {"frame_mask_BN": torch.eye(3, 6) > 1},
            "frame_mask must be True somewhere in every clip, got one that is all False",
        ),
        ({"frame_mask_BN": torch.eye(3, 6) > 0}, "True for first frames, then False, got a gap; pad clips at the end"),
        ({"person_mask_BP": torch.ones(3, 2, dtype=torch.bool)}, "person_mask must be boolean [3, 1] for these poses"),
        (
            {"person_mask_BP": torch.tensor([[True], [False], [True]])},
            "person_mask must be True somewhere in every clip",
        ),
        ({"target_frame_BR": torch.zeros(3, 1).long()}, "pose estimation alone, got some with task 'ar3d'"),
        ({"task": "pe", "pose_BPNSC": poses(3, 2, 6, 25, 3)}, "task 'pe' takes one person a clip, got 2"),
        (
            {"task": "pe", "target_frame_BR": torch.tensor([[0], [6], [2]])},
            "must be there, among 0..5, got [[0], [6], [2]]",
        ),
        ({"task": "pe", "target_frame_BR": torch.tensor([[0], [-1], [2]])}, "must be there, among 0..5"),
        (
            {"task": "pe", "target_frame_BR": torch.zeros(2, 1).long()},
            "target frames must be whole numbers [3, targets]",
        ),
        ({"task": "pe", "target_frame_BR": torch.zeros(3, 1)}, "target frames must be whole numbers [3, targets]"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:50],
)
def test_bad_input_is_refused_in_one_line_that_names_rule_and_value(what, message):
    model, inputs = small_model(), clips("ar3d")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        model.encode(dataclasses.replace(inputs, **what))
    assert "\n" not in str(caught.value)


def test_a_target_in_a_padded_frame_is_refused():
    mask_BN = torch.arange(6) < torch.tensor([[6], [4], [2]])
    targets = torch.tensor([[5], [3], [2]])
    with pytest.raises(ValueError, match="target frames must be there"):
        check_inputs(clips("pe", frame_mask_BN=mask_BN, target_frame_BR=targets), 8)
    check_inputs(clips("pe", frame_mask_BN=mask_BN, target_frame_BR=targets.clamp(max=1)), 8)
