"""Compact recogniser of DD-Net's kind: Yang et al., "Make Skeleton-based Action Recognition Model Smaller, Faster and
Better" (ACM MM Asia 2019).

Streams of a clip, each embedded by three 1D convolutions over time:
- joint collection distances (their Eq. 1): ||x_i - x_j|| of each pair i > j of a frame's joints, which no turn or
  displacement of the body changes;
- slow motion x[t+1] - x[t] and fast motion x[t+2] - x[t] of every second frame (Eq. 2);
- `position`, coordinates as they come, centred on the first person's mean root: not in the paper.

Persons pass through one network one by one; the features of those present are averaged before the classifier. As clips
are centred on the first person, the second one's place relative to the first is in its `position` and motion alone.

Shape suffixes: B clips, P persons, Q clips times persons, N frames, M half of them, J joints, C coordinates,
E pairs of joints, D channels, K classes.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.persons import mean_over_persons

SLOPE = 0.2
"""Of the leaky ReLU for negative numbers."""
HIDDEN = 128
"""Units between pooling and the scores."""


def joint_distances(pose_QNJC: Tensor) -> Tensor:
    """[Q, N, E] distances of each pair of joints, of pairs (i, j < i) in rows."""
    row_E, column_E = torch.tril_indices(pose_QNJC.shape[2], pose_QNJC.shape[2], -1, device=pose_QNJC.device)
    return torch.linalg.vector_norm(pose_QNJC[:, :, row_E] - pose_QNJC[:, :, column_E], dim=-1)


def slow_motion(pose_QNJC: Tensor) -> Tensor:
    """[Q, N, J * C] differences to the next frame; the last is repeated, so that the length stays."""
    return _held(pose_QNJC[:, 1:] - pose_QNJC[:, :-1], pose_QNJC.shape[1]).flatten(2)


def fast_motion(pose_QNJC: Tensor) -> Tensor:
    """[Q, M, J * C] differences over two frames, of every second frame."""
    half_QMJC = pose_QNJC[:, ::2]
    return _held(half_QMJC[:, 1:] - half_QMJC[:, :-1], half_QMJC.shape[1]).flatten(2)


def _held(x_QNJC: Tensor, frames: int) -> Tensor:
    """With the last frame repeated up to `frames`; zeros where there is none."""
    if not x_QNJC.shape[1]:
        return x_QNJC.new_zeros(len(x_QNJC), frames, *x_QNJC.shape[2:])
    return torch.cat([x_QNJC, x_QNJC[:, -1:].expand(-1, frames - x_QNJC.shape[1], -1, -1)], dim=1)


class DDNet(nn.Module):
    """Streams of distances and motion, joined, then pairs of temporal convolutions with pooling between them."""

    def __init__(
        self,
        joints: int,
        dims: int,
        classes: int,
        width: int = 48,
        blocks: int = 3,
        dropout: float = 0.1,
        streams: Sequence[str] = ("distance", "slow", "fast"),
    ) -> None:
        super().__init__()
        self.dropout = dropout
        sizes = {name: joints * dims for name in ("slow", "fast", "position")}
        sizes["distance"] = joints * (joints - 1) // 2
        self.streams = nn.ModuleDict(
            {
                name: nn.Sequential(
                    _Convolution(sizes[name], 2 * width, 1),
                    nn.Dropout1d(dropout),
                    _Convolution(2 * width, width, 3),
                    nn.Dropout1d(dropout),
                    _Convolution(width, width, 1),
                )
                for name in streams
            }
        )
        widths = [len(streams) * width, *(width * 2 ** (block + 1) for block in range(blocks))]
        self.blocks = nn.ModuleList(
            nn.Sequential(_Convolution(before, after, 3), nn.Dropout1d(dropout), _Convolution(after, after, 3))
            for before, after in itertools.pairwise(widths)
        )
        self.hidden = nn.Linear(widths[-1], HIDDEN)
        self.norm = nn.BatchNorm1d(HIDDEN)
        self.scores = nn.Linear(HIDDEN, classes)

    def forward(self, pose_BPNJC: Tensor, person_mask_BP: Tensor | None = None) -> Tensor:
        """[B, K] scores.

        Args:
            pose_BPNJC: coordinates of the joints present.
            person_mask_BP: True for persons that are there; None = all.
        """
        batch, persons = pose_BPNJC.shape[:2]
        x_QDM = self._embed(pose_BPNJC.flatten(0, 1))
        for index, block in enumerate(self.blocks):
            x_QDM = block(F.max_pool1d(x_QDM, 2) if index and x_QDM.shape[2] > 1 else x_QDM)
        x_BD = mean_over_persons(x_QDM.amax(dim=2).unflatten(0, (batch, persons)), person_mask_BP)
        x_BD = F.leaky_relu(self.norm(self.hidden(x_BD)), SLOPE)
        scores_BK: Tensor = self.scores(F.dropout(x_BD, self.dropout, self.training))
        return scores_BK

    def _embed(self, pose_QNJC: Tensor) -> Tensor:
        """[Q, D, M] all streams at half the frame rate, which the fast motion has by itself."""
        makers = {"distance": joint_distances, "slow": slow_motion, "fast": fast_motion, "position": _flat}
        embedded = []
        for name, layers in self.streams.items():
            x_QDN = layers(makers[name](pose_QNJC).transpose(1, 2))
            embedded.append(x_QDN if name == "fast" else F.max_pool1d(x_QDN, 2, ceil_mode=True))
        return torch.cat(embedded, dim=1)


def _flat(pose_QNJC: Tensor) -> Tensor:
    return pose_QNJC.flatten(2)


class _Convolution(nn.Module):
    """Convolution over time without bias, batch normalisation, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x_QDN: Tensor) -> Tensor:
        return F.leaky_relu(self.norm(self.convolution(x_QDN)), SLOPE)
