"""What a layer does to each number or each head alone, with backward passes written by hand, for training on CPUs.

These steps move memory and hardly compute, so what counts is how often they pass over it. torch's own chains of small
operations pass two to three times as often as needed (figures in ``benchmarks/notes.md``). What is computed is decided by
the callers, and so is when: each function has a plain twin beside its caller.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["rms_norm", "swiglu", "turned_heads"]


def rms_norm(
    x: Float[Tensor, "... dim"], weight: Float[Tensor, " dim"] | None, eps: float
) -> Float[Tensor, "... dim"]:
    """Divide by the root mean square and scale, with sums in float32; ``weight`` None: all ones.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
    """
    out: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return out


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        out, scale = _normalised(rows, eps)
        ctx.save_for_backward(rows, weight, scale)
        if weight is not None:
            out *= weight
        return out.view(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        """Use the layer norm's kernel with a mean of 0, and add back what it takes off for the mean."""
        rows, weight, scale = ctx.saved_tensors
        size = rows.shape[1]
        flat = slope.reshape(-1, size)
        wanted = (True, weight is not None, False)
        # torch's kernel takes short numbers with wide sums only if the weight is wide as well
        gain = scale.new_ones(size) if weight is None else weight.to(scale.dtype)
        to_rows, to_weight, _ = torch.ops.aten.native_layer_norm_backward(
            flat, rows, (size,), torch.zeros_like(scale), scale, gain, None, wanted
        )
        mean = flat @ (gain.to(flat.dtype) / size)
        to_rows += scale * mean.unsqueeze(1)
        return to_rows.view(slope.shape), None if weight is None else to_weight.to(weight.dtype), None


def turned_heads(
    x: Float[Tensor, "batch seq heads head_dim"],
    gains: Float[Tensor, "heads head_dim"],
    angles: Float[Tensor, "rows seq 1 double"] | None,
    eps: float,
) -> Float[Tensor, "batch seq heads head_dim"]:
    """Normalise each head, scale it by its gains and rotate it by its position's angles, as one step.

    Args:
        x: queries and keys, heads side by side.
        gains: in the type of ``x``.
        angles: as ``positions.rotary_table`` lays them out; ``None``: no rotation.
        eps: added to the mean square.
    """
    out: Tensor = _TurnedHeads.apply(x, gains, angles, eps)  # type: ignore[no-untyped-call]
    return out


class _TurnedHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gains: Tensor, angles: Tensor | None, eps: float) -> Tensor:
        unit, scale = _normalised(x, eps)
        ctx.save_for_backward(unit, scale, gains, angles)
        return _turn(unit * gains, angles, back=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        unit, scale, gains, angles = ctx.saved_tensors
        slope = _turn(slope, angles, back=True)
        each = slope * unit
        to_gains = each.sum((0, 1), dtype=scale.dtype).to(gains.dtype)
        # d unit = slope * gains; what lies along the head itself does not change its direction
        along = each.mul_(gains).sum(-1, keepdim=True, dtype=scale.dtype).div_(-unit.shape[-1])
        to_x = (slope * gains).addcmul_(unit, along.to(unit.dtype))
        return to_x.mul_(scale), to_gains, None, None


def _normalised(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Divide by the root mean square of the last dimension; also return its reciprocal, in float32 at least."""
    wide = torch.promote_types(torch.float32, x.dtype)
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide).square_()
    scale.div_(x.shape[-1]).add_(eps).rsqrt_()
    return torch.mul(x, scale, out=torch.empty(x.shape, dtype=x.dtype, device=x.device)), scale


def _turn(x: Tensor, angles: Tensor | None, *, back: bool) -> Tensor:
    """Rotate the first values of each head, or undo it; the result is contiguous."""
    if angles is None:
        return x
    size = angles.shape[-1] // 2
    half = size // 2
    cos, low, high = (
        angles[..., :size],
        angles[..., size : size + half],
        angles[..., size + half :],
    )  # -sin, sin
    if back:
        low, high = high, low
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    torch.mul(x[..., :size], cos, out=out[..., :size])
    out[..., :half].addcmul_(x[..., half:size], low)
    out[..., half:size].addcmul_(x[..., :half], high)
    if size < x.shape[-1]:
        out[..., size:] = x[..., size:]
    return out


def swiglu(both: Float[Tensor, "... double"]) -> Float[Tensor, "... width"]:
    """Multiply the second half of the last dimension by SiLU of the first.

    The exponential is computed once, and the gradient of both halves lands in one tensor.

    Source: Shazeer 2020, arXiv:2002.05202, eq. 6.
    """
    out: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        gate, value = both.chunk(2, -1)
        share = torch.sigmoid(gate)
        ctx.save_for_backward(both, share)
        return (gate * share).mul_(value)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        both, share = ctx.saved_tensors
        gate, value = both.chunk(2, -1)
        out = torch.empty_like(both)
        to_gate, to_value = out.chunk(2, -1)
        bent = gate * share
        torch.mul(slope, bent, out=to_value)
        # d SiLU / d gate = share + bent - bent * share
        bend = torch.addcmul(share, bent, share, value=-1, out=share.new_empty(share.shape)).add_(bent)
        torch.mul(slope, value, out=to_gate).mul_(bend)
        return out
