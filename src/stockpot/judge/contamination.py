"""Which items stand in the training text: shared runs of words, counted while the text streams by.

Only the items' runs of words are held in memory, so that a corpus of any size is checked. What is found is told, with the score
on the items that are clean; nothing is left out of the main figures by itself.

Source: runs of 13 words are GPT-3's measure of overlap (Brown et al. 2020, arXiv:2005.14165, app. C).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from stockpot.data.shards import is_shards, open_shards
from stockpot.data.sources import read_texts
from stockpot.judge.scoring import Answer, Row, estimate
from stockpot.judge.tasks import Item
from stockpot.text.tokenizer import Tokenizer

__all__ = ["LEAST", "RUN", "Overlap", "clean_rows", "find_overlap", "training_texts"]

RUN = 13  # words
LEAST = 6  # shorter items share their words with too much of everything
DIRTY = 0.5  # share of an item's runs from which it counts as seen
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Overlap:
    """How much of each item stands in some text.

    Attributes:
        shares: item's id → share of its runs of words that were found, 0–1.
        short: items with too few words to tell.
        documents: texts that were read.
    """

    shares: Mapping[str, float]
    short: tuple[str, ...]
    documents: int

    @property
    def seen(self) -> list[str]:
        """Items of which at least half stands in the text."""
        return [id for id, share in self.shares.items() if share >= DIRTY]

    def __str__(self) -> str:
        some = sum(share > 0 for share in self.shares.values())
        told = len(self.shares)
        short = f"; {len(self.short)} items are too short to tell" if self.short else ""
        return (
            f"{len(self.seen)} of {told} items stand in the training text ({some} in part), "
            f"by runs of {RUN} words in {self.documents:,} documents{short}"
        )


def find_overlap(items: Sequence[Item], texts: Iterable[str]) -> Overlap:
    """Look for items in texts: question and right answer, in lower case, words only.

    An item with fewer words than a run is looked for as a whole, unless it has fewer than ``LEAST``.
    """
    wanted: dict[int, dict[tuple[str, ...], list[str]]] = {}  # length of run → run → items
    totals: dict[str, int] = {}
    short = []
    for item in items:
        words = _words(f"{item.question} {item.answer}")
        if len(words) < LEAST:
            short.append(item.id)
            continue
        runs = set(_runs(words, min(RUN, len(words))))
        totals[item.id] = len(runs)
        for run in runs:
            wanted.setdefault(len(run), {}).setdefault(run, []).append(item.id)
    found: dict[str, int] = dict.fromkeys(totals, 0)
    documents = 0
    for text in texts:
        documents += 1
        words = _words(text)
        for length, runs_wanted in wanted.items():
            for run in _runs(words, length):
                for id in runs_wanted.pop(run, ()):  # each run is counted once
                    found[id] += 1
    return Overlap({id: found[id] / total for id, total in totals.items()}, tuple(short), documents)


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _runs(words: Sequence[str], length: int) -> Iterator[tuple[str, ...]]:
    for start in range(len(words) - length + 1):
        yield tuple(words[start : start + length])


def training_texts(sources: Sequence[str], tokenizer: Tokenizer | None = None) -> Iterator[str]:
    """Stream the text of files, folders, data sets, or shards, which a tokenizer turns back into text.

    Raises:
        DataError: if a source cannot be read, or shards were made with another tokenizer.
    """
    for source in sources:
        if is_shards(source) and tokenizer is not None:
            store = open_shards(source, tokenizer)
            for number in range(store.documents):
                part, start = store.parts[store.part[number]], store.start[number]
                ids = part[start : start + store.lengths[number]].tolist()
                yield tokenizer.decode(ids, skip_special=True)
        else:
            yield from read_texts(source)


def clean_rows(task: str, answers: Sequence[Answer], found: Sequence[str], metric: str) -> list[Row]:
    """Estimate a measure on the items that were found in the training text and on the others."""
    seen = set(found)
    parts = {
        "seen": [one for one in answers if one.item.id in seen],
        "clean": [one for one in answers if one.item.id not in seen],
    }
    return [Row(f"{task} ({name})", metric, estimate(metric, some)) for name, some in parts.items() if some]
