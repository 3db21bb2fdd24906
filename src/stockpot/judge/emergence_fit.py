"""Is it a jump? Two shapes of equal freedom, fitted to the same points, and a verdict with its certainty.

Pure functions on numbers. Both shapes are a low level, a high level and a place of the rise between them along the
logarithm of compute; the sharp one rises within one step between neighbouring models, the smooth one over the whole range.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Form", "Shapes", "compare_shapes", "powers", "sentence_of", "shape_values"]

Form = Literal["sharp", "smooth", "undecided", "flat"]
Floats = NDArray[np.float64]
CENTRES = 101
RISE = 2 * math.log(9)  # a logistic goes from 10 % to 90 % of its rise within this many units of its argument
SURE = 0.975


@dataclass(frozen=True)
class Shapes:
    """Which shape fits a curve better.

    Attributes:
        form: sharp, smooth, undecided, or flat: the curve does not rise beyond its noise.
        sharp_wins: share of resamples in which the sharp shape fits better; 1 or 0 without resamples.
        sharp_error: root mean square error of the sharp shape on the curve itself.
        smooth_error: the same of the smooth one.
        sharp: its low level, high level, centre (log10 of compute) and width of the rise (decades).
        smooth: the same of the smooth one.
    """

    form: Form
    sharp_wins: float
    sharp_error: float
    smooth_error: float
    sharp: tuple[float, float, float, float]
    smooth: tuple[float, float, float, float]


def shape_values(x: Floats, shape: tuple[float, float, float, float]) -> Floats:
    """Return the heights of a shape at the logarithms of compute ``x``."""
    low, high, centre, width = shape
    found: Floats = low + (high - low) * _rise(x, centre, width)
    return found


def _rise(x: Floats, centre: float, width: float) -> Floats:
    found: Floats = 1 / (1 + np.exp(-np.clip((x - centre) * RISE / width, -60, 60)))
    return found


def compare_shapes(x: Sequence[float], y: Floats) -> Shapes:
    """Fit both shapes to a curve and to each of its resamples.

    Args:
        x: log10 of compute of at least four models, in rising order.
        y: ``(1 + resamples, models)``; row 0 is the curve itself.

    Raises:
        ValueError: if there are fewer than four different places.
    """
    places = np.asarray(x, np.float64)
    steps = np.diff(places)
    if len(places) < 4 or (steps <= 0).any():
        raise ValueError("comparing shapes needs at least four models of different compute, in rising order")
    sharp_error, sharp = _fit(places, y, float(np.median(steps)))
    smooth_error, smooth = _fit(places, y, float(places[-1] - places[0]))
    own_sharp, own_smooth = float(sharp_error[0]), float(smooth_error[0])
    if len(y) == 1:
        wins = float(own_sharp < own_smooth)
        form: Form = "sharp" if wins else "smooth"
        if np.ptp(y[0]) < 1e-9:
            form = "flat"
    else:
        wins = float((sharp_error[1:] < smooth_error[1:]).mean())
        form = "sharp" if wins >= SURE else "smooth" if wins <= 1 - SURE else "undecided"
        rise = y[1:, -1] - y[1:, 0]
        low, high = np.quantile(rise, [0.025, 0.975])
        if low <= 0 <= high and _within_noise(y):
            form = "flat"
    return Shapes(form, wins, own_sharp, own_smooth, sharp, smooth)


def _within_noise(y: Floats) -> bool:
    """Tell whether one level would lie inside every model's interval."""
    low, high = np.quantile(y[1:], [0.025, 0.975], axis=0)
    return bool(low.max() <= high.min())


def _fit(x: Floats, y: Floats, width: float) -> tuple[Floats, tuple[float, float, float, float]]:
    """Return the error of the best shape for each row, and the shape of row 0."""
    best = np.full(len(y), np.inf)
    shape = (0.0, 0.0, 0.0, width)
    for centre in np.linspace(x[0], x[-1], CENTRES):
        basis = np.stack([np.ones_like(x), _rise(x, float(centre), width)], 1)  # (models, 2)
        solved, *_ = np.linalg.lstsq(basis, y.T, rcond=None)
        error = np.sqrt(np.square(y - (basis @ solved).T).mean(1))
        if error[0] < best[0]:
            shape = (float(solved[0, 0]), float(solved[:, 0].sum()), float(centre), width)
        best = np.minimum(best, error)
    return best, shape


def powers(share: Floats, tokens: Floats) -> Floats:
    """Predict exact match from the share of right tokens: p to the power of the answer's length.

    >>> powers(np.array([0.5, 0.9]), np.array([2.0, 1.0])).tolist()
    [0.25, 0.9]

    Source: Schaeffer et al. 2023, arXiv:2304.15004, section 2.
    """
    found: Floats = np.power(share, tokens)
    return found


def sentence_of(
    task: str,
    forms: Mapping[str, tuple[str, Shapes]],
    *,
    off: float | None,
    largest: float,
    unseen: float | None,
) -> str:
    """Say in one sentence whether the jump of exact match survives another metric.

    Args:
        task: its name.
        forms: metric → (what it is called, its shapes); ``exact`` is exact match.
        off: how far p^n is from exact match on average; None if unknown.
        largest: exact match of the largest model.
        unseen: exact match below which the items see nothing (3/n); None if n is unknown.
    """
    exact = forms["exact"][1]
    others = [(called, shapes) for name, (called, shapes) in forms.items() if name != "exact"]
    smooth = [called for called, shapes in others if shapes.form == "smooth"]
    sharp = [called for called, shapes in others if shapes.form == "sharp"]
    predicted = (
        "" if off is None else f"; p^n from the likelihood of tokens is {off:.3f} away from it on average"
    )
    if exact.form == "flat" and unseen is not None and largest > unseen:
        return (
            f"{task}: the largest model's exact match is {largest:.3f}, but its interval reaches down to the smaller models': "
            "whether exact match rises is not decided."
        )
    if exact.form == "flat":
        limit = "" if unseen is None else f" (fewer than {unseen:.3f} cannot be seen with these items)"
        return f"{task}: exact match does not rise{limit}, so there is no jump to explain."
    if exact.form == "smooth":
        return f"{task}: exact match rises smoothly to {largest:.3f}{predicted}; there is no jump."
    if exact.form == "undecided":
        return (
            f"{task}: whether exact match jumps or rises smoothly is not decided by these models and items "
            f"(sharp in {100 * exact.sharp_wins:.0f} % of resamples){predicted}."
        )
    head = f"{task}: exact match jumps to {largest:.3f}{predicted}"
    if smooth:
        also = f", though {_listed(sharp)} jump too" if sharp else ""
        return f"{head}; of the same outputs {_listed(smooth)} rise smoothly{also}, so the jump does not survive the metric."
    if sharp and len(sharp) == len(others):
        return f"{head}; {_listed(sharp)} of the same outputs jump too, so the jump survives."
    return f"{head}; whether it survives another metric is not decided by these models and items."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
