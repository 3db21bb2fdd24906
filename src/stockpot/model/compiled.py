"""Steps of a layer as one call each, with backward passes in C++, for training on CPUs; also the cross-entropy and Muon's passes.

What lies between the matrix products of a small model costs more than the products when it is a chain of torch's
operations: each is called, and passes over memory, on its own. These functions do the same in one pass. They take
float32 and bfloat16 only, and only where the kernels could be compiled: :func:`suits` tells; every caller has a twin
made of torch's operations.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from stockpot.native.training import LONGEST_HEAD, AttentionFacts, TrainingKernels, training_kernels

__all__ = [
    "LONGEST",
    "adamw",
    "apply",
    "attend",
    "can_attend",
    "can_norm",
    "can_place",
    "gather",
    "gelu",
    "judge",
    "norm",
    "place",
    "product_dtype",
    "suits",
    "swiglu",
]

# Positions up to which a head is cheaper to do in the cache than as separate products (benchmarks/notes.md).
LONGEST = 1024
TYPES = {torch.float32: 0, torch.bfloat16: 1}


def suits(*tensors: Tensor | None) -> bool:
    """Tell whether there are kernels and they know how these tensors are stored; None is no tensor."""
    return _sound_kernels() is not None and all(
        x is None or (x.dtype in TYPES and x.device.type == "cpu" and x.is_contiguous()) for x in tensors
    )


@functools.cache
def _sound_kernels() -> TrainingKernels | None:
    """Return the kernels if there are any and they compute rightly what torch is asked as well."""
    found = training_kernels()
    if found is None:
        return None
    x = torch.linspace(-3, 5, 3 * 37).view(3, 37)
    weight, out, scales = x[0].abs() + 0.5, torch.empty_like(x), torch.empty(3)
    places = (_at(x), _at(weight), 0, _at(out), 0, _at(scales))
    found.norm(0, 0, *places, 3, 37, 1e-5, 1)
    return found if torch.allclose(out, F.rms_norm(x, (37,), weight, 1e-5), rtol=1e-4, atol=1e-5) else None


def _kernels() -> TrainingKernels:
    found = _sound_kernels()
    assert found is not None  # the caller asked `suits`
    return found


def _at(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def product_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which a matrix product would read ``x``."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


# --- norms ---


def can_norm(x: Tensor, weight: Tensor) -> bool:
    """Tell whether :func:`norm` knows such tensors."""
    return weight.dtype == torch.float32 and suits(x, weight)


def norm(
    x: Float[Tensor, "... dim"],
    weight: Float[Tensor, " dim"],
    bias: Float[Tensor, " dim"] | None,
    eps: float,
    *,
    centred: bool,
    dtype: torch.dtype,
) -> Float[Tensor, "... dim"]:
    """Divide by the root mean square, of the deviations from the mean if ``centred``; scale and shift.

    Args:
        x: float32 or bfloat16.
        weight: float32.
        bias: float32.
        eps: added to the mean square.
        centred: subtract the mean first.
        dtype: of the result.

    Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; centred: Ba et al. 2016, arXiv:1607.06450.
    """
    out: Tensor = _Norm.apply(x, weight, bias, eps, centred, dtype)  # type: ignore[no-untyped-call]
    return out


class _Norm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        eps: float,
        centred: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        dim = x.shape[-1]
        rows = x.numel() // dim
        out = torch.empty(x.shape, dtype=dtype)
        sizes = torch.empty((1 + centred, rows), dtype=torch.float32)
        means = sizes[1].data_ptr() if centred else 0
        threads = torch.get_num_threads()
        places = (_at(x), _at(weight), _at(bias), _at(out), means, _at(sizes))
        _kernels().norm(TYPES[x.dtype], TYPES[out.dtype], *places, rows, dim, eps, threads)
        ctx.save_for_backward(x, weight, sizes)
        ctx.centred, ctx.has_bias = centred, bias is not None
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, sizes = ctx.saved_tensors
        slope, dim = slope.contiguous(), x.shape[-1]
        to_x = torch.empty_like(x)
        to_weight = torch.empty_like(weight)
        to_bias = torch.empty_like(weight) if ctx.has_bias else None
        means = sizes[1].data_ptr() if ctx.centred else 0
        places = (_at(slope), _at(x), _at(weight), means, _at(sizes), _at(to_x), _at(to_weight), _at(to_bias))
        types = (TYPES[x.dtype], TYPES[slope.dtype])
        _kernels().norm_back(*types, *places, sizes.shape[1], dim, torch.get_num_threads())
        return to_x, to_weight, to_bias, None, None, None


# --- activations ---


def swiglu(both: Float[Tensor, "... double"]) -> Float[Tensor, "... width"]:
    """Multiply the second half of the last dimension by SiLU of the first (Shazeer 2020, arXiv:2002.05202, eq. 6)."""
    out: Tensor = _SwiGLU.apply(both)  # type: ignore[no-untyped-call]
    return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, both: Tensor) -> Tensor:
        width = both.shape[-1] // 2
        out = both.new_empty((*both.shape[:-1], width))
        rows = out.numel() // width
        _kernels().swiglu(TYPES[both.dtype], _at(both), _at(out), rows, width, torch.get_num_threads())
        ctx.save_for_backward(both)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (both,) = ctx.saved_tensors
        slope, width = slope.contiguous(), both.shape[-1] // 2
        to_both = torch.empty_like(both)
        places = (_at(slope), _at(both), _at(to_both))
        sizes = (slope.numel() // width, width, torch.get_num_threads())
        _kernels().swiglu_back(TYPES[both.dtype], *places, *sizes)
        return to_both


def gelu(x: Float[Tensor, ...]) -> Float[Tensor, ...]:
    """Multiply each number by the normal distribution's integral up to it (Hendrycks & Gimpel 2016, arXiv:1606.08415)."""
    out: Tensor = _GELU.apply(x)  # type: ignore[no-untyped-call]
    return out


class _GELU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        out = torch.empty_like(x)
        _kernels().gelu(TYPES[x.dtype], _at(x), _at(out), x.numel(), torch.get_num_threads())
        ctx.save_for_backward(x)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        slope, to_x = slope.contiguous(), torch.empty_like(x)
        places = (_at(slope), _at(x), _at(to_x))
        _kernels().gelu_back(TYPES[x.dtype], *places, x.numel(), torch.get_num_threads())
        return to_x


# --- attention ---

Gains = tuple[Float[Tensor, " head_dim"], Float[Tensor, " head_dim"]]


def attend(
    flat: Float[Tensor, "batch seq all_heads"],
    heads: tuple[int, int],
    *,
    gains: Gains | None,
    angles: Float[Tensor, "turns seq 1 double"] | None,
    mask: Bool[Tensor, "masks 1 viewers seq"] | None,
    causal: bool,
    scale: float,
    eps: float,
) -> Float[Tensor, "batch seq inner"]:
    """Cut queries, keys and values out of one product, normalise and rotate them, and let each token gather.

    Args:
        flat: queries of all heads, then keys, then values, side by side.
        heads: how many heads have queries, and how many keys and values.
        gains: float32 factors of a query's and a key's numbers; ``None``: they are not normalised.
        angles: as ``positions.rotary_table`` lays them out; ``None``: no rotation.
        mask: True = visible; who sees nothing gathers zeros.
        causal: later positions are hidden, by the mask too if there is one.
        scale: factor on query · key.
        eps: added to a head's mean square.
    """
    out: Tensor = _Attention.apply(  # type: ignore[no-untyped-call]
        flat, *(gains or (None, None)), angles, mask, heads, causal, scale, eps
    )
    return out


def place(
    flat: Float[Tensor, "batch seq all_heads"],
    heads: tuple[int, int],
    *,
    gains: Gains | None,
    angles: Float[Tensor, "turns seq 1 double"] | None,
    scale: float,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the first half of :func:`attend`: queries times ``scale``, keys and values ``(batch, …heads, seq, head_dim)``."""
    found: tuple[Tensor, Tensor, Tensor] = _Place.apply(  # type: ignore[no-untyped-call]
        flat, *(gains or (None, None)), angles, heads, scale, eps
    )
    return found


def can_place(flat: Tensor, head_dim: int, angles: Tensor | None) -> bool:
    """Tell whether :func:`place` knows such tensors."""
    return head_dim <= LONGEST_HEAD and suits(flat, angles)


def can_attend(flat: Tensor, head_dim: int, angles: Tensor | None, mask: Tensor | None) -> bool:
    """Tell whether :func:`attend` knows such tensors, and is the fastest way for so many positions."""
    is_known = mask is None or (mask.dtype == torch.bool and mask.shape[1] == 1 and mask.is_contiguous())
    return flat.shape[1] <= LONGEST and is_known and can_place(flat, head_dim, angles)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(  # noqa: PLR0913 - autograd passes every input by position
        ctx: Any,
        flat: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        angles: Tensor | None,
        mask: Tensor | None,
        heads: tuple[int, int],
        causal: bool,
        scale: float,
        eps: float,
    ) -> Tensor:
        facts = _facts(flat, q_gain, k_gain, angles, heads, scale, eps)
        facts.causal = causal
        if mask is not None:
            facts.mask, facts.mask_rows, facts.mask_viewers = _at(mask), mask.shape[0], mask.shape[2]
        mixed = flat.new_empty((facts.batch, facts.seq, heads[0] * facts.head_dim))
        log_sums = torch.empty(facts.batch * heads[0] * facts.seq, dtype=torch.float32)
        facts.mixed, facts.log_sums = _at(mixed), _at(log_sums)
        _kernels().attention(facts)
        ctx.save_for_backward(flat, q_gain, k_gain, angles, mask, mixed, log_sums)
        ctx.facts = facts
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        flat, q_gain, k_gain, angles, mask, mixed, log_sums = ctx.saved_tensors
        facts: AttentionFacts = ctx.facts
        _point(facts, flat, q_gain, k_gain, angles)
        facts.mask, facts.mixed, facts.log_sums = _at(mask), _at(mixed), _at(log_sums)
        slope = slope.contiguous()
        facts.slope = _at(slope)
        return (*_unplace(facts, flat, q_gain, k_gain), *[None] * 6)


class _Place(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        flat: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        angles: Tensor | None,
        heads: tuple[int, int],
        scale: float,
        eps: float,
    ) -> tuple[Tensor, ...]:
        facts = _facts(flat, q_gain, k_gain, angles, heads, scale, eps)
        found = [
            flat.new_empty((facts.batch, count, facts.seq, facts.head_dim)) for count in (*heads, heads[1])
        ]
        facts.q, facts.k, facts.v = (_at(x) for x in found)
        _kernels().attention(facts)
        ctx.save_for_backward(flat, q_gain, k_gain, angles)
        ctx.facts = facts
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        flat, q_gain, k_gain, angles = ctx.saved_tensors
        facts: AttentionFacts = ctx.facts
        _point(facts, flat, q_gain, k_gain, angles)
        slopes = tuple(slope.contiguous() for slope in slopes)
        facts.to_q, facts.to_k, facts.to_v = (_at(slope) for slope in slopes)
        return (*_unplace(facts, flat, q_gain, k_gain), *[None] * 4)


def _facts(
    flat: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    angles: Tensor | None,
    heads: tuple[int, int],
    scale: float,
    eps: float,
) -> AttentionFacts:
    batch, seq, width = flat.shape
    facts = AttentionFacts(type=TYPES[flat.dtype], batch=batch, seq=seq, heads=heads[0], kv_heads=heads[1])
    facts.head_dim, facts.threads = width // (heads[0] + 2 * heads[1]), torch.get_num_threads()
    facts.scale, facts.eps, facts.qkv = scale, eps, _at(flat)
    facts.q_gain, facts.k_gain = _at(q_gain), _at(k_gain)
    if angles is not None:
        facts.angle_type, facts.angle_rows = TYPES[angles.dtype], angles.shape[0]
        facts.angles, facts.rotary_dim = _at(angles), angles.shape[-1] // 2
    return facts


def _point(
    facts: AttentionFacts,
    flat: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    angles: Tensor | None,
) -> None:
    """Say anew where things lie: a sharded weight is gathered again for the way back, a layer may be computed again."""
    facts.qkv, facts.q_gain, facts.k_gain = _at(flat), _at(q_gain), _at(k_gain)
    facts.angles = _at(angles)


def _unplace(
    facts: AttentionFacts, flat: Tensor, q_gain: Tensor | None, k_gain: Tensor | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the way back; return the slopes of the product and of the gains."""
    to_flat = torch.empty_like(flat)
    to_q_gain, to_k_gain = (None if gain is None else torch.empty_like(gain) for gain in (q_gain, k_gain))
    facts.to_qkv, facts.to_q_gain, facts.to_k_gain = _at(to_flat), _at(to_q_gain), _at(to_k_gain)
    _kernels().attention_back(facts)
    return to_flat, to_q_gain, to_k_gain


# --- Muon ---


def gather(
    gradients: Sequence[Tensor | None],
    momenta: Float[Tensor, "parts rows columns"],
    out: Tensor,
    *,
    keep: float,
    margin: float,
) -> None:
    """Update momenta from gradients; write Nesterov's blend of both to ``out``, each matrix over ``margin`` times its norm.

    Args:
        gradients: one a part, contiguous float32; None: zeros.
        momenta: float32, changed in place.
        out: like ``momenta``, float32 or bfloat16.
        keep: share of the old momentum kept.
        margin: factor on the Frobenius norm.
    """
    places = _addresses(gradients)
    sizes = (len(gradients), momenta[0].numel(), keep, margin, torch.get_num_threads())
    _kernels().gather(TYPES[out.dtype], places, _at(momenta), _at(out), *sizes)


def apply(
    weights: Sequence[Tensor], updates: Float[Tensor, "parts rows columns"], *, keep: float, step: float
) -> None:
    """Set each weight, contiguous float32, to ``keep`` times itself less ``step`` times its update; in place."""
    sizes = (len(weights), updates[0].numel(), keep, step, torch.get_num_threads())
    _kernels().apply(TYPES[updates.dtype], _addresses(weights), _at(updates), *sizes)


def _addresses(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(_at(x) for x in tensors))


# --- AdamW ---


def adamw(
    weight: Tensor, slope: Tensor, means: tuple[Tensor, Tensor], noise: Tensor, facts: Sequence[float]
) -> None:
    """Take a step of AdamW, in place; means are rounded up where noise and what is cut off carry.

    Args:
        weight: contiguous float32.
        slope: its gradient, laid out alike.
        means: of the gradient and of its square, bfloat16, laid out alike.
        noise: int32 of 16 bits; repeated over all numbers.
        facts: shares of the new gradient in the two means; what roots are divided by; eps; what is kept of the weight; step.
    """
    mean, square = means
    places = (_at(weight), _at(slope), _at(mean), _at(square), weight.numel(), _at(noise), len(noise))
    _kernels().adamw(*places, (ctypes.c_float * 6)(*facts), torch.get_num_threads())


# --- cross-entropy ---


def judge(
    logits: Float[Tensor, "count vocab"], labels: Tensor, *, z_loss: float, needs_slope: bool
) -> Float[Tensor, " sums"]:
    """Sum (total, nats, correct) over rows of logits and, if asked, put the slope of the total in their place.

    Raises:
        IndexError: if a label is outside of the vocabulary.
    """
    sums = torch.empty(3, dtype=torch.float64)
    labels = labels.contiguous()
    sizes = (*logits.shape, z_loss, needs_slope, _at(sums), torch.get_num_threads())
    if _kernels().judge(TYPES[logits.dtype], _at(logits), _at(labels), *sizes):
        raise IndexError("a label is outside of the vocabulary")
    return sums.float()
