"""tiktoken rank files → tokenizer.json.

Such a file lists byte strings with their ranks and nothing else: neither how text is cut first, nor the special tokens. Both
are known for the published encodings, which are told by how many ranks they have; any other file is refused, since
guessing would give other ids without a word.

Source of rules and special tokens: tiktoken_ext/openai_public.py of github.com/openai/tiktoken, and for Llama 3
llama/tokenizer.py of github.com/meta-llama/llama3.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from stockpot.errors import TokenizerError
from stockpot.text.engine_file import Json, added_token, bpe_model, engine_file
from stockpot.text.kinds import BYTE_LETTERS
from stockpot.text.pieces import GPT2_PATTERN, LLAMA3_PATTERN

__all__ = ["ENCODINGS", "Encoding", "is_ranks", "read_ranks"]

LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d{1,9}\r?\n?")
SAFE = "Get the file again."


@dataclass(frozen=True)
class Encoding:
    """What a rank file leaves out.

    Attributes:
        pattern: finds the words that text is cut into.
        special: special tokens and their ids.
        roles: which of them are for what.
    """

    name: str
    pattern: str
    special: Mapping[str, int] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)


_CASE = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
# As tiktoken has it: blanks at the very end of a text stay together.
_CL100K = LLAMA3_PATTERN.replace(r"|\s*[\r\n]+", r"|\s+\z|\s*[\r\n]+")
_O200K = "|".join(
    [
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]*[{_LOWER}]+{_CASE}",
        rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]+[{_LOWER}]*{_CASE}",
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ]
)
_END = "<|endoftext|>"
_CL100K_SPECIAL = {
    _END: 100257,
    "<|fim_prefix|>": 100258,
    "<|fim_middle|>": 100259,
    "<|fim_suffix|>": 100260,
    "<|endofprompt|>": 100276,
}
_LLAMA3_NAMED = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    *(f"<|reserved_special_token_{n}|>" for n in range(4)),
]
_LLAMA3_NAMED += ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
_LLAMA3_NAMED += [f"<|reserved_special_token_{n}|>" for n in range(5, 251)]
_LLAMA3 = {token: 128_000 + number for number, token in enumerate(_LLAMA3_NAMED)}

ENCODINGS = {
    50_256: Encoding("r50k_base (GPT-2)", GPT2_PATTERN, {_END: 50_256}, {"eos": _END}),
    100_256: Encoding("cl100k_base", _CL100K, _CL100K_SPECIAL, {"eos": _END}),
    128_000: Encoding(
        "Llama 3", LLAMA3_PATTERN, _LLAMA3, {"bos": "<|begin_of_text|>", "eos": "<|end_of_text|>"}
    ),
    199_998: Encoding("o200k_base", _O200K, {_END: 199_999, "<|endofprompt|>": 200_018}, {"eos": _END}),
}
"""By the number of ranks in the file."""


def is_ranks(data: bytes) -> bool:
    """Say whether bytes begin with a line of such a file."""
    return LINE.match(data[:4096]) is not None


def read_ranks(data: bytes, encoding: Encoding | None = None) -> tuple[str, Json]:
    """Return the text of a tokenizer.json, and what tokenizer_config.json would say.

    ``encoding=None`` tells it by the number of ranks.

    Raises:
        TokenizerError: if the file is damaged, or of an encoding that is not known.
    """
    ranks = _read(data)
    encoding = encoding or ENCODINGS.get(len(ranks))
    if encoding is None:
        known = ", ".join(f"{one.name} ({count:,})" for count, one in ENCODINGS.items())
        raise TokenizerError(
            f"A rank file with {len(ranks):,} ranks does not say how text is cut, and no encoding is known by that number.",
            f"Known: {known}. Use the model's tokenizer.json.",
        )
    vocabulary = {_spelled(token): rank for token, rank in ranks.items()}
    named = {number: token for token, number in encoding.special.items()}
    last = max(named, default=-1)
    added = [  # the engine numbers them without gaps
        added_token(number, named.get(number, f"<|unused_{number}|>"))
        for number in range(len(ranks), last + 1)
    ]
    cut = {"type": "Split", "pattern": {"Regex": encoding.pattern}, "behavior": "Isolated", "invert": False}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    spec = engine_file(
        _model(ranks, vocabulary),
        added=added,
        pre_tokenizer={"type": "Sequence", "pretokenizers": [cut, bytes_]},
        decoder={**bytes_, "add_prefix_space": True, "use_regex": True},
    )
    roles = {f"{role}_token": token for role, token in encoding.roles.items()}
    return json.dumps(spec, ensure_ascii=False), roles


def _model(ranks: Mapping[bytes, int], vocabulary: Mapping[str, int]) -> Json:
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = _parts(token, rank, ranks)
            if len(parts) == 2:  # others are reached as whole words only
                merges.append([_spelled(part) for part in parts])
    return bpe_model(vocabulary, merges, ignore_merges=True)


def _parts(token: bytes, rank: int, ranks: Mapping[bytes, int]) -> list[bytes]:
    """Merge a token's bytes as far as the ranks below its own go: what is left are the two parts it was made of."""
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        found = [(ranks.get(parts[at] + parts[at + 1], rank), at) for at in range(len(parts) - 1)]
        best, at = min(found)
        if best >= rank:
            break
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return parts


def _spelled(token: bytes) -> str:
    return "".join(BYTE_LETTERS[byte] for byte in token)


def _read(data: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(data.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            if not LINE.fullmatch(line):
                raise ValueError("a byte string in base64 and its rank were expected")
            text, rank = line.split()
            ranks[base64.b64decode(text, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(f"The rank file is damaged in line {number}: {error}.", SAFE) from None
    if sorted(ranks.values()) != list(range(len(ranks))) or not {bytes([b]) for b in range(256)} <= set(
        ranks
    ):
        raise TokenizerError("The rank file leaves ranks out, repeats some, or lacks single bytes.", SAFE)
    return ranks
