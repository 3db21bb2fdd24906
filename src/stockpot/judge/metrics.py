"""Scores and their uncertainty: exact match, intervals, paired differences.

Pure functions on numbers and strings. Every estimate comes as an `Estimate`, which carries its number of items and its
95 % interval; a bare mean does not leave this file.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "Estimate",
    "exact_match",
    "final_answer",
    "in_figures",
    "in_words",
    "mcnemar",
    "mean_estimate",
    "normalise_answer",
    "paired_difference",
    "proportion",
    "ratio_estimate",
    "score_estimate",
    "student",
]

Z95 = 1.959963984540054  # 97.5 % point of the standard normal distribution
# Half the width of a 95 % interval of a mean in standard errors, by degrees of freedom (Student 1908)
STUDENT = (math.inf, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
FEW = (
    10  # below so many values a bootstrap is too sure: of five values it misses the truth every seventh time
)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: the estimate.
        low: lower end of the interval.
        high: upper end of the interval.
        n: number of items behind it.
        chance: what guessing would score, or None where guessing has no meaning.
    """

    value: float
    low: float
    high: float
    n: int
    chance: float | None = None

    @property
    def resolution(self) -> float:
        """The smallest step a proportion over n items can move by, 1/n."""
        return 1.0 / self.n

    @property
    def above_chance(self) -> bool | None:
        """Whether the whole interval lies above chance; None without a chance level."""
        return None if self.chance is None else self.has_interval and self.low > self.chance

    @property
    def has_interval(self) -> bool:
        """Whether there is one: a single number that is no proportion has none, and its ends are the number itself."""
        return self.n > 1 or self.low < self.high

    @property
    def interval(self) -> str:
        """The interval as tables show it."""
        return f"[{in_figures(self.low)}, {in_figures(self.high)}]" if self.has_interval else "-"

    def __str__(self) -> str:
        between = f" {self.interval}" if self.has_interval else ""
        return f"{in_figures(self.value)}{between} n={self.n}"


def in_figures(value: float) -> str:
    """Write a score: three decimals, of a million and more (perplexities) four figures.

    >>> in_figures(0.5), in_figures(79466722223015.047)
    ('0.500', '7.947e+13')
    """
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.3e}"


def proportion(successes: int, n: int, *, chance: float | None = None) -> Estimate:
    """Estimate a proportion with Wilson's 95 % interval.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference", JASA 22.

    >>> print(proportion(8, 10))
    0.800 [0.490, 0.943] n=10

    Raises:
        ValueError: if ``n`` is not positive or ``successes`` is outside 0..n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"need 0 <= successes <= n and n >= 1, got {successes} of {n}")
    p, z2 = successes / n, Z95**2
    centre = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    low = 0.0 if successes == 0 else centre - half
    high = 1.0 if successes == n else centre + half
    return Estimate(p, low, high, n, chance)


def student(values: Sequence[float]) -> tuple[float, float]:
    """Return a mean and half the width of its 95 % interval by Student's t; one value has none (infinite).

    >>> mean, half = student([1.0, 2.0, 3.0])
    >>> print(f"{mean:.1f} ± {half:.2f}")
    2.0 ± 2.48
    """
    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, math.inf
    free = len(values) - 1
    half = (
        STUDENT[free] if free < len(STUDENT) else 1.96 + 2.372 / free + 2.823 / free**2
    )  # Cornish and Fisher 1938
    return mean, half * float(np.std(values, ddof=1)) / math.sqrt(len(values))


def mean_estimate(
    values: Sequence[float], *, chance: float | None = None, seed: int = 0, draws: int = 2_000
) -> Estimate:
    """Estimate a mean with a percentile bootstrap interval over items, of fewer than ten with Student's.

    Args:
        values: one number an item.
        chance: what guessing would score.
        seed: of the resampling; the same values and seed give the same interval.
        draws: resamples.

    Raises:
        ValueError: if ``values`` is empty.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        raise ValueError("a mean needs at least one value")
    if array.size < FEW:
        return _of_few(float(array.mean()), array, chance)
    low, high = np.quantile(_resampled_means(array, seed, draws), [0.025, 0.975])
    return Estimate(float(array.mean()), float(low), float(high), array.size, chance)


def score_estimate(values: Sequence[float], *, chance: float | None = None) -> Estimate:
    """Estimate a mean with Wilson's interval where every value is 0 or 1, else with the bootstrap's.

    Raises:
        ValueError: if ``values`` is empty.
    """
    if all(value in (0.0, 1.0) for value in values):
        return proportion(round(sum(values)), len(values), chance=chance)
    return mean_estimate(values, chance=chance)


def ratio_estimate(
    tops: Sequence[float], bottoms: Sequence[float], *, seed: int = 0, draws: int = 2_000
) -> Estimate:
    """Estimate a ratio of sums, such as nats over bytes, with a percentile bootstrap interval over items.

    Of fewer than ten it is Student's, of what each item adds to the ratio (the linear part of Taylor's series).

    Raises:
        ValueError: if the two differ in length, are empty, or the bottoms add up to nothing.
    """
    if len(tops) != len(bottoms) or not tops:
        raise ValueError(f"a ratio needs as many tops as bottoms, got {len(tops)} and {len(bottoms)}")
    pairs = np.array([tops, bottoms], dtype=np.float64)
    if pairs[1].sum() <= 0:
        raise ValueError("the bottoms of a ratio add up to nothing")
    if pairs.shape[1] < FEW:
        ratio = float(pairs[0].sum() / pairs[1].sum())
        return _of_few(ratio, (pairs[0] - ratio * pairs[1]) / pairs[1].mean(), None)
    generator = np.random.default_rng(seed)
    ratios = []
    chunk = max(1, 4_000_000 // pairs.shape[1])
    for start in range(0, draws, chunk):
        picks = generator.integers(0, pairs.shape[1], size=(min(chunk, draws - start), pairs.shape[1]))
        ratios.append(pairs[0][picks].sum(1) / np.maximum(pairs[1][picks].sum(1), 1e-300))
    low, high = np.quantile(np.concatenate(ratios), [0.025, 0.975])
    return Estimate(float(pairs[0].sum() / pairs[1].sum()), float(low), float(high), pairs.shape[1])


def mcnemar(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Give the exact two-sided probability of so uneven a count of items that changed, if both were equally good.

    Only items that one has right and the other wrong count: of 12 such items, 10 in favour of one is

    >>> round(mcnemar([True] * 2 + [False] * 10, [False] * 2 + [True] * 10), 4)
    0.0386

    Raises:
        ValueError: if the two differ in length.

    Source: McNemar 1947; the exact binomial form.
    """
    lost = sum(a and not b for a, b in zip(before, after, strict=True))
    won = sum(b and not a for a, b in zip(before, after, strict=True))
    changed, tail, ways = lost + won, 0, 1
    for k in range(min(lost, won) + 1):
        tail += ways
        ways = ways * (changed - k) // (k + 1)  # from one binomial coefficient to the next
    return min(1.0, float(2 * tail / 2**changed))


def in_words(difference: Estimate, p: float | None = None) -> str:
    """Say what a difference allows to say: better, worse, or inside the noise.

    >>> in_words(Estimate(0.02, -0.01, 0.05, 200, 0.0))
    'inside the noise'
    """
    if not difference.has_interval or difference.low <= 0 <= difference.high or (p is not None and p > 0.05):
        return "inside the noise"
    return "better" if difference.value > 0 else "worse"


def paired_difference(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0, draws: int = 2_000
) -> Estimate:
    """Estimate the mean of ``after - before`` over the same items; chance is 0.

    The difference is inside the noise when the interval contains 0.

    Raises:
        ValueError: if the two differ in length or are empty.
    """
    if len(before) != len(after):
        raise ValueError(f"paired scores need equal lengths, got {len(before)} and {len(after)}")
    gains = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return mean_estimate(gains.tolist(), chance=0.0, seed=seed, draws=draws)


def _of_few(value: float, parts: np.ndarray, chance: float | None) -> Estimate:
    _, half = student(parts.tolist())
    half = half if math.isfinite(half) else 0.0  # of one: see `Estimate.has_interval`
    return Estimate(value, value - half, value + half, parts.size, chance)


def _resampled_means(values: np.ndarray, seed: int, draws: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    chunk = max(1, 4_000_000 // values.size)  # bounds memory for long lists
    parts = []
    for start in range(0, draws, chunk):
        picks = generator.integers(0, values.size, size=(min(chunk, draws - start), values.size))
        parts.append(values[picks].mean(axis=1))
    return np.concatenate(parts)


_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation.replace("-", ""))


def normalise_answer(text: str) -> str:
    """Lower-case, drop punctuation (hyphens stay), articles and extra spaces, as SQuAD's scorer does.

    >>> normalise_answer("The 3rd of  May, 1912.")
    '3rd of may 1912'

    Source: Rajpurkar et al. 2016, arXiv:1606.05250, evaluation script's rules.
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def final_answer(reply: str) -> str:
    """Cut a reply with worked steps down to what it says the answer is; other replies stay as they are.

    >>> final_answer("9 - 3 = 6. 6 + 5 = 11. The answer is 11.")
    '11.'
    """
    return reply.rpartition("The answer is ")[2]


def exact_match(prediction: str, answer: str) -> bool:
    """Say whether two answers are equal after `normalise_answer`."""
    return normalise_answer(prediction) == normalise_answer(answer)
