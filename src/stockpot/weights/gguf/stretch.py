"""Llama 3's stretched positions, which a GGUF file keeps as a list of factors instead of settings.

Each rotary frequency is divided by its factor. The three settings behind the list (Llama 3's own low and high
bound taken as given) are found again from the factors and accepted only if they give the same list.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, pi

from stockpot.model.config import RopeScaling

__all__ = ["FREQUENCIES", "find_llama3", "llama3_factors"]

FREQUENCIES = "rope_freqs.weight"


def llama3_factors(scaling: RopeScaling, theta: float, width: int) -> list[float]:
    """Return by how much each of the ``width / 2`` frequencies is divided. Source: the Llama 3.1 release."""
    found = []
    for pair in range(0, width, 2):
        turns = scaling.original_context * theta ** (-pair / width) / (2 * pi)
        keep = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
        keep = min(max(keep, 0.0), 1.0)
        found.append(1.0 / (keep + (1.0 - keep) / scaling.factor))
    return found


def find_llama3(factors: Sequence[float], theta: float, width: int) -> RopeScaling | None:
    """Find the settings that give these factors; None if there are none.

    >>> llama3 = RopeScaling(kind="llama3", factor=32.0, original_context=8192)
    >>> find_llama3(llama3_factors(llama3, 500_000.0, 64), 500_000.0, 64) == llama3
    True
    """
    if len(factors) != width // 2 or not all(isfinite(one) and one >= 1.0 for one in factors):
        return None
    plain = RopeScaling(kind="llama3", factor=1.0)
    largest = max(factors)
    contexts = [plain.original_context]
    for number, one in enumerate(factors):
        if 1.0 + 1e-3 < one < largest - 1e-3 * largest:  # between kept and stretched: tells the context
            keep = (1.0 / one - 1.0 / largest) / (1.0 - 1.0 / largest)
            turns = plain.low_freq_factor + keep * (plain.high_freq_factor - plain.low_freq_factor)
            contexts.append(round(turns * 2 * pi * theta ** (2 * number / width)))
    for context in contexts:
        if not 1 <= context < 2**31:
            continue
        found = RopeScaling(kind="llama3", factor=round(largest, 4), original_context=context)
        again = llama3_factors(found, theta, width)
        if all(abs(a - b) <= 1e-4 * b for a, b in zip(factors, again, strict=True)):
            return found
    return None
