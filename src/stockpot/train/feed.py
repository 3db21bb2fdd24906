"""The micro-batches of each step, and the place in the data where the next step begins.

Decides how many micro-batches make a step, by their number of tokens, unless the batches say it themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from stockpot.errors import DataError
from stockpot.train.parallel import Group

__all__ = ["Feed"]


class Feed:
    """Deals out batches step by step.

    Args:
        batches: each has ``tokens``; one that has ``ends_step`` says so itself whether a step ends with it. With
            ``state_dict`` and ``load_state_dict`` a place is taken up at once; without, what was seen before it is read over.
        tokens: a step takes as many rounds as come nearest to this many real tokens, at least one; a round is one
            micro-batch on each process.
        group: the processes; a step has equally many micro-batches on each.
    """

    def __init__(self, batches: Iterable[Any], tokens: float, group: Group | None = None) -> None:
        self._source, self._tokens, self._group = batches, tokens, group or Group()
        self._batches = iter(batches)
        self._seen = 0

    def step(self) -> Iterator[tuple[Any, bool]]:
        """Yield the micro-batches of one step, and whether the step ends with them; fewer, or none, where the data ends."""
        taken, is_last = 0, False
        while not is_last:
            batch = next(self._batches, None)
            if self._group.any(batch is None):
                return
            assert batch is not None  # or this process would have said so
            self._seen += 1
            tokens = self._group.total(batch.tokens)
            taken += tokens
            ends = getattr(batch, "ends_step", None)
            is_last = bool(ends) if ends is not None else taken + tokens / 2 >= self._tokens
            yield batch, is_last

    def state_dict(self) -> dict[str, Any]:
        """Describe the place of the next batch."""
        source = self._source
        return {"seen": self._seen, "source": source.state_dict() if hasattr(source, "state_dict") else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a place; the source must be the same, at its beginning.

        Raises:
            DataError: if the data ends before that place.
        """
        self._seen = state["seen"]
        if state["source"] is not None and hasattr(self._source, "load_state_dict"):
            self._source.load_state_dict(state["source"])
            self._batches = iter(self._source)
        elif sum(1 for _ in islice(self._batches, self._seen)) < self._seen:
            raise DataError(
                f"The interrupted run had read {self._seen} batches; now there are fewer.",
                "Resume with the data of the interrupted run.",
            )
