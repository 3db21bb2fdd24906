# mypy: disable-error-code="no-untyped-call, no-untyped-def, untyped-decorator"
"""What lies between the product for queries, keys and values and attention, in training on a GPU: one pass over memory each way.

Queries and keys are normalised, scaled and rotated head by head. torch's compiler passes over them once on the way there
and more than twice on the way back: first the slopes of the heads, then those of queries, keys and values brought together,
and those of the gains. Here a program takes some tokens, reads their heads as they lie, and writes the slopes of all
where the product wants them; it keeps its sums for the gains to itself, so that every run adds up in the same order.
Arithmetic is in float32; nothing but the product's own result is kept for the way back.

Imported on GPUs only: Triton comes with torch's CUDA builds. ``TRITON_INTERPRET=1`` runs the kernels on a CPU.

Source: Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; Su et al. 2021, arXiv:2104.09864, eq. 34.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.library import custom_op

__all__ = ["can_place", "head_slopes", "placed", "placed_heads"]

STEP = 16  # what a head's width and what is rotated of it are multiples of: halves are then read 16 bytes at a time
WIDEST = 256  # values of a head
TILE, WARPS = 2048, 4  # values that a program looks at together, of one kind, and its warps: 16 of a thread
SHARE = 16  # programs for each multiprocessor: six or more run at once; each leaves sums for the gains
TYPES = (torch.float32, torch.bfloat16, torch.float16)


@triton.jit
def _inside(real, at, size: tl.constexpr, block: tl.constexpr):
    """Say which values of a tile there are: those of real rows ``(rows,)`` whose number ``at`` is below ``size``."""
    inside = real[:, None]
    if size < block:
        inside = inside & (at < size)[None, :]
    return inside


@triton.jit
def _read(
    source, real, width: tl.constexpr, turned: tl.constexpr, block: tl.constexpr, rest_block: tl.constexpr
):
    """Read heads that begin at ``source`` ``(rows,)``: the halves that are rotated with each other, and the rest."""
    half: tl.constexpr = turned // 2
    at = tl.arange(0, block)
    inside = _inside(real, at, half, block)
    place = source[:, None] + at[None, :]
    low = tl.load(place, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    high = tl.load(place + half, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    rest = low
    if turned < width:
        at = tl.arange(0, rest_block)
        inside = _inside(real, at, width - turned, rest_block)
        place = source[:, None] + turned + at[None, :]
        rest = tl.load(place, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
    return low, high, rest


@triton.jit
def _write(
    to, real, low, high, rest,
    width: tl.constexpr, turned: tl.constexpr, block: tl.constexpr, rest_block: tl.constexpr,
):  # fmt: skip
    """Write what :func:`_read` has read."""
    half: tl.constexpr = turned // 2
    at = tl.arange(0, block)
    inside = _inside(real, at, half, block)
    place = to[:, None] + at[None, :]
    tl.store(place, low.to(to.dtype.element_ty), mask=inside)
    tl.store(place + half, high.to(to.dtype.element_ty), mask=inside)
    if turned < width:
        at = tl.arange(0, rest_block)
        inside = _inside(real, at, width - turned, rest_block)
        tl.store(to[:, None] + turned + at[None, :], rest.to(to.dtype.element_ty), mask=inside)


@triton.jit
def _read_gain(
    gain, width: tl.constexpr, turned: tl.constexpr, block: tl.constexpr, rest_block: tl.constexpr
):
    """Read a head's gains ``(1, width)`` in the parts of :func:`_read`."""
    half: tl.constexpr = turned // 2
    at = tl.arange(0, block)
    low = tl.load(gain + at, mask=at < half, other=0.0).to(tl.float32)[None, :]
    high = tl.load(gain + half + at, mask=at < half, other=0.0).to(tl.float32)[None, :]
    rest = low
    if turned < width:
        at = tl.arange(0, rest_block)
        rest = tl.load(gain + turned + at, mask=at < width - turned, other=0.0).to(tl.float32)[None, :]
    return low, high, rest


@triton.jit
def _read_angles(angles, real, turned: tl.constexpr, block: tl.constexpr):
    """Read cosine and sine ``(rows, block)``; the table holds the cosines twice, then the sines, negative and positive."""
    half: tl.constexpr = turned // 2
    at = tl.arange(0, block)
    inside = _inside(real, at, half, block)
    place = angles[:, None] + at[None, :]
    cos = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    sin = tl.load(place + turned + half, mask=inside, other=0.0).to(tl.float32)
    return cos, sin


@triton.jit
def _away(position, seq, by_row, by_position):
    """Return how far positions are from a row's start; those from ``seq`` on are the next row's."""
    crossing = by_row - tl.cast(seq, tl.int64) * by_position
    return position.to(tl.int64) * by_position + tl.where(position >= seq, crossing, 0)


@triton.jit
def _factor(low, high, rest, eps, width: tl.constexpr, turned: tl.constexpr):
    """Return one over the root mean square of heads ``(rows, 1)``."""
    total = tl.sum(low * low + high * high, 1)
    if turned < width:
        total += tl.sum(rest * rest, 1)
    return tl.rsqrt(total / width + eps)[:, None]


@triton.jit
def _place_heads(
    flat,  # at the first head of its kind, of the first token
    gain, angles,
    out,  # (batch, seq, heads, width)
    first, last, seq, eps, angle_batch, angle_seq,
    heads: tl.constexpr, total: tl.constexpr, width: tl.constexpr, turned: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr, rest_block: tl.constexpr, normed: tl.constexpr, turns: tl.constexpr,
):  # fmt: skip
    """Normalise, scale and rotate the queries, or the keys, of the tokens from ``first`` to ``last``."""
    batch = first // seq
    angles += batch.to(tl.int64) * angle_batch
    start = first * heads
    while start < last * heads:
        row = start + tl.arange(0, rows)
        real = row < last * heads
        token = row // heads
        source = flat + token.to(tl.int64) * (total * width) + (row % heads) * width
        low, high, rest = _read(source, real, width, turned, block, rest_block)
        if normed:
            gain_low, gain_high, gain_rest = _read_gain(gain, width, turned, block, rest_block)
            factor = _factor(low, high, rest, eps, width, turned)
            low, high = low * factor * gain_low, high * factor * gain_high
            if turned < width:
                rest = rest * factor * gain_rest
        if turns:
            angle = angles + _away(token - batch * seq, seq, angle_batch, angle_seq)
            cos, sin = _read_angles(angle, real, turned, block)
            low, high = low * cos - high * sin, high * cos + low * sin
        _write(out + row.to(tl.int64) * width, real, low, high, rest, width, turned, block, rest_block)
        start += rows


@triton.jit(do_not_specialize=["tokens", "chunk", "seq"])
def _place(
    flat, q_gain, k_gain, angles, queries, keys,
    tokens, chunk, seq, eps, angle_batch, angle_seq,
    heads: tl.constexpr, kv_heads: tl.constexpr, width: tl.constexpr, turned: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr, rest_block: tl.constexpr, normed: tl.constexpr, turns: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, tokens)
    total: tl.constexpr = heads + 2 * kv_heads
    _place_heads(
        flat, q_gain, angles, queries, first, last, seq, eps, angle_batch, angle_seq,
        heads, total, width, turned, rows, block, rest_block, normed, turns,
    )  # fmt: skip
    _place_heads(
        flat + heads * width, k_gain, angles, keys, first, last, seq, eps, angle_batch, angle_seq,
        kv_heads, total, width, turned, rows, block, rest_block, normed, turns,
    )  # fmt: skip


@triton.jit
def _lead_back(
    flat,  # at the first head of its kind, of the first token
    gain, angles,
    slope,  # (batch, heads, seq, width), strides as below
    out,  # as flat
    sums,  # (width,), of this program
    first, last, seq, eps, angle_batch, angle_seq, slope_batch, slope_head, slope_seq,
    heads: tl.constexpr, total: tl.constexpr, width: tl.constexpr, turned: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr, rest_block: tl.constexpr, normed: tl.constexpr, turns: tl.constexpr,
):  # fmt: skip
    """Turn the slopes of placed queries, or keys, into those of what the product made; add up those of the gains."""
    if normed:
        sum_low = tl.zeros((rows, block), dtype=tl.float32)
        sum_high = tl.zeros((rows, block), dtype=tl.float32)
        sum_rest = tl.zeros((rows, rest_block), dtype=tl.float32)
    batch = first // seq
    angles += batch.to(tl.int64) * angle_batch
    slope += batch.to(tl.int64) * slope_batch
    start = first * heads
    while start < last * heads:
        row = start + tl.arange(0, rows)
        real = row < last * heads
        token, head = row // heads, row % heads
        place = token.to(tl.int64) * (total * width) + head * width
        position = token - batch * seq
        rising = slope + _away(position, seq, slope_batch, slope_seq) + head.to(tl.int64) * slope_head
        to_low, to_high, to_rest = _read(rising, real, width, turned, block, rest_block)
        if normed:
            low, high, rest = _read(flat + place, real, width, turned, block, rest_block)
        if turns:
            angle = angles + _away(position, seq, angle_batch, angle_seq)
            cos, sin = _read_angles(angle, real, turned, block)
            to_low, to_high = to_low * cos + to_high * sin, to_high * cos - to_low * sin
        if normed:
            factor = _factor(low, high, rest, eps, width, turned)
            low, high = low * factor, high * factor
            sum_low += to_low * low
            sum_high += to_high * high
            gain_low, gain_high, gain_rest = _read_gain(gain, width, turned, block, rest_block)
            to_low, to_high = to_low * gain_low, to_high * gain_high
            along = tl.sum(to_low * low + to_high * high, 1)
            if turned < width:
                rest = rest * factor
                sum_rest += to_rest * rest
                to_rest = to_rest * gain_rest
                along += tl.sum(to_rest * rest, 1)
            # what lies along the head itself does not change its direction
            along = (along / width)[:, None]
            to_low, to_high = (to_low - low * along) * factor, (to_high - high * along) * factor
            if turned < width:
                to_rest = (to_rest - rest * along) * factor
        _write(out + place, real, to_low, to_high, to_rest, width, turned, block, rest_block)
        start += rows
    if normed:
        half: tl.constexpr = turned // 2
        at = tl.arange(0, block)
        tl.store(sums + at, tl.sum(sum_low, 0), mask=at < half)
        tl.store(sums + half + at, tl.sum(sum_high, 0), mask=at < half)
        if turned < width:
            at = tl.arange(0, rest_block)
            tl.store(sums + turned + at, tl.sum(sum_rest, 0), mask=at < width - turned)


@triton.jit
def _copy_heads(
    slope, out, first, last, seq, slope_batch, slope_head, slope_seq,
    heads: tl.constexpr, total: tl.constexpr, width: tl.constexpr, rows: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """Put the slopes of the values in their place."""
    at = tl.arange(0, block)
    batch = first // seq
    slope += batch.to(tl.int64) * slope_batch
    start = first * heads
    while start < last * heads:
        row = start + tl.arange(0, rows)
        inside = _inside(row < last * heads, at, width, block)
        token, head = row // heads, row % heads
        rising = (
            slope + _away(token - batch * seq, seq, slope_batch, slope_seq) + head.to(tl.int64) * slope_head
        )
        found = tl.load(rising[:, None] + at[None, :], mask=inside, eviction_policy="evict_first")
        to = out + token.to(tl.int64) * (total * width) + head * width
        tl.store(to[:, None] + at[None, :], found.to(out.dtype.element_ty), mask=inside)
        start += rows


@triton.jit(do_not_specialize=["tokens", "chunk", "seq"])
def _slopes(
    flat, q_gain, k_gain, angles, to_queries, to_keys, to_values, out,
    sums,  # (programs, 2, width), float32
    tokens, chunk, seq, eps, angle_batch, angle_seq,
    q_batch, q_head, q_seq, k_batch, k_head, k_seq, v_batch, v_head, v_seq,
    heads: tl.constexpr, kv_heads: tl.constexpr, width: tl.constexpr, turned: tl.constexpr, rows: tl.constexpr,
    block: tl.constexpr, rest_block: tl.constexpr, whole_block: tl.constexpr,
    normed: tl.constexpr, turns: tl.constexpr,
):  # fmt: skip
    first = tl.program_id(0) * chunk
    last = tl.minimum(first + chunk, tokens)
    total: tl.constexpr = heads + 2 * kv_heads
    mine = sums + tl.program_id(0) * (2 * width)
    _lead_back(
        flat, q_gain, angles, to_queries, out, mine, first, last, seq, eps, angle_batch, angle_seq,
        q_batch, q_head, q_seq,
        heads, total, width, turned, rows, block, rest_block, normed, turns,
    )  # fmt: skip
    _lead_back(
        flat + heads * width, k_gain, angles, to_keys, out + heads * width, mine + width, first, last, seq, eps,
        angle_batch, angle_seq, k_batch, k_head, k_seq,
        kv_heads, total, width, turned, rows, block, rest_block, normed, turns,
    )  # fmt: skip
    _copy_heads(
        to_values, out + (heads + kv_heads) * width, first, last, seq, v_batch, v_head, v_seq,
        kv_heads, total, width, rows, whole_block,
    )  # fmt: skip


class _Cut(NamedTuple):
    """How the work is cut: programs, tokens of each, and what the kernels are compiled for."""

    programs: int
    chunk: int
    fixed: dict[str, int | bool]


def _cut(flat: Tensor, heads: int, kv_heads: int, angles: Tensor | None, *, normed: bool) -> _Cut:
    width = flat.shape[2] // (heads + 2 * kv_heads)
    turned = width if angles is None else angles.shape[-1] // 2
    whole, block = triton.next_power_of_2(width), triton.next_power_of_2(turned // 2)
    fixed: dict[str, int | bool] = {
        "heads": heads, "kv_heads": kv_heads, "width": width, "turned": turned, "rows": TILE // whole, "block": block,
        "rest_block": triton.next_power_of_2(max(1, width - turned)), "normed": normed, "turns": angles is not None,
    }  # fmt: skip
    tokens = flat.shape[0] * flat.shape[1]
    most = SHARE * _multiprocessors(flat.device)
    chunk = max(1, min(triton.cdiv(tokens, most), flat.shape[1]))  # tokens of two rows at most
    return _Cut(triton.cdiv(tokens, chunk), chunk, fixed)


def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _read_by_both(
    flat: Tensor, q_gain: Tensor | None, k_gain: Tensor | None, angles: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return what both kernels read first; ``flat`` in the place of what there is not."""
    flat = flat.contiguous()
    gains = (flat, flat) if q_gain is None or k_gain is None else (q_gain.contiguous(), k_gain.contiguous())
    return flat, *gains, flat if angles is None else angles


def _angle_strides(angles: Tensor | None) -> tuple[int, int]:
    """Return how far rows and positions of a table are apart; one row serves all."""
    if angles is None:
        return 0, 0
    return 0 if angles.shape[0] == 1 else angles.stride(0), angles.stride(1)


@custom_op("stockpot::placed_heads", mutates_args=())
def placed_heads(
    flat: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    angles: Tensor | None,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return queries ``(batch, seq, heads, head_dim)`` and keys, with kv_heads; arguments as for :func:`placed`."""
    queries, keys = _room(flat, heads, kv_heads)
    cut = _cut(flat, heads, kv_heads, angles, normed=q_gain is not None)
    if cut.programs:
        _place[(cut.programs,)](
            *_read_by_both(flat, q_gain, k_gain, angles), queries, keys, flat.shape[0] * flat.shape[1],
            cut.chunk, flat.shape[1], eps, *_angle_strides(angles), **cut.fixed, num_warps=WARPS,
        )  # fmt: skip
    return queries, keys


@placed_heads.register_fake
def _(
    flat: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    angles: Tensor | None,
    heads: int,
    kv_heads: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return _room(flat, heads, kv_heads)


def _room(flat: Tensor, heads: int, kv_heads: int) -> tuple[Tensor, Tensor]:
    batch, seq, width = flat.shape[0], flat.shape[1], flat.shape[2] // (heads + 2 * kv_heads)
    return flat.new_empty((batch, seq, heads, width)), flat.new_empty((batch, seq, kv_heads, width))


@custom_op("stockpot::head_slopes", mutates_args=())
def head_slopes(
    flat: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    angles: Tensor | None,
    to_queries: Tensor,
    to_keys: Tensor,
    to_values: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """Return the slopes of ``flat`` and, in float32, those of both gains ``(2, head_dim)``, or ``(2, 0)`` without gains.

    Args:
        flat: as for :func:`placed`.
        q_gain: the same.
        k_gain: the same.
        angles: the same.
        to_queries: slopes of the placed queries ``(batch, heads, seq, head_dim)``; copied if a head's lie apart.
        to_keys: of the placed keys ``(batch, kv_heads, seq, head_dim)``, likewise.
        to_values: of the values, as those of the keys.
        eps: as for :func:`placed`.
    """
    heads, kv_heads, width = to_queries.shape[1], to_keys.shape[1], to_queries.shape[3]
    cut = _cut(flat, heads, kv_heads, angles, normed=q_gain is not None)
    out = flat.new_empty(flat.shape)
    sums = flat.new_empty((cut.programs, 2, 0 if q_gain is None else width), dtype=torch.float32)
    if cut.programs:
        slopes = [x if x.stride(3) == 1 else x.contiguous() for x in (to_queries, to_keys, to_values)]
        strides = [stride for slope in slopes for stride in slope.stride()[:3]]
        _slopes[(cut.programs,)](
            *_read_by_both(flat, q_gain, k_gain, angles), *slopes, out, sums, flat.shape[0] * flat.shape[1],
            cut.chunk, flat.shape[1], eps, *_angle_strides(angles), *strides, **cut.fixed,
            whole_block=triton.next_power_of_2(width), num_warps=WARPS,
        )  # fmt: skip
    return out, sums.sum(0)


@head_slopes.register_fake
def _(
    flat: Tensor,
    q_gain: Tensor | None,
    k_gain: Tensor | None,
    angles: Tensor | None,
    to_queries: Tensor,
    to_keys: Tensor,
    to_values: Tensor,
    eps: float,
) -> tuple[Tensor, Tensor]:
    width = 0 if q_gain is None else to_queries.shape[3]
    return flat.new_empty(flat.shape), flat.new_empty((2, width), dtype=torch.float32)


def can_place(
    flat: Tensor, head_dim: int, gains: tuple[Tensor, Tensor] | None, angles: Tensor | None
) -> bool:
    """Tell whether :func:`placed` knows such tensors and has anything to do."""
    if gains is None and angles is None:
        return False
    turned = head_dim if angles is None else angles.shape[-1] // 2
    return (
        flat.dtype in TYPES
        and head_dim <= WIDEST
        and head_dim % STEP == 0 == turned % STEP
        and (angles is None or (angles.dtype == flat.dtype and angles.stride(-1) == 1))
    )


def placed(
    flat: Tensor,
    gains: tuple[Tensor, Tensor] | None,
    angles: Tensor | None,
    heads: tuple[int, int],
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Make queries ``(batch, heads, seq, head_dim)`` and, with kv_heads, keys and values.

    Args:
        flat: queries, keys and values side by side ``(batch, seq, (heads + 2 * kv_heads) * head_dim)``.
        gains: of the norms of queries and keys ``(head_dim,)``; None: they are not normalised.
        angles: as ``model.positions.rotary_table`` lays them out ``(batch or 1, seq, 1, 2 * rotary_dim)``; None: no rotation.
        heads: those of queries, and those of keys and values.
        eps: added to the mean square.
    """
    q_gain, k_gain = (None, None) if gains is None else gains
    found: tuple[Tensor, Tensor, Tensor] = _Placed.apply(
        flat.contiguous(), q_gain, k_gain, angles, heads[0], heads[1], eps
    )
    return found


class _Placed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        flat: Tensor,
        q_gain: Tensor | None,
        k_gain: Tensor | None,
        angles: Tensor | None,
        heads: int,
        kv_heads: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(flat, q_gain, k_gain, angles)
        ctx.eps = eps
        queries, keys = placed_heads(flat, q_gain, k_gain, angles, heads, kv_heads, eps)
        every = flat.view(*flat.shape[:2], heads + 2 * kv_heads, keys.shape[3])
        values = every[:, :, heads + kv_heads :]
        return queries.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, to_queries: Tensor, to_keys: Tensor, to_values: Tensor
    ) -> tuple[Tensor | None, ...]:
        flat, q_gain, k_gain, angles = ctx.saved_tensors
        # How slopes lie is looked at in the operation: the compiler's tracer does not know, and would copy them.
        slopes = (to_queries, to_keys, to_values)
        out, to_gains = head_slopes(flat, q_gain, k_gain, angles, *slopes, ctx.eps)
        if q_gain is None or k_gain is None:
            return out, None, None, None, None, None, None
        to_q_gain, to_k_gain = to_gains.to(q_gain.dtype).unbind(0)
        return out, to_q_gain, to_k_gain, None, None, None, None
