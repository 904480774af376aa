"""Autograd functions that take few passes over memory: a GCN unit, norm with ReLU, attention, a running maximum.

Each has its backward written out; `tests/ups_model/model/test_fused.py` holds each to a plain implementation.

Shape suffixes: B clips, C input channels, D output channels, J joints, N frames, X = J * N, K partitions, V source
joints, U receiving joints, Y = K * R relation channels.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ups_model.model.chunks import chunks


class GraphUnit(torch.autograd.Function):
    """ReLU(LayerNorm(graph convolution of x) + residual), see `tokenizer.GcnUnit`, of [B, C, J, N] tensors."""

    @staticmethod
    def forward(
        ctx: Any,
        x_BCJN: Tensor,
        weight_BN: Tensor | None,
        relation_weight: Tensor,
        relation_bias: Tensor,
        start: Tensor,
        refine: Tensor,
        value_weight: Tensor,
        value_bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
        residual_BDJN: Tensor | None,
        learns: bool,
    ) -> Tensor:
        """`weight_BN`: weights of the frames in a clip's mean over time; `relation_weight` [2Y, C]: queries, then keys;
        `start` [D*K, V*U], `refine` [D*K, Y]: topology = start + refine @ relation; without residual it is x;
        `learns`: whether backward will come."""
        clips, _, joints, frames = x_BCJN.shape
        width = len(norm_weight)
        x_BCX = x_BCJN.flatten(2)
        residual_BDX = x_BCX if residual_BDJN is None else residual_BDJN.flatten(2)
        mean_BCJ = _mean(x_BCJN, weight_BN)
        relation_BYE = _relation(mean_BCJ, relation_weight, relation_bias)
        normed_BDX = x_BCX.new_empty(clips, width, joints * frames)
        scale_B1X = x_BCX.new_empty(clips, 1, joints * frames)
        out_BDX = torch.empty_like(normed_BDX)
        kept: list[Tensor] = []
        for own in chunks(x_BCX, len(value_weight) * joints * frames):
            topology = _topology(start, refine, relation_BYE[own], joints, width)
            value = _value(x_BCX[own], value_weight, value_bias, frames, width)
            if learns:
                kept += topology, value
            torch.bmm(topology.transpose(1, 2), value, out=normed_BDX[own].view(-1, joints, frames))
            normed, residual = normed_BDX[own], residual_BDX[own]
            _norm_relu(normed, normed, residual, norm_weight, norm_bias, scale_B1X[own], out_BDX[own])
        ctx.save_for_backward(
            x_BCJN, weight_BN, relation_weight, start, refine, value_weight, value_bias, norm_weight,
            mean_BCJ, relation_BYE, normed_BDX, scale_B1X, out_BDX, *kept,
        )  # fmt: skip
        ctx.own_residual = residual_BDJN is None
        return out_BDX.view(clips, width, joints, frames)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (
            x_BCJN, weight_BN, relation_weight, start, refine, value_weight, value_bias, norm_weight,
            mean_BCJ, relation_BYE, normed_BDX, scale_B1X, out_BDX, *kept,
        ) = ctx.saved_tensors  # fmt: skip
        channels, joints, frames = x_BCJN.shape[1:]
        pairs, relations = joints * joints, refine.shape[1]
        x_BCX, gradient_BDX = x_BCJN.flatten(2), gradient.contiguous().flatten(2)
        grads = {
            name: torch.zeros_like(tensor)
            for name, tensor in {
                "relation_weight": relation_weight, "relation_bias": relation_weight[:, 0], "start": start,
                "refine": refine, "value_weight": value_weight, "value_bias": value_bias,
                "norm_weight": norm_weight, "norm_bias": norm_weight,
            }.items()
        }  # fmt: skip
        x_gradient = torch.empty_like(x_BCX)
        residual_gradient = None if ctx.own_residual else torch.empty_like(out_BDX)
        parts = chunks(x_BCX, len(value_weight) * joints * frames)
        for own, topology, value in zip(parts, kept[::2], kept[1::2], strict=True):
            relu = None if residual_gradient is None else residual_gradient[own]
            relu, before, of_weight, of_bias = _norm_relu_backward(
                gradient_BDX[own], out_BDX[own], normed_BDX[own], scale_B1X[own], norm_weight, None, relu
            )
            grads["norm_weight"] += of_weight
            grads["norm_bias"] += of_bias
            before = before.view(-1, joints, frames)
            relation = relation_BYE[own]
            of_topology = torch.bmm(value, before.transpose(1, 2)).view(len(relu), -1, pairs)
            of_value = torch.bmm(topology, before).view(len(relu), -1, joints * frames)
            grads["value_weight"].addbmm_(of_value, x_BCX[own].transpose(1, 2))
            grads["value_bias"] += of_value.sum(dim=(0, 2))
            grads["start"] += of_topology.sum(dim=0)
            grads["refine"].addbmm_(of_topology, relation.transpose(1, 2))
            of_relation = torch.bmm(refine.T.expand(len(relu), -1, -1), of_topology)
            of_relation = torch.ops.aten.tanh_backward(of_relation, relation).view(-1, relations, joints, joints)
            both = torch.cat([of_relation.sum(dim=2), of_relation.sum(dim=3).neg_()], dim=1)
            grads["relation_weight"].addbmm_(both, mean_BCJ[own].transpose(1, 2))
            grads["relation_bias"] += both.sum(dim=(0, 2))
            of_mean = torch.bmm(relation_weight.T.expand(len(relu), -1, -1), both)
            weight = of_mean.new_full((1, 1), 1 / frames) if weight_BN is None else weight_BN[own]
            start_x = of_mean[..., None] * weight[:, None, None, :]
            if residual_gradient is None:
                own_x = relu.view(-1, channels, joints, frames).add_(start_x)
            else:
                own_x = start_x.expand(-1, -1, -1, frames).contiguous()
            turned = value_weight.T.expand(len(relu), -1, -1)
            torch.baddbmm(own_x.flatten(2), turned, of_value, out=x_gradient[own])
        return (
            x_gradient.view(x_BCJN.shape), None, grads["relation_weight"], grads["relation_bias"], grads["start"],
            grads["refine"], grads["value_weight"], grads["value_bias"], grads["norm_weight"], grads["norm_bias"],
            None if residual_gradient is None else residual_gradient.view(gradient.shape), None,
        )  # fmt: skip


class LayerNormRelu(torch.autograd.Function):
    """ReLU(LayerNorm over D of x, plus residual) of [B, D, J, N] tensors."""

    @staticmethod
    def forward(ctx: Any, x_BDJN: Tensor, weight_D: Tensor, bias_D: Tensor, residual_BDJN: Tensor | None) -> Tensor:
        # In full precision, as autocast does with a LayerNorm.
        dtype = torch.float32 if x_BDJN.dtype in (torch.float16, torch.bfloat16) else x_BDJN.dtype
        x_BDX = x_BDJN.flatten(2)
        residual_BDX = None if residual_BDJN is None else residual_BDJN.flatten(2)
        normed_BDX, out_BDX = (torch.empty(x_BDX.shape, dtype=dtype, device=x_BDX.device) for _ in range(2))
        scale_B1X = normed_BDX.new_empty(len(x_BDX), 1, x_BDX.shape[2])
        for own in chunks(x_BDX):
            residual = None if residual_BDX is None else residual_BDX[own]
            _norm_relu(x_BDX[own], normed_BDX[own], residual, weight_D, bias_D, scale_B1X[own], out_BDX[own])
        ctx.save_for_backward(normed_BDX, scale_B1X, weight_D, out_BDX)
        ctx.dtype, ctx.residual_dtype = x_BDJN.dtype, None if residual_BDJN is None else residual_BDJN.dtype
        return out_BDX.view(x_BDJN.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        normed_BDX, scale_B1X, weight_D, out_BDX = ctx.saved_tensors
        gradient_BDX = gradient.flatten(2)
        of_x = torch.empty_like(normed_BDX)
        of_residual = None if ctx.residual_dtype is None else torch.empty_like(normed_BDX)
        of_weight, of_bias = torch.zeros_like(weight_D), torch.zeros_like(weight_D)
        for own in chunks(gradient_BDX):
            relu = None if of_residual is None else of_residual[own]
            sums = _norm_relu_backward(
                gradient_BDX[own], out_BDX[own], normed_BDX[own], scale_B1X[own], weight_D, of_x[own], relu
            )[2:]
            of_weight += sums[0]
            of_bias += sums[1]
        residual = None if of_residual is None else of_residual.view(gradient.shape).to(ctx.residual_dtype)
        return of_x.view(gradient.shape).to(ctx.dtype), of_weight, of_bias, residual


def _norm_relu(
    x: Tensor, normed: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, scale: Tensor, out: Tensor
) -> None:
    """ReLU(LayerNorm over the second axis of x, plus residual), written to `out`; fills `normed` and `scale` too.
    `normed` may be x."""
    torch.sub(x, x.mean(dim=1, keepdim=True, dtype=normed.dtype), out=normed)
    torch.mean(normed.square(), dim=1, keepdim=True, out=scale).add_(1e-5).rsqrt_()
    normed *= scale
    if residual is None:
        torch.addcmul(bias[:, None], normed, weight[:, None], out=out).relu_()
    else:
        torch.add(residual, bias[:, None], out=out).addcmul_(normed, weight[:, None]).relu_()


def _norm_relu_backward(
    gradient: Tensor,
    out: Tensor,
    normed: Tensor,
    scale: Tensor,
    weight: Tensor,
    of_x: Tensor | None = None,
    relu: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the ReLU's input, which is the residual's, of x, of weight and of bias; the first two are written to
    `relu` and `of_x` where these are given."""
    relu = torch.empty_like(out) if relu is None else relu
    torch.ops.aten.threshold_backward.grad_input(gradient.to(out.dtype), out, 0, grad_input=relu)
    product = relu * normed
    mean_B1D = (weight / len(weight)).expand(len(relu), 1, -1)
    of_x = torch.empty_like(out) if of_x is None else of_x
    torch.addcmul(torch.bmm(mean_B1D, relu), normed, torch.bmm(mean_B1D, product), out=of_x).neg_()
    of_x.addcmul_(relu, weight[:, None]).mul_(scale)
    return relu, of_x, product.sum(dim=(0, 2)), relu.sum(dim=(0, 2))


class MaxOfThree(torch.autograd.Function):
    """The greatest of each value, the one before and the one after along the last axis; as in `F.max_pool1d` the first
    of equal ones gets the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = x.clone()
        torch.maximum(out[..., 1:], x[..., :-1], out=out[..., 1:])
        torch.maximum(out[..., :-1], x[..., 1:], out=out[..., :-1])
        ctx.save_for_backward(x, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        x, out = ctx.saved_tensors
        left = gradient[..., 1:] * (x[..., :-1] == out[..., 1:])
        rest = gradient.clone()
        rest[..., 1:] -= left
        own = rest * (x == out)
        rest -= own
        own[..., :-1] += left
        own[..., 1:] += rest[..., :-1]
        return own


class Attention(torch.autograd.Function):
    """Scaled dot-product attention, head by head, on projections as the linear layers wrote them: [B, K, W] queries and
    [B, M, 2W] keys and values, or [B, K, 3W] all three. For short sequences: it keeps the weights."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, key_value: Tensor | None, heads: int, mask_KM: Tensor | None) -> Tensor:
        """`mask_KM` is added to the scores; the answer is [B, K, W], heads merged."""
        queries, keys, values = _heads(first, key_value, heads)
        batch, steps, width = queries[0].shape
        out = first.new_empty(batch, steps, heads * width)
        weights = first.new_empty(heads, batch, steps, keys[0].shape[1])
        for head, query in enumerate(queries):
            scores = torch.bmm(query, keys[head].transpose(1, 2)).mul_(width**-0.5)
            if mask_KM is not None:
                scores += mask_KM
            torch.softmax(scores, dim=-1, out=weights[head])
            out[..., head * width : (head + 1) * width] = torch.bmm(weights[head], values[head])
        ctx.save_for_backward(first, key_value, weights)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        first, key_value, weights = ctx.saved_tensors
        heads = len(weights)
        queries, keys, values = _heads(first, key_value, heads)
        of_first, of_key_value = torch.empty_like(first), None if key_value is None else torch.empty_like(key_value)
        of_queries, of_keys, of_values = _heads(of_first, of_key_value, heads)
        for head, own in enumerate(gradient.chunk(heads, dim=-1)):
            weight = weights[head]
            of_values[head].copy_(torch.bmm(weight.transpose(1, 2), own))
            of_weight = torch.bmm(own, values[head].transpose(1, 2))
            of_scores = torch.ops.aten._softmax_backward_data(of_weight, weight, -1, weight.dtype)
            of_scores.mul_(queries[0].shape[-1] ** -0.5)
            of_queries[head].copy_(torch.bmm(of_scores, keys[head]))
            of_keys[head].copy_(torch.bmm(of_scores.transpose(1, 2), queries[head]))
        return of_first, of_key_value, None, None


def _heads(first: Tensor, key_value: Tensor | None, heads: int) -> list[tuple[Tensor, ...]]:
    """Views of queries, keys and values, [B, X, W / heads] for each head."""
    packed = [first] if key_value is None else [first, key_value]
    parts = [part for tensor, count in zip(packed, (3,) if key_value is None else (1, 2), strict=True)
             for part in tensor.chunk(count, dim=-1)]  # fmt: skip
    return [part.chunk(heads, dim=-1) for part in parts]


def _mean(x_BCJN: Tensor, weight_BN: Tensor | None) -> Tensor:
    """[B, C, J] mean over time."""
    if weight_BN is None:
        return x_BCJN.mean(dim=3)
    return torch.bmm(x_BCJN.flatten(1, 2), weight_BN[..., None]).view(x_BCJN.shape[:3])


def _relation(mean_BCJ: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """[B, Y, V*U] tanh of what query u says minus what key v says."""
    both = torch.baddbmm(bias[:, None], weight.expand(len(mean_BCJ), -1, -1), mean_BCJ)
    query_BYU, key_BYV = both.chunk(2, dim=1)
    return (query_BYU[:, :, None] - key_BYV[..., None]).tanh_().flatten(2)


def _topology(start: Tensor, refine: Tensor, relation_BYE: Tensor, joints: int, width: int) -> Tensor:
    """[B*D, K*V, U]: weight with which joint u takes a channel of joint v under partition k."""
    clips = len(relation_BYE)
    return torch.baddbmm(start, refine.expand(clips, -1, -1), relation_BYE).view(clips * width, -1, joints)


def _value(x_BCX: Tensor, weight: Tensor, bias: Tensor, frames: int, width: int) -> Tensor:
    """[B*D, K*V, N] what each joint offers under each partition."""
    value = torch.bmm(weight.expand(len(x_BCX), -1, -1), x_BCX).add_(bias[:, None])
    return value.view(len(x_BCX) * width, -1, frames)
