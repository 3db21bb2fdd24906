"""A scaling law: how the loss falls with parameters and tokens, fitted to runs, with intervals.

``L(N, D) = E + A / N^alpha + B / D^beta``. For given exponents the other three are a linear fit, so the two exponents are
searched on a grid that is refined; errors are relative, and large ones count less (Huber). It trains nothing.

Source: Hoffmann et al. 2022, arXiv:2203.15556, §3.3 and appendix D.3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stockpot.errors import DataError

__all__ = ["Law", "Point", "fit_law", "resampled"]

HUBER = 1e-3  # of log L, as in the source
LEAST_POINTS = 6  # five numbers are fitted
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """A run: parameters in matrix products, tokens, final validation loss in nats."""

    parameters: float
    tokens: float
    loss: float


@dataclass(frozen=True)
class Law:
    """The five numbers."""

    floor: float
    size_factor: float
    alpha: float
    data_factor: float
    beta: float

    def loss(self, parameters: float, tokens: float) -> float:
        """Predict the loss of a run, in nats."""
        return float(
            self.floor + self.size_factor * parameters**-self.alpha + self.data_factor * tokens**-self.beta
        )

    @property
    def trades(self) -> bool:
        """Whether both more parameters and more tokens help, so that there is a best size."""
        return self.size_factor > 0 and self.data_factor > 0

    def best_size(self, flops: float) -> float:
        """Give the parameters that make the loss least for ``flops``, at 6 a parameter and token.

        Source: Hoffmann et al. 2022, eq. 4.
        """
        ratio = (self.alpha * self.size_factor) / (self.beta * self.data_factor)
        total: float = self.alpha + self.beta
        return float(ratio ** (1 / total) * (flops / 6) ** (self.beta / total))


def fit_law(points: Sequence[Point]) -> Law:
    """Fit the law to runs.

    Raises:
        DataError: if they are too few, or of one size or one length only.
    """
    sizes, lengths = {one.parameters for one in points}, {one.tokens for one in points}
    if len(points) < LEAST_POINTS or len(sizes) < 3 or len(lengths) < 3:
        raise DataError(
            f"{len(points)} runs of {len(sizes)} sizes and {len(lengths)} lengths do not settle a law of five numbers.",
            f"Give at least {LEAST_POINTS} runs, of at least three sizes and three lengths.",
        )
    n, d, losses = (np.array([getattr(p, name) for p in points]) for name in ("parameters", "tokens", "loss"))
    centre, width = np.array([0.5, 0.5]), 0.48
    found: tuple[float, Array, Array] | None = None
    for _ in range(6):
        axes = [np.clip(np.linspace(c - width, c + width, 25), 0.02, 2.0) for c in centre]
        exponents = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
        costs, linear = _linear(exponents, n, d, losses)
        best = int(np.argmin(costs))
        if found is None or costs[best] < found[0]:
            found = float(costs[best]), exponents[best], linear[best]
        centre, width = found[1], width / 4 if width < 0.4 else width / 2
    floor, size_factor, data_factor = (float(one) for one in found[2])  # type: ignore[index]
    alpha, beta = (float(one) for one in found[1])  # type: ignore[index]
    return Law(
        floor, size_factor * float(n.min()) ** alpha, alpha, data_factor * float(d.min()) ** beta, beta
    )


def _linear(exponents: Array, n: Array, d: Array, losses: Array) -> tuple[Array, Array]:
    """Fit floor and factors for every pair of exponents ``(pairs, 2)``; negative ones are set to 0 and the rest fitted anew.

    Returns:
        costs ``(pairs,)`` and floor, factors ``(pairs, 3)``, of sizes relative to the smallest.
    """
    ones = np.ones((len(exponents), len(n)))
    columns = [ones, (n / n.min()) ** -exponents[:, :1], (d / d.min()) ** -exponents[:, 1:]]
    design = np.stack(columns, -1) / losses[:, None]  # relative errors
    products = np.stack([design[..., c] * design[..., d] for c, d in _PAIRS], -1)  # (pairs, runs, 6)
    weights, solution = np.ones((len(exponents), len(n))), np.zeros((len(exponents), 3))
    for _ in range(8):
        solution = _solve(weights, design, products)
        errors = np.abs((design @ solution[..., None])[..., 0] - 1)
        weights = np.minimum(1.0, HUBER / np.maximum(errors, 1e-12))
    return np.where(errors < HUBER, errors**2 / 2, HUBER * (errors - HUBER / 2)).sum(1), solution


_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


def _solve(weights: Array, design: Array, products: Array) -> Array:
    """Solve weighted least squares with nothing negative, for every pair at once; ``products`` are those of `_PAIRS`."""
    normal = (weights[:, None] @ products)[:, 0].T  # (6, pairs)
    right = (weights[:, None] @ design)[:, 0].T  # (3, pairs)
    solution = _eliminated(normal, right)
    for _ in range(2):
        if (solution >= 0).all():
            break
        free = (solution >= 0) & (right != 0)
        right = right * free  # what is 0 stands alone: 1 × it = 0
        normal = np.stack(
            [normal[i] * free[c] * free[d] + (c == d) * ~free[c] for i, (c, d) in enumerate(_PAIRS)]
        )
        solution = _eliminated(normal, right)
    return np.maximum(solution, 0.0).T


def _eliminated(normal: Array, right: Array) -> Array:
    """Solve symmetric systems of three equations by elimination, side by side: LAPACK would be called for each."""
    a, b, c, d, e, f = normal + np.array([1, 0, 0, 1, 0, 1])[:, None] * 1e-14
    x, y, z = right
    second, third = b / a, c / a
    d, e, f, y, z = d - second * b, e - second * c, f - third * c, y - second * x, z - third * x
    last = e / d
    found_z = (z - last * y) / (f - last * e)
    found_y = (y - e * found_z) / d
    return np.stack([(x - b * found_y - c * found_z) / a, found_y, found_z])


def resampled(points: Sequence[Point], *, draws: int = 200, seed: int = 0) -> list[Law]:
    """Fit the law to runs drawn anew with replacement, for intervals; draws that settle nothing are passed over."""
    generator = np.random.default_rng(seed)
    found: list[Law] = []
    for _ in range(draws):
        drawn = [points[i] for i in generator.integers(0, len(points), len(points))]
        if len({p.parameters for p in drawn}) >= 3 and len({p.tokens for p in drawn}) >= 3:
            found.append(fit_law(drawn))
    return found
