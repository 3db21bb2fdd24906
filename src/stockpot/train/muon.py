"""Muon: momentum whose matrix is made orthogonal before it is applied.

Matrices of one shape are handled together, in one stack: a few batched products instead of many small ones. It
decides nothing about which parameters it is given; a fused matrix arrives with the sizes of its parts, and each
part is made orthogonal by itself.

Sources: Jordan et al. 2024, the Muon write-up (momentum, Newton–Schulz); Amsel et al. 2025, arXiv:2505.16932
(the best polynomial of each step); Liu et al. 2025, arXiv:2502.16982, eq. 4 (the size of an update).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stockpot.model import compiled
from stockpot.model.kernels import BUILDS_TRITON

__all__ = ["Matrix", "Muon", "coefficients", "momenta_of", "orthogonalise"]

MARGIN = 1.02  # bf16 may round a singular value above 1, where the polynomials grow fast
UPDATE_RMS = 0.2  # AdamW's updates are about this large, so that one learning rate suits both


@dataclass(frozen=True)
class Matrix:
    """A parameter ``(rows, columns)`` and the sizes of its parts along the rows."""

    parameter: Tensor
    parts: tuple[int, ...]


class Muon:
    """The optimizer's state and step.

    Args:
        matrices: what is trained.
        momentum: share of the old momentum kept, in [0, 1); applied in Nesterov's way.
        iterations: polynomial steps of the orthogonalisation.
        dtype: number type of the orthogonalisation's products.
    """

    def __init__(
        self, matrices: Sequence[Matrix], *, momentum: float, iterations: int, dtype: torch.dtype
    ) -> None:
        self.matrices = list(matrices)
        self.momentum, self.iterations, self.dtype = momentum, iterations, dtype
        self._stacks = [
            _Stack(self.matrices, places, shape) for shape, places in _stacked(self.matrices).items()
        ]

    @torch.no_grad()
    def step(self, lr: float, *, weight_decay: float, is_cautious: bool) -> None:
        """Update every matrix from its gradient.

        Args:
            lr: learning rate of this step.
            weight_decay: share of a weight that decays, per unit of learning rate.
            is_cautious: let a weight decay only where the update moves it towards zero as well
                (Chen et al. 2025, arXiv:2510.12402).
        """
        for stack in self._stacks:
            size = lr * UPDATE_RMS * math.sqrt(max(stack.shape))
            kernels = None if is_cautious else stack.kernels()
            if kernels is not None:
                unit = torch.empty(stack.momentum.shape, dtype=self.dtype, device=stack.momentum.device)
                kernels.gather(stack.gradients(), stack.momentum, unit, keep=self.momentum, margin=MARGIN)
            else:
                gradient = stack.gather()
                stack.momentum.lerp_(gradient, 1 - self.momentum)
                unit = _unit(gradient.lerp_(stack.momentum, self.momentum), self.dtype)
            update = _orthogonal(unit, self.iterations)
            if kernels is not None:
                kernels.apply(stack.weights(), update, keep=1 - lr * weight_decay, step=size)
            else:
                stack.apply(update.mul_(size).to(torch.float32), lr * weight_decay, is_cautious)

    def momenta(self) -> list[Tensor]:
        """Return the momentum of each matrix, as large as the matrix."""
        return momenta_of(self.matrices, [stack.momentum for stack in self._stacks])

    def load_momenta(self, momenta: Sequence[Tensor]) -> None:
        """Take over the momentum of each matrix."""
        places = _stacked(self.matrices).values()
        for stack, group in zip(self._stacks, places, strict=True):
            for row, (index, start, stop) in zip(stack.momentum, group, strict=True):
                row.copy_(momenta[index][start:stop])

    def state_dict(self) -> dict[str, Any]:
        """Return the momenta, one stack for each shape."""
        return {"momentum": [stack.momentum for stack in self._stacks]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over momenta of the same matrices.

        Raises:
            ValueError: if they are of other matrices.
        """
        saved = state["momentum"]
        if [tuple(old.shape) for old in saved] != [tuple(stack.momentum.shape) for stack in self._stacks]:
            raise ValueError("the saved momenta have other shapes")
        for stack, old in zip(self._stacks, saved, strict=True):
            stack.momentum.copy_(old)


def _stacked(matrices: Sequence[Matrix]) -> dict[tuple[int, int], list[tuple[int, int, int]]]:
    """Sort the parts of matrices by their shape: which matrix, first row, last row and one."""
    shapes: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for index, matrix in enumerate(matrices):
        start = 0
        for size in matrix.parts:
            place = (index, start, start + size)
            shapes.setdefault((size, matrix.parameter.shape[1]), []).append(place)
            start += size
    return shapes


def momenta_of(matrices: Sequence[Matrix], stacks: Sequence[Tensor]) -> list[Tensor]:
    """Take stacks of momenta apart: one tensor for each matrix, which may be on the device ``meta``.

    Raises:
        ValueError: if the stacks are of other matrices.
    """
    shapes = _stacked(matrices)
    if [tuple(one.shape) for one in stacks] != [(len(places), *shape) for shape, places in shapes.items()]:
        raise ValueError("the saved momenta have other shapes")
    found = [stacks[0].new_empty(matrix.parameter.shape) for matrix in matrices]
    for stack, places in zip(stacks, shapes.values(), strict=True):
        for row, (index, start, stop) in zip(stack, places, strict=True):
            found[index][start:stop] = row
    return found


class _Stack:
    """All parts of one shape, their gradients and momenta in one tensor each ``(parts, rows, columns)``."""

    def __init__(
        self, matrices: list[Matrix], places: list[tuple[int, int, int]], shape: tuple[int, int]
    ) -> None:
        self.shape = shape
        self._places = [(matrices[index].parameter, start, stop) for index, start, stop in places]
        like = self._places[0][0]
        self.momentum = torch.zeros((len(places), *shape), dtype=torch.float32, device=like.device)
        self._gradient: Tensor | None = None

    def gather(self) -> Tensor:
        """Copy the gradients together; a parameter without one has a gradient of zero."""
        if self._gradient is None:
            self._gradient = torch.empty_like(self.momentum)
        for row, (parameter, start, stop) in zip(self._gradient, self._places, strict=True):
            if parameter.grad is None:
                row.zero_()
            else:
                row.copy_(parameter.grad[start:stop])
        return self._gradient

    def kernels(self) -> ModuleType | None:
        """Return which of our kernels know these weights and gradients: on a CPU, on a GPU, or none."""
        parameters = [parameter for parameter, _, _ in self._places]
        tensors = [*parameters, *(parameter.grad for parameter in parameters)]
        if compiled.suits(*tensors) and all(x is None or x.dtype == torch.float32 for x in tensors):
            return compiled
        if BUILDS_TRITON and self.momentum.is_cuda:
            from stockpot.native import triton_muon

            if triton_muon.suits([*self.weights(), *self.gradients()]):
                return triton_muon
        return None

    def gradients(self) -> list[Tensor | None]:
        """Return the parts of the gradients; None for a parameter without one."""
        return [None if p.grad is None else p.grad[start:stop] for p, start, stop in self._places]

    def weights(self) -> list[Tensor]:
        """Return the parts of the parameters, to be changed in place."""
        return [parameter.data[start:stop] for parameter, start, stop in self._places]

    def apply(self, update: Tensor, decay: float, is_cautious: bool) -> None:
        """Subtract the update and let the weights decay."""
        weights = self.weights()
        if decay and is_cautious:
            for weight, change in zip(weights, update, strict=True):
                change.addcmul_(weight, (weight * change > 0).to(weight.dtype), value=decay)
        elif decay:
            torch._foreach_mul_(weights, 1 - decay)
        torch._foreach_sub_(weights, list(update.unbind()))


def orthogonalise(matrices: Tensor, *, iterations: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Bring all singular values near 1 and keep the singular vectors, by products alone.

    Shapes: matrices ``(parts, rows, columns)``; the result is a new tensor of ``dtype``.

    A matrix of zeros stays zero. The smallest singular values, relative to the Frobenius norm, are raised but do not
    reach 1; see :func:`coefficients`.
    """
    return _orthogonal(_unit(matrices, dtype), iterations)


def _unit(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Divide by the Frobenius norm, and a little more."""
    size: Tensor = matrices.norm(dim=(1, 2), keepdim=True).mul_(MARGIN).clamp_(min=1e-20)
    unit: Tensor = (matrices / size).to(dtype)
    return unit


def _orthogonal(x: Tensor, iterations: int) -> Tensor:
    is_tall = x.shape[1] > x.shape[2]
    for a, b, c in coefficients(iterations):
        gram = torch.bmm(x.mT, x) if is_tall else torch.bmm(x, x.mT)
        inner = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, x, inner, beta=a) if is_tall else torch.baddbmm(x, inner, x, beta=a)
    return x


@functools.cache
def coefficients(iterations: int) -> tuple[tuple[float, float, float], ...]:
    """Compute a, b, c of each step's polynomial ``a x + b x³ + c x⁵`` on the singular values.

    Each step is the odd quintic nearest to 1 on the interval the earlier steps leave, from ``lower`` to 1 at first:
    few steps aim at the larger singular values only. A step stretches its interval's lower end at most
    1 / CUSHION-fold, which keeps rounding in hand.

    Source: Amsel et al. 2025, arXiv:2505.16932, algorithm 1 and §4.
    """
    cushion = 0.024
    low, high = 10 ** (-(iterations + 1) / 2), 1.0
    found = []
    for step in range(iterations):
        a, b, c = _nearest_to_one(max(low, cushion * high), high)
        ends = [a * x + b * x**3 + c * x**5 for x in (low, high)]
        centre = 2 / sum(ends)  # the interval may begin below the one the polynomial was made for
        a, b, c = a * centre, b * centre, c * centre
        low = a * low + b * low**3 + c * low**5
        high = 2 - low
        margin = MARGIN if step < iterations - 1 else 1.0
        found.append((a / margin, b / margin**3, c / margin**5))
    return tuple(found)


def _nearest_to_one(low: float, high: float) -> tuple[float, float, float]:
    """Find the odd quintic whose largest distance to 1 on ``[low, high]`` is least.

    Remez' exchange: the distance is the same, with alternating sign, at both ends and both turning points.
    """
    if low / high > 1 - 1e-5:  # the limit of the exchange, where its equations become singular
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    first, second = (3 * low + high) / 4, (low + 3 * high) / 4
    a = b = c = 0.0
    for _ in range(50):
        rows = [[x, x**3, x**5, sign] for x, sign in ((low, 1), (first, -1), (second, 1), (high, -1))]
        a, b, c, _error = (float(v) for v in np.linalg.solve(np.array(rows), np.ones(4)))
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        before = first, second
        first, second = sorted(math.sqrt((-3 * b + sign * root) / (10 * c)) for sign in (-1, 1))
        if abs(first - before[0]) + abs(second - before[1]) < 1e-12:
            break
    return a, b, c
