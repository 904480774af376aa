"""The decoder one step at a time, with the keys and values of the memory and of the steps so far in place.

Shape suffixes: B target sequences, X = B * heads, K target steps, M memory tokens, W decoder width, H width of a head.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ups_model.model.decoder import Decoder, DecoderLayer, Memory
from ups_model.model.layers import split_heads


class StepwiseDecoder:
    """What `Decoder` gives for a whole prefix, a token more at each call; for evaluation, without gradients."""

    def __init__(self, decoder: Decoder, memory: Memory, max_steps: int) -> None:
        cache = decoder.start(memory)
        self.decoder, self.step, self.batch = decoder, 0, len(memory.offset_BM)
        added_KW = decoder.position_KW[:max_steps]
        self.added_BKW = added_KW[None] if cache.aligned_BKW is None else added_KW + cache.aligned_BKW[:, :max_steps]
        self.layers = [
            _StepwiseLayer(layer, memory_BMX, cache.mask, max_steps)
            for layer, memory_BMX in zip(decoder.layers, cache.memory_LBMX, strict=True)
        ]

    def __call__(self, token_BW: Tensor) -> Tensor:
        """The next output token [B, W] for the next embedded input token, [B, W] or [W]."""
        x_BW = (token_BW + self.added_BKW[:, self.step]).expand(self.batch, -1)
        for layer in self.layers:
            x_BW = layer(x_BW, self.step)
        self.step += 1
        return self.decoder.norm(x_BW)


class _StepwiseLayer:
    def __init__(self, layer: DecoderLayer, memory_BMX: Tensor, mask_B11M: Tensor | None, max_steps: int) -> None:
        self.layer = layer
        key, value = (split_heads(part, layer.heads) for part in memory_BMX.chunk(2, dim=-1))
        batch, heads, _, head_width = key.shape
        self.scale = head_width**-0.5
        # Keys scaled, and with their tokens last: a product of one query with them then reads memory in a row.
        self.memory_key_XHM = (self.scale * key).transpose(2, 3).flatten(0, 1).contiguous()
        self.memory_value_XMH = value.flatten(0, 1)
        self.absent_X1M = None
        if mask_B11M is not None:
            self.absent_X1M = ~mask_B11M.expand(-1, heads, -1, -1).flatten(0, 1)
        # These are written a step at a time, in rows.
        self.key_XKH = key.new_empty(batch * heads, max_steps, head_width)
        self.value_XKH = key.new_empty(batch * heads, max_steps, head_width)

    def __call__(self, x_BW: Tensor, step: int) -> Tensor:
        layer, head_width = self.layer, self.key_XKH.shape[2]
        query_BW, key_BW, value_BW = layer.self_query_key_value(layer.self_norm(x_BW)).chunk(3, dim=-1)
        torch.mul(key_BW.reshape(-1, head_width), self.scale, out=self.key_XKH[:, step])
        self.value_XKH[:, step] = value_BW.reshape(-1, head_width)
        told_BW = _attend(query_BW, self.key_XKH[:, : step + 1].transpose(1, 2), self.value_XKH[:, : step + 1], None)
        x_BW = x_BW + layer.self_merge(told_BW)
        query_BW = layer.cross_query(layer.cross_norm(x_BW))
        x_BW = x_BW + layer.cross_merge(_attend(query_BW, self.memory_key_XHM, self.memory_value_XMH, self.absent_X1M))
        return x_BW + layer.mlp(layer.mlp_norm(x_BW))


def _attend(query_BW: Tensor, key_XHM: Tensor, value_XMH: Tensor, absent_X1M: Tensor | None) -> Tensor:
    """[B, W] attention of one query a sequence and head to scaled keys, heads merged."""
    scores_X1M = torch.bmm(query_BW.reshape(-1, 1, key_XHM.shape[1]), key_XHM)
    if absent_X1M is not None:
        scores_X1M = scores_X1M.masked_fill(absent_X1M, -torch.inf)
    return torch.bmm(F.softmax(scores_X1M, dim=-1), value_XMH).view(query_BW.shape)
