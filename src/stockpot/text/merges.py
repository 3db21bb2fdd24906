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

from collections import defaultdict
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import accumulate
from operator import add

import numpy as np
from numpy.typing import NDArray

from stockpot.text.frequent import merge_frequent

__all__ = ["learn_merges"]

_FIRST = 0x100  # symbol number n is written as chr(_FIRST + n)
_WORDS_AT_ONCE = 1 << 18

_Places = dict[str, list[int]]  # numbers of words, by pair or by symbol


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
    """The state of one training: words as symbol strings; of the frequent pairs, how often and where each occurs.

    A pair gets all its occurrences when the younger of its symbols is made, and only loses them later. So a pair
    that is rare then stays rare, and is not watched. When the watched pairs run out, all are counted anew and
    rarer ones are watched.
    """

    def __init__(
        self, words: Mapping[str, int], alphabet: Sequence[str], prefix: str, min_count: int
    ) -> None:
        self.vocabulary = list(alphabet)
        self.merges: list[tuple[str, str]] = []
        self._symbol = {token: chr(_FIRST + number) for number, token in enumerate(alphabet)}
        self._prefix = prefix
        self._min_count = min_count
        self._words, self._weights = self._spell(words)
        self._floor = 0  # a pair seen less often is not watched

    def _spell(self, words: Mapping[str, int]) -> tuple[list[str], list[int]]:
        """Return the words of two symbols and more, one character a symbol, and how often each occurs."""
        longer = sorted(word for word in words if len(word) > 1)
        lengths = [len(word) for word in longer]
        ends = list(accumulate(lengths))
        letters = np.frombuffer("".join(longer).encode("utf-32-le", "surrogatepass"), "<u4")
        symbols = self._symbols_of("", letters)
        if self._prefix and longer:
            starts = np.array(ends) - lengths
            first = symbols[starts]
            symbols = self._symbols_of(self._prefix, letters)
            symbols[starts] = first
        text = symbols.tobytes().decode("utf-32-le", "surrogatepass")
        return [text[end - n : end] for end, n in zip(ends, lengths, strict=True)], [words[w] for w in longer]

    def _symbols_of(self, prefix: str, letters: NDArray[np.uint32]) -> NDArray[np.uint32]:
        table = np.zeros(int(letters.max(initial=0)) + 1, "<u4")
        for token, symbol in self._symbol.items():
            letter = token.removeprefix(prefix)
            if len(letter) == 1 and token == prefix + letter and ord(letter) < len(table):
                table[ord(letter)] = ord(symbol)
        return table[letters]

    def grow(self, tokens: int) -> None:
        # The last merges are about as frequent as the words that find no place; a guess too low only costs time.
        rarer = sorted(self._weights, reverse=True)[3 * tokens // 4 :]
        floor = max(rarer[0] if rarer else 1, self._min_count)
        if len(self._words) <= _WORDS_AT_ONCE:
            self._words = merge_frequent(
                self._words, self._weights, floor, lambda pair: self._name_new(pair, tokens)
            )
        self._watch(floor)
        while len(self.vocabulary) < tokens:
            pair = self._pop()
            if pair is not None:
                self._merge(pair)
            elif self._floor > self._min_count:
                self._watch(max(self._floor // 2, self._min_count))
            else:
                return

    # --- which pairs there are ---

    def _watch(self, floor: int) -> None:
        """Count all pairs, and keep those seen at least ``floor`` times."""
        self._floor = floor
        self._counts: dict[str, int] = defaultdict(int)
        # Numbers of words, which may name a word twice, or one that the pair has left since.
        self._places: dict[str, list[int]] = defaultdict(list)
        for start in range(0, len(self._words), _WORDS_AT_ONCE):
            self._count(start, floor if len(self._words) <= _WORDS_AT_ONCE else 1)
        self._counts = {pair: count for pair, count in self._counts.items() if count >= floor}
        self._places = {pair: self._places[pair] for pair in self._counts}
        self._bucket: list[str] = []  # the pairs (a heap) that were seen self._level times
        self._level = 1 << 62
        self._waiting: dict[int, list[str]] = {}  # rarer ones, by count
        self._levels: list[int] = []  # these counts, negative (a heap)
        for pair, count in self._counts.items():
            self._enter(pair, count)

    def _count(self, start: int, least: int) -> None:
        """Add the pairs of a part of the words, those that occur ``least`` times in it."""
        text = "\0".join([*self._words[start : start + _WORDS_AT_ONCE], ""]).encode(
            "utf-32-le", "surrogatepass"
        )
        symbols = np.frombuffer(text, "<u4")
        number = start + np.cumsum(symbols == 0)
        left = np.flatnonzero((symbols[:-1] > 0) & (symbols[1:] > 0))
        if not len(left):
            return
        keys = (symbols[left].astype(np.int64) << 21) | symbols[left + 1]
        order = np.argsort(keys)
        keys, number = keys[order], number[left[order]]
        starts = np.concatenate(([0], np.flatnonzero(keys[1:] != keys[:-1]) + 1))
        counts = np.add.reduceat(np.array(self._weights, np.int64)[number], starts)
        ends = np.append(starts[1:], len(keys))
        often = counts >= least
        found = (array[often].tolist() for array in (keys[starts], counts, starts, ends))
        for key, count, first, last in zip(*found, strict=True):
            pair = chr(key >> 21) + chr(key & 0x1FFFFF)
            self._counts[pair] += count
            self._places[pair] += number[first:last].tolist()

    def _enter(self, pair: str, count: int) -> None:
        if count > self._level:  # only where a second merge made the same token
            self._waiting[self._level] = self._bucket
            heappush(self._levels, -self._level)
            self._bucket, self._level = [], count
        if count == self._level:
            heappush(self._bucket, pair)
        elif count in self._waiting:
            self._waiting[count].append(pair)
        else:
            self._waiting[count] = [pair]
            heappush(self._levels, -count)

    def _pop(self) -> str | None:
        """Return the most frequent pair, smaller ids first among equals; None if no pair is watched."""
        while True:
            while self._bucket:
                pair = heappop(self._bucket)
                count = self._counts.get(pair, 0)
                if count == self._level:
                    return pair
                if count >= self._floor:
                    self._enter(pair, count)  # it was more frequent when it was entered
            if not self._levels:
                return None
            self._level = -heappop(self._levels)
            self._bucket = self._waiting.pop(self._level)
            heapify(self._bucket)

    # --- merging one ---

    def _merge(self, pair: str) -> None:
        symbol, is_new = self._name(pair)
        places = self._places.pop(pair)
        del self._counts[pair]
        if not is_new:
            self._join_again(pair, symbol, places)
        elif len(places) == 1:
            self._join_one(pair, symbol, places)
        else:
            self._join(pair, symbol, places)

    def _join(self, pair: str, symbol: str, places: list[int]) -> None:
        words = self._words
        lefts: _Places = defaultdict(list)  # what stands left of the pair: in which words
        rights: _Places = defaultdict(list)
        others: _Places = {}
        for place in places:
            word = words[place]
            joined = word.replace(pair, symbol)
            if joined is word:
                continue
            if len(word) - len(joined) > 1:
                self._join_often(place, word, joined, symbol, others)
                continue
            words[place] = joined
            at = joined.find(symbol)
            if at:
                lefts[joined[at - 1]].append(place)
            if at + 1 < len(joined):
                rights[joined[at + 1]].append(place)
        counts, weight_of, floor = self._counts, self._weights.__getitem__, self._floor
        first, second = pair[0], pair[1]
        moves = [(left + first, left + symbol, found) for left, found in lefts.items()]
        moves += [(second + right, symbol + right, found) for right, found in rights.items()]
        for old, new, found in moves:
            weight = sum(map(weight_of, found))
            if old in counts:
                counts[old] -= weight
            if new in others:
                others[new] += found
            elif weight >= floor:
                self._add(new, weight, found)
        for new, found in others.items():
            self._add(new, sum(map(weight_of, found)), found)

    def _join_one(self, pair: str, symbol: str, places: list[int]) -> None:
        """Do the same for a single place: half of all merges late in training."""
        place = places[0]
        word = self._words[place]
        joined = word.replace(pair, symbol)
        if len(word) - len(joined) != 1:
            self._join(pair, symbol, places)
            return
        self._words[place] = joined
        counts, level = self._counts, self._level  # the word's own weight, as no other holds the pair
        made = []
        at = joined.find(symbol)
        if at:
            left = joined[at - 1]
            if (old := left + pair[0]) in counts:
                counts[old] -= level
            made.append(left + symbol)
        if at + 1 < len(joined):
            right = joined[at + 1]
            if (old := pair[1] + right) in counts:
                counts[old] -= level
            made.append(symbol + right)
        for new in made:
            counts[new] = level
            self._places[new] = places
            heappush(self._bucket, new)

    def _add(self, pair: str, count: int, places: list[int]) -> None:
        if count >= self._floor:
            self._counts[pair] = count
            self._places[pair] = places
            self._enter(pair, count)

    def _join_again(self, pair: str, symbol: str, places: list[int]) -> None:
        """Join to a symbol that another merge has made already: what it stands beside is counted anew."""
        for place in places:
            word = self._words[place]
            self._join_often(place, word, word.replace(pair, symbol), symbol, {})
        others: _Places = defaultdict(list)
        for place, word in enumerate(self._words):
            if symbol in word:
                for new in map(add, word, word[1:]):
                    if symbol in new:
                        others[new].append(place)
        for new, found in others.items():
            self._add(new, sum(map(self._weights.__getitem__, found)), found)

    def _join_often(self, place: int, word: str, joined: str, symbol: str, others: _Places) -> None:
        """Put ``joined`` in place of ``word``; note in ``others`` its pairs with the new symbol."""
        if word == joined:
            return
        self._words[place] = joined
        weight, counts = self._weights[place], self._counts
        for old in map(add, word, word[1:]):
            if old in counts:
                counts[old] -= weight
        for new in map(add, joined, joined[1:]):
            if symbol in new:
                others.setdefault(new, []).append(place)
            elif new in counts:
                counts[new] += weight

    def _name(self, pair: str) -> tuple[str, bool]:
        """Record the merge; return the symbol of the joined token, and whether nothing spelled it before."""
        left, right = self.vocabulary[ord(pair[0]) - _FIRST], self.vocabulary[ord(pair[1]) - _FIRST]
        self.merges.append((left, right))
        token = left + right.removeprefix(self._prefix)
        symbol = self._symbol.get(token)
        if symbol is not None:
            return symbol, False
        symbol = self._symbol[token] = chr(_FIRST + len(self.vocabulary))
        self.vocabulary.append(token)
        return symbol, True

    def _name_new(self, pair: str, tokens: int) -> str | None:
        """Do the same if there is room and nothing spelled the token before; else return None."""
        left, right = self.vocabulary[ord(pair[0]) - _FIRST], self.vocabulary[ord(pair[1]) - _FIRST]
        if len(self.vocabulary) >= tokens or left + right.removeprefix(self._prefix) in self._symbol:
            return None
        return self._name(pair)[0]
