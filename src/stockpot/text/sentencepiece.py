"""SentencePiece ``.model`` files → tokenizer.json.

The file is a protocol buffer; the few fields that decide the ids are read here, with every length checked, and
no library of its own is needed. Unigram, BPE and character models become the engine's model with the same scores or
merges, and normalising becomes the engine's steps. What the engine cannot do the same way is refused.

Source of the fields: sentencepiece_model.proto, github.com/google/sentencepiece.
"""

from __future__ import annotations

import base64
import json
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from stockpot.errors import TokenizerError
from stockpot.text.engine_file import Json, added_token, bpe_model, engine_file
from stockpot.text.kinds import SPACE_MARK

__all__ = ["is_sentencepiece", "read_sentencepiece"]

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)
UNIGRAM, BPE, WORD, CHAR = range(1, 5)
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MOST_PIECES = 1 << 22
SAFE = "Get the file again."


@dataclass
class _Model:
    """What a file says, with the format's own defaults."""

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    kind: int = UNIGRAM
    byte_fallback: bool = False
    is_suffix: bool = False
    numbers: dict[str, int] = field(default_factory=lambda: {"unk": 0, "bos": 1, "eos": 2, "pad": -1})
    rules: bytes = b""
    has_prefix: bool = True
    strips: bool = True
    escapes: bool = True


ROLE_NUMBERS = {40: "unk", 41: "bos", 42: "eos", 43: "pad"}


def is_sentencepiece(data: bytes) -> bool:
    """Say whether bytes begin like such a file: one piece, with its text, as the first field."""
    try:
        number, value = next(_fields(data[:256], whole=False))
        return number == 1 and isinstance(value, bytes) and next(_fields(value))[0] == 1
    except (TokenizerError, StopIteration):
        return False


def read_sentencepiece(data: bytes) -> tuple[str, Json]:
    """Return the text of a tokenizer.json, and what tokenizer_config.json would say.

    Raises:
        TokenizerError: if the file is damaged, or describes what the engine cannot do the same way.
    """
    model = _read(data)
    _refuse_others(model)
    roles = {
        role: model.pieces[number][0]
        for role, number in model.numbers.items()
        if 0 <= number < len(model.pieces) and model.pieces[number][2] in (CONTROL, UNKNOWN)
    }
    added = [
        added_token(number, text)
        for number, (text, _, kind) in enumerate(model.pieces)
        if kind in (CONTROL, UNKNOWN)
    ]
    spec = engine_file(
        _unigram(model) if model.kind == UNIGRAM else _bpe(model),
        added=added,
        normalizer=_normalizer(model),
        pre_tokenizer=_cutter(model),
        decoder=_decoder(model),
    )
    return json.dumps(spec, ensure_ascii=False), {f"{role}_token": text for role, text in roles.items()}


# --- the engine's parts ---


def _refuse_others(model: _Model) -> None:
    texts = [text for text, _, _ in model.pieces]
    kinds = {kind for _, _, kind in model.pieces}
    faults = {
        "cuts text into whole words": model.kind == WORD,
        "is of an unknown kind": model.kind not in (UNIGRAM, BPE, WORD, CHAR),
        "marks spaces behind words": model.is_suffix,
        "keeps spaces as they are": not model.escapes,
        "has pieces that are not used": UNUSED in kinds,
        "has pieces of an unknown kind": not kinds <= {NORMAL, UNKNOWN, CONTROL, USER_DEFINED, BYTE},
        "holds a piece twice": len(set(texts)) != len(texts),
        "does not have one piece for unknown text": [k for _, _, k in model.pieces].count(UNKNOWN) != 1,
        "lacks pieces for some bytes": model.byte_fallback
        and not {f"<0x{byte:02X}>" for byte in range(256)} <= set(texts),
    }
    if told := [fault for fault, there in faults.items() if there]:
        raise TokenizerError(
            f"The SentencePiece model {told[0]}, which is not read.", "Use the model's tokenizer.json."
        )


def _normalizer(model: _Model) -> Json | None:
    """Normalise, collapse spaces, put a space in front, and write spaces as ``▁``, in this order."""
    steps: list[Json] = []
    if model.rules:
        steps.append(
            {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(model.rules).decode("ascii")}
        )
    if model.strips:
        steps.append({"type": "Replace", "pattern": {"Regex": rf"\A +|[ {SPACE_MARK}]+\z"}, "content": ""})
        steps.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    if model.has_prefix:
        steps.append({"type": "Prepend", "prepend": SPACE_MARK})
    steps.append({"type": "Replace", "pattern": {"String": " "}, "content": SPACE_MARK})
    return {"type": "Sequence", "normalizers": steps}


def _cutter(model: _Model) -> Json | None:
    """Cut text where the engine's model would do what SentencePiece does not.

    A BPE model must not look across a user's own symbols; in a Unigram model their scores see to that. And a typed
    ``<s>`` or ``<0x41>`` must not be taken for the piece of that name: text is cut inside it.
    """
    inside = "|".join(
        f"{re.escape(text[:at])}(?={re.escape(text[at:])})" for text, at in _inner_cuts(model).items()
    )
    apart = _split(inside, "MergedWithPrevious")
    if model.kind == UNIGRAM:
        return apart
    symbols = sorted((text for text, _, kind in model.pieces if kind == USER_DEFINED), key=len, reverse=True)
    if not symbols:
        return None
    around = _split("|".join(map(re.escape, symbols)), "Isolated")
    return {"type": "Sequence", "pretokenizers": [around, apart]}


def _split(pattern: str, behaviour: str) -> Json:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behaviour, "invert": False}


def _inner_cuts(model: _Model) -> dict[str, int]:
    """Find where to cut inside each spelling that no text may reach: where no other piece would be cut in two."""
    pieces = [text for text, _, kind in model.pieces if kind in (NORMAL, USER_DEFINED)]
    pairs = {text[at : at + 2] for text in pieces for at in range(len(text) - 1)}
    known = {text for text in pieces if len(text) == 1}
    found = {}
    for text, _, kind in model.pieces:
        if kind in (CONTROL, UNKNOWN, BYTE) and len(text) > 1:
            free = [at for at in range(1, len(text)) if text[at - 1 : at + 1] not in pairs]
            apart = [at for at in free if model.byte_fallback or known & {text[at - 1], text[at]}]
            found[text] = next(iter(apart or free), 1)
    return found


def _decoder(model: _Model) -> Json:
    steps: list[Json] = [{"type": "Replace", "pattern": {"String": SPACE_MARK}, "content": " "}]
    steps += [{"type": "ByteFallback"}] if model.byte_fallback else []
    steps += [{"type": "Fuse"}]
    if model.has_prefix or model.strips:  # where spaces collapse, none can be meant at the beginning
        steps.append({"type": "Strip", "content": " ", "start": 1024 if model.strips else 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _unigram(model: _Model) -> Json:
    """Keep the scores of ordinary pieces; a user's symbol outdoes whatever its letters could score.

    Source of that score: unigram_model.cc, PopulateNodes.
    """
    normal = [score for _, score, kind in model.pieces if kind == NORMAL] or [0.0]
    best, worst = max(normal), min(normal)

    def score_of(text: str, score: float, kind: int) -> float:
        if kind == USER_DEFINED:
            return len(text) * best - 0.1
        return score if kind == NORMAL else worst

    unknown = next(number for number, piece in enumerate(model.pieces) if piece[2] == UNKNOWN)
    return {
        "type": "Unigram",
        "unk_id": unknown,
        "vocab": [[text, score_of(text, score, kind)] for text, score, kind in model.pieces],
        "byte_fallback": model.byte_fallback,
    }


def _bpe(model: _Model) -> Json:
    """Turn scores into merges: the pair whose whole has the best score comes first.

    A character model is one without merges.
    """
    vocabulary = {text: number for number, (text, _, _) in enumerate(model.pieces)}
    normal = {text: score for text, score, kind in model.pieces if kind == NORMAL}
    merges: list[tuple[float, int, str, str]] = []
    for text, score in normal.items() if model.kind == BPE else ():
        for at in range(1, len(text)):
            left, right = text[:at], text[at:]
            if left in normal and right in normal:
                merges.append((-score, at, left, right))
    has_symbols = any(kind == USER_DEFINED for _, _, kind in model.pieces)
    unknown = next(text for text, _, kind in model.pieces if kind == UNKNOWN)
    return bpe_model(
        vocabulary,
        [(left, right) for _, _, left, right in sorted(merges)],
        unk=unknown,
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
        ignore_merges=has_symbols,  # what stands between cuts and is a piece is taken whole
    )


# --- the file ---


def _read(data: bytes) -> _Model:
    model = _Model()
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            model.pieces.append(_piece(value))
            if len(model.pieces) > MOST_PIECES:
                raise TokenizerError(f"The SentencePiece model has more than {MOST_PIECES:,} pieces.", SAFE)
        elif number == 2 and isinstance(value, bytes):
            _read_training(value, model)
        elif number == 3 and isinstance(value, bytes):
            _read_rules(value, model)
    if not model.pieces:
        raise TokenizerError("The SentencePiece model holds no pieces.", SAFE)
    return model


def _piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in _fields(data):
        if number == 1 and isinstance(value, bytes):
            text = _text(value)
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3 and isinstance(value, int):
            kind = value
    if not text or not -1e30 < score < 1e30:
        raise TokenizerError(
            f"The SentencePiece model has the impossible piece {text[:80]!r}, {score}.", SAFE
        )
    return text, score, kind


def _read_training(data: bytes, model: _Model) -> None:
    for number, value in _fields(data):
        if number == 3 and isinstance(value, int):
            model.kind = value
        elif number == 24 and isinstance(value, int):
            model.is_suffix = bool(value)
        elif number == 35 and isinstance(value, int):
            model.byte_fallback = bool(value)
        elif number in ROLE_NUMBERS and isinstance(value, int):
            model.numbers[ROLE_NUMBERS[number]] = value if value < 1 << 31 else -1


def _read_rules(data: bytes, model: _Model) -> None:
    for number, value in _fields(data):
        if number == 2 and isinstance(value, bytes):
            model.rules = value
        elif number == 3 and isinstance(value, int):
            model.has_prefix = bool(value)
        elif number == 4 and isinstance(value, int):
            model.strips = bool(value)
        elif number == 5 and isinstance(value, int):
            model.escapes = bool(value)


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise TokenizerError("The SentencePiece model holds a text that is not UTF-8.", SAFE) from None


def _fields(data: bytes, *, whole: bool = True) -> Iterator[tuple[int, bytes | int | float]]:
    """Yield the fields of a message, in order: number and value.

    ``whole=False``: the end of the bytes is not the end of the message.
    """
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value: bytes | int | float
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == BYTES:
            length, at = _varint(data, at)
        elif wire in (FIXED32, FIXED64):
            length = 4 if wire == FIXED32 else 8
        else:
            raise TokenizerError("The SentencePiece model is damaged: a field of an unknown type.", SAFE)
        if at + length > len(data):
            if not whole:
                return
            raise TokenizerError("The SentencePiece model is cut short, or damaged.", SAFE)
        piece = data[at : at + length]
        at += length
        yield number, struct.unpack("<f", piece)[0] if wire == FIXED32 else piece


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise TokenizerError("The SentencePiece model is cut short, or damaged.", SAFE)
