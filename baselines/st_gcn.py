"""Recogniser of ST-GCN's kind: Yan et al., "Spatial Temporal Graph Convolutional Networks for Skeleton-Based Action
Recognition" (AAAI 2018), with fewer and narrower units.

A unit is a graph convolution with the spatial configuration partitioning (their section 3.3 and Eq. 10),

    f_out = sum_p  W_p f_in (A_p * M_p),    p: the joint itself, neighbours nearer to the centre, farther ones,

with A = sum_p A_p normalised by the degrees of the receiving joints, M_p learnt edge weights and W_p a matrix, then a
convolution over time; batch normalisation, ReLU, dropout, a residual around both.

The graph is that of the common slots that the skeleton fills, its centre the spine at the shoulders; a slot whose
parent is not there hangs on the nearest ancestor that is. Persons pass one by one; the features of those present are
averaged before the classifier, as in the paper.

Shape suffixes: B clips, P persons, Q clips times persons, N frames, J joints, I the same joints as senders,
C coordinates, D channels, G 3 partitions, K classes.
"""

import itertools
from collections import deque
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from baselines.persons import mean_over_persons
from ups_model.skeletons import SLOT_PARENTS

PARTITIONS = 3
STAGE_UNITS = 2
"""Units of one width; the next stage has twice the channels and half the frames."""


def bones(slots: Sequence[int]) -> list[tuple[int, int]]:
    """(child, parent) as places in `slots`, each on the nearest ancestor that is there."""
    place = {slot: index for index, slot in enumerate(slots)}
    pairs = []
    for slot in slots:
        parent = SLOT_PARENTS[slot]
        while parent >= 0 and parent not in place:
            parent = SLOT_PARENTS[parent]
        if parent >= 0:
            pairs.append((place[slot], place[parent]))
    return pairs


def partitioned_adjacency(slots: Sequence[int]) -> np.ndarray:
    """float64 [3, J, J] (partition, receiver, sender); receivers' rows sum to 1 over partitions and senders.

    Raises:
        ValueError: the slots are not one connected skeleton.
    """
    joints, pairs = len(slots), bones(slots)
    neighbours: dict[int, list[int]] = {joint: [] for joint in range(joints)}
    for child, parent in pairs:
        neighbours[child].append(parent)
        neighbours[parent].append(child)
    children = {child for child, _ in pairs}
    centres = [joint for joint in range(joints) if joint not in children]
    if len(centres) != 1:
        raise ValueError(f"a graph needs one connected skeleton, got {len(centres)} parts of slots {tuple(slots)}")
    hops, queue = {centres[0]: 0}, deque(centres)
    while queue:
        joint = queue.popleft()
        for other in neighbours[joint]:
            if other not in hops:
                hops[other] = hops[joint] + 1
                queue.append(other)
    adjacency_GJI = np.zeros((PARTITIONS, joints, joints))
    for joint in range(joints):
        for other in [joint, *neighbours[joint]]:
            partition = 0 if other == joint else 1 if hops[other] < hops[joint] else 2
            adjacency_GJI[partition, joint, other] = 1 / (1 + len(neighbours[joint]))
    return adjacency_GJI


class STGCN(nn.Module):
    """Units of graph and temporal convolution, mean over frames, joints and persons, classifier."""

    def __init__(
        self,
        slots: Sequence[int],
        dims: int,
        classes: int,
        width: int = 32,
        blocks: int = 6,
        dropout: float = 0.25,
        kernel: int = 9,
    ) -> None:
        super().__init__()
        adjacency_GJI = torch.tensor(partitioned_adjacency(slots), dtype=torch.float32)
        self.norm = nn.BatchNorm1d(len(slots) * dims)
        widths = [width * 2 ** (block // STAGE_UNITS) for block in range(blocks)]
        self.units = nn.ModuleList(
            _Unit(adjacency_GJI, before, after, kernel, 2 if after > before >= width else 1, dropout)
            for before, after in itertools.pairwise([dims, *widths])
        )
        self.scores = nn.Linear(widths[-1], classes)

    def forward(self, pose_BPNJC: Tensor, person_mask_BP: Tensor | None = None) -> Tensor:
        """[B, K] scores.

        Args:
            pose_BPNJC: coordinates of the joints present.
            person_mask_BP: True for persons that are there; None = all.
        """
        batch, persons, frames, joints, dims = pose_BPNJC.shape
        x_QCN = pose_BPNJC.reshape(batch * persons, frames, joints * dims).transpose(1, 2)
        x_QDNJ = self.norm(x_QCN).unflatten(1, (joints, dims)).permute(0, 2, 3, 1)
        for unit in self.units:
            x_QDNJ = unit(x_QDNJ)
        x_BPD = x_QDNJ.mean(dim=(2, 3)).unflatten(0, (batch, persons))
        scores_BK: Tensor = self.scores(mean_over_persons(x_BPD, person_mask_BP))
        return scores_BK


class _Unit(nn.Module):
    adjacency_GJI: Tensor

    def __init__(
        self, adjacency_GJI: Tensor, inputs: int, outputs: int, kernel: int, stride: int, dropout: float
    ) -> None:
        super().__init__()
        self.dropout = dropout
        self.register_buffer("adjacency_GJI", adjacency_GJI, persistent=False)
        self.edges = nn.Parameter(torch.ones_like(adjacency_GJI))
        self.graph = nn.Conv2d(inputs, PARTITIONS * outputs, 1)
        self.before = nn.BatchNorm2d(outputs)
        self.time = nn.Conv2d(outputs, outputs, (kernel, 1), (stride, 1), (kernel // 2, 0))
        self.after = nn.BatchNorm2d(outputs)
        self.residual: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.residual = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, (stride, 1), bias=False), nn.BatchNorm2d(outputs)
            )

    def graph_convolution(self, x_QDNI: Tensor) -> Tensor:
        """[Q, D, N, J] the paper's Eq. 10."""
        x_QGDNI = self.graph(x_QDNI).unflatten(1, (PARTITIONS, -1))
        return torch.einsum("qgdni,gji->qdnj", x_QGDNI, self.adjacency_GJI * self.edges)

    def forward(self, x_QDNJ: Tensor) -> Tensor:
        y_QDNJ = self.before(self.graph_convolution(x_QDNJ)).relu()
        y_QDNJ = F.dropout(self.after(self.time(y_QDNJ)), self.dropout, self.training)
        return (y_QDNJ + self.residual(x_QDNJ)).relu()
