"""Guess the next tokens from what was written before, so that one step can check several.

Texts that repeat parts of their prompt (summaries, corrections, code) are written several tokens a step. A guess is only
ever a guess: the model judges every token as it would without one, so the answer is the same.
"""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["Lookup"]

SIZES = (4, 3, 2)  # ids that must have stood together before, longest first


class Lookup:
    """Finds where the last ids stood before, and what followed them there.

    >>> lookup = Lookup([1, 2, 3, 9, 1, 2], 8)
    >>> lookup.guess(5)
    [3, 9, 1, 2, 3]

    Source: Saxena 2023, "Prompt Lookup Decoding"; checking as in Leviathan et al. 2022, arXiv:2211.17192, §2.3.

    Args:
        ids: the prompt.
        most: longest guess.
    """

    def __init__(self, ids: Iterable[int], most: int) -> None:
        self._ids: list[int] = []
        self._follows: list[dict[tuple[int, ...], int]] = [{} for _ in SIZES]
        self._most = self._length = most
        for id in ids:
            self.push(id)

    def push(self, id: int) -> None:
        """Take the next id."""
        for size, follows in zip(SIZES, self._follows, strict=True):
            if len(self._ids) >= size:
                follows[tuple(self._ids[-size:])] = len(self._ids)
        self._ids.append(id)

    def guess(self, most: int) -> list[int]:
        """Return what followed the last ids when they stood together before; often nothing."""
        most = min(most, self._length)
        if most < 1:
            return []
        for size, follows in zip(SIZES, self._follows, strict=True):
            start = follows.get(tuple(self._ids[-size:])) if len(self._ids) >= size else None
            if start is not None:
                period = len(self._ids) - start  # what reaches the end goes on with itself
                return [self._ids[start + at % period] for at in range(most)]
        return []

    def learn(self, guessed: int, right: int) -> None:
        """Hear how many tokens of a guess were right: guess more next time, or less."""
        if right == guessed:
            self._length = min(self._most, 2 * self._length)
        else:
            self._length = min(self._most, max(2, right + 1))
