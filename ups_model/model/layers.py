"""Pieces that tokenizer, encoder and decoder share: seeded initialisation, norms, slot-wise projections, attention.

Shape suffixes: B clips (persons folded in), N frames, J joint slots present, D token width, T tasks, X any.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups_model.model.fused import Attention, LayerNormRelu
from ups_model.skeletons import SLOTS
from ups_model.tasks import TASKS


@dataclass(frozen=True)
class Scene:
    """What every layer must know of a batch beside its tokens."""

    task: int
    """Row of the task in task embeddings and per-task statistics."""
    slots: Tensor
    """[J] int64, the joint slots that the batch's skeletons fill; absent slots are never computed."""
    frame_mask_BN: Tensor | None
    """True where a frame is there; None = all are."""


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed made from (seed, purpose, step, ...), the same on every machine."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def drawn(*shape: int, std: float) -> nn.Parameter:
    """A parameter that `initialise` draws from N(0, std^2)."""
    parameter = nn.Parameter(torch.zeros(*shape))
    parameter.init_std = std  # type: ignore[attr-defined]  # ours, for `initialise`
    return parameter


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with zero bias whose weight `initialise` draws with variance 1/inputs."""
    # nn.Linear alone would draw its first weight from the global generator, which is the caller's.
    layer = nn.utils.skip_init(nn.Linear, inputs, outputs, bias=bias, device=torch.get_default_device())
    nn.init.zeros_(layer.weight)
    layer.weight.init_std = 1 / math.sqrt(inputs)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def initialise(model: nn.Module, seed: int) -> None:
    """Draw each random parameter from its own generator of (seed, name).

    So two models of one seed agree in every parameter that has the same name and shape in both, whatever else differs.
    """
    for name, parameter in model.named_parameters():
        std = getattr(parameter, "init_std", None)
        if std is not None:
            generator = torch.Generator().manual_seed(seed_for(seed, "initialise", name))
            with torch.no_grad():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)


def runs_fused(x: Tensor) -> bool:
    """Whether the functions written for a CPU in full precision apply; elsewhere the plain ones run."""
    return x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")


class TokenNorm(nn.Module):
    """LayerNorm over D, or BatchNorm over all present tokens with running statistics for each task.

    Task cycling would mix data sets in shared BatchNorm statistics, so each task has its own; weight, bias are shared.
    """

    if TYPE_CHECKING:
        mean_TD: Tensor
        variance_TD: Tensor

    def __init__(self, width: int, kind: str, weight: float = 1.0) -> None:
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.full((width,), weight))
        self.bias = nn.Parameter(torch.zeros(width))
        if kind == "task_batch":
            self.register_buffer("mean_TD", torch.zeros(len(TASKS), width))
            self.register_buffer("variance_TD", torch.ones(len(TASKS), width))

    def forward(self, x_BNJD: Tensor, scene: Scene) -> Tensor:
        width = x_BNJD.shape[-1]
        if self.kind == "layer":
            return F.layer_norm(x_BNJD, (width,), self.weight, self.bias)
        mean_D, variance_D = self.mean_TD[scene.task], self.variance_TD[scene.task]
        if not self.training or scene.frame_mask_BN is None:
            flat_XD = x_BNJD.reshape(-1, width)
            out_XD = F.batch_norm(flat_XD, mean_D, variance_D, self.weight, self.bias, self.training, 0.1)
            return out_XD.view(x_BNJD.shape)
        out_BNJD = torch.zeros_like(x_BNJD)  # Padded frames take no part in the statistics.
        there_XD = x_BNJD[scene.frame_mask_BN].reshape(-1, width)
        normed_XD = F.batch_norm(there_XD, mean_D, variance_D, self.weight, self.bias, True, 0.1)
        out_BNJD[scene.frame_mask_BN] = normed_XD.view(-1, *x_BNJD.shape[2:]).to(out_BNJD.dtype)
        return out_BNJD

    def relu(self, x_BNJD: Tensor, scene: Scene, residual_BNJD: Tensor | None = None) -> Tensor:
        """ReLU(norm(x) + residual)."""
        if self.kind == "layer":
            residual = None if residual_BNJD is None else channels_first(residual_BNJD)
            return frames_first(LayerNormRelu.apply(channels_first(x_BNJD), self.weight, self.bias, residual))  # type: ignore[no-untyped-call]  # torch's
        normed_BNJD = self(x_BNJD, scene)
        return F.relu(normed_BNJD if residual_BNJD is None else normed_BNJD + residual_BNJD)


def channels_first(x_BNJD: Tensor) -> Tensor:
    """[B, N, J, D] -> contiguous [B, D, J, N], the order in which matrix products over joints, over channels and over
    frames all read memory in a row; free of charge for what `frames_first` gave."""
    return x_BNJD.permute(0, 3, 2, 1).contiguous()


def frames_first(x_BDJN: Tensor) -> Tensor:
    """[B, D, J, N] -> [B, N, J, D], the same memory."""
    return x_BDJN.permute(0, 3, 2, 1)


def mix_channels(x_BNJC: Tensor, weight_DC: Tensor, bias_D: Tensor) -> Tensor:
    """A linear layer, [B, N, J, C] -> [B, N, J, D], that reads and writes in the order of `channels_first`."""
    x_BCJN = channels_first(x_BNJC)
    out_BDX = torch.baddbmm(bias_D[:, None], weight_DC.expand(len(x_BCJN), -1, -1), x_BCJN.flatten(2))
    return frames_first(out_BDX.unflatten(2, x_BCJN.shape[2:]))


class SlotsToToken(nn.Module):
    """Linear map of the J*D values of a frame to one token, [B, N, J, D] -> [B, N, W]; absent slots count as zeros and
    cost nothing."""

    def __init__(self, token_width: int, width: int) -> None:
        super().__init__()
        self.weight = drawn(width, SLOTS, token_width, std=1 / math.sqrt(SLOTS * token_width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_BNJD: Tensor, scene: Scene) -> Tensor:
        return F.linear(x_BNJD.flatten(2), self.weight[:, scene.slots].flatten(1), self.bias)


class TokenToSlots(nn.Module):
    """Linear map of a frame token back to the J*D values of the slots present, [B, N, W] -> [B, N, J, D]."""

    def __init__(self, width: int, token_width: int) -> None:
        super().__init__()
        # Small, so that a residual branch through it starts near the identity and drowns no joint's own token.
        self.weight = drawn(SLOTS, token_width, width, std=0.1 / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(SLOTS, token_width))

    def forward(self, x_BNW: Tensor, scene: Scene) -> Tensor:
        weight_JDW, bias_JD = self.weight[scene.slots], self.bias[scene.slots]
        return F.linear(x_BNW, weight_JDW.flatten(0, 1), bias_JD.flatten()).unflatten(-1, bias_JD.shape)


def split_heads(x_BXW: Tensor, heads: int) -> Tensor:
    """[B, X, W] -> [B, heads, X, W / heads]."""
    return x_BXW.unflatten(-1, (heads, -1)).transpose(1, 2)


MAX_FUSED_SCORES = 64 * 64
"""Scores of a head up to which `Attention` keeps them all; longer sequences take torch's blockwise kernel."""


def attend(
    first_BKX: Tensor, key_value_BMX: Tensor | None, heads: int, mask: Tensor | None = None, causal: bool = False
) -> Tensor:
    """Scaled dot-product attention, [B, queries, W], heads merged.

    Args:
        first_BKX: queries [B, queries, W]; or, without `key_value_BMX`, queries, keys and values [B, queries, 3W].
        key_value_BMX: [B, keys, 2W].
        mask: boolean, True where a key may be attended to; broadcasts to [B, heads, queries, keys].
        causal: keys up to the query's own place alone.
    """
    keys = first_BKX.shape[1] if key_value_BMX is None else key_value_BMX.shape[1]
    if mask is None and runs_fused(first_BKX) and first_BKX.shape[1] * keys <= MAX_FUSED_SCORES:
        future = first_BKX.new_full((keys, keys), -torch.inf).triu_(1) if causal else None
        return Attention.apply(first_BKX, key_value_BMX, heads, future)  # type: ignore[no-untyped-call]  # torch's
    parts = first_BKX.chunk(3, dim=-1) if key_value_BMX is None else (first_BKX, *key_value_BMX.chunk(2, dim=-1))
    query, key, value = (split_heads(part, heads) for part in parts)
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


class Dropout(nn.Module):
    """`nn.Dropout`, whose mask comes from the global generator as there, but four places from one draw on the CPU."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.share:
            return x
        if x.device.type != "cpu" or not x.is_floating_point():
            return F.dropout(x, self.share)
        return x * dropout_factor(x, self.share)


def dropout_factor(x: Tensor, share: float) -> Tensor:
    """What to multiply x by, in the order in which x lies in memory: 0 with probability `share` (to 1/65536), else what
    makes up for it."""
    draws = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    dropped = round(share * 2**16)
    factor = torch.empty_like(x)  # Has the strides of x where x is dense.
    flat = factor.as_strided((x.numel(),), (1,))
    torch.ge(draws.view(torch.int16)[: x.numel()], dropped - 2**15, out=flat)
    flat.mul_(2**16 / (2**16 - dropped))
    return factor


class Mlp(nn.Module):
    """Linear, GELU, linear: the MLP of a transformer block."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = linear(width, hidden)
        self.outer = linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(F.gelu(self.inner(x))))
