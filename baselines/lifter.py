"""What lifters share: the windows around target frames.

Shape suffixes: B windows, N frames of a window, F frames of the receptive field, R targets, I input joints,
J native joints.
"""

from abc import abstractmethod

import torch
from torch import Tensor, nn


class Lifter(nn.Module):
    """A network that lifts the middle frame of a window of 2D joints to a root-relative 3D pose."""

    receptive_field: int

    @abstractmethod
    def forward(self, screen_BFI2: Tensor) -> Tensor:
        """[B, J, 3] metres, of the middle frames of windows as long as the receptive field."""

    def lift(self, screen_BNI2: Tensor, target_BR: Tensor) -> Tensor:
        """[B * R, J, 3] poses of target frames, each from the receptive field around it."""
        return self(target_windows(screen_BNI2, target_BR, self.receptive_field))


def relative_to_root(screen_BNI2: Tensor, root: int) -> Tensor:
    """The other joints as seen from one of them, whose own place stays."""
    root_BN12 = screen_BNI2[:, :, root : root + 1]
    is_root_I1 = (torch.arange(screen_BNI2.shape[2], device=screen_BNI2.device) == root)[:, None]
    return torch.where(is_root_I1, screen_BNI2, screen_BNI2 - root_BN12)


def target_windows(screen_BNI2: Tensor, target_BR: Tensor, receptive_field: int) -> Tensor:
    """[B * R, F, I, 2] the frames around each target."""
    around_F = torch.arange(receptive_field, device=target_BR.device) - receptive_field // 2
    frame_BRF = target_BR[:, :, None] + around_F
    row_B11 = torch.arange(len(screen_BNI2), device=target_BR.device)[:, None, None]
    return screen_BNI2[row_B11, frame_BRF].flatten(0, 1)
