"""A layer of a single written token in five Triton kernels; an experiment that ``decode_variants.py`` measures.

    norm + queries, keys, values | attention | output + sum | norm + gate and value | down + sum

A matrix product of one vector is bound by reading the matrix, and at 1.5 billion weights a layer's four matrices take a few
microseconds each: as long as a kernel needs to start, to get its first bytes and to end. So there are few kernels, and each may
be launched while the one before still runs (``early``, programmatic dependent launch): it reads its part of the matrix,
which nobody changes, and only then waits for the vector. Norms divide after the product, since their factor is one number.

``TRITON_INTERPRET=1`` runs all of it on a CPU, but for ``early``.

Source: NVIDIA, CUDA C++ Programming Guide, "Programmatic Dependent Launch"; for the parts of attention that are joined
Dao et al. 2023, "Flash-Decoding for long-context inference".
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor, nn
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from stockpot.model.attention import View
from stockpot.model.cache import SlotCache
from stockpot.model.norms import RMSNorm

__all__ = ["Choice", "Layers", "attend", "multiply", "suits"]


class Choice(NamedTuple):
    """How a product is cut: outputs of a program (pairs where they are gated), and its warps."""

    outputs: int
    warps: int


CHOICES = (Choice(2, 4), Choice(4, 4), Choice(8, 4), Choice(8, 8))
SPLIT = 64  # positions that a program of attention looks at in one turn
MOST_PARTS = 4  # programs that share a head


@triton.jit
def _product(  # noqa: PLR0913 - a kernel has no settings object
    x,
    gain,
    weight,
    added,
    out,
    eps,
    inputs: tl.constexpr,
    outputs: tl.constexpr,
    normed: tl.constexpr,
    gated: tl.constexpr,
    adds: tl.constexpr,
    wide: tl.constexpr,
    block: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        gdc_launch_dependents()
    row = tl.program_id(0) * block + tl.arange(0, block)
    at = tl.arange(0, wide)
    inside = (row < outputs)[:, None] & (at < inputs)[None, :]
    place = row.to(tl.int64)[:, None] * inputs + at[None, :]
    matrix = tl.load(weight + place, mask=inside, other=0.0, eviction_policy="evict_first")
    if gated:
        values = tl.load(
            weight + outputs * inputs + place, mask=inside, other=0.0, eviction_policy="evict_first"
        )
    if normed:
        gains = tl.load(gain + at, mask=at < inputs, other=0.0).to(tl.float32)
    if early:
        gdc_wait()
    vector = tl.load(x + at, mask=at < inputs, other=0.0).to(tl.float32)
    factor = 1.0
    if normed:
        factor = tl.rsqrt(tl.sum(vector * vector, 0) / inputs + eps)
        vector *= gains
    total = tl.sum(matrix.to(tl.float32) * vector[None, :], 1) * factor
    if gated:
        total = total * tl.sigmoid(total) * (tl.sum(values.to(tl.float32) * vector[None, :], 1) * factor)
    if adds:
        total += tl.load(added + row, mask=row < outputs, other=0.0).to(tl.float32)
    tl.store(out + row, total.to(out.dtype.element_ty), mask=row < outputs)


@triton.jit
def _turned(  # noqa: PLR0913
    flat, gain, angles, eps, dim, swapped, width: tl.constexpr, normed: tl.constexpr, turns: tl.constexpr
):
    """Read a head ``(width,)``, normalise and rotate it."""
    head = tl.load(flat + dim).to(tl.float32)
    other = tl.load(flat + swapped).to(tl.float32)
    if normed:
        factor = tl.rsqrt(tl.sum(head * head, 0) / width + eps)
        head *= factor * tl.load(gain + dim).to(tl.float32)
        other *= factor * tl.load(gain + swapped).to(tl.float32)
    if turns:
        cos = tl.load(angles + dim).to(tl.float32)
        sin = tl.load(angles + width + dim).to(tl.float32)
        head = head * cos + other * sin
    return head


@triton.jit
def _attention(  # noqa: PLR0913
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
    heads: tl.constexpr,
    kv_heads: tl.constexpr,
    width: tl.constexpr,
    extent: tl.constexpr,
    split: tl.constexpr,
    shares: tl.constexpr,
    normed: tl.constexpr,
    turns: tl.constexpr,
    early: tl.constexpr,
):
    if early:
        gdc_launch_dependents()
        gdc_wait()
    unit, share = tl.program_id(0), tl.program_id(1)
    row, head = unit // heads, unit % heads
    group: tl.constexpr = heads // kv_heads
    kv_head = head // group
    dim = tl.arange(0, width)
    swapped = (dim + width // 2) % width
    slot = tl.load(slots + row)
    of_row = flat + row * (heads + 2 * kv_heads) * width
    angle = angles + row * 2 * width
    query = _turned(of_row + head * width, q_gain, angle, eps, dim, swapped, width, normed, turns) * scale
    key = _turned(
        of_row + (heads + kv_head) * width, k_gain, angle, eps, dim, swapped, width, normed, turns
    ).to(keys.dtype.element_ty)
    value = tl.load(of_row + (heads + kv_heads + kv_head) * width + dim)
    held = (row.to(tl.int64) * kv_heads + kv_head) * room * width
    if (share == 0) & (head % group == 0):  # the others take the new position from their registers
        tl.store(keys + held + slot * width + dim, key)
        tl.store(values + held + slot * width + dim, value.to(values.dtype.element_ty))
    top = tl.sum(query * key.to(tl.float32), 0)
    if share == 0:
        total = 1.0
        mixed = value.to(tl.float32)
    else:
        total = 0.0
        mixed = tl.zeros((width,), dtype=tl.float32)
    for start in tl.static_range(0, extent, shares * split):
        position = start + share * split + tl.arange(0, split)
        seen = (position < slot) & (position < extent)
        at = held + position.to(tl.int64)[:, None] * width + dim[None, :]
        some = tl.load(keys + at, mask=seen[:, None], other=0.0).to(tl.float32)
        theirs = tl.load(values + at, mask=seen[:, None], other=0.0).to(tl.float32)
        scores = tl.where(seen, tl.sum(some * query[None, :], 1), -float("inf"))
        higher = tl.maximum(top, tl.max(scores, 0))
        weights = tl.exp(scores - higher)
        shrink = tl.exp(top - higher)
        total = total * shrink + tl.sum(weights, 0)
        mixed = mixed * shrink + tl.sum(weights[:, None] * theirs, 0)
        top = higher
    to = out + row * heads * width + head * width + dim
    if shares == 1:
        tl.store(to, (mixed / total).to(out.dtype.element_ty))
    else:
        mine = parts + (unit * shares + share) * (width + 2)
        tl.store(mine + dim, mixed)
        tl.store(mine + width, top)
        tl.store(mine + width + 1, total)
        tl.debug_barrier()
        if tl.atomic_add(arrived + unit, 1) == shares - 1:  # the last one joins what all have found
            which = tl.arange(0, shares)
            all_parts = parts + (unit * shares + which) * (width + 2)
            tops = tl.load(all_parts + width, volatile=True)
            share_of = tl.exp(tops - tl.max(tops, 0))
            totals = tl.load(all_parts + width + 1, volatile=True) * share_of
            found = tl.load(all_parts[:, None] + dim[None, :], volatile=True) * share_of[:, None]
            tl.store(to, (tl.sum(found, 0) / tl.sum(totals, 0)).to(out.dtype.element_ty))
            tl.store(arrived + unit, 0)


def multiply(
    x: Tensor,
    weight: Tensor,
    *,
    gain: Tensor | None = None,
    eps: float = 0.0,
    gated: bool = False,
    added: Tensor | None = None,
    choice: Choice = CHOICES[1],
    early: bool = False,
) -> Tensor:
    """Multiply one vector ``(1, 1, inputs)`` with ``weight`` ``(outputs, inputs)``.

    Args:
        x: the vector.
        weight: the matrix, by row.
        gain: normalise the vector by its root mean square first, with these gains.
        eps: added to its mean square.
        gated: the first half of the outputs gates the second (SwiGLU).
        added: what the result is added to.
        choice: how the product is cut.
        early: launch while the kernel before still runs.
    """
    outputs, inputs = weight.shape
    outputs = outputs // 2 if gated else outputs
    out = x.new_empty((1, 1, outputs))
    block = max(1, choice.outputs // 2) if gated else choice.outputs
    _product[(triton.cdiv(outputs, block),)](
        x, x if gain is None else gain, weight, x if added is None else added, out, eps,
        inputs=inputs, outputs=outputs, normed=gain is not None, gated=gated, adds=added is not None,
        wide=triton.next_power_of_2(inputs), block=block, early=early, num_warps=choice.warps, **_launched(early),
    )  # fmt: skip
    return out


def attend(flat: Tensor, layer: nn.Module, view: View, store: SlotCache, *, early: bool = False) -> Tensor:
    """Turn ``(rows, 1, (heads + 2 * kv_heads) * head_dim)`` into what was gathered ``(rows, 1, heads * head_dim)``.

    Keys and values of the new position are stored on the way. Every position up to it is seen.
    """
    attention = layer.attention
    rows, heads, width = flat.shape[0], attention.heads, attention.head_dim
    if view.rotary is not None and view.rotary.shape[-1] != 2 * width:
        raise ValueError("these kernels turn whole heads only")
    extent = min(store.extent, store.keys.shape[2] - 1)
    shares = min(MOST_PARTS, max(1, 256 // (rows * heads)), triton.cdiv(extent, SPLIT))
    shares = 1 << (shares.bit_length() - 1)
    parts, arrived = _room(flat.device, rows * heads, shares, width)
    out = flat.new_empty((rows, 1, heads * width))
    normed = attention.qk_norm == "head"
    gains = (attention.q_norm.weight, attention.k_norm.weight) if normed else (flat, flat)
    _attention[(rows * heads, shares)](
        flat, *gains, flat if view.rotary is None else view.rotary, store.slots, store.keys, store.values,
        parts, arrived, out, attention.scale, attention.q_norm.eps if normed else 0.0, store.keys.shape[2],
        heads=heads, kv_heads=attention.kv_heads, width=width, extent=extent, split=SPLIT, shares=shares,
        normed=normed, turns=view.rotary is not None, early=early, num_warps=4, **_launched(early),
    )  # fmt: skip
    return out


class Layers:
    """Runs layers of one token; stands where ``stack.run_layer`` stands.

    Args:
        choices: how each product is cut, by its name: ``qkv``, ``out``, ``up``, ``down``.
        early: launch each kernel while the one before still runs.
    """

    def __init__(self, choices: dict[str, Choice] | None = None, *, early: bool = False) -> None:
        self.choices, self.early = choices or {}, early

    def __call__(self, layer: Any, x: Tensor, view: View, store: SlotCache) -> Tensor:
        """Return the states ``(1, 1, dim)`` after a layer."""
        flat = self.product("qkv", x, layer.attention.qkv.weight, norm=layer.attention_norm)
        mixed = attend(flat, layer, view, store, early=self.early)
        x = self.product("out", mixed, layer.attention.out.weight, added=x)
        wide = self.product("up", x, layer.ffn.up.weight, norm=layer.ffn_norm, gated=True)
        return self.product("down", wide, layer.ffn.down.weight, added=x)

    def product(
        self,
        name: str,
        x: Tensor,
        weight: Tensor,
        *,
        norm: RMSNorm | None = None,
        gated: bool = False,
        added: Tensor | None = None,
    ) -> Tensor:
        """Multiply as the choice of that name says."""
        gain, eps = (None, 0.0) if norm is None else (norm.weight, norm.eps)
        choice = self.choices.get(name, CHOICES[1])
        how: dict[str, Any] = {"gain": gain, "eps": eps, "gated": gated, "added": added}
        return multiply(x, weight, choice=choice, early=self.early, **how)


def suits(layer: Any, rows: int, *, attention_only: bool = False) -> bool:
    """Tell whether a layer is of the kind that these kernels know: the default decoder's."""
    attention = layer.attention
    is_known = (
        attention.qk_norm in (None, "head")
        and attention.softcap is None
        and attention.learned is None
        and attention.head_dim == triton.next_power_of_2(attention.head_dim)
    )
    if attention_only or not is_known:
        return is_known
    is_plain = layer.attention_norm is not None and layer.ffn_norm is not None and not layer.parallel
    norms = (layer.attention_norm, layer.ffn_norm)
    return rows == 1 and is_plain and all(type(norm) is RMSNorm for norm in norms) and layer.ffn.is_gated


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
