"""Tokenizer files: reading what other tools wrote, and saying what a tokenizer.json means.

What a file is, its contents tell, never its name. Nothing here runs code from a file. Reading is all this
file does: writing belongs to ``Tokenizer.save``.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Engine

from stockpot.errors import TokenizerError
from stockpot.gguf_directory import is_gguf, read_directory
from stockpot.text.kinds import BYTE_LETTERS, SPACE_MARK
from stockpot.text.ranks import is_ranks, read_ranks
from stockpot.text.sentencepiece import is_sentencepiece, read_sentencepiece
from stockpot.text.vocabulary import read_vocabulary

__all__ = [
    "IN_FOLDERS",
    "MAX_IDS",
    "begins_with",
    "is_byte_level",
    "kind_of",
    "open_engine",
    "read_roles",
    "read_source",
    "read_template",
    "token_bytes",
]

_MAX_FILE_BYTES = 1 << 29
_MAX_SETTINGS_BYTES = 1 << 25
MAX_IDS = 1 << 24
IN_FOLDERS = ("tokenizer.json", "tokenizer.model", "spiece.model")


def open_engine(source: str) -> Engine:
    """Build the engine that a tokenizer.json describes.

    Raises:
        TokenizerError: if the text is damaged or describes something the engine does not know.
    """
    try:
        engine = Engine.from_str(source)
        with contextlib.suppress(
            Exception
        ):  # a text that this vocabulary cannot spell; a panic is no Exception
            engine.encode("a", add_special_tokens=True)  # what frames a text is only looked up here
    except BaseException as error:  # the engine's panics are no Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise TokenizerError(
            f"tokenizer.json is damaged: {reason}.", "Copy or train the tokenizer again."
        ) from None
    engine.no_padding()
    engine.no_truncation()
    return engine


def read_source(path: Path) -> tuple[str, dict[str, Any]]:
    """Return the text of a tokenizer.json for ``path``, and the tokenizer_config.json beside it ({} if none).

    A folder is looked through for tokenizer.json, then for a SentencePiece or tiktoken file.

    Raises:
        TokenizerError: if nothing readable is there.
        CheckpointError: if it is a damaged GGUF file.
    """
    named = (path / name for name in IN_FOLDERS) if path.is_dir() else iter((path,))
    file = next((one for one in named if one.is_file()), None)
    if file is None:
        raise TokenizerError(
            f"There is no tokenizer at {path}.", "Give a folder with tokenizer.json, or the file."
        )
    if is_gguf(file):
        return read_vocabulary(read_directory(file).values)
    if file.stat().st_size > _MAX_FILE_BYTES:
        raise TokenizerError(f"{file} is larger than {_MAX_FILE_BYTES >> 20} MiB.", "That is no tokenizer.")
    data = file.read_bytes()
    beside = _read_config(file.parent)
    for is_one, read in ((is_sentencepiece, read_sentencepiece), (is_ranks, read_ranks)):
        if is_one(data):
            source, own = read(data)
            return with_added(source, beside), own | beside
    try:
        return data.decode(), beside
    except UnicodeDecodeError:
        raise TokenizerError(f"{file} is not a tokenizer.json: it is no UTF-8 text.") from None


def with_added(source: str, config: Mapping[str, Any]) -> str:
    """Add the tokens that settings name behind those of a SentencePiece or tiktoken file.

    T5's hundred sentinels stand in no file at all; its class implies them.
    """
    spec = json.loads(source)
    size = len(spec["model"]["vocab"])
    taken = {one["id"] for one in spec["added_tokens"]}
    found: dict[int, str] = {}
    if str(config.get("tokenizer_class", "")).startswith("T5"):
        count = config.get("extra_ids", 100)
        count = count if type(count) is int and 0 <= count <= 10_000 else 100
        found |= {size + n: f"<extra_id_{count - 1 - n}>" for n in range(count)}
    listed = config.get("added_tokens_decoder")
    for number, token in listed.items() if isinstance(listed, dict) else ():
        content = token.get("content") if isinstance(token, dict) else None
        if str(number).isascii() and str(number).isdigit() and len(str(number)) < 9 and content:
            found[int(number)] = str(content)
    behind = {number: token for number, token in found.items() if number >= size and number not in taken}
    if not behind:
        return source
    if sorted(behind) != list(range(size, size + len(behind))) or max(behind) >= MAX_IDS:
        raise TokenizerError(
            f"tokenizer_config.json: added_tokens_decoder leaves ids out behind the model's {size:,}.",
            "Copy the folder again.",
        )
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    spec["added_tokens"] += [
        {"id": number, "content": token, **flags, "special": True} for number, token in sorted(behind.items())
    ]
    return json.dumps(spec, ensure_ascii=False)


def _read_config(folder: Path) -> dict[str, Any]:
    """Read what a folder says about its tokenizer; older folders name special tokens in a file of their own."""
    config = _read_object(folder / "special_tokens_map.json") | _read_object(folder / "tokenizer_config.json")
    template = folder / "chat_template.jinja"
    if template.is_file():
        _refuse_large(template)
        config["chat_template"] = template.read_bytes().decode(errors="replace")
    return config


def _refuse_large(file: Path) -> None:
    if file.stat().st_size > _MAX_SETTINGS_BYTES:
        raise TokenizerError(
            f"{file} is larger than {_MAX_SETTINGS_BYTES >> 20} MiB.", "That is no settings file."
        )


def _read_object(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    _refuse_large(file)
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{file} is damaged: {error}.", "Copy the folder again.") from None
    if not isinstance(found, dict):
        raise TokenizerError(f"{file} is damaged: it holds no object.", "Copy the folder again.")
    return found


def read_roles(config: Mapping[str, Any]) -> dict[str, str]:
    """Return the special tokens that settings of a tokenizer name, by role (``eos`` …)."""
    roles = {}
    for role in ("bos", "eos", "pad", "unk", "mask", "cls", "sep"):
        token = config.get(f"{role}_token")
        if isinstance(token, dict):  # an added token written out
            token = token.get("content")
        if isinstance(token, str):
            roles[role] = token
    return roles


def read_template(config: Mapping[str, Any]) -> str | None:
    """Return the chat template that settings of a tokenizer hold; of several with names, the default one."""
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
    return found if isinstance(found, str) else None


def begins_with(spec: Mapping[str, Any], bos: str | None, said: bool | None) -> bool:
    """Say whether a text begins with the token ``bos``.

    A parsed tokenizer.json says so in its post-processor; else what its settings ``said`` counts; else only
    our own ``<|bos|>`` is put in front.
    """
    if bos is None:
        return False
    after = spec.get("post_processor") or {}
    steps = after["processors"] if after.get("type") == "Sequence" else [after]
    for step in steps:
        if step.get("type") == "TemplateProcessing":
            first = step["single"][0] if step["single"] else {}
            return bool(first.get("SpecialToken", {}).get("id") == bos)
    return bos == "<|bos|>" if said is None else said


def is_byte_level(spec: Mapping[str, Any]) -> bool:
    """Say whether tokens of a parsed tokenizer.json spell bytes, one letter each."""
    return '"type":"ByteLevel"' in json.dumps(
        [spec.get("pre_tokenizer"), spec.get("decoder")], separators=(",", ":")
    )


def kind_of(spec: Mapping[str, Any]) -> str:
    """Return which of our kinds a parsed tokenizer.json is, or is nearest to."""
    model = spec["model"]
    simple = {"WordLevel": "word", "WordPiece": "wordpiece", "Unigram": "unigram"}
    if model["type"] in simple:
        return simple[model["type"]]
    has_merges = bool(model["merges"])
    if is_byte_level(spec):
        return "byte-bpe" if has_merges else "byte"
    if has_merges:
        return "bpe"
    return "ngram" if model.get("ignore_merges") else "char"


_BYTE_OF_LETTER = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")


def token_bytes(model: Mapping[str, Any], token: str, *, spells_bytes: bool) -> bytes:
    """Return the bytes an ordinary token stands for in text.

    Args:
        model: of a parsed tokenizer.json.
        token: as the engine spells it.
        spells_bytes: what :func:`is_byte_level` says of that tokenizer.json.
    """
    if spells_bytes:
        if all(letter in _BYTE_OF_LETTER for letter in token):
            return bytes(_BYTE_OF_LETTER[letter] for letter in token)
        return token.encode()
    if model.get("byte_fallback") and (found := _BYTE_TOKEN.fullmatch(token)):
        return bytes([int(found[1], 16)])
    prefix, suffix = model.get("continuing_subword_prefix"), model.get("end_of_word_suffix")
    if prefix:
        token = token.removeprefix(prefix)
    if suffix:
        token = token.removesuffix(suffix)
    return token.replace(SPACE_MARK, " ").encode(errors="replace")
