"""The eight kinds of tokenizer: how each splits text, learns its vocabulary, and puts text together again.

A kind is one entry of :data:`KINDS`. Whatever the kind, the result is one ``tokenizer.json`` of the
``tokenizers`` library. Special tokens get the last ids and stand outside the model's vocabulary, so that no
text can be tokenized into one; only the unknown token lies inside (id 0) in the kinds that need it. This file
reads no files and runs no text through an engine.
"""

from __future__ import annotations

import difflib
import gc
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from tokenizers import Tokenizer as Engine
from tokenizers import models, trainers

from stockpot.errors import TokenizerError
from stockpot.text.counts import count_words
from stockpot.text.engine_file import Json, added_token, bpe_model, engine_file
from stockpot.text.merges import learn_merges
from stockpot.text.pieces import WORD_PATTERN

__all__ = ["BYTE_LETTERS", "KINDS", "Kind", "Request", "build", "kind_named"]

SPACE_MARK = "▁"


def _byte_letters() -> list[str]:
    """Return the letter that stands for each byte: itself, or from U+0100 up (GPT-2's table)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(spare)) for byte in range(256)]


BYTE_LETTERS = _byte_letters()


@dataclass(frozen=True)
class Request:
    """What is asked of a kind: ``tokens`` entries in the model, the first of them ``unk`` if given.

    ``outside`` more entries, special tokens, stand outside the model.
    """

    tokens: int
    unk: str | None
    min_count: int = 1
    character_coverage: float = 1.0
    ngram: int = 3
    outside: int = 0


@dataclass(frozen=True)
class Kind:
    """One kind of tokenizer.

    Attributes:
        learn: word counts and request → the ``model`` of tokenizer.json.
        pre_tokenizer: the steps that split text; a function of the request.
        needs_unk: whether text can be unknown to it.
        is_lossless: whether decoding gives back every text (of known characters, where ``needs_unk``).
    """

    name: str
    learn: Callable[[Counter[str], Request], Json]
    pre_tokenizer: Callable[[Request], Json | None]
    decoder: Json | None
    needs_unk: bool = True
    is_lossless: bool = True
    about: str = ""


# --- splitting and joining ------------------------------------------------------------

_WORDS: Json = {"type": "Split", "pattern": {"Regex": WORD_PATTERN}, "behavior": "Isolated", "invert": False}
_BYTES: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_MARK_SPACES: Json = {
    "type": "Metaspace",
    "replacement": SPACE_MARK,
    "prepend_scheme": "never",
    "split": False,
}
_DROP_SPACES: Json = {"type": "WhitespaceSplit"}


def _sequence(*steps: Json) -> Json:
    return {"type": "Sequence", "pretokenizers": list(steps)}


def _blocks(request: Request) -> Json:
    regex = rf"[\s\S]{{1,{request.ngram}}}"
    cut: Json = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    return _sequence(_WORDS, _MARK_SPACES, cut)


# --- learning -------------------------------------------------------------------------


def _bpe_model(vocabulary: Sequence[str], merges: Sequence[tuple[str, str]], request: Request) -> Json:
    numbered = {token: number for number, token in enumerate(vocabulary)}
    return bpe_model(numbered, merges, unk=request.unk)


def _alphabet(words: Mapping[str, int], request: Request, *, forms: int = 1) -> list[str]:
    """Return the characters to start from, sorted; ``character_coverage`` drops the rarest."""
    seen: Counter[str] = Counter()
    for word, count in words.items():
        for letter in word:
            seen[letter] += count
    allowed = (1.0 - request.character_coverage) * seen.total()
    dropped = 0
    for letter, count in sorted(seen.items(), key=lambda item: (item[1], item[0])):
        dropped += count
        if dropped > allowed:
            break
        del seen[letter]
    own = 0 if request.unk is None else 1
    if len(seen) * forms + own > request.tokens:
        raise TokenizerError(
            f"The corpus uses {len(seen)} different characters; beside the special tokens the vocabulary has "
            f"room for {max(request.tokens - own, 0) // forms}.",
            f"Ask for a vocab_size of at least {len(seen) * forms + own + request.outside}, a lower character_coverage "
            "(0.9995 drops the rarest), or kind byte-bpe.",
        )
    return sorted(seen)


def _marked(words: Mapping[str, int]) -> dict[str, int]:
    return {word.replace(" ", SPACE_MARK): count for word, count in words.items()}


def _known(words: Mapping[str, int], alphabet: Iterable[str]) -> dict[str, int]:
    """Cut words at characters outside the alphabet, which the engine will call unknown."""
    letters = set(alphabet)
    kept: Counter[str] = Counter()
    for word, count in words.items():
        if letters.issuperset(word):
            kept[word] += count
        else:
            for part in "".join(c if c in letters else "\0" for c in word).split("\0"):
                kept[part] += count
    return kept


def _own(request: Request) -> list[str]:
    return [] if request.unk is None else [request.unk]


def _learn_bpe(words: Counter[str], request: Request) -> Json:
    marked = _marked(words)
    alphabet = _alphabet(marked, request)
    start = [*_own(request), *alphabet]
    vocabulary, merges = learn_merges(
        _known(marked, alphabet), start, tokens=request.tokens, min_count=request.min_count
    )
    return _bpe_model(vocabulary, merges, request)


def _learn_byte_bpe(words: Counter[str], request: Request) -> Json:
    _refuse_below(request, 256, "bytes")
    vocabulary, merges = learn_merges(
        _byte_spelled(words), sorted(BYTE_LETTERS), tokens=request.tokens, min_count=request.min_count
    )
    return _bpe_model(vocabulary, merges, request)


def _byte_spelled(words: Counter[str]) -> dict[str, int]:
    """Return the words with a letter for each byte, all of them spelled at once."""
    codes = np.array([ord(letter) for letter in BYTE_LETTERS], "<u4")
    joined = b"\xff".join(map(str.encode, words))  # a byte that UTF-8 does not have
    text = codes[np.frombuffer(joined, np.uint8)].tobytes().decode("utf-32-le")
    return dict(zip(text.split(BYTE_LETTERS[0xFF]), words.values(), strict=True))


def _learn_byte(words: Counter[str], request: Request) -> Json:
    _refuse_below(request, 256, "bytes")
    return _bpe_model(sorted(BYTE_LETTERS), [], request)


def _refuse_below(request: Request, least: int, what: str) -> None:
    if request.tokens < least:
        raise TokenizerError(
            f"This kind needs room for {least} {what} beside the {request.outside} special tokens; vocab_size leaves "
            f"{max(request.tokens, 0)}.",
            f"Ask for a vocab_size of at least {least + request.outside}.",
        )


def _learn_wordpiece(words: Counter[str], request: Request) -> Json:
    bare: Counter[str] = Counter()
    for word, count in words.items():
        for part in word.split():
            bare[part] += count
    alphabet = _alphabet(bare, request, forms=2)
    start = [*_own(request), *alphabet, *("##" + letter for letter in alphabet)]
    known = {word: count for word, count in bare.items() if set(alphabet).issuperset(word)}
    vocabulary, _ = learn_merges(
        known, start, tokens=request.tokens, prefix="##", min_count=request.min_count
    )
    return {
        "type": "WordPiece",
        "unk_token": request.unk,
        "continuing_subword_prefix": "##",
        "max_input_chars_per_word": 100,
        "vocab": {token: number for number, token in enumerate(vocabulary)},
    }


def _most_frequent(counts: Mapping[str, int], room: int, min_count: int) -> list[str]:
    frequent = [(-count, token) for token, count in counts.items() if count >= min_count]
    return [token for _, token in sorted(frequent)[: max(room, 0)]]


def _learn_char(words: Counter[str], request: Request) -> Json:
    return _bpe_model([*_own(request), *_alphabet(words, request)], [], request)


def _learn_ngram(words: Counter[str], request: Request) -> Json:
    marked = _marked(words)
    start = [*_own(request), *_alphabet(marked, request)]
    blocks: Counter[str] = Counter()
    for word, count in marked.items():
        for at in range(0, len(word), request.ngram):
            blocks[word[at : at + request.ngram]] += count
    for token in start:
        blocks.pop(token, None)
    best = _most_frequent(blocks, request.tokens - len(start), request.min_count)
    # Without merges, a block that is an entry is taken whole (ignore_merges) and any other falls into
    # characters.
    return _bpe_model([*start, *best], [], request) | {"ignore_merges": True}


def _learn_word(words: Counter[str], request: Request) -> Json:
    bare: Counter[str] = Counter()
    for word, count in words.items():
        for part in word.split():
            bare[part] += count
    own = _own(request)
    for token in own:
        bare.pop(token, None)
    tokens = [*own, *_most_frequent(bare, request.tokens - len(own), request.min_count)]
    return {
        "type": "WordLevel",
        "vocab": {token: number for number, token in enumerate(tokens)},
        "unk_token": request.unk,
    }


_UNIGRAM_WORDS = (
    5_000_000  # occurrences handed to the trainer; larger counts are scaled down, which keeps proportions
)


def _learn_unigram(words: Counter[str], request: Request) -> Json:
    marked = _marked(words)
    alphabet = _alphabet(marked, request)
    known = Counter(_known(marked, alphabet))
    scale = min(1.0, _UNIGRAM_WORDS / max(known.total(), 1))
    engine = Engine(models.Unigram())
    trainer = trainers.UnigramTrainer(
        vocab_size=request.tokens,
        show_progress=False,
        special_tokens=_own(request),
        unk_token=request.unk,
        initial_alphabet=alphabet,
    )
    engine.train_from_iterator(_repeat(known, scale), trainer)
    model: Json = json.loads(engine.to_str())["model"]
    return model | {"vocab": _steady(model["vocab"], request)}


def _steady(pieces: list[list[Any]], request: Request) -> list[list[Any]]:
    """Make the trainer's result repeatable: it adds up in a different order every time.

    Scores (log-probabilities) differ in the eleventh digit, so they are rounded to a thousandth and sorted. Characters
    that no piece held are given the lowest score and a hair more each, in no fixed order; they get the lowest itself.
    """
    own, learned = pieces[: len(_own(request))], pieces[len(_own(request)) :]
    lowest = min((score for _, score in learned), default=0.0)
    window = lowest + 1e-4 * (len(learned) + 1)
    settled = [[piece, lowest if len(piece) == 1 and score <= window else score] for piece, score in learned]
    rounded = [[piece, round(score, 3)] for piece, score in settled]
    return own + sorted(rounded, key=lambda item: (-item[1], item[0]))


def _repeat(words: Mapping[str, int], scale: float) -> Iterator[list[str]]:
    for word in sorted(words):
        count = max(1, round(words[word] * scale))
        for at in range(0, count, 1024):
            yield [word] * min(1024, count - at)


# --- the table ------------------------------------------------------------------------

_SPACED_DECODER: Json = {
    "type": "Metaspace",
    "replacement": SPACE_MARK,
    "prepend_scheme": "never",
    "split": False,
}
_BYTE_DECODER: Json = {
    "type": "ByteLevel",
    "add_prefix_space": False,
    "trim_offsets": False,
    "use_regex": False,
}
_PIECE_DECODER: Json = {"type": "WordPiece", "prefix": "##", "cleanup": False}

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind(
            "byte-bpe",
            _learn_byte_bpe,
            lambda _: _sequence(_WORDS, _BYTES),
            _BYTE_DECODER,
            needs_unk=False,
            about="merges of frequent pairs, starting from the 256 bytes",
        ),
        Kind(
            "bpe",
            _learn_bpe,
            lambda _: _sequence(_WORDS, _MARK_SPACES),
            _SPACED_DECODER,
            about="merges of frequent pairs, starting from the characters of the corpus",
        ),
        Kind(
            "wordpiece",
            _learn_wordpiece,
            lambda _: _sequence(_WORDS, _DROP_SPACES),
            _PIECE_DECODER,
            is_lossless=False,
            about="the longest known piece first, as in BERT",
        ),
        Kind(
            "unigram",
            _learn_unigram,
            lambda _: _sequence(_WORDS, _MARK_SPACES),
            _SPACED_DECODER,
            about="the most probable way to cut a word, as in T5",
        ),
        Kind("char", _learn_char, lambda _: None, {"type": "Fuse"}, about="every character is a token"),
        Kind(
            "byte",
            _learn_byte,
            lambda _: _BYTES,
            _BYTE_DECODER,
            needs_unk=False,
            about="every byte is a token",
        ),
        Kind(
            "ngram",
            _learn_ngram,
            _blocks,
            _SPACED_DECODER,
            about="blocks of n characters; rare blocks fall into characters",
        ),
        Kind(
            "word",
            _learn_word,
            lambda _: _sequence(_WORDS, _DROP_SPACES),
            None,
            is_lossless=False,
            about="whole words; any other word is unknown",
        ),
    )
}


def kind_named(name: str) -> Kind:
    """Return the kind called ``name``.

    Raises:
        TokenizerError: naming the nearest kind, if there is none.
    """
    if name in KINDS:
        return KINDS[name]
    near = difflib.get_close_matches(name, KINDS, n=1, cutoff=0.3)
    hint = f'Did you mean "{near[0]}"? ' if near else ""
    raise TokenizerError(f'There is no tokenizer kind "{name}".', f"{hint}Kinds: {', '.join(KINDS)}.")


def build(kind: Kind, texts: Iterable[str], request: Request, special_tokens: Sequence[str]) -> str:
    """Train and return the text of tokenizer.json.

    Raises:
        TokenizerError: if ``texts`` holds no text, or the vocabulary cannot hold the alphabet.
    """
    words: Counter[str] = Counter() if kind.name == "byte" else count_words(texts)
    if not words and kind.name != "byte":
        raise TokenizerError(
            "The corpus is empty: there is nothing to train a tokenizer on.", "Check the path or filter."
        )
    with _no_collection():
        return json.dumps(
            _spec(kind, kind.learn(words, request), request, special_tokens), ensure_ascii=False
        )


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the garbage collector from walking through a hundred thousand lists again and again."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _spec(kind: Kind, model: Json, request: Request, special_tokens: Sequence[str]) -> Json:
    inside = [request.unk] if request.unk is not None else []
    after = max(_ids(model), default=-1) + 1
    numbered = {token: number for number, token in enumerate(inside)}
    numbered |= {token: after + i for i, token in enumerate(t for t in special_tokens if t not in inside)}
    added = [added_token(numbered[token], token) for token in sorted(numbered, key=numbered.__getitem__)]
    return engine_file(model, added=added, pre_tokenizer=kind.pre_tokenizer(request), decoder=kind.decoder)


def _ids(model: Json) -> Iterable[int]:
    vocabulary = model["vocab"]
    return range(len(vocabulary)) if isinstance(vocabulary, list) else vocabulary.values()
