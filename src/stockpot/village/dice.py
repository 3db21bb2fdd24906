"""Chance that is the same everywhere: seeded draws, and the side of the split a text belongs to.

Every draw goes through `random.Random.random`, the one method whose sequence Python promises to keep;
picking, sampling and shuffling are built on it here. A dice is put to an index before a record is made, so
that records are independent of one another and can be made in any order. This file knows nothing of what is
drawn.
"""

from __future__ import annotations

import hashlib
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

__all__ = ["VILLAGE_VERSION", "Dice", "Side", "draw_on", "side_of"]

VILLAGE_VERSION = "5"
"""Changes whenever the same seed no longer gives the same bytes."""
_STREAMS = "1"  # of how the dice fall: another one makes other people, not only other texts

Side = Literal["train", "val"]
T = TypeVar("T")

_VAL_MASK = 7  # one text in eight belongs to "val"
_MAX_TRIES = 10_000


class Dice:
    """A seeded source of draws, one independent sequence per index.

    Args:
        seed: the village's seed.
        stream: what the draws are for; different streams are independent.
    """

    __slots__ = ("_base", "_source", "random")

    def __init__(self, seed: int, stream: str) -> None:
        digest = hashlib.sha256(f"village/{_STREAMS}/{seed}/{stream}".encode()).digest()
        self._base = int.from_bytes(digest[:8], "big") << 48
        self._source = random.Random(self._base)
        self.random = self._source.random

    def at(self, index: int) -> Dice:
        """Restart the draws at an index; return the same dice."""
        self._source.seed(self._base + index)
        return self

    def below(self, limit: int) -> int:
        """Draw an integer from 0 to ``limit - 1``."""
        return int(self.random() * limit)

    def between(self, low: int, high: int) -> int:
        """Draw an integer from ``low`` to ``high``, both included."""
        return low + int(self.random() * (high - low + 1))

    def chance(self, probability: float) -> bool:
        """Be true with a probability."""
        return self.random() < probability

    def pick(self, things: Sequence[T]) -> T:
        """Draw one of some things."""
        return things[int(self.random() * len(things))]

    def shuffled(self, things: Sequence[T]) -> list[T]:
        """Give the things in a drawn order."""
        return self.sample(things, len(things))

    def sample(self, things: Sequence[T], count: int) -> list[T]:
        """Draw ``count`` different things, in a drawn order.

        Raises:
            ValueError: if there are fewer things than that.
        """
        if count > len(things):
            raise ValueError(f"cannot draw {count} of {len(things)} things")
        if count * 4 < len(things):
            return self._sample_few(things, count)
        pool, size = list(things), len(things)
        for i in range(count):
            j = i + int(self.random() * (size - i))
            pool[i], pool[j] = pool[j], pool[i]
        return pool[:count]

    def _sample_few(self, things: Sequence[T], count: int) -> list[T]:
        places: list[int] = []
        while len(places) < count:
            place = int(self.random() * len(things))
            if place not in places:
                places.append(place)
        return [things[place] for place in places]


def side_of(text: str) -> Side:
    """Tell which side of the split a text belongs to; the text alone decides, so nothing can be on both."""
    return "train" if zlib.crc32(text.encode()) & _VAL_MASK else "val"


def draw_on(side: Side, draw: Callable[[], T], text: Callable[[T], str]) -> T:
    """Draw until the text of what is drawn belongs to a side.

    Raises:
        RuntimeError: if that never happens: there is too little variety in the draws.
    """
    for _ in range(_MAX_TRIES):
        drawn = draw()
        if side_of(text(drawn)) == side:
            return drawn
    raise RuntimeError(f"no draw of {_MAX_TRIES} belongs to {side}; the draws vary too little")
