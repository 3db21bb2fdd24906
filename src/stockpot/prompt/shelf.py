"""A few passages in memory, found by their words: retrieval that needs no store, no encoder and no extra.

For more than some thousand passages, and for questions that do not share words with their answers, there is `index`.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Found", "Shelf"]

_WORD = re.compile(r"\w+")
K1, B = 1.2, 0.75  # Robertson and Zaragoza 2009, "The probabilistic relevance framework", §3.5.1


@dataclass(frozen=True)
class Found:
    """A passage, its BM25 score, and the share of the question's words, weighed by rarity, that it holds."""

    text: str
    score: float
    covers: float


class Shelf:
    """Passages ranked by BM25 (Robertson and Zaragoza 2009, eq. 3.15).

    Args:
        passages: what is found.
        background: further texts, such as other questions, that say which words are common.

    >>> shelf = Shelf(["The mill had 21 workers.", "Max lives at 3 Hill Road."])
    >>> shelf.find("How many workers does the mill have?", 1)[0].text
    'The mill had 21 workers.'
    """

    def __init__(self, passages: Sequence[str], background: Sequence[str] = ()) -> None:
        self.passages = tuple(passages)
        self._counts = [Counter(_words(text)) for text in self.passages]
        self._lengths = [sum(one.values()) for one in self._counts]
        self._mean = sum(self._lengths) / max(1, len(self._lengths))
        self._texts = len(self.passages) + len(background)
        self._holding = Counter(word for one in self._counts for word in one)
        self._holding.update(word for text in background for word in set(_words(text)))

    def rarity(self, word: str) -> float:
        """Weigh a word by how few texts hold it; one that none holds counts as the rarest."""
        holding = self._holding[word]
        return math.log(1 + (self._texts - holding + 0.5) / (holding + 0.5))

    def find(self, question: str, k: int) -> list[Found]:
        """Find the ``k`` passages that fit a question best, the best first; those without a word of it are left out."""
        asked = list(dict.fromkeys(_words(question)))
        whole = sum(self.rarity(word) for word in asked)
        found = []
        for text, counts, length in zip(self.passages, self._counts, self._lengths, strict=True):
            shared = [word for word in asked if counts[word]]
            if not shared:
                continue
            norm = K1 * (1 - B + B * length / self._mean)
            score = sum(self.rarity(w) * counts[w] * (K1 + 1) / (counts[w] + norm) for w in shared)
            found.append(Found(text, score, sum(map(self.rarity, shared)) / whole))
        return sorted(found, key=lambda one: -one.score)[:k]


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]
