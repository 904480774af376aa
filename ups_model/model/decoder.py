"""The UPS decoder: a causal transformer over target tokens that attends to the encoded tokens (paper section 3.3).

Shape suffixes: B target sequences, K target steps, M memory tokens, W decoder width, V vocabulary, G windows (each
encoded once for B / G target frames).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ups_model.config import ModelConfig
from ups_model.model.layers import Dropout, Mlp, attend, drawn, linear


@dataclass(frozen=True)
class Memory:
    """What the decoder attends to: tokens of a window shared by its targets, and tokens of each target's own."""

    window_GMW: Tensor
    """Encoded tokens of each window."""
    window_mask_GM: Tensor | None
    """True where a token may be attended to; None = all."""
    offset_BM: Tensor
    """Frame of each window token relative to the target frame, as a row of the offset table."""
    target_BMW: Tensor | None
    """Joint tokens at the target frame (or averaged over time), if the memory has any."""
    aligned_BKW: Tensor | None = None
    """What each step reads beside its input token: the encoded token of the joint it predicts."""
    row_B: Tensor | None = None
    """Place of each target sequence in the batch of the whole step, for `Dropout`; None = 0, 1, 2, ..."""

    @property
    def repeats(self) -> int:
        """Targets decoded from each window."""
        return self.offset_BM.shape[0] // self.window_GMW.shape[0]


@dataclass
class DecoderCache:
    """What a decoder makes of a memory before the first step."""

    mask: Tensor | None
    aligned_BKW: Tensor | None = None
    row_B: Tensor | None = None
    memory_LBMX: list[Tensor] = field(default_factory=list)
    """Keys and values of the memory for each layer, [B, M, 2W]."""


class DecoderLayer(nn.Module):
    """Pre-norm block: causal self-attention, attention to the memory, 2-layer MLP."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.decoder_width
        self.heads = config.decoder_heads
        self.self_norm = nn.LayerNorm(width)
        self.self_query_key_value = linear(width, 3 * width)
        self.self_merge = linear(width, width)
        self.cross_norm = nn.LayerNorm(width)
        self.cross_query = linear(width, width)
        self.cross_key_value = linear(width, 2 * width)
        self.cross_merge = linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, config.decoder_mlp_ratio * width, config.decoder_dropout)
        self.dropout = Dropout(config.decoder_dropout)

    def memory_key_value(self, memory: Memory, offsets_OW: Tensor) -> Tensor:
        """[B, M, 2W] keys and values of the memory. A window's are computed once and shared by all its targets: the
        projection is linear, so that of (token + offset embedding) is the sum of both projections."""
        shared_GMW = self.cross_key_value(memory.window_GMW)
        offset_OW = offsets_OW @ self.cross_key_value.weight.T
        both_BMW = shared_GMW.repeat_interleave(memory.repeats, dim=0) + offset_OW[memory.offset_BM]
        if memory.target_BMW is not None:
            both_BMW = torch.cat([both_BMW, self.cross_key_value(memory.target_BMW)], dim=1)
        return both_BMW

    def forward(self, x_BKW: Tensor, memory_BMX: Tensor, mask: Tensor | None, row_B: Tensor | None = None) -> Tensor:
        """Run all K steps of a prefix; `memory_BMX` is of `memory_key_value`, `row_B` as `Memory.row_B`."""
        packed_BKX = self.self_query_key_value(self.self_norm(x_BKW))
        x_BKW = x_BKW + self.dropout(self.self_merge(attend(packed_BKX, None, self.heads, causal=True)), row_B)
        query_BKW = self.cross_query(self.cross_norm(x_BKW))
        x_BKW = x_BKW + self.dropout(self.cross_merge(attend(query_BKW, memory_BMX, self.heads, mask)), row_B)
        return x_BKW + self.dropout(self.mlp(self.mlp_norm(x_BKW), row_B), row_B)


class Decoder(nn.Module):
    """Next-token decoder: embedded prefix and memory to output tokens [B, K, W], to be matched with the vocabulary."""

    if TYPE_CHECKING:
        layers: Sequence[DecoderLayer]

    def __init__(self, config: ModelConfig, max_steps: int, max_frames: int) -> None:
        super().__init__()
        width = config.decoder_width
        self.position_KW = drawn(max_steps, width, std=0.02)
        self.offset_OW = drawn(2 * max_frames - 1, width, std=0.02)
        self.mask_W = drawn(width, std=0.02)
        self.layers = nn.ModuleList(  # type: ignore[assignment]  # a list of modules, whose type torch doesn't keep
            DecoderLayer(config) for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        self.dropout = Dropout(config.decoder_dropout)

    def start(self, memory: Memory) -> DecoderCache:
        """The cache of a memory before the first step."""
        mask = None
        if memory.window_mask_GM is not None:
            mask = memory.window_mask_GM.repeat_interleave(memory.repeats, dim=0)
            if memory.target_BMW is not None:
                there = mask.new_ones(mask.shape[0], memory.target_BMW.shape[1])
                mask = torch.cat([mask, there], dim=1)
            mask = mask[:, None, None, :]
        memories = [layer.memory_key_value(memory, self.offset_OW) for layer in self.layers]
        return DecoderCache(mask, memory.aligned_BKW, memory.row_B, memories)

    def forward(self, tokens_BKW: Tensor, cache: DecoderCache) -> Tensor:
        """Output tokens for the embedded input tokens of a prefix; `stepwise.StepwiseDecoder` takes one at a time."""
        steps = tokens_BKW.shape[1]
        x_BKW = tokens_BKW + self.position_KW[:steps]
        if cache.aligned_BKW is not None:
            x_BKW = x_BKW + cache.aligned_BKW[:, :steps]
        x_BKW = self.dropout(x_BKW, cache.row_B)
        for layer, memory_BMX in zip(self.layers, cache.memory_LBMX, strict=True):
            x_BKW = layer(x_BKW, memory_BMX, cache.mask, cache.row_B)
        return self.norm(x_BKW)
