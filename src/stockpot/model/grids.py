"""Weights as whole numbers on a grid: how they are chosen, and products with them.

A weight is ``scale * (digit - offset)`` or ``scale * digit + low``, with one scale for each output and each span
of inputs. Scales and lows are numbers that a half can hold, times one power of two for the whole matrix, so
that rounding them costs nothing. Two kinds of product exist for the same digits: our kernels', which round their
inputs too (16 bits for weights of 8, 8 bits for weights of 4), and torch's for machines without a compiler.
"""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from stockpot.native.calls import Kernels, MatrixFacts

__all__ = ["SPANS", "Grid", "Matrix", "NativeMatrix", "TorchMatrix", "choose_grid"]

SPANS = {8: 64, 4: 32}  # inputs that share a scale
LANES = 16  # outputs come in multiples of these in our kernels, inputs in whole spans
HALF_TOP = 14  # the largest scale is about 2 ** 14, so that small ones keep all their digits


class Grid(NamedTuple):
    """A matrix ``(outputs, inputs)`` as whole numbers.

    Attributes:
        digits: uint8 ``(outputs, inputs)``.
        scales: float32 ``(outputs, spans)``.
        lows: float32 ``(outputs, spans)``: what the digit 0 stands for; None: digits are centred.
        bits: 8 or 4.
        gain: the power of two that scales and lows are multiples of.
    """

    digits: Tensor
    scales: Tensor
    lows: Tensor | None
    bits: int
    gain: float

    @property
    def span(self) -> int:
        """Inputs that share a scale."""
        return SPANS[self.bits]

    @property
    def offset(self) -> int:
        """The digit that stands for 0 where there are no lows."""
        return 0 if self.lows is not None else 1 << (self.bits - 1)

    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """Return the weights the digits stand for."""
        inputs = self.digits.shape[1]
        scales = self.scales.repeat_interleave(self.span, 1)[:, :inputs]
        weight = (self.digits.float() - self.offset) * scales
        if self.lows is not None:
            weight += self.lows.repeat_interleave(self.span, 1)[:, :inputs]
        return weight


def choose_grid(weight: Float[Tensor, "outputs inputs"], bits: int) -> Grid:
    """Choose scales and digits for a matrix.

    8 bits: centred, the largest weight of a span decides. 4 bits: the smallest and the largest weight of a span
    are kept, which gives back exactly what a file of that kind (GGUF's Q4_1) holds.
    """
    if bits not in SPANS:
        raise ValueError(f"weights have 8 or 4 bits, not {bits}")
    span, inputs = SPANS[bits], weight.shape[1]
    spans = torch.unflatten(
        F.pad(weight.float(), (0, -inputs % span)), 1, (-1, span)
    )  # (outputs, spans, span)
    if bits == 8:
        gain, scales = _as_halves(spans.abs().amax(-1) / 127)
        digits = (spans / _divisor(scales)).round().clamp(-127, 127) + 128
        lows = None
    else:
        real = torch.unflatten(
            F.pad(torch.ones_like(weight, dtype=torch.bool), (0, -inputs % span)), 1, (-1, span)
        )
        least = spans.masked_fill(~real, torch.inf).amin(-1)
        most = spans.masked_fill(~real, -torch.inf).amax(-1)
        gain = _gain(torch.maximum(least.abs(), most.abs()))
        lows = (least / gain).half().float() * gain
        scales = ((most - lows) / 15 / gain).half().float() * gain
        digits = ((spans - lows.unsqueeze(-1)) / _divisor(scales)).round().clamp(0, 15)
    return Grid(digits.flatten(1)[:, :inputs].to(torch.uint8), scales, lows, bits, gain)


def _gain(sizes: Tensor) -> float:
    top = float(sizes.max()) if sizes.numel() else 0.0
    return 2.0 ** (torch.frexp(torch.tensor(top)).exponent.item() - HALF_TOP) if top > 0 else 1.0


def _as_halves(scales: Tensor) -> tuple[float, Tensor]:
    """Round scales to what halves times a gain can hold."""
    gain = _gain(scales)
    return gain, (scales / gain).half().float() * gain


def _divisor(scales: Tensor) -> Tensor:
    return torch.where(scales == 0, 1.0, scales).unsqueeze(-1)


class NativeMatrix:
    """Digits in the order of our kernels (see ``native/products.hpp``).

    Args:
        grid: the matrix.
        kernels: what multiplies.
        is_paired: the outputs are two halves, gate and value, whose blocks of 16 are stored in turns.
    """

    def __init__(self, grid: Grid, kernels: Kernels, *, is_paired: bool = False) -> None:
        scales, lows = grid.scales, grid.lows
        digits = _take_turns(grid.digits) if is_paired else grid.digits
        if is_paired:
            scales, lows = _take_turns(scales), None if lows is None else _take_turns(lows)
        packed = _pack(digits, grid.bits), _side_by_side(scales, grid.gain)
        beside = None if lows is None else _side_by_side(lows, grid.gain)
        self._keep(kernels, grid.digits.shape, (*packed, beside), grid.bits, grid.gain, is_paired)

    @classmethod
    def of(
        cls,
        weight: Float[Tensor, "outputs inputs"],
        bits: int,
        kernels: Kernels,
        *,
        is_paired: bool = False,
    ) -> NativeMatrix:
        """Do what :func:`choose_grid` and the constructor do, to the bit, in our kernels."""
        floats = weight.detach().float().contiguous()
        outputs, inputs = floats.shape
        span = SPANS[bits]
        blocks, spans = -(-outputs // LANES), -(-inputs // span)
        digits = torch.empty((blocks, spans * span * LANES * bits // 8), dtype=torch.uint8)
        scales = torch.empty((blocks, spans, LANES), dtype=torch.float16)
        lows = None if bits == 8 else torch.empty_like(scales)
        threads = torch.get_num_threads()
        top = torch.tensor(kernels.top(floats.data_ptr(), floats.numel(), threads))
        made = object.__new__(cls)
        gain = _gain(top / 127 if bits == 8 else top)
        made._keep(kernels, floats.shape, (digits, scales, lows), bits, gain, is_paired)
        kernels.pack(floats.data_ptr(), outputs, inputs, made.facts, threads, is_paired=is_paired)
        return made

    def _keep(
        self,
        kernels: Kernels,
        shape: torch.Size,
        parts: tuple[Tensor, Tensor, Tensor | None],
        bits: int,
        gain: float,
        is_paired: bool,
    ) -> None:
        self.outputs, self.inputs = shape
        self.is_paired, self._kernels = is_paired, kernels
        self.digits, self.scales, self.lows = parts
        self.facts = MatrixFacts(
            self.digits.data_ptr(),
            self.scales.data_ptr(),
            None if self.lows is None else self.lows.data_ptr(),
            self.digits.shape[0] * LANES,
            self.inputs + -self.inputs % SPANS[bits],
            bits,
            gain,
        )

    @property
    def nbytes(self) -> int:
        """Bytes read for one product."""
        return self.digits.nbytes + self.scales.nbytes + (0 if self.lows is None else self.lows.nbytes)

    def multiply(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Multiply rows with the matrix; the inputs are rounded to 16 bits."""
        rows = x.detach().float().reshape(-1, self.inputs)
        rows = F.pad(rows, (0, -self.inputs % LANES)).contiguous()
        out = torch.empty(rows.shape[0], self.facts.outputs)
        if rows.shape[0]:
            threads = torch.get_num_threads()
            self._kernels.multiply(
                self.facts, rows.data_ptr(), rows.shape[0], rows.shape[1], out.data_ptr(), threads
            )
        if self.is_paired:
            out = torch.unflatten(out, 1, (-1, 2, LANES)).transpose(1, 2).flatten(1)
        return out[:, : self.outputs].reshape(*x.shape[:-1], self.outputs).to(x.dtype)

    def rows(self, ids: Int[Tensor, ...]) -> Float[Tensor, "... inputs"]:
        """Look up rows of the matrix."""
        flat = ids.reshape(-1).contiguous()
        if flat.numel() and not 0 <= int(flat.min()) <= int(flat.max()) < self.outputs:
            raise IndexError(f"an id is outside of 0 to {self.outputs - 1}")
        out = torch.empty(flat.shape[0], self.inputs)
        self._kernels.read_rows(self.facts, flat.data_ptr(), flat.shape[0], self.inputs, out.data_ptr())
        return out.reshape(*ids.shape, self.inputs)


def _take_turns(values: Tensor) -> Tensor:
    """Put the blocks of 16 rows of two halves in turns."""
    return torch.unflatten(values, 0, (2, -1, LANES)).transpose(0, 1).flatten(0, 2)


def _pack(digits: UInt8[Tensor, "outputs inputs"], bits: int) -> Tensor:
    """Order digits as the kernels read them: ``(blocks, bytes)``."""
    outputs, inputs = digits.shape
    blocks = torch.unflatten(F.pad(digits, (0, -inputs % SPANS[bits], 0, -outputs % LANES)), 0, (-1, LANES))
    if bits == 8:  # a line: four inputs, of which 0 and 2 are neighbours, then 1 and 3
        lines = torch.unflatten(blocks, 2, (-1, 2, 2)).permute(0, 2, 1, 4, 3)
    else:  # a line: eight inputs, of which 0 and 4 share a byte
        fours = torch.unflatten(blocks, 2, (-1, 2, 4)).permute(0, 2, 1, 3, 4)
        lines = fours[:, :, :, 0] | (fours[:, :, :, 1] << 4)
    return lines.contiguous().flatten(1)


def _side_by_side(values: Float[Tensor, "outputs spans"], gain: float) -> Tensor:
    """Put the values of 16 outputs side by side as halves: ``(blocks, spans, 16)``."""
    whole = F.pad(values / gain, (0, 0, 0, -values.shape[0] % LANES))
    return torch.unflatten(whole, 0, (-1, LANES)).transpose(1, 2).half().contiguous()


class TorchMatrix:
    """The same digits for torch's own kernels; those that torch cannot take become floats."""

    def __init__(self, grid: Grid) -> None:
        self.outputs, self.inputs = grid.digits.shape
        self._parts: list[tuple[Tensor, Tensor]] = []
        self._packed: tuple[Tensor, Tensor] | None = None
        self._weight: Tensor | None = None
        self._grid = grid
        fits = self.outputs % LANES == 0 and self.inputs % grid.span == 0
        if fits and grid.bits == 8 and hasattr(torch, "_weight_int8pack_mm"):
            centred = (grid.digits.to(torch.int16) - grid.offset).to(torch.int8)
            self._parts = [
                (part.contiguous(), grid.scales[:, at].contiguous())
                for at, part in enumerate(torch.split(centred, grid.span, 1))
            ]
        elif fits and grid.bits == 4 and hasattr(torch, "_weight_int4pack_mm_for_cpu"):
            packed = torch._convert_weight_to_int4pack_for_cpu(grid.digits.int(), 1)
            lows = -grid.offset * grid.scales if grid.lows is None else grid.lows
            centre = 8 * grid.scales + lows  # torch counts digits from 8
            self._packed = packed, torch.stack((grid.scales, centre), -1).transpose(0, 1).contiguous()
        else:
            self._weight = grid.weight()

    @property
    def nbytes(self) -> int:
        """Bytes read for one product."""
        tensors = [tensor for part in self._parts for tensor in part]
        tensors += list(self._packed or ()) + ([] if self._weight is None else [self._weight])
        return sum(tensor.nbytes for tensor in tensors)

    def multiply(self, x: Float[Tensor, "... inputs"]) -> Float[Tensor, "... outputs"]:
        """Multiply rows with the matrix, in float32."""
        if self._weight is not None:
            return F.linear(x.float(), self._weight).to(x.dtype)
        rows = x.detach().float().reshape(-1, self.inputs).contiguous()
        if self._packed is not None:
            digits, scales = self._packed
            out = torch._weight_int4pack_mm_for_cpu(rows, digits, SPANS[4], scales)
        else:
            parts = zip(torch.split(rows, SPANS[8], 1), self._parts, strict=True)
            out = sum(
                (torch._weight_int8pack_mm(part.contiguous(), *weight) for part, weight in parts),
                start=torch.zeros(()),
            )
        return out.reshape(*x.shape[:-1], self.outputs).to(x.dtype)

    def rows(self, ids: Int[Tensor, ...]) -> Float[Tensor, "... inputs"]:
        """Look up rows of the matrix."""
        flat = ids.reshape(-1)
        grid = self._grid
        lows = None if grid.lows is None else grid.lows[flat]
        part = Grid(grid.digits[flat], grid.scales[flat], lows, grid.bits, grid.gain)
        return part.weight().reshape(*ids.shape, self.inputs)


Matrix: TypeAlias = NativeMatrix | TorchMatrix
