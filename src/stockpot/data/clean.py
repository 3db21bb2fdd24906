"""Which documents of a raw corpus are worth training on, and in what form.

Text is put into one form of Unicode and freed of what no reader sees; a document is left out for a named reason: too short,
another language, or one of the signs by which machine-made pages give themselves away. Nothing is judged by a model.

Source of the signs and their limits: Rae et al. 2021, arXiv:2112.11446, table A1 (Gopher).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from functools import lru_cache

from pydantic import Field

from stockpot.config import Settings
from stockpot.errors import ConfigError

__all__ = ["CleanConfig", "clean", "fault", "language_of", "words_of"]

# The words without which no page of a language is written; a hundred tokens are enough to tell them apart.
_COMMON = {
    "en": "the of and to in a is that for it was on with as be at by he this are from or his had not",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il",
    "es": "de la que el en y a los del se las por un para con no una su al lo como más pero sus le",
    "it": "di e il la che in un a per è una con non del si da le dei nel al come più i alla ma",
    "nl": "de van een het en in is dat op te zijn met voor niet aan er om ook als dan maar bij",
    "pt": "de a o que e do da em um para é com não uma os no se na por mais as dos como mas foi ao",
}
COMMON_WORDS = {name: frozenset(words.split()) for name, words in _COMMON.items()}
# Chinese, Japanese, Thai, Lao, Tibetan, Burmese and Khmer put no blanks between words: each letter counts as one.
_NO_BLANKS = (
    r"\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    r"\U00020000-\U0003ffff"
)
_LETTER_ALONE = re.compile(f"[{_NO_BLANKS}]")
_JOINERS = "\u200c\u200d"
_LONE_JOINERS = re.compile(rf"(?<![\u0590-\u167f\u1681-\u1fff\u2070-\u2fff\u3001-\U0010ffff])[{_JOINERS}]+")
_SPACES = re.compile(r" [^\S\n]+|[^\S\n ][^\S\n]*")  # what is more than one plain space
_GAPS = re.compile(r"\n{3,}")


class CleanConfig(Settings):
    """How a corpus is cleaned."""

    normalise: bool = Field(
        True, description="one form of Unicode (NFC), no control characters, plain spaces"
    )
    language: str | None = Field(None, description="keep one language only: en de fr es it nl pt; none: all")
    quality: bool = Field(True, description="leave out what looks made by machines (Gopher's rules)")
    min_words: int = Field(20, ge=0, description="shorter documents are left out")
    max_words: int = Field(100_000, ge=1, description="longer documents are left out")


def clean(text: str) -> str:
    """Put text into one form: NFC, line feeds, no control or invisible characters, no trailing or repeated spaces.

    Joiners stay where they change what is read: in scripts whose letters join, and in emoji.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    signs = set(text) - {"\n", "\t", *_JOINERS}
    unseen = {ord(sign): None for sign in signs if unicodedata.category(sign) in ("Cc", "Cf", "Co", "Cs")}
    kept = text.translate(unseen) if unseen else text
    kept = _LONE_JOINERS.sub("", kept)
    kept = unicodedata.normalize("NFC", kept)  # last: a mark may have lost what kept it apart
    lines = (line.rstrip() for line in _SPACES.sub(" ", kept).split("\n"))
    return _GAPS.sub("\n\n", "\n".join(lines)).strip()


def words_of(text: str) -> list[str]:
    """Find the words of a text: letters with their marks, and an apostrophe between letters."""
    marks = {sign for sign in set(text) if unicodedata.category(sign) in ("Mn", "Mc")} | set(_JOINERS)
    return _words("".join(sorted(marks))).findall(text)


@lru_cache(maxsize=64)
def _words(marks: str) -> re.Pattern[str]:
    """Make the pattern of words where these marks occur: Python's letters have none, those of Hindi need them."""
    letter, alone = r"[^\W\d_" + _NO_BLANKS + "]", f"(?=[{_NO_BLANKS}])" + r"[^\W\d_]"
    run = f"{letter}+(?:[{marks}]+{letter}*)*"
    return re.compile(f"{run}(?:['’]{run})?|{alone}[{marks}]*")


def language_of(words: list[str]) -> str | None:
    """Tell which language the most common words are of; None: none that is known, or too little to say."""
    counts = Counter(word.lower() for word in words[:2000])
    shares = {name: sum(counts[word] for word in own) for name, own in COMMON_WORDS.items()}
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= max(2, 0.08 * min(len(words), 2000)) else None


def fault(text: str, config: CleanConfig) -> str | None:
    """Say why a clean document is left out, in a word or two; None: it stays.

    Raises:
        ConfigError: if the language is unknown.
    """
    if config.language is not None and config.language not in COMMON_WORDS:
        raise ConfigError(
            f"language {config.language!r} is unknown.", f"Use one of: {', '.join(COMMON_WORDS)}."
        )
    words = words_of(text)
    if len(words) < config.min_words:
        return "too short"
    if len(words) > config.max_words:
        return "too long"
    if config.language is not None and language_of(words) != config.language:
        return "another language"
    return _sign_of_machines(text, words) if config.quality else None


def _sign_of_machines(text: str, words: list[str]) -> str | None:
    pieces = text.split()
    if words and _are_odd(words):
        return "odd words"
    if (text.count("#") + text.count("...") + text.count("…")) > 0.1 * len(pieces):
        return "symbols"
    if sum(any(sign.isalpha() for sign in piece) for piece in pieces) < 0.8 * len(pieces):
        return "few letters"
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if sum(line.startswith(("•", "-", "*", "·", "‣")) for line in lines) > 0.9 * len(lines):
        return "a list"
    if len(lines) >= 5 and sum(line.endswith(("…", "...")) for line in lines) > 0.3 * len(lines):
        return "cut lines"
    if len(lines) >= 5 and len(set(lines)) < 0.7 * len(lines):
        return "repeated lines"
    return None


def _are_odd(words: list[str]) -> bool:
    """Tell words too short or too long on average; marks make a word longer, not shorter. Without blanks nobody can tell."""
    if 2 * sum(_LETTER_ALONE.match(word) is not None for word in words) > len(words):
        return False
    size = sum(map(len, words))
    if size <= 10 * len(words):
        return size < 3 * len(words)
    return sum(sign.isalpha() for word in words for sign in word) > 10 * len(words)
