"""The joint tokenizer: TCN-GCN layers with channel-wise topology refinement (paper section 3.3; CTR-GCN, ICCV 2021).

Shape suffixes: B clips (persons folded in), N frames, J joint slots present, C input features, D token width,
K graph partitions, R relation channels, U and V joints.
"""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups_model.model.fused import GraphUnit, MaxOfThree
from ups_model.model.layers import (
    Scene,
    TokenNorm,
    channels_first,
    drawn,
    frames_first,
    linear,
    mix_channels,
    run_layer,
    runs_fused,
)
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

    if TYPE_CHECKING:
        residual: nn.Identity | nn.Linear

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
        if runs_fused(x_BNJC) and self.norm.kind == "layer":
            return self._fused(x_BNJC, scene)
        return self.norm.relu(self.convolve(x_BNJC, scene), scene, kept(self.residual, x_BNJC))

    def _fused(self, x_BNJC: Tensor, scene: Scene) -> Tensor:
        """`forward` of float32 on a CPU; the same numbers but for rounding."""
        weight_BN = None
        if scene.frame_mask_BN is not None:
            weight_BN = scene.frame_mask_BN.to(x_BNJC.dtype)
            weight_BN = weight_BN / weight_BN.sum(dim=1, keepdim=True).clamp(min=1)
        start_DKVU, refine_XY = self._topology_parts(scene)
        value_weight, value_bias = self._value_parts()
        out_BDJN = GraphUnit.apply(  # type: ignore[no-untyped-call]  # torch's
            channels_first(x_BNJC),
            weight_BN,
            torch.cat([self.query.weight, self.key.weight]),
            torch.cat([self.query.bias, self.key.bias]),
            start_DKVU.flatten(2).flatten(0, 1),
            refine_XY,
            value_weight,
            value_bias,
            self.norm.weight,
            self.norm.bias,
            None if isinstance(self.residual, nn.Identity) else channels_first(kept(self.residual, x_BNJC)),
            torch.is_grad_enabled(),
        )
        return frames_first(out_BDJN)

    def convolve(self, x_BNJC: Tensor, scene: Scene) -> Tensor:
        """The graph convolution alone: [B, N, J, C] -> [B, N, J, D]."""
        topology_BDWU = self.topology(time_mean(x_BNJC, scene.frame_mask_BN), scene)
        # Partitions and source joints are one contraction axis W: a single batched product sums over both.
        value_BNJX = mix_channels(x_BNJC, *self._value_parts())
        value_XWN = channels_first(value_BNJX).unflatten(1, (self.width, PARTITIONS)).flatten(0, 1).flatten(1, 2)
        out_XUN = torch.bmm(topology_BDWU.flatten(0, 1).transpose(1, 2).to(value_XWN.dtype), value_XWN)
        return frames_first(out_XUN.unflatten(0, (len(x_BNJC), self.width)))

    def topology(self, mean_BJC: Tensor, scene: Scene) -> Tensor:
        """[B, D, K*V, U]: weight with which joint u takes channel d of joint v under partition k."""
        joints = mean_BJC.shape[1]
        a_BXU, b_BXV = self.query(mean_BJC).transpose(1, 2), self.key(mean_BJC).transpose(1, 2)
        relation_BXVU = torch.tanh(a_BXU[:, :, None] - b_BXV[..., None])
        start_DKVU, refine_XY = self._topology_parts(scene)
        start_XVU = start_DKVU.flatten(2).flatten(0, 1)
        refined = torch.baddbmm(
            start_XVU.to(relation_BXVU.dtype),
            refine_XY.to(relation_BXVU.dtype).expand(len(mean_BJC), -1, -1),
            relation_BXVU.flatten(2),
        )
        return refined.view(len(mean_BJC), self.width, PARTITIONS * joints, joints)

    def _topology_parts(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """[D, K, V, U] what all clips' topologies have in common, and [D*K, K*R] the weights of the relations."""
        # One product for all partitions: [D, K, K, R] that is zero where the two partitions differ.
        refine_DKKR = torch.diag_embed(self.refine_KDR.permute(1, 2, 0)).permute(0, 2, 3, 1)
        adjacency_KVU = self.adjacency_KUV[:, scene.slots][:, :, scene.slots].transpose(1, 2)
        start_DKVU = adjacency_KVU + (self.alpha * self.refine_bias_KD.T)[..., None, None]
        return start_DKVU, (self.alpha * refine_DKKR).flatten(0, 1).flatten(1)

    def _value_parts(self) -> tuple[Tensor, Tensor]:
        """Weight [D*K, C] and bias [D*K] of the values, a channel's partitions side by side."""
        weight_DKC = self.value.weight.unflatten(0, (PARTITIONS, self.width)).transpose(0, 1)
        return weight_DKC.flatten(0, 1), self.value.bias.unflatten(0, (PARTITIONS, self.width)).T.flatten()


class TcnGcnLayer(nn.Module):
    """ReLU(multi-scale temporal convolution of a GCN unit, plus residual): one layer of the joint tokenizer.

    Four branches of D/4 channels: kernel 5, kernel 5 with dilation 2, max over 3 frames, and a plain projection.
    """

    if TYPE_CHECKING:
        residual: nn.Identity | nn.Linear

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
        branches_BNJD = mix_channels(self.gcn(x_BNJC, scene), self.branches.weight, self.branches.bias)
        quarter = branches_BNJD.shape[-1] // 4
        moving, plain = branches_BNJD.split([3 * quarter, quarter], dim=-1)
        moving = self.branch_norm.relu(moving, scene)
        if scene.frame_mask_BN is not None:
            # After the ReLU 0 is the least value, so a zeroed frame adds nothing to a convolution or to a maximum.
            moving = moving * scene.frame_mask_BN[:, :, None, None]
        near, far, pooled = channels_first(moving).chunk(3, dim=1)
        pooled = MaxOfThree.apply(pooled)  # type: ignore[no-untyped-call]  # torch's
        branches = [convolve_frames(near, self.near, 1), convolve_frames(far, self.far, 2), pooled]
        out_BDJN = torch.cat([*branches, channels_first(plain)], dim=1)
        return self.norm.relu(frames_first(out_BDJN), scene, kept(self.residual, x_BNJC))


class JointTokenizer(nn.Module):
    """Pose sequence to joint tokens: [B, N, J, C] -> [B, N, J, D], TCN-GCN layers one after another."""

    def __init__(self, inputs: int, width: int, layers: int, normalisation: str) -> None:
        super().__init__()
        self.activation_checkpointing = False
        self.layers = nn.ModuleList(
            TcnGcnLayer(inputs if index == 0 else width, width, normalisation) for index in range(layers)
        )

    def forward(self, x_BNJC: Tensor, scene: Scene) -> Tensor:
        for layer in self.layers:
            x_BNJC = run_layer(layer, x_BNJC, scene, self.activation_checkpointing)
        return x_BNJC


def kept(residual: nn.Identity | nn.Linear, x_BNJC: Tensor) -> Tensor:
    """What a layer adds its branch to: its input, or a projection of it where the widths differ."""
    return x_BNJC if isinstance(residual, nn.Identity) else mix_channels(x_BNJC, residual.weight, residual.bias)


def convolve_frames(x_BCJN: Tensor, layer: nn.Linear, dilation: int) -> Tensor:
    """A convolution over 5 frames by a linear layer of 5 * C inputs, frame by frame; zeros beyond the clip's ends."""
    weight_DC1K = layer.weight.unflatten(1, (5, -1)).transpose(1, 2)[:, :, None]
    return F.conv2d(x_BCJN, weight_DC1K, layer.bias, padding=(0, 2 * dilation), dilation=(1, dilation))


def time_mean(x_BNJC: Tensor, frame_mask_BN: Tensor | None) -> Tensor:
    """[B, J, C] mean over the frames that are there."""
    if frame_mask_BN is None:
        return x_BNJC.mean(dim=1)
    weight_BN = frame_mask_BN.to(x_BNJC.dtype)
    total_BJC = torch.einsum("bnjc,bn->bjc", x_BNJC, weight_BN)
    return total_BJC / weight_BN.sum(dim=1).clamp(min=1)[:, None, None]
