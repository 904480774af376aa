"""The joint tokenizer: TCN-GCN layers with channel-wise topology refinement (paper section 3.3; CTR-GCN, ICCV 2021).

Shape suffixes: B clips (persons folded in), N frames, J joint slots present, C input features, D token width,
K graph partitions, R relation channels, U and V joints.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups_model.layers import Scene, TokenNorm, drawn, linear
from ups_model.skeletons import SLOT_EDGES, SLOTS

PARTITIONS = 3


def graph_partitions() -> Tensor:
    """[K=3, 25, 25] identity, inward and outward adjacency, each normalised by the in-degree of the receiving joint.

    Entry [k, u, v] is the weight with which joint u takes from joint v.
    """
    inward = torch.zeros(SLOTS, SLOTS)
    for child, parent in SLOT_EDGES:
        inward[parent, child] = 1
    parts = torch.stack([torch.eye(SLOTS), inward, inward.T])
    return parts / parts.sum(dim=2, keepdim=True).clamp(min=1)


class GcnUnit(nn.Module):
    """CTR-GC over three graph partitions, norm, residual, ReLU: the paper's basic GCN block.

    For partition k: a = W1 x and b = W2 x averaged over time, R[u, v] = tanh(a_u - b_v), topology = A_k + alpha * W4 R,
    output_u = sum_v topology[u, v] * (W3 x)_v, each channel with a topology of its own.
    """

    def __init__(self, inputs: int, width: int, normalisation: str) -> None:
        super().__init__()
        self.width = width
        self.relation_width = 8 if inputs < 16 else inputs // 8
        self.adjacency_KUV = nn.Parameter(graph_partitions())
        self.alpha = nn.Parameter(torch.zeros(()))
        self.query = linear(inputs, PARTITIONS * self.relation_width)
        self.key = linear(inputs, PARTITIONS * self.relation_width)
        self.value = linear(inputs, PARTITIONS * width)
        self.refine_KDR = drawn(PARTITIONS, width, self.relation_width, std=self.relation_width**-0.5)
        self.refine_bias_KD = nn.Parameter(torch.zeros(PARTITIONS, width))
        self.norm = TokenNorm(width, normalisation, weight=1e-6 if inputs == width else 1.0)
        self.residual = nn.Identity() if inputs == width else linear(inputs, width)

    def forward(self, x_BNJC: Tensor, scene: Scene) -> Tensor:
        return F.relu(self.norm(self.convolve(x_BNJC, scene), scene) + self.residual(x_BNJC))

    def convolve(self, x_BNJC: Tensor, scene: Scene) -> Tensor:
        """The graph convolution alone: [B, N, J, C] -> [B, N, J, D]."""
        batch, frames, joints, _ = x_BNJC.shape
        topology_BDWU = self.topology(time_mean(x_BNJC, scene.frame_mask_BN), scene)
        value_BNJKD = self.value(x_BNJC).unflatten(-1, (PARTITIONS, self.width))
        # Partitions and source joints are one contraction axis W: a single batched product sums over both.
        value_BDNW = value_BNJKD.permute(0, 4, 1, 3, 2).reshape(batch * self.width, frames, PARTITIONS * joints)
        out_BDNU = torch.bmm(value_BDNW, topology_BDWU.flatten(0, 1).to(value_BDNW.dtype))
        return out_BDNU.view(batch, self.width, frames, joints).permute(0, 2, 3, 1)

    def topology(self, mean_BJC: Tensor, scene: Scene) -> Tensor:
        """[B, D, K*V, U]: weight with which joint u takes channel d of joint v under partition k."""
        batch, joints, _ = mean_BJC.shape
        a_BUKR = self.query(mean_BJC).unflatten(-1, (PARTITIONS, -1))
        b_BVKR = self.key(mean_BJC).unflatten(-1, (PARTITIONS, -1))
        relation_BVUKR = torch.tanh(a_BUKR[:, None] - b_BVKR[:, :, None])
        relation_KRX = relation_BVUKR.permute(3, 4, 0, 1, 2).flatten(2)
        bias_KD1 = self.refine_bias_KD[..., None].to(relation_KRX.dtype)
        refined_KDX = torch.baddbmm(bias_KD1, self.refine_KDR, relation_KRX)
        refined_BDKVU = refined_KDX.view(PARTITIONS, self.width, batch, joints, joints).permute(2, 1, 0, 3, 4)
        adjacency_KVU = self.adjacency_KUV[:, scene.slots][:, :, scene.slots].transpose(1, 2)
        return (adjacency_KVU + self.alpha * refined_BDKVU).flatten(2, 3)


class TcnGcnLayer(nn.Module):
    """ReLU(multi-scale temporal convolution of a GCN unit, plus residual): one layer of the joint tokenizer.

    Four branches of D/4 channels: kernel 5, kernel 5 with dilation 2, max over 3 frames, and a plain projection.
    """

    def __init__(self, inputs: int, width: int, normalisation: str) -> None:
        super().__init__()
        quarter = width // 4
        self.gcn = GcnUnit(inputs, width, normalisation)
        self.branches = linear(width, width)
        self.branch_norm = TokenNorm(3 * quarter, normalisation)
        self.near = linear(5 * quarter, quarter)
        self.far = linear(5 * quarter, quarter)
        self.norm = TokenNorm(width, normalisation, weight=0.2)
        self.residual = nn.Identity() if inputs == width else linear(inputs, width)

    def forward(self, x_BNJC: Tensor, scene: Scene) -> Tensor:
        branches_BNJD = self.branches(self.gcn(x_BNJC, scene))
        quarter = branches_BNJD.shape[-1] // 4
        moving, plain = branches_BNJD.split([3 * quarter, quarter], dim=-1)
        moving = F.relu(self.branch_norm(moving, scene))
        if scene.frame_mask_BN is not None:
            # After the ReLU 0 is the least value, so a zeroed frame adds nothing to a convolution or to a maximum.
            moving = moving * scene.frame_mask_BN[:, :, None, None]
        near, far, pooled = moving.chunk(3, dim=-1)
        pooled = torch.maximum(torch.maximum(shift(pooled, -1), pooled), shift(pooled, 1))
        near = self.near(torch.cat([shift(near, step) for step in (-2, -1, 0, 1, 2)], dim=-1))
        far = self.far(torch.cat([shift(far, step) for step in (-4, -2, 0, 2, 4)], dim=-1))
        out_BNJD = self.norm(torch.cat([near, far, pooled, plain], dim=-1), scene)
        return F.relu(out_BNJD + self.residual(x_BNJC))


class JointTokenizer(nn.Module):
    """Pose sequence to joint tokens: [B, N, J, C] -> [B, N, J, D], TCN-GCN layers one after another."""

    def __init__(self, inputs: int, width: int, layers: int, normalisation: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TcnGcnLayer(inputs if index == 0 else width, width, normalisation) for index in range(layers)
        )

    def forward(self, x_BNJC: Tensor, scene: Scene) -> Tensor:
        for layer in self.layers:
            x_BNJC = layer(x_BNJC, scene)
        return x_BNJC


def shift(x_BNJD: Tensor, step: int) -> Tensor:
    """The sequence as seen `step` frames later, zeros beyond its ends."""
    if step == 0:
        return x_BNJD
    if abs(step) >= x_BNJD.shape[1]:
        return torch.zeros_like(x_BNJD)
    pad = (0, 0, 0, 0, 0, step) if step > 0 else (0, 0, 0, 0, -step, 0)
    return F.pad(x_BNJD[:, step:] if step > 0 else x_BNJD[:, :step], pad)


def time_mean(x_BNJC: Tensor, frame_mask_BN: Tensor | None) -> Tensor:
    """[B, J, C] mean over the frames that are there."""
    if frame_mask_BN is None:
        return x_BNJC.mean(dim=1)
    weight_BN = frame_mask_BN.to(x_BNJC.dtype)
    total_BJC = torch.einsum("bnjc,bn->bjc", x_BNJC, weight_BN)
    return total_BJC / weight_BN.sum(dim=1).clamp(min=1)[:, None, None]
