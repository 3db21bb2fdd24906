"""Where in a model a task is solved, in numbers: expected layer, centre of gravity, order of tasks, and how sure they are.

Pure functions on scores. Intervals are percentile bootstraps over sentences (passages) and seeds together; a quantity that
has no value (no gain from layer 0 to the last, so nothing to place) is None, never a number that looks like one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from stockpot.judge.metrics import Estimate

__all__ = [
    "DRAWS",
    "Located",
    "Order",
    "Tally",
    "centre_of_gravity",
    "draw_weights",
    "expected_layer",
    "located",
    "online_code",
    "order_of",
    "scores_of",
    "share_right",
]

DRAWS = 2000
UNRESOLVED = 0.05  # share of resamples without a gain above which an expected layer is not reported
Floats = NDArray[np.float64]


def expected_layer(scores: Sequence[float], layers: Sequence[int] | None = None) -> float | None:
    """Return the layer at which a task is solved on average: the mean of layers, weighed by what each adds.

    The weights are differential scores, the score of layers 0 … l minus that of layers 0 … l − 1; they may be negative.
    Without a gain in total there is nothing to place, and the answer is None.

    >>> expected_layer([0.5, 0.7, 0.9, 0.9])
    1.5
    >>> expected_layer([0.6, 0.7, 0.6]) is None
    True

    Args:
        scores: of probes that see layers up to each of ``layers``.
        layers: their numbers; 0, 1, 2 … by default.

    Raises:
        ValueError: if the two differ in length or there are fewer than two.

    Source: Tenney et al. 2019, arXiv:1905.05950, eq. 3 and 4.
    """
    numbers = np.arange(len(scores)) if layers is None else np.asarray(layers)
    if len(numbers) != len(scores) or len(scores) < 2:
        raise ValueError(
            f"need a score for each of at least two layers, got {len(scores)} and {len(numbers)}"
        )
    found = float(_expected(np.asarray(scores, np.float64)[None], numbers.astype(np.float64))[0])
    return None if math.isnan(found) else found


def _expected(scores: Floats, layers: Floats) -> Floats:
    """Return the expected layer of each row of scores ``(rows, layers)``; NaN without a gain."""
    gains = np.diff(scores, axis=1)
    total = scores[:, -1] - scores[:, 0]
    safe = np.where(total > 1e-12, total, np.nan)
    found: Floats = (gains * layers[1:]).sum(1) / safe
    return found


def centre_of_gravity(weights: Sequence[float], layers: Sequence[int] | None = None) -> float:
    """Return the mean layer of a mix.

    >>> centre_of_gravity([0.25, 0.25, 0.5])
    1.25

    Source: Tenney et al. 2019, arXiv:1905.05950, eq. 2.
    """
    numbers = np.arange(len(weights)) if layers is None else np.asarray(layers)
    return float(np.dot(np.asarray(weights, np.float64), numbers) / np.sum(weights))


def online_code(blocks: Sequence[float], sizes: Sequence[int], classes: int) -> tuple[float, float]:
    """Return the length in bits of the labels sent block by block, and how much shorter that is than sending them plainly.

    The first block is sent plainly, each later one by a probe trained on all before it.

    Args:
        blocks: nats of each block but the first, under its probe.
        sizes: labels of every block, the first included.
        classes: number of labels.

    Source: Voita and Titov 2020, arXiv:2003.12298, eq. 3.
    """
    plain = sum(sizes) * math.log2(classes)
    bits = sizes[0] * math.log2(classes) + sum(blocks) / math.log(2)
    return bits, plain / bits


@dataclass(frozen=True)
class Tally:
    """Right answers of one task, gathered by passage.

    Attributes:
        right: ``(seeds, layers, passages)``: right targets under the probe that sees layers up to each.
        count: ``(passages,)``: targets.
        passages: their numbers, by which tasks on the same text are resampled together.
    """

    right: Floats
    count: Floats
    passages: NDArray[np.int64]

    @classmethod
    def of(cls, right: NDArray[np.bool_], owners: NDArray[np.int64], seeds: int) -> Tally:
        """Gather ``(seeds * layers, targets)`` by the passage of each target."""
        passages, places = np.unique(owners, return_inverse=True)
        count = np.bincount(places, minlength=len(passages)).astype(np.float64)
        rows = np.stack([np.bincount(places, weights=row, minlength=len(passages)) for row in right])
        return cls(rows.reshape(seeds, -1, len(passages)).astype(np.float64), count, passages)


def draw_weights(passages: int, seed: int = 0, draws: int = DRAWS) -> Floats:
    """Draw how often each passage is in each resample ``(draws, passages)``; the first row is the sample itself."""
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(passages, np.full(passages, 1 / passages), size=draws).astype(np.float64)
    return np.concatenate([np.ones((1, passages)), drawn])


def scores_of(tally: Tally, weights: Floats, seed: int = 0) -> Floats:
    """Return the share of right answers at each layer in each resample ``(resamples, layers)``; row 0 is the sample.

    Args:
        tally: of a task.
        weights: of all passages there are, from `draw_weights`.
        seed: of the resampling of seeds.
    """
    own = weights[:, tally.passages]  # (resamples, passages)
    seeds = tally.right.shape[0]
    counts = own @ tally.count
    shares = np.einsum("rp,slp->rsl", own, tally.right) / np.maximum(counts, 1)[:, None, None]
    rng = np.random.default_rng(seed)
    picks = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=len(weights)) / seeds
    picks[0] = 1 / seeds
    found: Floats = np.einsum("rsl,rs->rl", shares, picks)
    return found


@dataclass(frozen=True)
class Located:
    """A place in a model with its 95 % interval.

    Attributes:
        value: the expected layer; None where the gain over layer 0 is not clear of zero.
        low: lower end.
        high: upper end.
        without_gain: share of resamples in which the last layer was no better than layer 0.
    """

    value: float | None
    low: float | None
    high: float | None
    without_gain: float

    def __str__(self) -> str:
        if self.value is None:
            return "not resolved"
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}]"


def located(scores: Floats, layers: Sequence[int]) -> tuple[Located, Floats]:
    """Place a task from the scores of all resamples; returns the place and the expected layer of each resample."""
    drawn = _expected(scores, np.asarray(layers, np.float64))
    missing = float(np.isnan(drawn[1:]).mean())
    if math.isnan(drawn[0]) or missing > UNRESOLVED:
        return Located(None, None, None, missing), drawn
    low, high = np.nanquantile(drawn[1:], [0.025, 0.975])
    return Located(float(drawn[0]), float(low), float(high), missing), drawn


def share_right(scores: Floats, layer: int, n: int, chance: float | None) -> Estimate:
    """Return the score at a layer with its interval."""
    low, high = np.quantile(scores[1:, layer], [0.025, 0.975])
    return Estimate(float(scores[0, layer]), float(low), float(high), n, chance)


@dataclass(frozen=True)
class Order:
    """How surely tasks come in a given order.

    Attributes:
        tasks: in that order.
        pairs: (earlier, later, share of resamples in which that is so) for every pair.
        whole: share of resamples in which the whole order holds.
        tau: Kendall's rank correlation with the order, 1 = the same.
        tau_low: lower end of its 95 % interval.
        tau_high: upper end.
    """

    tasks: tuple[str, ...]
    pairs: tuple[tuple[str, str, float], ...]
    whole: float
    tau: float
    tau_low: float
    tau_high: float


def order_of(drawn: Mapping[str, Floats], order: Sequence[str]) -> Order | None:
    """Compare the places of tasks, resample by resample, with an order; None with fewer than two placed tasks.

    Args:
        drawn: task → its expected layer in each resample; row 0 is the sample itself.
        order: of tasks; those that were not placed are passed over.
    """
    tasks = [task for task in order if task in drawn]
    if len(tasks) < 2:
        return None
    pairs = [(a, b, _before(drawn[a], drawn[b])) for a, b in combinations(tasks, 2)]
    signs = np.stack([np.sign(drawn[b] - drawn[a]) for a, b in combinations(tasks, 2)])
    known = ~np.isnan(signs)
    taus = np.where(known.any(0), np.where(known, signs, 0.0).sum(0) / np.maximum(known.sum(0), 1), np.nan)
    low, high = np.nanquantile(taus[1:], [0.025, 0.975])
    whole = (signs[:, 1:] > 0).all(0).mean()
    return Order(tuple(tasks), tuple(pairs), float(whole), float(taus[0]), float(low), float(high))


def _before(first: Floats, second: Floats) -> float:
    known = ~(np.isnan(first[1:]) | np.isnan(second[1:]))
    return float((first[1:][known] < second[1:][known]).mean()) if known.any() else math.nan
