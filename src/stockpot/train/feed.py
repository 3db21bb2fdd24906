"""The micro-batches of each step, and the place in the data where the next step begins.

Decides how many micro-batches make a step; it looks at their number of tokens only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

__all__ = ["Feed"]


class Feed:
    """Deals out batches step by step.

    Args:
        batches: with ``state_dict`` and ``load_state_dict`` a place is taken up at once; without, what was seen before it is
            read over.
        tokens: real tokens of a step.
    """

    def __init__(self, batches: Iterable[Any], tokens: float) -> None:
        self._source = batches
        self._batches = iter(batches)
        self._tokens = tokens
        self._seen = 0

    def step(self) -> Iterator[Any]:
        """Yield micro-batches until one more would lead further away from the tokens of a step; at least one."""
        taken, latest = 0, 0
        while taken == 0 or taken + latest / 2 < self._tokens:
            batch = next(self._batches, None)
            if batch is None:
                return
            self._seen += 1
            latest = batch.tokens
            taken += latest
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Describe the place of the next batch."""
        source = self._source
        return {"seen": self._seen, "source": source.state_dict() if hasattr(source, "state_dict") else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a place; the source must be the same, at its beginning."""
        self._seen = state["seen"]
        if state["source"] is not None and hasattr(self._source, "load_state_dict"):
            self._source.load_state_dict(state["source"])
            self._batches = iter(self._source)
        else:
            next(islice(self._batches, self._seen, self._seen), None)
