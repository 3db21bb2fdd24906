# mypy: disable-error-code="assignment, no-untyped-def, untyped-decorator"
"""A written token's layers on a GPU: five Triton kernels a layer, for one answer in 16 bits.

    norm + queries, keys, values | attention | output + sum | norm + gate and value | down + sum

A product of one vector with a matrix is bound by reading the matrix, and a layer's four matrices take a few microseconds each: as
long as a kernel needs to start, to get its first bytes and to end. So there are few kernels, and each is launched while the one
before still runs (programmatic dependent launch): it reads what nobody changes (its part of a matrix, earlier keys and
values), and only then waits for its vector. What follows the wait is short: norms divide after the product, since their
factor is one number; where there is no norm, a warp sums rows of its own, so that no thread waits for another.

Imported on GPUs only: Triton comes with torch's CUDA builds. ``TRITON_INTERPRET=1`` runs the kernels on a CPU, one after another.

Source: NVIDIA, CUDA C++ Programming Guide, "Programmatic Dependent Launch"; for the parts of attention that are joined
Dao et al. 2023, "Flash-Decoding for long-context inference".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

__all__ = ["CHOICES", "Choice", "Store", "TokenLayer", "TokenLayers", "attend"]


class Choice(NamedTuple):
    """How a product is cut: outputs of a program (pairs where they are gated), and its warps."""

    rows: int
    warps: int


class TokenLayer(NamedTuple):
    """A layer's weights and numbers, as the kernels want them.

    Attributes:
        qkv, out, up, down: matrices ``(outputs, inputs)``; ``up`` holds the gate first.
        first_gain, second_gain: of the norms before attention and feed-forward ``(dim,)``.
        q_gain, k_gain: of the heads' norms ``(head_dim,)``, or None.
        eps: added to a mean square, of layer and heads.
        heads, kv_heads, scale: attention's.
        window: positions that are seen, the own included; 0: all.
    """

    qkv: Tensor
    out: Tensor
    up: Tensor
    down: Tensor
    first_gain: Tensor
    second_gain: Tensor
    q_gain: Tensor | None
    k_gain: Tensor | None
    eps: tuple[float, float]
    heads: int
    kv_heads: int
    scale: float
    window: int


# The fastest of 29 ways for 1.5 billion weights on an H200, found one after the other (benchmarks/results/gpu.md).
CHOICES = {"qkv": Choice(8, 4), "out": Choice(8, 8), "up": Choice(2, 2), "down": Choice(2, 2)}
CHUNK = 256  # inputs that a warp reads with one instruction
MOST_NUMBERS = 256  # of a matrix that stand in a thread's registers
# Positions that a program of attention looks at with one instruction, and its warps: for one row, and for several.
ALONE, TOGETHER = (32, 4), (64, 8)
MOST_POSITIONS = 256  # of a program, whose keys and values are read before the wait
MOST_PARTS = 16  # programs that share a head


@triton.jit
def _normed(
    x,
    gain,
    weight,
    out,
    eps,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    gated: tl.constexpr,
    wide: tl.constexpr,
    rows: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        gdc_launch_dependents()
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    at = tl.arange(0, wide)
    inside = (row < outputs)[:, None] & (at < inputs)[None, :]
    place = row.to(tl.int64)[:, None] * inputs + at[None, :]
    matrix = tl.load(weight + place, mask=inside, other=0.0, eviction_policy="evict_first")
    if gated:
        values = tl.load(
            weight + outputs * inputs + place, mask=inside, other=0.0, eviction_policy="evict_first"
        )
    gains = tl.load(gain + at, mask=at < inputs, other=0.0).to(tl.float32)
    if early:
        gdc_wait()
    vector = tl.load(x + at, mask=at < inputs, other=0.0).to(tl.float32)
    factor = tl.rsqrt(tl.sum(vector * vector, 0) / inputs + eps)
    vector *= gains
    total = tl.sum(matrix.to(tl.float32) * vector[None, :], 1) * factor
    if gated:
        total = total * tl.sigmoid(total) * (tl.sum(values.to(tl.float32) * vector[None, :], 1) * factor)
    tl.store(out + row, total.to(out.dtype.element_ty), mask=row < outputs)


@triton.jit
def _added(
    x,
    weight,
    added,
    out,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    chunk: tl.constexpr,
    rows: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        gdc_launch_dependents()
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    at = tl.arange(0, chunk)
    place = row.to(tl.int64)[:, None] * inputs + at[None, :]
    matrix = ()
    for start in tl.static_range(0, inputs, chunk):
        inside = (row < outputs)[:, None] & (start + at < inputs)[None, :]
        part = tl.load(weight + place + start, mask=inside, other=0.0, eviction_policy="evict_first")
        matrix = matrix + (part,)
    if early:
        gdc_wait()
    total = tl.zeros((rows, chunk), dtype=tl.float32)
    for start in tl.static_range(0, inputs, chunk):
        inside = (row < outputs)[:, None] & (start + at < inputs)[None, :]
        # Each row reads all of the vector: no thread hands it to another.
        same = (row * 0)[:, None] + (start + at)[None, :]
        vector = tl.load(x + same, mask=inside, other=0.0).to(tl.float32)
        total += matrix[start // chunk].to(tl.float32) * vector
    result = tl.sum(total, 1) + tl.load(added + row, mask=row < outputs, other=0.0).to(tl.float32)
    tl.store(out + row, result.to(out.dtype.element_ty), mask=row < outputs)


@triton.jit
def _turned(
    flat, gain, angles, eps, dim, swapped, width: tl.constexpr, normed: tl.constexpr, turns: tl.constexpr
):
    """Read a head, once for each of the rows ``(rows, width)`` of ``dim``; normalise and rotate it."""
    head = tl.load(flat + dim).to(tl.float32)
    if turns:
        other = tl.load(flat + swapped).to(tl.float32)
    if normed:
        factor = tl.rsqrt(tl.sum(head * head, 1) / width + eps)[:, None]
        head *= factor * tl.load(gain + dim).to(tl.float32)
        if turns:
            other *= factor * tl.load(gain + swapped).to(tl.float32)
    if turns:
        cos = tl.load(angles + dim).to(tl.float32)
        sin = tl.load(angles + width + dim).to(tl.float32)
        head = head * cos + other * sin
    return head


@triton.jit
def _seen(position, slot, extent, window: tl.constexpr):
    seen = (position < slot) & (position < extent)
    if window > 0:
        seen = seen & (position > slot - window)
    return seen


@triton.jit
def _joined(query, keys, values, seen, top, total, mixed):
    """Take some positions into the softmax that each row of a tile keeps."""
    score = tl.where(seen, tl.sum(keys.to(tl.float32) * query, 1), -1e30)
    higher = tl.maximum(top, score)
    weight = tl.where(seen, tl.exp(score - higher), 0.0)
    shrink = tl.exp(top - higher)
    total = total * shrink + weight
    mixed = mixed * shrink[:, None] + weight[:, None] * values.to(tl.float32)
    return higher, total, mixed


@triton.jit
def _hand_in(
    parts, arrived, to, unit, share, gathered, highest, whole, width: tl.constexpr, shares: tl.constexpr
):
    """Leave what one program of a head has found; the last one joins what all have found."""
    dim = tl.arange(0, width)
    mine = parts + (unit * shares + share) * (width + 2)
    tl.store(mine + dim, gathered)
    tl.store(mine + width, highest)
    tl.store(mine + width + 1, whole)
    tl.debug_barrier()
    if tl.atomic_add(arrived, 1) == shares - 1:
        all_parts = parts + (unit * shares + tl.arange(0, shares)) * (width + 2)
        tops = tl.load(all_parts + width, volatile=True)
        share_of = tl.exp(tops - tl.max(tops, 0))
        totals = tl.load(all_parts + width + 1, volatile=True) * share_of
        joined = tl.load(all_parts[:, None] + dim[None, :], volatile=True) * share_of[:, None]
        tl.store(to, (tl.sum(joined, 0) / tl.sum(totals, 0)).to(to.dtype.element_ty))
        tl.store(arrived, 0)


@triton.jit
def _attention(
    flat,  # (rows, (heads + 2 * kv_heads) * width)
    q_gain,
    k_gain,
    angles,  # (rows, 2 * width)
    slots,  # (rows,)
    keys,  # (rows, kv_heads, room, width)
    values,
    parts,  # (rows * heads, shares, width + 2), float32
    arrived,  # (rows * heads,), int32, all 0
    out,  # (rows, heads * width)
    scale,
    eps,
    room,
    extent,
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    width: tl.constexpr,
    tile: tl.constexpr,
    tiles: tl.constexpr,
    shares: tl.constexpr,
    window: tl.constexpr,
    normed: tl.constexpr,
    turns: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        gdc_launch_dependents()
    unit, share = tl.program_id(0), tl.program_id(1)
    row, head = unit // heads, unit % heads
    group: tl.constexpr = heads // kv_heads
    kv_head = head // group
    each = tl.arange(0, tile)
    dim = tl.arange(0, width)
    slot = tl.load(slots + row)
    held = (row.to(tl.int64) * kv_heads + kv_head) * room * width
    place = held + each.to(tl.int64)[:, None] * width + dim[None, :]
    some = ()
    theirs = ()
    for number in tl.static_range(0, tiles):  # earlier steps have stored it: nobody has to be waited for
        first = (number * shares + share) * tile
        seen = _seen(first + each, slot, extent, window)
        some = some + (tl.load(keys + place + first * width, mask=seen[:, None], other=0.0),)
        theirs = theirs + (tl.load(values + place + first * width, mask=seen[:, None], other=0.0),)
    if early:
        gdc_wait()
    # Each row of the tile reads the whole head: no thread hands it to another.
    same = (each * 0)[:, None] + dim[None, :]
    swapped = (each * 0)[:, None] + ((dim + width // 2) % width)[None, :]
    mine = flat + row * (heads + 2 * kv_heads) * width
    angle = angles + row * 2 * width
    query = _turned(mine + head * width, q_gain, angle, eps, same, swapped, width, normed, turns) * scale
    mine += (heads + kv_head) * width
    key = _turned(mine, k_gain, angle, eps, same, swapped, width, normed, turns).to(keys.dtype.element_ty)
    value = tl.load(mine + kv_heads * width + same)
    # The new position is the first row's of the first program; the others take it from their registers.
    is_first = each + share == 0
    if head % group == 0:
        new, here = held + slot * width + same, is_first[:, None]
        tl.store(keys + new, key, mask=here)
        tl.store(values + new, value.to(values.dtype.element_ty), mask=here)
    # Each row of the tile keeps its own softmax, and they are joined at the end.
    top = tl.where(is_first, tl.sum(query * key.to(tl.float32), 1), -1e30)
    total = tl.where(is_first, 1.0, 0.0)
    mixed = value.to(tl.float32) * total[:, None]
    for number in tl.static_range(0, tiles):
        first = (number * shares + share) * tile
        seen = _seen(first + each, slot, extent, window)
        top, total, mixed = _joined(query, some[number], theirs[number], seen, top, total, mixed)
    first = (tiles * shares + share) * tile
    while first < extent:
        seen = _seen(first + each, slot, extent, window)
        one = tl.load(keys + place + first * width, mask=seen[:, None], other=0.0)
        its = tl.load(values + place + first * width, mask=seen[:, None], other=0.0)
        top, total, mixed = _joined(query, one, its, seen, top, total, mixed)
        first += shares * tile
    highest = tl.max(top, 0)
    weight = tl.exp(top - highest)
    whole = tl.sum(total * weight, 0)
    gathered = tl.sum(mixed * weight[:, None], 0)
    to = out + row * heads * width + head * width + dim
    if shares == 1:
        tl.store(to, (gathered / whole).to(out.dtype.element_ty))
    else:
        _hand_in(parts, arrived + unit, to, unit, share, gathered, highest, whole, width, shares)


def multiply_normed(
    x: Tensor,
    gain: Tensor,
    weight: Tensor,
    choice: Choice,
    *,
    eps: float,
    gated: bool = False,
    early: bool = False,
    is_first: bool = False,
) -> Tensor:
    """Normalise one vector ``(1, 1, inputs)`` by its root mean square, and multiply it with a matrix.

    Args:
        x: the vector.
        gain: the norm's ``(inputs,)``.
        weight: the matrix ``(outputs, inputs)``.
        choice: how the product is cut.
        eps: added to the mean square.
        gated: the first half of the outputs gates the second (SwiGLU).
        early: launch while the kernel before still runs.
        is_first: the kernel before is none of ours, so it is waited for before the launch.
    """
    outputs, inputs = weight.shape
    outputs = outputs // 2 if gated else outputs
    out = x.new_empty((1, 1, outputs))
    rows, warps, wide = *choice, triton.next_power_of_2(inputs)
    while rows * wide * (1 + gated) > 32 * warps * MOST_NUMBERS:
        warps *= 2
    _normed[(triton.cdiv(outputs, rows),)](
        x, gain, weight, out, eps, inputs=inputs, outputs=outputs, gated=gated, wide=wide,
        rows=rows, early=early, num_warps=warps, **_launched(early and not is_first),
    )  # fmt: skip
    return out


def multiply_added(
    x: Tensor, weight: Tensor, added: Tensor, choice: Choice, *, early: bool = False
) -> Tensor:
    """Multiply one vector ``(1, 1, inputs)`` with a matrix ``(outputs, inputs)``, and add ``(1, 1, outputs)``."""
    outputs, inputs = weight.shape
    out = x.new_empty((1, 1, outputs))
    _added[(triton.cdiv(outputs, choice.rows),)](
        x, weight, added, out, inputs=inputs, outputs=outputs, chunk=CHUNK,
        rows=choice.rows, early=early, num_warps=choice.warps, **_launched(early),
    )  # fmt: skip
    return out


class Store(Protocol):
    """A layer's part of a cache, and where the new positions go in it (``stockpot.model.cache.SlotCache``)."""

    @property
    def slots(self) -> Tensor:
        """Where they go ``(rows, 1)``."""

    @property
    def keys(self) -> Tensor:
        """``(rows, kv_heads, room, head_dim)``."""

    @property
    def values(self) -> Tensor:
        """As keys."""

    @property
    def extent(self) -> int:
        """So many slots are looked at, from the first."""


def attend(
    flat: Tensor, layer: TokenLayer, store: Store, rotary: Tensor | None, *, early: bool = False
) -> Tensor:
    """Turn ``(rows, 1, (heads + 2 * kv_heads) * head_dim)`` into what was gathered ``(rows, 1, heads * head_dim)``.

    Keys and values of the new position are stored on the way. Every position up to it is seen, or those of the window.

    Args:
        flat: queries, keys and values of one new position a row.
        layer: what attention has to know.
        store: what earlier positions left, and where the new ones go.
        rotary: angles of the new positions ``(rows, 1, 1, 2 * head_dim)``, or None.
        early: launch while the kernel before still runs.
    """
    rows, heads, width = flat.shape[0], layer.heads, store.keys.shape[3]
    extent = min(store.extent, store.keys.shape[2] - 1)
    tile, warps = ALONE if rows == 1 else TOGETHER
    shares = min(MOST_PARTS, max(1, 1024 // (rows * heads)), triton.cdiv(extent, MOST_POSITIONS))
    shares = 1 << (shares.bit_length() - 1)
    parts, arrived = _room(flat.device, rows * heads, shares, width)
    out = flat.new_empty((rows, 1, heads * width))
    gains = (flat, flat) if layer.q_gain is None or layer.k_gain is None else (layer.q_gain, layer.k_gain)
    _attention[(rows * heads, shares)](
        flat, *gains, flat if rotary is None else rotary, store.slots, store.keys, store.values,
        parts, arrived, out, layer.scale, layer.eps[1], store.keys.shape[2], extent,
        heads=heads, kv_heads=layer.kv_heads, width=width, tile=tile,
        tiles=min(MOST_POSITIONS // tile, triton.cdiv(extent, tile * shares)), shares=shares,
        window=layer.window, normed=layer.q_gain is not None, turns=rotary is not None, early=early,
        num_warps=warps * max(1, width // 64), **_launched(early),
    )  # fmt: skip
    return out


class TokenLayers:
    """Runs the layers of a written token.

    Args:
        layers: what they hold, in order.
        early: launch each kernel while the one before still runs.

    Attributes:
        choices: how each product is cut, by its name: ``qkv``, ``out``, ``up``, ``down``.
    """

    def __init__(self, layers: Sequence[TokenLayer], *, early: bool = True) -> None:
        self.layers, self.early, self.choices = list(layers), early, dict(CHOICES)

    def run(self, number: int, x: Tensor, store: Store, rotary: Tensor | None) -> Tensor:
        """Return the states ``(1, 1, dim)`` after a layer."""
        layer, cut, early = self.layers[number], self.choices, self.early
        how: dict[str, Any] = {"eps": layer.eps[0], "early": early}
        flat = multiply_normed(x, layer.first_gain, layer.qkv, cut["qkv"], is_first=number == 0, **how)
        mixed = attend(flat, layer, store, rotary, early=early)
        x = multiply_added(mixed, layer.out, x, cut["out"], early=early)
        wide = multiply_normed(x, layer.second_gain, layer.up, cut["up"], gated=True, **how)
        return multiply_added(wide, layer.down, x, cut["down"], early=early)


_rooms: dict[tuple[torch.device, int, int, int], tuple[Tensor, Tensor]] = {}


def _room(device: torch.device, units: int, shares: int, width: int) -> tuple[Tensor, Tensor]:
    """Return where the parts of heads meet; the same for all layers, which come one after the other."""
    key = (device, units, shares, width)
    if key not in _rooms:
        parts = torch.empty((units, shares, width + 2), dtype=torch.float32, device=device)
        _rooms[key] = parts, torch.zeros(units, dtype=torch.int32, device=device)
    return _rooms[key]


def _launched(early: bool) -> dict[str, bool]:
    return {"launch_pdl": True} if early else {}
