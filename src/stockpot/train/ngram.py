"""An n-gram model of ids: what counting alone can predict, the baseline below every trained model.

Interpolated Kneser-Ney smoothing, one discount an order, over sorted arrays of hashed contexts. It knows no text and no file, and
has no gradient; `NGram.read` counts once and the model is finished.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["NGram"]

ORDER = 5


@dataclass(frozen=True)
class _Order:
    """The n-grams of one length, sorted by context.

    Attributes:
        contexts: hash of each context, sorted.
        starts: where each context's tokens begin, and one past the last.
        tokens: what follows it.
        counts: how often, or, below the longest order, after how many different tokens.
        discount: what is taken from each count and given to the shorter context.
    """

    contexts: NDArray[np.uint64]
    starts: NDArray[np.int64]
    tokens: NDArray[np.int64]
    counts: NDArray[np.float64]
    discount: float

    def of(self, context: np.uint64) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Find what follows a context; nothing if it was never seen."""
        place = int(np.searchsorted(self.contexts, context))
        if place == len(self.contexts) or self.contexts[place] != context:
            return self.tokens[:0], self.counts[:0]
        part = slice(int(self.starts[place]), int(self.starts[place + 1]))
        return self.tokens[part], self.counts[part]


class NGram:
    """Counts of runs of ids, and the probabilities that follow from them; make one with `NGram.read`.

    Source: Kneser and Ney 1995, "Improved backing-off for m-gram language modeling"; the interpolated form and the estimate of
    the discount as in Chen and Goodman 1999, "An empirical study of smoothing techniques", §2.7.
    """

    def __init__(self, vocab_size: int, orders: Sequence[_Order], tokens: int) -> None:
        self.vocab_size, self.tokens = vocab_size, tokens
        self._orders = tuple(orders)

    @classmethod
    def read(cls, ids: Sequence[int] | NDArray[np.int64], vocab_size: int, *, order: int = ORDER) -> NGram:
        """Count the runs of up to ``order`` ids of one long text; documents are set apart by an id of their own.

        Raises:
            ValueError: if the text is shorter than a run, or holds an id outside the vocabulary.
        """
        text = np.asarray(ids, dtype=np.int64)
        if len(text) < order or order < 1:
            raise ValueError(f"{len(text)} ids are too few for runs of {order}")
        if text.min() < 0 or text.max() >= vocab_size:
            raise ValueError(f"ids must lie in 0 … {vocab_size - 1}")
        found: list[_Order] = []
        seen: NDArray[np.int64] = np.arange(order - 1, len(text))
        longer: NDArray[np.int64] | None = None
        for size in range(order, 0, -1):
            contexts = _contexts(text, size - 1)
            places = seen if longer is None else longer
            found.append(_count(contexts[places], text[places]))
            longer = _first_places(_contexts(text, size - 1), text, np.arange(size - 1, len(text)))
        return cls(vocab_size, found[::-1], len(text))

    def probabilities(self, context: Sequence[int]) -> NDArray[np.float64]:
        """Give each id's probability after a context ``(vocab,)``; only its last ids matter."""
        mixed = np.full(self.vocab_size, 1.0 / self.vocab_size)
        last = np.asarray(context, dtype=np.int64)
        for size, order in enumerate(self._orders):
            if size > len(last):
                break
            tokens, counts = order.of(_hash(last[len(last) - size :]))
            if not len(tokens):  # a longer context was not seen either
                break
            total = counts.sum()
            mixed *= order.discount * len(tokens) / total
            mixed[tokens] += np.maximum(counts - order.discount, 0.0) / total
        return mixed

    def log_prob(self, context: Sequence[int], completion: Sequence[int]) -> float:
        """Give the log-probability of ids after others, nats."""
        whole = [*context, *completion]
        begun = len(context)
        return float(
            sum(
                np.log(self.probabilities(whole[max(0, at - len(self._orders)) : at])[whole[at]])
                for at in range(begun, len(whole))
            )
        )

    def write(self, context: Sequence[int], *, most: int, ends: Collection[int] = ()) -> list[int]:
        """Go on greedily for up to ``most`` ids, or to one of ``ends``, which is left out."""
        whole = list(context)
        for _ in range(most):
            likeliest = int(self.probabilities(whole[-len(self._orders) :]).argmax())
            if likeliest in ends:
                break
            whole.append(likeliest)
        return whole[len(context) :]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Spread numbers over 64 bits (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _contexts(text: NDArray[np.int64], size: int) -> NDArray[np.uint64]:
    """Hash the ``size`` ids before each place; the first places have no such context and hold nothing of use."""
    hashes = np.zeros(len(text), dtype=np.uint64)
    for back in range(1, size + 1):
        part = _mixed(text[: len(text) - back].astype(np.uint64) + np.uint64(back << 40))
        hashes[back:] += part
    return hashes


def _hash(context: NDArray[np.int64]) -> np.uint64:
    """Hash one context as `_contexts` does."""
    return np.uint64(_contexts(np.append(context, 0), len(context))[-1])


def _first_places(
    contexts: NDArray[np.uint64], text: NDArray[np.int64], places: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Give one place of each different run of a context and the id behind it."""
    whole = contexts[places] + _mixed(text[places].astype(np.uint64))
    _, first = np.unique(whole, return_index=True)
    return np.asarray(places[first])


def _count(contexts: NDArray[np.uint64], tokens: NDArray[np.int64]) -> _Order:
    """Count equal pairs of context and token."""
    order = np.lexsort((tokens, contexts))
    contexts, tokens = contexts[order], tokens[order]
    is_new = np.ones(len(tokens), dtype=bool)
    is_new[1:] = (contexts[1:] != contexts[:-1]) | (tokens[1:] != tokens[:-1])
    first = np.flatnonzero(is_new)
    counts = np.diff(np.append(first, len(tokens))).astype(np.float64)
    contexts, tokens = contexts[first], tokens[first]
    begins = np.flatnonzero(np.append(True, contexts[1:] != contexts[:-1]))
    once, twice = int((counts == 1).sum()), int((counts == 2).sum())
    discount = once / (once + 2 * twice) if once else 0.5
    return _Order(contexts[begins], np.append(begins, len(tokens)), tokens, counts, discount)
