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
from ups_model.model.layers import Dropout, Mlp, attend, drawn, linear, split_heads


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
class LayerCache:
    """Keys and values of one layer: those of the memory, and those of the steps decoded so far."""

    memory_key: Tensor
    memory_value: Tensor
    steps_key: Tensor | None = None
    steps_value: Tensor | None = None


@dataclass
class DecoderCache:
    """All that a decoder keeps between steps, so that a step costs one token and not the whole prefix."""

    mask: Tensor | None
    aligned_BKW: Tensor | None = None
    row_B: Tensor | None = None
    layers: list[LayerCache] = field(default_factory=list)


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

    def memory_cache(self, memory: Memory, offsets_OW: Tensor) -> LayerCache:
        """Keys and values of the memory. A window's are computed once and shared by all its targets: the projection is
        linear, so that of (token + offset embedding) is the sum of both projections."""
        shared_GMW = self.cross_key_value(memory.window_GMW)
        offset_OW = offsets_OW @ self.cross_key_value.weight.T
        both_BMW = shared_GMW.repeat_interleave(memory.repeats, dim=0) + offset_OW[memory.offset_BM]
        if memory.target_BMW is not None:
            both_BMW = torch.cat([both_BMW, self.cross_key_value(memory.target_BMW)], dim=1)
        key, value = both_BMW.chunk(2, dim=-1)
        return LayerCache(split_heads(key, self.heads), split_heads(value, self.heads))

    def forward(
        self, x_BKW: Tensor, cache: LayerCache, mask: Tensor | None, keep: bool, row_B: Tensor | None = None
    ) -> Tensor:
        """Run K steps that follow those in the cache; `keep` adds them to it (then K = 1 after the first call)."""
        parts = self.self_query_key_value(self.self_norm(x_BKW)).chunk(3, dim=-1)
        query, key, value = (split_heads(part, self.heads) for part in parts)
        causal = True
        if keep:
            if cache.steps_key is not None:
                key = torch.cat([cache.steps_key, key], dim=2)
                value = torch.cat([cache.steps_value, value], dim=2)  # type: ignore[list-item]  # set with the keys
                causal = False
            cache.steps_key, cache.steps_value = key, value
        x_BKW = x_BKW + self.dropout(self.self_merge(attend(query, key, value, None, causal=causal)), row_B)
        query = split_heads(self.cross_query(self.cross_norm(x_BKW)), self.heads)
        read_BKW = self.cross_merge(attend(query, cache.memory_key, cache.memory_value, mask))
        x_BKW = x_BKW + self.dropout(read_BKW, row_B)
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
        caches = [layer.memory_cache(memory, self.offset_OW) for layer in self.layers]
        return DecoderCache(mask, memory.aligned_BKW, memory.row_B, caches)

    def forward(self, tokens_BKW: Tensor, cache: DecoderCache, first: int = 0, keep: bool = False) -> Tensor:
        """Output tokens for embedded input tokens of steps first .. first + K - 1."""
        steps = slice(first, first + tokens_BKW.shape[1])
        x_BKW = tokens_BKW + self.position_KW[steps]
        if cache.aligned_BKW is not None:
            x_BKW = x_BKW + cache.aligned_BKW[:, steps]
        x_BKW = self.dropout(x_BKW, cache.row_B)
        for layer, layer_cache in zip(self.layers, cache.layers, strict=True):
            x_BKW = layer(x_BKW, layer_cache, cache.mask, keep, cache.row_B)
        return self.norm(x_BKW)
