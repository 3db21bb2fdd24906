"""Row 1: a vocabulary of words does not know what it has not seen."""

from __future__ import annotations

import random
from collections.abc import Sequence

from stockpot.claims.claim import Claim, Finding, Material, above, held
from stockpot.text.tokenizer import Tokenizer
from stockpot.village import Village

TYPO_SHARE = 0.05


def measure(material: Material) -> Sequence[Finding]:
    """Train a word tokenizer and a byte-level BPE one on the same text; look at words with one letter doubled."""
    unknown, unknown_typed, pieces = [], [], []
    held_out = 0
    for seed in material.seeds:
        village = Village(seed=seed)
        texts = [one["text"] for one in village.documents(limit=2000)]
        words = Tokenizer.train(texts, kind="word", vocab_size=2048)
        bpe = Tokenizer.train(texts, kind="byte-bpe", vocab_size=2048)
        fresh = [one["text"] for one in village.documents("val", limit=200)]
        dice = random.Random(seed)
        typed = [_mistyped(text, dice) for text in fresh]
        held_out = sum(len(words.encode(text)) for text in fresh)
        unknown.append(_unknown(words, fresh))
        unknown_typed.append(_unknown(words, typed))
        pieces.append(float(_unknown(bpe, typed) == 0 and all(bpe.decode(bpe.encode(t)) == t for t in typed)))
    more = [b - a for a, b in zip(unknown, unknown_typed, strict=True)]
    plain = ", ".join(f"{share:.2%}" for share in unknown)
    material.told.append(f"Unknown words in held-out text without typos: {plain}; the village has few words.")
    return [
        above("unknown words gained by one typo in twenty words, share", more, 0.0, n=held_out),
        held("byte-level BPE spells every typo, and gives it back", pieces, n=held_out),
    ]


def _mistyped(text: str, dice: random.Random) -> str:
    """Double a letter in some words, as in "attenttion"."""
    words = text.split(" ")
    for place, word in enumerate(words):
        if len(word) > 3 and dice.random() < TYPO_SHARE:
            at = dice.randrange(1, len(word) - 1)
            words[place] = word[:at] + word[at] + word[at:]
    return " ".join(words)


def _unknown(tokenizer: Tokenizer, texts: Sequence[str]) -> float:
    ids = [one for text in texts for one in tokenizer.encode(text)]
    return ids.count(tokenizer.unk_id) / len(ids) if tokenizer.unk_id is not None else 0.0


CLAIM = Claim(
    1,
    "unknown-words",
    "A vocabulary of words cannot spell what it has not seen",
    "“mom” and “attenttionn” are both UNK in an index of training words (the lecture's slide)",
    "2,000 village documents, 2,048 entries; 200 held-out documents, as they are and with one typo in twenty words",
    measure,
    needs_cooks=False,
)
