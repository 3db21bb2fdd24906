"""What the three kinds of model are asked, and how each kind answers.

A gap of one token, a vector for a text, the next tokens of a text, and one sentence turned into another. Where a kind was
not made for a question it answers as well as it can, and how is written here: a decoder fills a gap from what stands before
it; an encoder goes on with a text by a mask at its end, and writes a translation all at once into as many masks as it has
tokens (so it alone is told the length).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from stockpot.bundle import Bundle
from stockpot.data.batch import IGNORED, Batch
from stockpot.data.files import entries
from stockpot.data.formats import read_entry
from stockpot.data.reading import ReadConfig, ReadReport
from stockpot.errors import DataError
from stockpot.generate.engine import Engine
from stockpot.generate.inputs import pad, reading_only
from stockpot.generate.request import Sampling
from stockpot.judge.emergence_answers import edits
from stockpot.text.tokenizer import Tokenizer
from stockpot.village import Village

__all__ = [
    "LEAST_TEXT",
    "METRICS",
    "Pair",
    "PairBatches",
    "Questions",
    "ask_pretrained",
    "ask_tuned",
    "fitting",
    "questions_of",
    "read_pairs",
]

METRICS: dict[str, str] = {
    "gap": "gap of one token filled right",
    "retrieval": "sentence found by its vector (of all)",
    "sentiment": "sentiment read from vectors",
    "relatedness": "relatedness by cosine (Spearman)",
    "continuation": "going on, bits a byte (less is better)",
    "exact": "rewritten or translated exactly",
    "near": "the same, 1 - edit distance a token",
}
Pair = tuple[str, str]
GOES_ON = 16  # tokens
LEAST_TEXT = 16  # tokens of a text that is asked for: half of them are read
BATCH = 64
RIDGE = 1e-2


@dataclass(frozen=True)
class Questions:
    """What a pretrained model is asked.

    Attributes:
        texts: held-out documents, for gaps and for going on.
        pairs: sentences that say the same in another way, to be found by their vectors.
        reviews: texts to learn a sentiment from, with its number, and texts to tell it of.
        related: two sentences and how related people found them.
        seed: decides where the gaps are.
    """

    texts: tuple[str, ...]
    pairs: tuple[Pair, ...]
    reviews: tuple[tuple[tuple[str, int], ...], tuple[tuple[str, int], ...]]
    related: tuple[tuple[str, str, float], ...]
    seed: int


def questions_of(similarity: str | None, texts: Sequence[str], items: int, seed: int) -> Questions:
    """Gather the questions; errors as for files of records."""
    village = Village(seed)
    pairs = _rewritings(village, "val", items)
    moods = ("positive", "negative", "neutral")
    told = list(village.questions("train", 4 * items, kind="sentiment"))
    asked = list(village.questions("val", items, kind="sentiment"))
    reviews = tuple(
        tuple((_review(one["question"]), moods.index(one["answer"])) for one in part)
        for part in (told, asked)
    )
    related: list[tuple[str, str, float]] = []
    for row in [] if similarity is None else _rows(similarity, ("premise", "hypothesis", "relatedness")):
        try:
            related.append((str(row["premise"]), str(row["hypothesis"]), float(row["relatedness"])))
        except (TypeError, ValueError):
            text = f"{similarity}: relatedness is {row['relatedness']!r}, where a number belongs."
            raise DataError(text, "Mend the record, or remove it.") from None
    return Questions(
        tuple(texts[:items]), tuple(pairs), (reviews[0], reviews[1]), tuple(related[: 4 * items]), seed
    )


def read_pairs(
    source: str, keys: tuple[str, str], most: int, items: int, seed: int
) -> tuple[list[Pair], list[Pair]]:
    """Return pairs to learn from and pairs to be asked: the village's rewritings, or a file's.

    Raises:
        DataError: if the file is missing or a record lacks one of the keys.
    """
    if source == "village":
        village = Village(seed)
        return _rewritings(village, "train", most // 4), _rewritings(village, "val", items)
    pairs = [(str(row[keys[0]]), str(row[keys[1]])) for row in _rows(source, keys)]
    random.Random(seed).shuffle(pairs)
    if len(pairs) < 2 * items:
        raise DataError(f"{source}: {len(pairs)} pairs are too few.", f"{2 * items} are needed.")
    return pairs[items : items + most], pairs[:items]


def _rewritings(village: Village, split: str, count: int) -> list[Pair]:
    found = village.questions(split, count, kind="rewriting")
    return [(one["question"], one["answer"]) for one in found]


def _review(question: str) -> str:
    """Cut a question about a review down to the review."""
    return question.split('"')[1] if question.count('"') > 1 else question


def _rows(source: str, keys: Sequence[str]) -> Iterator[dict[str, Any]]:
    config, report = ReadConfig(), ReadReport()
    for entry in entries(Path(source), max_ratio=config.max_unpack_ratio, left_out=[]):
        for where, raw in read_entry(entry, config, report):
            if not isinstance(raw, dict) or any(key not in raw for key in keys):
                raise DataError(
                    f"{where}: a record needs {' and '.join(keys)}.", "Name the keys of your file."
                )
            yield raw


# --- what a pretrained model can do ---


def ask_pretrained(bundle: Bundle, questions: Questions) -> dict[str, float]:
    """Ask everything that needs no tuning; metric → value."""
    with reading_only(bundle.model):
        found = {
            "gap": _gaps(bundle, questions),
            "retrieval": _retrieval(bundle, questions.pairs),
            "sentiment": _sentiment(bundle, questions.reviews),
            "continuation": _continuation(bundle, questions.texts),
        }
        if questions.related:
            found["relatedness"] = _relatedness(bundle, questions.related)
    return found


def _gaps(bundle: Bundle, questions: Questions) -> float:
    """Hide one token of each text; return how often the likeliest one is right."""
    rng = random.Random(questions.seed)
    shape = bundle.model.config.shape
    room = bundle.context - 4
    rows, sources, places, wanted = [], [], [], []
    for text in questions.texts:
        ids = bundle.tokenizer.encode(text)[:room]
        if len(ids) < 8:
            continue
        at = rng.randrange(4, len(ids) - 2)
        first, last = bundle.frame
        wanted.append(ids[at])
        if shape == "encoder":
            rows.append([*first, *ids[:at], _mask(bundle), *ids[at + 1 :], *last])
            places.append(len(first) + at)
        elif shape == "decoder":
            rows.append([*first, *ids[:at]])
            places.append(len(rows[-1]) - 1)
        else:
            mark = bundle.tokenizer.sentinel_ids[0]
            sources.append([*first, *ids[:at], mark, *ids[at + 1 :], *last])
            rows.append([bundle.start_id, mark])
            places.append(1)
    said = torch.cat(
        [logs.argmax(-1).cpu() for logs in _log_probs(bundle, rows, sources, [[p] for p in places])]
    )
    return float((said == torch.tensor(wanted)).float().mean())


def _continuation(bundle: Bundle, texts: Sequence[str]) -> float:
    """Go on with the first half of each text for some tokens, each after the right ones; returns bits a byte."""
    shape = bundle.model.config.shape
    first, last = bundle.frame
    bits, sizes = 0.0, 0
    for text in texts:
        ids = bundle.tokenizer.encode(text)[: bundle.context - GOES_ON - 4]
        half = len(ids) // 2
        before, after = ids[:half], ids[half : half + GOES_ON]
        if half < LEAST_TEXT // 2:
            continue
        sources: list[list[int]] = []
        if shape == "encoder":
            rows = [[*first, *before, *after[:n], _mask(bundle), *last] for n in range(len(after))]
            places = [[len(first) + half + n] for n in range(len(after))]
        elif shape == "decoder":
            rows = [[*first, *before, *after[:-1]]]
            places = [list(range(len(first) + half - 1, len(first) + half - 1 + len(after)))]
        else:
            mark = bundle.tokenizer.sentinel_ids[0]
            sources = [[*first, *before, mark, *last]]
            rows = [[bundle.start_id, mark, *after[:-1]]]
            places = [list(range(1, 1 + len(after)))]
        logs = torch.cat(list(_log_probs(bundle, rows, sources, places)))
        bits -= float(logs.gather(1, torch.tensor(after, device=logs.device)[:, None]).sum()) / np.log(2)
        sizes += int(bundle.tokenizer.byte_lengths[after].sum())
    return bits / sizes


def _log_probs(
    bundle: Bundle, rows: Sequence[list[int]], sources: Sequence[list[int]], places: Sequence[list[int]]
) -> Iterator[Tensor]:
    """Yield log-probabilities at the given places of the rows, batch by batch ``(places, vocab)``."""
    for at in range(0, len(rows), BATCH):
        part = slice(at, at + BATCH)
        ids, real = pad(rows[part], bundle.model.device)
        extra: dict[str, Tensor | None] = {}
        if sources:
            extra["source"], extra["source_mask"] = pad(sources[part], bundle.model.device)
        hidden = bundle.model(ids, attention_mask=real, last=0, **extra).hidden
        states = torch.cat([hidden[row, own] for row, own in enumerate(places[part])])
        yield bundle.model.logits(states).float().log_softmax(-1)


def _mask(bundle: Bundle) -> int:
    assert bundle.tokenizer.mask_id is not None
    return bundle.tokenizer.mask_id


def _vectors(bundle: Bundle, texts: Sequence[str]) -> Tensor:
    """Return vectors of length 1, their common mean taken away ``(texts, dim)``."""
    found = Engine(bundle).embed(texts, "mean")
    return F.normalize(found - found.mean(0))


def _retrieval(bundle: Bundle, pairs: Sequence[Pair]) -> float:
    """Look for each rewritten sentence among all; the question's own words stand around the sentence."""
    asked, answers = (_vectors(bundle, [pair[side] for pair in pairs]) for side in (0, 1))
    best = (asked @ answers.T).argmax(1)
    return float(np.mean([pairs[int(b)][1] == pair[1] for b, pair in zip(best, pairs, strict=True)]))


def _sentiment(bundle: Bundle, reviews: Sequence[Sequence[tuple[str, int]]]) -> float:
    """Fit a ridge regression of the three moods on vectors, and tell those of other reviews."""
    told, asked = (Engine(bundle).embed([text for text, _ in part], "mean").numpy() for part in reviews)
    mean, spread = told.mean(0), told.std(0) + 1e-6
    inputs, others = ((one - mean) / spread for one in (told, asked))
    wanted = np.eye(3)[[mood for _, mood in reviews[0]]]
    gram = inputs.T @ inputs + RIDGE * len(inputs) * np.eye(inputs.shape[1])
    weights = np.linalg.solve(gram, inputs.T @ (wanted - wanted.mean(0)))
    said = (others @ weights + wanted.mean(0)).argmax(1)
    return float((said == np.array([mood for _, mood in reviews[1]])).mean())


def _relatedness(bundle: Bundle, related: Sequence[tuple[str, str, float]]) -> float:
    first = _vectors(bundle, [row[0] for row in related])
    second = _vectors(bundle, [row[1] for row in related])
    return spearman((first * second).sum(1).numpy(), np.array([row[2] for row in related]))


def spearman(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Return the correlation of ranks; equal values share their mean rank.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 40.0]))
    1.0
    """

    def ranks(values: NDArray[Any]) -> NDArray[np.float64]:
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        found: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[places]
        return found

    return float(np.round(np.corrcoef(ranks(first), ranks(second))[0, 1], 12))


# --- one sentence into another ---


class PairBatches:
    """Pairs as each kind of model reads them, in batches without end; only the second sides count."""

    def __init__(self, bundle: Bundle, pairs: Sequence[Pair], size: int, seed: int) -> None:
        self.bundle, self.size, self.seed = bundle, size, seed
        some = fitting(pairs, bundle.tokenizer, bundle.context)
        self.pairs = [_coded(bundle.tokenizer, pair) for pair in some]

    def __iter__(self) -> Iterator[Batch]:
        rng = random.Random(self.seed)
        while True:
            yield self.batch([rng.choice(self.pairs) for _ in range(self.size)])

    def batch(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Batch:
        """Put pairs of ids side by side."""
        shape = self.bundle.model.config.shape
        rows = [_row(self.bundle, *pair) for pair in pairs]
        ids, real = pad([row[0] for row in rows], torch.device("cpu"))
        longest = ids.shape[1]
        labels = torch.tensor([[*row[1], *[IGNORED] * (longest - len(row[1]))] for row in rows])
        if shape != "encoder_decoder":
            return Batch(ids, labels, real)
        source, source_mask = pad([_source(self.bundle, before) for before, _ in pairs], torch.device("cpu"))
        return Batch(ids, labels, real, source=source, source_mask=source_mask)


def fitting(pairs: Sequence[Pair], tokenizer: Tokenizer, context: int) -> list[Pair]:
    """Leave out pairs with an empty side and those that one kind or another has no room for.

    Raises:
        DataError: if none is left.
    """
    coded = ((pair, *_coded(tokenizer, pair)) for pair in pairs)
    found = [pair for pair, a, b in coded if a and b and len(a) + len(b) + 7 <= context]
    if not found:
        raise DataError("No pair fits into the context.", "Choose a longer context.")
    return found


def _coded(tokenizer: Tokenizer, pair: Pair) -> tuple[list[int], list[int]]:
    return tokenizer.encode(pair[0]), tokenizer.encode(pair[1])


def _ends(bundle: Bundle) -> tuple[int, int]:
    """Return the ids that stand between the sides of a pair, and behind it."""
    text = bundle.tokenizer
    assert text.sep_id is not None and text.eos_id is not None
    return text.sep_id, text.eos_id


def _source(bundle: Bundle, before: Sequence[int]) -> list[int]:
    first, last = bundle.frame
    return [*first, *before, *last]


def _row(bundle: Bundle, before: list[int], after: list[int]) -> tuple[list[int], list[int]]:
    """Return ids and labels of a pair as this kind of model learns it."""
    sep, eos = _ends(bundle)
    shape = bundle.model.config.shape
    if shape == "encoder":
        lead = [*_source(bundle, before)]
        return [*lead, *[_mask(bundle)] * len(after), sep], [*[IGNORED] * len(lead), *after, IGNORED]
    if shape == "decoder":
        lead = [*bundle.frame[0], *before, sep]
        return [*lead, *after], [*[IGNORED] * (len(lead) - 1), *after, eos]
    return [bundle.start_id, *after], [*after, eos]


def ask_tuned(bundle: Bundle, pairs: Sequence[Pair]) -> dict[str, float]:
    """Let a tuned model turn the first sides into the second; returns how often exactly, and how nearly."""
    coded = [_coded(bundle.tokenizer, pair) for pair in pairs]
    with reading_only(bundle.model):
        said = _written(bundle, coded)
    wanted = [after for _, after in coded]
    near = [1 - edits(a, b) / max(len(a), len(b), 1) for a, b in zip(said, wanted, strict=True)]
    return {
        "exact": float(np.mean([a == b for a, b in zip(said, wanted, strict=True)])),
        "near": float(np.mean(near)),
    }


def _written(bundle: Bundle, coded: Sequence[tuple[list[int], list[int]]]) -> list[list[int]]:
    sep, eos = _ends(bundle)
    if bundle.model.config.shape == "encoder":
        rows = [_row(bundle, before, after)[0] for before, after in coded]
        starts = [len(_source(bundle, before)) for before, _ in coded]
        places = [list(range(s, s + len(after))) for s, (_, after) in zip(starts, coded, strict=True)]
        flat = torch.cat([logs.argmax(-1).cpu() for logs in _log_probs(bundle, rows, [], places)]).tolist()
        cuts = np.cumsum([0, *(len(after) for _, after in coded)])
        return [flat[a:b] for a, b in pairwise(cuts)]
    if bundle.model.config.shape == "decoder":
        prompts = [[*bundle.frame[0], *before, sep] for before, _ in coded]
    else:
        prompts = [_source(bundle, before) for before, _ in coded]
    most = min(2 * max(len(after) for _, after in coded), bundle.context // 2)
    answers = Engine(bundle, slots=32).generate(prompts, Sampling(temperature=0.0, max_tokens=most))
    return [[id for id in one.ids if id != eos] for one in answers]
