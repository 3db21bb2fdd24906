"""Learn byte-pair merges from word counts.

The algorithm of Sennrich et al. 2016 (arXiv:1508.07909): start from characters, join the most frequent
neighbouring pair everywhere, repeat until the vocabulary is full. **Tie rule:** of equally frequent pairs the
one whose ids are smaller wins, left id first, which is the rule of the ``tokenizers`` library, so that both
learn the same merges in the same order.

A word is held as a string with one character per symbol. Joining a pair inside it is then one ``str.replace``
and a pair is a two-character string, which keeps 32,000 merges on 20 MB of text around a second without
compiled code of our own. This file knows neither bytes nor files nor the spelling of special tokens.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Mapping, Sequence

__all__ = ["learn_merges"]

_FIRST = 0x100  # symbol number n is written as chr(_FIRST + n)


def learn_merges(
    words: Mapping[str, int],
    alphabet: Sequence[str],
    *,
    tokens: int,
    prefix: str = "",
    min_count: int = 1,
) -> tuple[list[str], list[tuple[str, str]]]:
    """Grow ``alphabet`` to ``tokens`` entries by merging.

    >>> learn_merges({"low": 5, "lowest": 2}, ["e", "l", "o", "s", "t", "w"], tokens=8)
    (['e', 'l', 'o', 's', 't', 'w', 'lo', 'low'], [('l', 'o'), ('lo', 'w')])

    Args:
        words: how often each word occurs; every character of theirs is in ``alphabet``.
        alphabet: the symbols to start from, by id. With a ``prefix``, both ``c`` and ``prefix + c`` forms.
        tokens: entries wanted; fewer come back when no pair occurs ``min_count`` times any more.
        prefix: what marks a symbol that continues a word (WordPiece: ``##``); dropped inside a merged token.
        min_count: a pair seen less often than this is not merged.

    Returns:
        the vocabulary by id, and the merges in the order learned (two of them can spell the same entry).
    """
    learner = _Learner(words, alphabet, prefix, max(min_count, 1))
    learner.grow(tokens)
    return learner.vocabulary, learner.merges


class _Learner:
    """The state of one training: words as symbol strings, pair counts, and where each pair occurs."""

    def __init__(
        self, words: Mapping[str, int], alphabet: Sequence[str], prefix: str, min_count: int
    ) -> None:
        self.vocabulary = list(alphabet)
        self.merges: list[tuple[str, str]] = []
        self._symbol = {token: chr(_FIRST + number) for number, token in enumerate(alphabet)}
        self._prefix = prefix
        self._min_count = min_count
        self._words, self._weights = self._spell(words)
        # Where each pair occurs: numbers of words, which may name a word twice, or one the pair has left since.
        self._places: defaultdict[str, list[int]] = defaultdict(list)
        for place, word in enumerate(self._words):
            for i in range(len(word) - 1):
                self._places[word[i : i + 2]].append(place)
        weight_of = self._weights.__getitem__
        self._counts = {pair: sum(map(weight_of, places)) for pair, places in self._places.items()}
        # A heap holds the frequent pairs; others wait by the bit length of their count until the heap runs dry.
        self._heap: list[tuple[int, str]] = []
        self._waiting: defaultdict[int, list[str]] = defaultdict(list)
        self._floor = 1 << max(self._counts.values(), default=0).bit_length()
        for pair, count in self._counts.items():
            self._waiting[count.bit_length()].append(pair)

    def _spell(self, words: Mapping[str, int]) -> tuple[list[str], list[int]]:
        spelled, weights = [], []
        plain = {ord(token): symbol for token, symbol in self._symbol.items() if len(token) == 1}
        inner = plain
        if self._prefix:
            cut = len(self._prefix)
            marked = ((t[cut:], s) for t, s in self._symbol.items() if t.startswith(self._prefix))
            inner = {ord(token): symbol for token, symbol in marked if len(token) == 1}
        for word, weight in words.items():
            if len(word) > 1:
                spelled.append(word[0].translate(plain) + word[1:].translate(inner))
                weights.append(weight)
        return spelled, weights

    def grow(self, tokens: int) -> None:
        while len(self.vocabulary) < tokens:
            pair = self._pop()
            if pair is None:
                return
            self._merge(pair)

    def _pop(self) -> str | None:
        """Return the most frequent pair, smaller ids first among equals; None if none is frequent enough."""
        while True:
            while self._heap:
                negative, pair = heapq.heappop(self._heap)
                count = self._counts.get(pair, 0)
                if count == -negative:
                    return pair if count >= self._min_count else None
                self._enter(pair, count)  # the entry was made before the count changed
            if self._floor <= 1:
                return None
            self._floor //= 2
            for pair in self._waiting.pop(self._floor.bit_length(), ()):
                self._enter(pair, self._counts.get(pair, 0))

    def _enter(self, pair: str, count: int) -> None:
        if count >= self._floor:
            heapq.heappush(self._heap, (-count, pair))
        elif count > 0:
            self._waiting[count.bit_length()].append(pair)

    def _merge(self, pair: str) -> None:
        """Join a pair in every word, and move the counts of the pairs beside it."""
        symbol, is_new = self._name(pair)
        words = self._words
        lefts: defaultdict[str, list[int]] = defaultdict(
            list
        )  # what stands left of the pair, and in which words
        rights: defaultdict[str, list[int]] = defaultdict(list)
        for place in self._places.pop(pair):
            word = words[place]
            joined = word.replace(pair, symbol)
            times = len(word) - len(joined)
            if times == 1 and is_new:
                words[place] = joined
                at = joined.find(symbol)
                if at:
                    lefts[joined[at - 1]].append(place)
                if at + 1 < len(joined):
                    rights[joined[at + 1]].append(place)
            elif times:
                self._merge_many(word, pair, symbol, place)
        del self._counts[pair]
        for left, places in lefts.items():
            self._move(left + pair[0], left + symbol, places)
        for right, places in rights.items():
            self._move(pair[1] + right, symbol + right, places)

    def _move(self, old: str, new: str, places: list[int]) -> None:
        weight = sum(map(self._weights.__getitem__, places))
        self._counts[old] = self._counts.get(old, 0) - weight
        self._gain(new, weight, places)

    def _merge_many(self, word: str, pair: str, symbol: str, place: int) -> None:
        """Merge a pair that may occur more than once, left to right: a neighbour may be newly merged."""
        at = word.find(pair)
        while at >= 0:
            if at:
                self._move(word[at - 1] + pair[0], word[at - 1] + symbol, [place])
            if at + 2 < len(word):
                self._move(pair[1] + word[at + 2], symbol + word[at + 2], [place])
            word = word[:at] + symbol + word[at + 2 :]
            at = word.find(pair, at + 1)
        self._words[place] = word

    def _gain(self, pair: str, weight: int, places: list[int]) -> None:
        count = self._counts.get(pair, 0) + weight
        self._counts[pair] = count
        self._places[pair] += places
        self._enter(pair, count)

    def _name(self, pair: str) -> tuple[str, bool]:
        """Record the merge; return the symbol of the joined token, and whether nothing spelled it before."""
        left, right = (self.vocabulary[ord(half) - _FIRST] for half in pair)
        self.merges.append((left, right))
        token = left + right[len(self._prefix) if right.startswith(self._prefix) else 0 :]
        symbol = self._symbol.get(token)
        if symbol is not None:
            return symbol, False
        symbol = self._symbol[token] = chr(_FIRST + len(self.vocabulary))
        self.vocabulary.append(token)
        return symbol, True
