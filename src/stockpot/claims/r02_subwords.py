"""Row 2: subwords lie between characters and words, and spell anything."""

from __future__ import annotations

from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above, held
from stockpot.text.tokenizer import Tokenizer
from stockpot.village import Village

KINDS = ("bpe", "byte-bpe", "wordpiece", "unigram")


def measure(material: Material) -> Sequence[Finding]:
    """Compare how many bytes a token stands for, on held-out text."""
    gain: dict[str, list[float]] = {kind: [] for kind in KINDS}
    trips, n = [], 0
    for seed in material.seeds:
        village = Village(seed=seed)
        texts = [one["text"] for one in village.documents(limit=2000)]
        fresh = [one["text"] for one in village.documents("val", limit=200)]
        size = sum(len(text.encode()) for text in fresh)
        n = size
        whole = True
        for kind in KINDS:
            tokenizer = Tokenizer.train(texts, kind=kind, vocab_size=2048)
            tokens = sum(map(len, tokenizer.encode_batch(fresh)))
            gain[kind].append(size / tokens)
            if kind == "byte-bpe":
                whole = all(
                    tokenizer.decode(tokenizer.encode(text + " attenttionn ☃")) == text + " attenttionn ☃"
                    for text in fresh
                )
        trips.append(float(whole))
    found = [
        above(f"bytes a token, {kind} (a character: 1)", values, 1.0, n=n) for kind, values in gain.items()
    ]
    return [*found, held("byte-level BPE gives any text back", trips, n=200)]


CLAIM = Claim(
    2,
    "subwords",
    "Pieces of words make short texts and spell everything",
    "merging the most frequent pairs until the vocabulary is full: at worst every character is a token (Sennrich et al. 2016, "
    "arXiv:1508.07909)",
    "four kinds of 2,048 entries trained on 2,000 village documents, 200 held-out ones",
    measure,
    needs_cooks=False,
)
