"""Residual MLP lifter: Martinez et al., "A simple yet effective baseline for 3d human pose estimation" (ICCV 2017).

Their network sees one frame; this one all frames of a window at once. With 27 frames of 17 joints, width 512 and 3
blocks have 2.08 M parameters; the default of 480 has 1.86 M.

Shape suffixes: B windows, F frames, I input joints, J native joints, D width.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from baselines.lifter import Lifter


class ResidualMLP(Lifter):
    """Linear layer, residual blocks of two, linear layer; batch normalisation, ReLU and dropout after all but the
    last."""

    def __init__(
        self, receptive_field: int, inputs: int, joints: int, width: int = 480, blocks: int = 3, dropout: float = 0.25
    ) -> None:
        super().__init__()
        self.receptive_field, self.joints = receptive_field, joints
        self.enter = _Layer(receptive_field * inputs * 2, width, dropout)
        self.blocks = nn.ModuleList(
            nn.Sequential(_Layer(width, width, dropout), _Layer(width, width, dropout)) for _ in range(blocks)
        )
        self.leave = nn.Linear(width, joints * 3)

    def forward(self, screen_BFI2: Tensor) -> Tensor:
        x_BD = self.enter(screen_BFI2.flatten(1))
        for block in self.blocks:
            x_BD = x_BD + block(x_BD)
        return self.leave(x_BD).unflatten(1, (self.joints, 3))


class _Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), dropout

    def forward(self, x_BD: Tensor) -> Tensor:
        return F.dropout(self.norm(self.linear(x_BD)).relu(), self.dropout, self.training)
