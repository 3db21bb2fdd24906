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
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._places: defaultdict[str, list[int]] = defaultdict(list)  # may name a word twice, or one it left
        for place, (word, weight) in enumerate(zip(self._words, self._weights, strict=True)):
            for i in range(len(word) - 1):
                pair = word[i : i + 2]
                self._counts[pair] += weight
                self._places[pair].append(place)
        # Rare pairs wait outside the heap: most never get their turn. The floor falls when the heap runs dry.
        self._floor = max(self._counts.values(), default=0) + 1
        self._heap: list[tuple[int, str]] = []

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
                count = self._counts[pair]
                if count == -negative:
                    return pair
                if count >= self._floor:  # the entry was made before the count fell
                    heapq.heappush(self._heap, (-count, pair))
            if self._floor <= self._min_count:
                return None
            self._floor = max(self._floor // 2, self._min_count)
            self._heap = [(-count, pair) for pair, count in self._counts.items() if count >= self._floor]
            heapq.heapify(self._heap)

    def _merge(self, pair: str) -> None:
        symbol = self._name(pair)
        words, weights, counts, places = self._words, self._weights, self._counts, self._places
        first, second = pair[0], pair[1]
        grown: dict[str, None] = {}
        for place in places.pop(pair):
            word = words[place]
            at = word.find(pair)
            if at < 0:
                continue
            weight = weights[place]
            if word.find(pair, at + 1) >= 0:
                words[place] = self._merge_many(word, pair, symbol, weight, place, grown)
                continue
            if at:
                left = word[at - 1]
                counts[left + first] -= weight
                new = left + symbol
                counts[new] += weight
                places[new].append(place)
                grown[new] = None
            if at + 2 < len(word):
                right = word[at + 2]
                counts[second + right] -= weight
                new = symbol + right
                counts[new] += weight
                places[new].append(place)
                grown[new] = None
            words[place] = word.replace(pair, symbol)
        del counts[pair]
        for new in grown:
            if (count := counts[new]) >= self._floor:
                heapq.heappush(self._heap, (-count, new))

    def _merge_many(
        self, word: str, pair: str, symbol: str, weight: int, place: int, grown: dict[str, None]
    ) -> str:
        """Merge a pair that occurs more than once, left to right: a neighbour may be newly merged."""
        first, second = pair[0], pair[1]
        at = word.find(pair)
        while at >= 0:
            if at:
                self._counts[word[at - 1] + first] -= weight
                self._gain(word[at - 1] + symbol, weight, place, grown)
            if at + 2 < len(word):
                self._counts[second + word[at + 2]] -= weight
                self._gain(symbol + word[at + 2], weight, place, grown)
            word = word[:at] + symbol + word[at + 2 :]
            at = word.find(pair, at + 1)
        return word

    def _gain(self, pair: str, weight: int, place: int, grown: dict[str, None]) -> None:
        self._counts[pair] += weight
        self._places[pair].append(place)
        grown[pair] = None

    def _name(self, pair: str) -> str:
        """Record the merge; return the symbol of the joined token, an old one if it was spelled before."""
        left, right = (self.vocabulary[ord(half) - _FIRST] for half in pair)
        self.merges.append((left, right))
        token = left + right[len(self._prefix) if right.startswith(self._prefix) else 0 :]
        symbol = self._symbol.get(token)
        if symbol is None:
            symbol = self._symbol[token] = chr(_FIRST + len(self.vocabulary))
            self.vocabulary.append(token)
        return symbol
