"""Frozen matrices held in 8 or 4 bits while adapters beside them are trained, on any device.

Decides how a matrix is rounded, and that a product turns it back into floats each time, on the way forward and on the
way back: only the digits stay in memory. Slopes reach a product's input and nothing else. Everything is torch's own.

8 bits: whole numbers with a scale for every 64 inputs (`model.grids`). 4 bits: NF4, the 16 numbers that share a normal
distribution out evenly, with a scale for every 64 weights; the scales have 8 bits themselves.

Source: Dettmers et al. 2023, arXiv:2305.14314, §3 and appendix E; how scales are rounded is ours: at equal ratios
from the least to the largest of 256, so that small ones keep their share.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from stockpot.model.grids import choose_grid
from stockpot.model.linear import multiply, product

__all__ = ["KINDS", "NF4", "FrozenMatrix", "Kind"]

Kind = Literal["int8", "nf4"]
KINDS: tuple[Kind, ...] = get_args(Kind)
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
SPAN = 64  # weights that share a scale
GROUP = 256  # scales that share a step
FAINT = 1e-18  # of a group's largest scale: a smaller one is no longer told apart, nor is its ratio more than float32 holds
# Weights that are turned back into floats at once, in whole spans: on a CPU as many as stay near it, elsewhere to bound memory.
AT_ONCE = {"cpu": 1 << 17, "other": 1 << 24}


class FrozenMatrix(nn.Module):
    """A matrix ``(outputs, inputs)`` in few bits, and products with it.

    Its buffers belong to no state: they are made again from the model that was frozen.

    Args:
        weight: the matrix; the digits are where it is.
        kind: int8 · nf4.
    """

    def __init__(self, weight: Float[Tensor, "outputs inputs"], kind: Kind) -> None:
        super().__init__()
        self.kind, self.shape = kind, weight.shape
        for name, value in (_int8 if kind == "int8" else _nf4)(weight.detach().float()).items():
            self.register_buffer(name, value, persistent=False)

    @property
    def nbytes(self) -> int:
        """Bytes of memory that the matrix takes."""
        return sum(one.nbytes for one in self.buffers())

    def weight(self, dtype: torch.dtype = torch.float32) -> Float[Tensor, "outputs inputs"]:
        """Return what the digits stand for."""
        return _weight(self.kind, self.shape, dtype, *self.buffers())

    def forward(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Multiply rows with the matrix, in autocast's type if there is one, else in that of ``x``."""
        place = x.device.type
        dtype = torch.get_autocast_dtype(place) if torch.is_autocast_enabled(place) else x.dtype
        out: Tensor = _Multiply.apply(x, self.kind, self.shape, dtype, *self.buffers())  # type: ignore[no-untyped-call]
        return out

    def extra_repr(self) -> str:
        """Say what it is."""
        return f"{tuple(self.shape)}, {self.kind}"


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kind: Kind, shape: torch.Size, dtype: torch.dtype, *held: Tensor
    ) -> Tensor:
        ctx.save_for_backward(*held)  # neither the input nor the floats
        ctx.kind, ctx.shape, ctx.dtype = kind, shape, x.dtype
        return multiply(x.to(dtype), _weight(kind, shape, dtype, *held))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, ...]:
        weight = _weight(ctx.kind, ctx.shape, slope.dtype, *ctx.saved_tensors)
        to_x = product(slope.reshape(-1, slope.shape[-1]), weight).view(*slope.shape[:-1], -1)
        return to_x.to(ctx.dtype), None, None, None, *[None] * len(ctx.saved_tensors)


def _weight(kind: Kind, shape: torch.Size, dtype: torch.dtype, *held: Tensor) -> Tensor:
    """Turn what is held back into floats ``shape``, some rows or spans at a time."""
    return _from_int8(shape, dtype, *held) if kind == "int8" else _from_nf4(shape, dtype, *held)


def _at_once(device: torch.device) -> int:
    return AT_ONCE.get(device.type, AT_ONCE["other"])


# --- 8 bits ---


def _int8(weight: Tensor) -> dict[str, Tensor]:
    grid = choose_grid(weight, 8)
    digits = (grid.digits.to(torch.int16) - grid.offset).to(torch.int8)
    spans = torch.unflatten(F.pad(digits, (0, -weight.shape[1] % SPAN)), 1, (-1, SPAN))
    gain = torch.tensor(grid.gain, device=weight.device)
    return {"digits": spans, "scales": (grid.scales / grid.gain).half(), "gain": gain}


def _from_int8(shape: torch.Size, dtype: torch.dtype, digits: Tensor, scales: Tensor, gain: Tensor) -> Tensor:
    outputs, inputs = shape
    weight = torch.empty(shape, dtype=dtype, device=digits.device)
    rows = max(1, _at_once(digits.device) // inputs)
    for at in range(0, outputs, rows):
        some = slice(at, at + rows)
        wide = digits[some] * (scales[some].float() * gain).unsqueeze(-1)
        weight[some] = wide.flatten(1)[:, :inputs]
    return weight


# --- 4 bits ---


def _nf4(weight: Tensor) -> dict[str, Tensor]:
    spans = F.pad(weight.flatten(), (0, -weight.numel() % SPAN)).view(-1, SPAN)
    levels, steps = _levels(spans.abs().amax(1))
    largest = _largest(levels, steps).unsqueeze(1)
    table = torch.tensor(NF4, device=weight.device)
    borders = (table[1:] + table[:-1]) / 2
    digits = torch.empty(spans.shape, dtype=torch.uint8, device=weight.device)
    each = _at_once(weight.device) // SPAN
    for at in range(0, len(spans), each):
        some = slice(at, at + each)
        digits[some] = torch.bucketize(spans[some] / largest[some], borders, out_int32=True).to(torch.uint8)
    packed = digits.view(-1, 2)
    pairs = torch.cartesian_prod(table, table)  # the two numbers that each byte stands for
    return {
        "digits": packed[:, 0] << 4 | packed[:, 1],
        "levels": levels,
        "steps": steps,
        "pairs": pairs,
    }


def _levels(largest: Float[Tensor, " spans"]) -> tuple[UInt8[Tensor, " spans"], Float[Tensor, "groups 2"]]:
    """Round scales to 8 bits, at equal ratios from the least to the largest of each group.

    Returns:
        levels; and for each group the logarithm of the ratio, and the least scale. An empty span has the least.
    """
    count = len(largest)
    groups = torch.cat([largest, largest[-1:].expand(-count % GROUP)]).view(-1, GROUP)
    least = groups.masked_fill(groups == 0, torch.inf).amin(1)
    least = torch.where(least.isinf(), 1.0, least).maximum(groups.amax(1) * FAINT)
    above = (groups / least[:, None]).clamp(min=1).log()
    step = above.amax(1) / 255
    levels = (above / torch.where(step == 0, 1.0, step)[:, None]).round().clamp(max=255)
    return levels.to(torch.uint8).flatten()[:count], torch.stack((step, least), 1)


def _largest(levels: Tensor, steps: Tensor, first: int = 0) -> Float[Tensor, " spans"]:
    """Turn levels back into scales; ``first``: the number of the first of them."""
    groups = torch.arange(first, first + len(levels), device=levels.device) // GROUP
    step, least = steps[groups].unbind(1)
    return least * (levels * step).exp()


def _from_nf4(
    shape: torch.Size, dtype: torch.dtype, digits: Tensor, levels: Tensor, steps: Tensor, pairs: Tensor
) -> Tensor:
    weight = torch.empty(len(levels) * SPAN, dtype=dtype, device=digits.device)
    each = _at_once(digits.device) // SPAN
    for at in range(0, len(levels), each):
        stop = min(len(levels), at + each)
        shares = F.embedding(digits[at * SPAN // 2 : stop * SPAN // 2].int(), pairs).view(-1, SPAN)
        shares *= _largest(levels[at:stop], steps, at).unsqueeze(1)
        weight[at * SPAN : stop * SPAN] = shares.flatten()
    return weight[: shape.numel()].view(shape)
