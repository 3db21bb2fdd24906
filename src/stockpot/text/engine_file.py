"""The parts of a tokenizer.json as the engine reads it, which every kind of file and of training fills in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

__all__ = ["Json", "added_token", "bpe_model", "engine_file"]

Json: TypeAlias = dict[str, Any]


def engine_file(
    model: Json,
    *,
    added: list[Json],
    pre_tokenizer: Json | None,
    decoder: Json | None,
    normalizer: Json | None = None,
) -> Json:
    """Put the parts of a tokenizer together; it adds no tokens of its own to a text and neither cuts nor fills."""
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": decoder,
        "model": model,
    }


def bpe_model(
    vocabulary: Mapping[str, int],
    merges: Iterable[Sequence[str]],
    *,
    unk: str | None = None,
    fuse_unk: bool = False,
    byte_fallback: bool = False,
    ignore_merges: bool = False,
) -> Json:
    """Describe byte pair encoding.

    Args:
        vocabulary: token → id.
        merges: pairs of tokens, the first to be merged first.
        unk: what stands for letters that are not in the vocabulary.
        fuse_unk: one for a run of them.
        byte_fallback: their bytes instead, as tokens such as ``<0x0A>``.
        ignore_merges: a whole word that is in the vocabulary is taken as it is.
    """
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": unk,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        "ignore_merges": ignore_merges,
        "vocab": dict(vocabulary),
        "merges": [list(pair) for pair in merges],
    }


def added_token(number: int, content: str, *, special: bool = True) -> Json:
    """Describe a token that is found in text before the text is cut."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": special}
    return {"id": number, "content": content, **flags}
