"""Pieces that tokenizer, encoder and decoder share: seeded initialisation, norms, slot-wise projections, attention.

Shape suffixes: B clips (persons folded in), N frames, J joint slots present, D token width, T tasks, X any.
"""

import hashlib
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

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
    parameter.init_std = std
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


class TokenNorm(nn.Module):
    """LayerNorm over D, or BatchNorm over all present tokens with running statistics for each task.

    Task cycling would mix data sets in shared BatchNorm statistics, so each task has its own; weight, bias are shared.
    """

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


class SlotsToToken(nn.Module):
    """Linear map of the J*D values of a frame to one token; absent slots count as zeros and cost nothing."""

    def __init__(self, token_width: int, width: int) -> None:
        super().__init__()
        self.weight = drawn(width, SLOTS, token_width, std=1 / math.sqrt(SLOTS * token_width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x_XJD: Tensor, scene: Scene) -> Tensor:
        return F.linear(x_XJD.flatten(-2), self.weight[:, scene.slots].flatten(1), self.bias)


class TokenToSlots(nn.Module):
    """Linear map of a frame token back to the J*D values of the slots present."""

    def __init__(self, width: int, token_width: int) -> None:
        super().__init__()
        # Small, so that a residual branch through it starts near the identity and drowns no joint's own token.
        self.weight = drawn(SLOTS, token_width, width, std=0.1 / math.sqrt(width))
        self.bias = nn.Parameter(torch.zeros(SLOTS, token_width))

    def forward(self, x_XW: Tensor, scene: Scene) -> Tensor:
        weight, bias = self.weight[scene.slots].flatten(0, 1), self.bias[scene.slots].flatten()
        return F.linear(x_XW, weight, bias).unflatten(-1, (len(scene.slots), -1))


def split_heads(x_BXW: Tensor, heads: int) -> Tensor:
    """[B, X, W] -> [B, heads, X, W / heads]."""
    return x_BXW.unflatten(-1, (heads, -1)).transpose(1, 2)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool = False) -> Tensor:
    """Scaled dot-product attention of [B, heads, X, width] tensors, heads merged in the answer [B, X, W].

    `mask` is boolean, True where a key may be attended to, and broadcasts to [B, heads, queries, keys].
    """
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
    return out.transpose(1, 2).flatten(2)


class Mlp(nn.Module):
    """Linear, GELU, linear: the MLP of a transformer block."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = linear(width, hidden)
        self.outer = linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.dropout(F.gelu(self.inner(x))))
