"""Pieces that tokenizer, encoder and decoder share: seeded initialisation, norms, slot-wise projections, attention.

Shape suffixes: B clips (persons folded in), N frames, J joint slots present, D token width, T tasks, X any.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

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
    row_B: Tensor | None = None
    """Place of each row in the batch of the whole step, for `Dropout`; None = 0, 1, 2, ..."""


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
        momentum = 0.0 if _recomputes.get() else 0.1  # The first pass has counted this batch.
        if not self.training or scene.frame_mask_BN is None:
            flat_XD = x_BNJD.reshape(-1, width)
            out_XD = F.batch_norm(flat_XD, mean_D, variance_D, self.weight, self.bias, self.training, momentum)
            return out_XD.view(x_BNJD.shape)
        out_BNJD = torch.zeros_like(x_BNJD)  # Padded frames take no part in the statistics.
        there_XD = x_BNJD[scene.frame_mask_BN].reshape(-1, width)
        normed_XD = F.batch_norm(there_XD, mean_D, variance_D, self.weight, self.bias, True, momentum)
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


def run_layer(layer: nn.Module, x_BNJD: Tensor, scene: Scene, activation_checkpointing: bool) -> Tensor:
    """A layer's output; with activation checkpointing a training step keeps its input alone, and computes the rest
    again in the backward pass."""
    if activation_checkpointing and torch.is_grad_enabled():
        return checkpoint(layer, x_BNJD, scene, use_reentrant=False, context_fn=_two_passes)
    return layer(x_BNJD, scene)


_recomputes: ContextVar[bool] = ContextVar("recomputes", default=False)
"""Whether a layer is computed again for its backward pass."""


def _two_passes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _recomputing()


@contextmanager
def _recomputing() -> Iterator[None]:
    token = _recomputes.set(True)
    try:
        yield
    finally:
        _recomputes.reset(token)


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
    """Dropout whose mask doesn't depend on how a batch is cut into parts or over processes.

    Whether an element of a row is dropped follows from a random word for its place in the row, which is drawn from the
    global generator, and from the row's place in the whole batch. So one row's worth of random numbers is drawn, not a
    batch's, and a part of a batch has the masks that it has in the whole one.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor, row_B: Tensor | None = None) -> Tensor:
        """`row_B` as `Scene.row_B`, for the first axis of x."""
        if not self.training or not self.p:
            return x
        if row_B is None:
            row_B = torch.arange(len(x), device=x.device)
        return _Dropped.apply(x, self.mask(x.shape[1:], row_B), 1 / (1 - self.p))  # type: ignore[no-untyped-call]  # torch's

    def mask(self, shape: torch.Size, row_B: Tensor) -> Tensor:
        """[B, *shape] True where an element is kept."""
        word = torch.randint(-(2**31), 2**31, shape, dtype=torch.int32, device=row_B.device)
        row_B = _mixed((row_B + 1).to(torch.int32)).view(-1, *[1] * len(shape))
        # Another odd factor for each row: with one for all, two rows whose words differ in high bits alone are alike.
        return (word ^ row_B).mul_(_mixed(row_B) | 1) >= round(self.p * 2**32) - 2**31


def _mixed(word: Tensor) -> Tensor:
    """32-bit words, each bit of which depends on many of the number's (after MurmurHash3's finaliser)."""
    word = (word ^ (word >> 16 & 0xFFFF)) * -2048144789
    return (word ^ (word >> 13 & 0x7FFFF)) * -1028477387


class _Dropped(torch.autograd.Function):
    """x * mask * scale; keeps a byte an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mask: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(mask)
        ctx.scale = scale
        return (x * mask).mul_(scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (gradient * mask).mul_(ctx.scale), None, None


class Mlp(nn.Module):
    """Linear, GELU, linear: the MLP of a transformer block."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.inner = linear(width, hidden)
        self.outer = linear(hidden, width)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, row_B: Tensor | None = None) -> Tensor:
        return self.outer(self.dropout(F.gelu(self.inner(x)), row_B))
