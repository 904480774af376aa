"""VideoPose3D: Pavllo et al., "3D human pose estimation in video with temporal convolutions and semi-supervised
training" (CVPR 2019), section 3 and Figure 2.

A convolution of W_1 frames takes the joints to D channels; residual block b has a convolution of W_b frames whose
taps lie W_1 ... W_(b-1) frames apart, then one of a single frame; a last one gives the coordinates. Nothing is padded:
the receptive field is the product of the W, and the residual is the slice of the block's input in its middle.

One set of weights runs in two forms of equal outputs: strided, where only what the middle frame needs is computed
(training, appendix A.5), and dilated over a whole sequence, where neighbouring outputs share their hidden frames.

Shape suffixes: B windows, F frames of the receptive field, N frames, R targets, M outputs, I input joints,
J native joints, D channels, C channels of the frames that an output sees.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.lifter import Lifter


class VideoPose3D(Lifter):
    """Temporal convolutions without padding; batch normalisation, ReLU and dropout after all but the last."""

    def __init__(
        self,
        inputs: int,
        joints: int,
        filter_widths: Sequence[int] = (3, 3, 3),
        width: int = 1024,
        dropout: float = 0.25,
    ) -> None:
        super().__init__()
        self.receptive_field, self.joints = math.prod(filter_widths), joints
        self.filter_widths = tuple(filter_widths)
        first, *rest = filter_widths
        self.expand = _Convolution(inputs * 2, width, first, dropout)
        self.blocks = nn.ModuleList(_Block(width, frames, dropout) for frames in rest)
        self.shrink = nn.Conv1d(width, joints * 3, 1)

    def forward(self, screen_BFI2: Tensor) -> Tensor:
        """[B, J, 3] the strided form: one pose of each window."""
        x_BMD = self.expand(screen_BFI2.flatten(2))
        for block in self.blocks:
            x_BMD = block(x_BMD)
        return self._coordinates(x_BMD)[:, 0]

    def dilated(self, screen_BNI2: Tensor) -> Tensor:
        """[B, N - F + 1, J, 3] poses of all frames that have the receptive field around them."""
        x_BMD = self.expand(screen_BNI2.flatten(2), dilation=1)
        dilation = self.expand.frames
        for block, frames in zip(self.blocks, self.filter_widths[1:], strict=True):
            x_BMD = block(x_BMD, dilation)
            dilation *= frames
        return self._coordinates(x_BMD)

    def lift(self, screen_BNI2: Tensor, target_BR: Tensor) -> Tensor:
        """[B * R, J, 3]; where most outputs of a window are wanted, and no statistics are taken, in the dilated
        form."""
        outputs = screen_BNI2.shape[1] - self.receptive_field + 1
        if self.training or 2 * target_BR.shape[1] <= outputs:
            return super().lift(screen_BNI2, target_BR)
        row_B1 = torch.arange(len(screen_BNI2), device=target_BR.device)[:, None]
        pose_BMJ3 = self.dilated(screen_BNI2)
        return pose_BMJ3[row_B1, target_BR - self.receptive_field // 2].flatten(0, 1)

    def _coordinates(self, x_BMD: Tensor) -> Tensor:
        """[B, M, J, 3]."""
        return F.linear(x_BMD, self.shrink.weight[:, :, 0], self.shrink.bias).unflatten(2, (self.joints, 3))


class _Block(nn.Module):
    """A convolution of several frames and one of a single frame, around the middle slice of their input."""

    def __init__(self, width: int, frames: int, dropout: float) -> None:
        super().__init__()
        self.frames = frames
        self.wide = _Convolution(width, width, frames, dropout)
        self.single = _Convolution(width, width, 1, dropout)

    def forward(self, x_BND: Tensor, dilation: int = 0) -> Tensor:
        """Dilated, or with 0 strided: what later convolutions do not see is then not computed."""
        margin = dilation * (self.frames // 2)
        middle = slice(margin, x_BND.shape[1] - margin) if dilation else slice(self.frames // 2, None, self.frames)
        return x_BND[:, middle] + self.single(self.wide(x_BND, dilation))


class _Convolution(nn.Module):
    """Convolution over time without bias, batch normalisation, ReLU, dropout.

    The frames that one output sees lie side by side, so the convolution is one matrix product: on CPUs faster than
    `conv1d` on sequences this short.
    """

    def __init__(self, inputs: int, outputs: int, frames: int, dropout: float) -> None:
        super().__init__()
        self.frames, self.dropout = frames, dropout
        self.weight = nn.Conv1d(inputs, outputs, frames, bias=False).weight
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x_BND: Tensor, dilation: int = 0) -> Tensor:
        """[B, M, D]: dilated, or with 0 strided by its own frames."""
        frames = self.frames
        if dilation:
            outputs = x_BND.shape[1] - dilation * (frames - 1)
            seen_BMC = torch.cat([x_BND[:, dilation * tap :][:, :outputs] for tap in range(frames)], dim=2)
        else:
            seen_BMC = x_BND.unflatten(1, (-1, frames)).flatten(2)
        x_BMD = F.linear(seen_BMC, self.weight.transpose(1, 2).flatten(1))
        x_BMD = self.norm(x_BMD.flatten(0, 1)).unflatten(0, x_BMD.shape[:2])
        return F.dropout(x_BMD.relu(), self.dropout, self.training)
