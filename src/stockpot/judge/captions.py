"""How near captions come to what people wrote: BLEU and CIDEr.

Pure functions on lists of words. Source: Papineni et al. 2002, "BLEU", ACL; Vedantam et al. 2015, arXiv:1411.5726.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["bleu", "cider", "words_of"]

Words = tuple[str, ...]


def words_of(text: str) -> Words:
    """Cut a caption into lower-case words.

    >>> words_of("A red circle, left of it.")
    ('a', 'red', 'circle', 'left', 'of', 'it')
    """
    return tuple(re.findall(r"\w+", text.lower()))


def bleu(written: Sequence[str], references: Sequence[Sequence[str]], *, n: int = 4) -> float:
    """Score captions together, 0 to 1: matching runs of up to ``n`` words, with a penalty for being short.

    Orders for which no caption is long enough are left out. Where captions are long enough and nothing matches, the score is 0.

    >>> round(bleu(["the cat sat on a mat"], [["the cat sat on the mat"]], n=2), 3)
    0.707
    """
    hits, runs = [0] * n, [0] * n
    length = nearest = 0
    for text, known in zip(written, references, strict=True):
        made, wanted = words_of(text), [words_of(one) for one in known]
        length += len(made)
        nearest += min((len(one) for one in wanted), key=lambda size: (abs(size - len(made)), size))
        for order in range(n):
            found = _runs(made, order + 1)
            most: Counter[Words] = Counter()
            for one in wanted:
                most |= _runs(one, order + 1)
            hits[order] += sum((found & most).values())
            runs[order] += sum(found.values())
    used = [(hit, run) for hit, run in zip(hits, runs, strict=True) if run]
    if not used or any(not hit for hit, _ in used):
        return 0.0
    mean = sum(math.log(hit / run) for hit, run in used) / len(used)
    return math.exp(mean + min(0.0, 1 - nearest / length))


def cider(written: Sequence[str], references: Sequence[Sequence[str]], *, n: int = 4) -> list[float]:
    """Score each caption, 0 to 10: the likeness of its runs of words to the references', rare runs counting more.

    How rare a run is, the references themselves say; a run that every picture's references hold counts nothing.

    >>> [round(one, 2) for one in cider(["a b", "c d"], [["a b"], ["c x"]], n=1)]
    [10.0, 5.0]
    """
    wanted = [[words_of(one) for one in known] for known in references]
    total = [0.0] * len(written)
    used = 0
    for order in range(1, n + 1):
        seen = Counter(run for known in wanted for run in {run for one in known for run in _runs(one, order)})
        if not seen:
            break  # no reference has a run of this length
        used += 1
        for number, (text, known) in enumerate(zip(written, wanted, strict=True)):
            made = _weigh(_runs(words_of(text), order), seen, len(wanted))
            alike = [_cosine(made, _weigh(_runs(one, order), seen, len(wanted))) for one in known]
            total[number] += sum(alike) / len(alike)
    return [10 * one / max(used, 1) for one in total]


def _runs(words: Words, size: int) -> Counter[Words]:
    return Counter(words[at : at + size] for at in range(len(words) - size + 1))


def _weigh(runs: Counter[Words], seen: Counter[Words], pictures: int) -> dict[Words, float]:
    return {run: count * math.log(pictures / max(1, seen[run])) for run, count in runs.items()}


def _cosine(one: dict[Words, float], other: dict[Words, float]) -> float:
    long = math.sqrt(sum(x * x for x in one.values()) * sum(x * x for x in other.values()))
    return sum(x * other.get(run, 0.0) for run, x in one.items()) / long if long else 0.0
