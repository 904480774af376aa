"""The UPS encoder: L layers of H parallel SEM-TEM blocks, of which each task takes one (paper sections 3.3 and 3.4).

Shape suffixes: B clips (persons folded in), N frames, J joint slots present, D token width, W frame-token width,
L layers, H blocks, T tasks, Q router width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ups_model.config import ModelConfig
from ups_model.model.host import read_later
from ups_model.model.layers import Dropout, Mlp, Scene, SlotsToToken, TokenToSlots, attend, drawn, linear, run_layer
from ups_model.model.tokenizer import GcnUnit
from ups_model.skeletons import SLOTS
from ups_model.tasks import TASKS


class FrameAttention(nn.Module):
    """Pre-norm transformer block over frame tokens: multi-head self-attention, then a 2-layer MLP."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm = nn.LayerNorm(width)
        self.query_key_value = linear(width, 3 * width)
        self.merge = linear(width, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = Mlp(width, mlp_ratio * width, dropout)
        self.dropout = Dropout(dropout)

    def forward(self, x_BNW: Tensor, frame_mask_BN: Tensor | None, row_B: Tensor | None = None) -> Tensor:
        packed_BNX = self.query_key_value(self.attention_norm(x_BNW))
        mask = None if frame_mask_BN is None else frame_mask_BN[:, None, None, :]
        x_BNW = x_BNW + self.dropout(self.merge(attend(packed_BNX, None, self.heads, mask)), row_B)
        return x_BNW + self.dropout(self.mlp(self.mlp_norm(x_BNW), row_B), row_B)


class Tem(nn.Module):
    """Temporal encoding module: attention between frames, each frame one token of width J*D.

    With a bottleneck (`tem_width`), frames are projected to that width and back: 12 (J*D)^2 parameters become
    12 W^2 + 2 J*D W. Absent slots enter as zeros and are dropped from the output.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.tem_width or SLOTS * config.token_width
        self.bottleneck = bool(config.tem_width)
        self.frames = FrameAttention(width, config.tem_heads, config.tem_mlp_ratio, config.dropout)
        if self.bottleneck:
            self.norm = nn.LayerNorm(config.token_width)
            self.down = SlotsToToken(config.token_width, width)
            self.up = TokenToSlots(width, config.token_width)

    def forward(self, x_BNJD: Tensor, scene: Scene) -> Tensor:
        if self.bottleneck:
            frames_BNW = self.frames(self.down(self.norm(x_BNJD), scene), scene.frame_mask_BN, scene.row_B)
            return x_BNJD + self.up(frames_BNW, scene)
        full_BNSD = x_BNJD.new_zeros(*x_BNJD.shape[:2], SLOTS, x_BNJD.shape[-1])
        full_BNSD = full_BNSD.index_copy(2, scene.slots, x_BNJD)
        out_BNSD = self.frames(full_BNSD.flatten(2), scene.frame_mask_BN, scene.row_B).unflatten(-1, (SLOTS, -1))
        return out_BNSD.index_select(2, scene.slots)


class SemTemBlock(nn.Module):
    """Spatial encoding (two GCN blocks in sequence), then temporal encoding: theta_{l,h} of the paper."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.token_width
        self.sem = nn.ModuleList(GcnUnit(width, width, config.normalisation) for _ in range(2))
        self.tem = Tem(config)

    def forward(self, x_BNJD: Tensor, scene: Scene) -> Tensor:
        for gcn in self.sem:
            x_BNJD = gcn(x_BNJD, scene)
        return self.tem(x_BNJD, scene)


class Router(nn.Module):
    """Block selection (Eq. 1 and 2): s_{l,h} = B_{l,h} . tau / sqrt(q), and a Gumbel-Softmax over h.

    The paper has no 1/sqrt(q); without it the scores of two N(0, 1) vectors of width 256 deviate by 16 against Gumbel
    noise of 1.28, and routes would be frozen from the first step.
    """

    if TYPE_CHECKING:
        frozen_TL: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.scale = config.router_width**-0.5 if config.router_scaled else 1.0
        self.task_TQ = drawn(len(TASKS), config.router_width, std=1.0)
        self.block_LHQ = drawn(config.encoder_layers, config.blocks_per_layer, config.router_width, std=1.0)
        self.register_buffer("frozen_TL", torch.full((len(TASKS), config.encoder_layers), -1))

    def scores(self, task: int) -> Tensor:
        """[L, H] scaled dot products of task and block embeddings."""
        return self.block_LHQ @ self.task_TQ[task] * self.scale

    def routes(self, task: int) -> list[int]:
        """The block of each layer that inference takes: the frozen one, or the best score."""
        frozen = self.frozen_TL[task].tolist()
        best = self.scores(task).argmax(dim=1).tolist()
        return [best_ if frozen_ < 0 else frozen_ for frozen_, best_ in zip(frozen, best, strict=True)]

    def freeze(self) -> None:
        """Keep the present routes of all tasks, whatever the embeddings become."""
        for task in range(len(TASKS)):
            self.frozen_TL[task] = torch.tensor(self.routes(task))

    def unfreeze(self) -> None:
        """Let the embeddings choose the routes again."""
        self.frozen_TL.fill_(-1)

    def choose(self, task: int, noise_LH: Tensor | None, temperature: float) -> "Route":
        """The route of a batch: with Gumbel noise that of the sample, without or if frozen that of inference."""
        best_L = self.scores(task).argmax(dim=1)
        soft_LH = None if noise_LH is None else self.sample(task, noise_LH, temperature)
        sampled_L = best_L if soft_LH is None else soft_LH.argmax(dim=1)
        return Route(soft_LH, read_later(torch.stack([self.frozen_TL[task], sampled_L, best_L])))

    def sample(self, task: int, noise_LH: Tensor, temperature: float) -> Tensor:
        """[L, H] soft Gumbel-Softmax weights for Gumbel `noise_LH`."""
        return F.softmax((self.scores(task) + noise_LH) / temperature, dim=1)


@dataclass
class Route:
    """The blocks that a batch takes, known on the host when they are asked for."""

    soft_LH: Tensor | None
    """Gumbel-Softmax weights, None where none are sampled."""
    read: Callable[[], list[list[int]]]
    """Gives for each layer the frozen block or -1, the best of the sample and the best score."""

    def blocks(self) -> tuple[list[int], bool]:
        """The block of each layer, and whether it was sampled."""
        frozen, sampled, best = self.read()
        if self.soft_LH is not None and frozen[0] < 0:
            return sampled, True
        return [best_ if frozen_ < 0 else frozen_ for frozen_, best_ in zip(frozen, best, strict=True)], False


class _GateContext(Protocol):
    """What autograd keeps between forward and backward."""

    saved_tensors: tuple[Tensor, ...]
    weight_dtype: torch.dtype

    def save_for_backward(self, *tensors: Tensor) -> None: ...


class StraightThroughGate(torch.autograd.Function):
    """x times a weight that is 1 forward and has the soft weight's gradient: x * (1 + w - w.detach()), without two
    products of whole tensors with 1."""

    @staticmethod
    def forward(ctx: _GateContext, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        ctx.weight_dtype = weight.dtype
        return x.view_as(x)

    @staticmethod
    def backward(ctx: _GateContext, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        return gradient, (gradient * x).sum(dtype=torch.float32).to(ctx.weight_dtype)


class Encoder(nn.Module):
    """Joint tokens to encoded tokens, [B, N, J, D] -> [B, N, J, D], by the route of the batch's task."""

    if TYPE_CHECKING:
        layers: Sequence[Sequence[SemTemBlock]]

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.routing, self.execution = config.routing, config.routing_execution
        self.activation_checkpointing = False
        """Whether a training step keeps a block's input alone, and computes the rest again in the backward pass."""
        self.exit_layer = 0
        """After which layer it ends; 0 for the last."""
        self.router = Router(config)
        self.layers = nn.ModuleList(  # type: ignore[assignment]  # a list of modules, whose type torch doesn't keep
            nn.ModuleList(SemTemBlock(config) for _ in range(config.blocks_per_layer))
            for _ in range(config.encoder_layers)
        )

    def forward(
        self,
        x_BNJD: Tensor,
        scene: Scene,
        noise_LH: Tensor | None = None,
        temperature: float = 1.0,
        route: Route | None = None,
    ) -> Tensor:
        """Encode; `noise_LH` is the Gumbel noise of a training step, None in evaluation. `route`: of
        `router.choose`, for a caller that has work to queue between the choice and its use.

        sparse: the chosen block alone, times its straight-through weight (1, with the gradient of the soft weight).
        dense: all H blocks, weighted by the straight-through one-hot sample, so that each weight has a gradient. In
        evaluation both are the chosen block alone.
        """
        layers = list(self.layers)[: self.exit_layer or None]
        if not self.routing:
            for blocks in layers:
                outputs = [run_layer(block, x_BNJD, scene, self.activation_checkpointing) for block in blocks]
                x_BNJD = torch.stack(outputs).mean(dim=0)
            return x_BNJD
        route = route or self.router.choose(scene.task, noise_LH, temperature)
        places, sampled = route.blocks()
        if route.soft_LH is None or not sampled:
            for blocks, chosen in zip(layers, places, strict=False):
                x_BNJD = run_layer(blocks[chosen], x_BNJD, scene, self.activation_checkpointing)
            return x_BNJD
        for blocks, soft_H, chosen in zip(layers, route.soft_LH, places, strict=False):
            if self.execution == "sparse":
                x_BNJD = run_layer(blocks[chosen], x_BNJD, scene, self.activation_checkpointing)
                if len(blocks) > 1:
                    x_BNJD = StraightThroughGate.apply(x_BNJD, soft_H[chosen])  # type: ignore[no-untyped-call]  # torch's
            else:
                weight_H = F.one_hot(soft_H.argmax(), len(blocks)) + soft_H - soft_H.detach()
                outputs = [run_layer(block, x_BNJD, scene, self.activation_checkpointing) for block in blocks]
                x_BNJD = sum(weight * output for weight, output in zip(weight_H, outputs, strict=True))
        return x_BNJD
